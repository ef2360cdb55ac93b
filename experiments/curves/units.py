"""Heads and feed-forward units are pruned alike: score, choose, cut, and prove that masked and slim are one model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from compress.address import Axis, Tree, flatten, unflatten
from compress.edit import cut, mask
from compress.errors import InputError
from compress.score import contribution, magnitude
from compress.select import Keep, highest, highest_overall, round_keep, within_budget
from compress.sparse import Masks
from experiments.curves.curve import Pruning
from experiments.curves.points import Subject
from experiments.curves.pruning import Job, open_model, open_pruning, prune
from experiments.curves.schedule import Schedule, plan
from experiments.curves.sweep import Event
from experiments.curves.targets import parse
from jaxssl.analysis.calibration import distance, moments
from jaxssl.analysis.saliency import context_gradient
from jaxssl.inference.latency import Load, compile_forward, race, speedup
from jaxssl.models import cost
from jaxssl.models.arch import Arch, Layer
from jaxssl.models.describe import describe
from jaxssl.models.model import shapes
from jaxssl.models.sites import axes, matrices
from jaxssl.runtime.cli import On, console
from jaxssl.training.corpus import loader, pretraining_loss

Kind = Literal["heads", "hidden"]
EQUAL = 1e-5  # largest relative difference between the masked and the slim model's output


@dataclass(frozen=True, kw_only=True)
class Units(Pruning):
    """Settings of heads and rows."""

    keep: tuple[int, ...] = ()
    """units to keep in each layer, one point each, falling; with --select model on average; 0 is allowed"""
    budget: tuple[str, ...] = ()
    """instead of --keep: whole-model budgets, falling, as params=4e6, or macs=0.2e9 (per second of speech)"""
    score: Literal["l1", "l2", "activation", "gradient"] = "l1"
    """l1, l2: of the weights; activation: what a unit adds to the output, on calibration speech; gradient: of the
    training loss with respect to a gate on the unit, on --score-batches"""
    select: Literal["layer", "model"] = "layer"
    """whether the lowest of each layer go, or the lowest of the whole model"""
    protect: int = 1
    """best units of each layer that --select model and --budget never take"""
    round: int = 1
    """keep multiples of so many columns: units of the feed-forward block, head size times heads"""
    score_batches: int = 8
    """training batches that --score gradient looks at"""
    normalise: On = True
    """divide a layer's scores by their L2 norm before layers are compared; activation scores compare as they are"""


def run_units(config: Units, kind: Kind, *, out: Path, technique: str, paper: Schedule) -> None:
    """Carry out a pruning run on one kind of units."""
    model, subject = open_model(config)
    schedule = schedule_of(config, subject.arch, kind, paper=paper)
    job = open_pruning(config, model, subject, schedule, out=out)
    notes = [_rounding_cost(job, kind)] if config.round > 1 else []
    label = f"{technique}, {config.score} by {'budget' if config.budget else config.select}"

    def act(subject: Subject, level: float, number: int) -> Event:
        return unit_event(job, subject, kind, level, number)

    prune(job, act, out=out, technique=technique, label=label, now=_now(subject.arch, kind), notes=notes)


def schedule_of(config: Units, arch: Arch, kind: Kind, *, paper: Schedule) -> Schedule:
    """Read off the command line when to prune and how far.

    Raises:
        InputError: more units than there are, levels that do not fall, an event after the last update, both --keep and
            --budget.
    """
    if config.keep and config.budget:
        raise InputError("--keep and --budget both say how far to prune; give one of them")
    if config.round < 1 or config.protect < 0 or config.score_batches < 1:
        given = f"--round {config.round}, --protect {config.protect}, --score-batches {config.score_batches}"
        raise InputError(f"{given}; give 1, 0 and 1 or more")
    now, most = _now(arch, kind), max((axis.size for axis in _axes(arch, kind)), default=0)
    if config.budget:
        asked: Sequence[float] = [target.value for target in parse((), (), config.budget)]
        _check_budgets(config, arch, kind, asked)
        return plan(config, asked, now=math.inf, quick=asked, paper=paper, rising=False)
    multiple = _multiple(config, arch, kind)
    quick = list(dict.fromkeys(_rounded(now * part / 8, multiple) for part in range(7, 0, -1)))
    found = plan(config, config.keep, now=now, quick=[k for k in quick if k < now], paper=paper, rising=False)
    levels = tuple(dict.fromkeys(_rounded(level, multiple) for level in found.levels))
    for level in levels:
        if level > most:
            raise InputError(f"{kind}: cannot keep {level:g} of {most} in a layer; keep 0 to {most}")
    return found if levels == found.levels else plan(config, levels, now=now, quick=quick, paper=paper, rising=False)


def unit_event(job: Job, subject: Subject, kind: Kind, level: float, number: int) -> Event:
    """Choose what stays, and show that the cut model computes what the masked one does.

    The event tells by axis which heads of the model before it are kept.

    Raises:
        RuntimeError: it does not.
    """
    mine = _axes(subject.arch, kind)
    keeps = choose(job, subject, mine, kind, level, number)

    def edit(tree: Tree) -> Tree:
        return reduce(lambda tree, axis: cut(tree, axis, keeps[axis.name]), mine, tree)

    masked = reduce(lambda tree, axis: mask(tree, axis, keeps[axis.name]), mine, subject.seen)
    slim = edit(subject.seen)
    one, two = (subject.arch, masked), (describe(subject.arch, slim), slim)
    error = distance(one, two, job.speech.held_out, stats=job.model.stats).relative[-1]
    if not error <= EQUAL:
        raise RuntimeError(f"{kind} at {level:g}: masked and slim model differ by {error:.1e}, more than {EQUAL:.0e}")
    counts = " ".join(str(len(keeps[axis.name])) for axis in mine)
    console.print(f"{kind} kept by layer: {counts}; slim equals masked to {error:.1e} on speech", markup=False)
    told: dict[str, Any] = {"masked_equals_slim": error}
    if kind == "heads":  # so that experiments.heads_atlas need not guess; units are too many for a line of a table
        told["kept"] = {axis.name: list(keeps[axis.name]) for axis in mine}
    return Event(_cut_masks(subject.masks, mine, keeps), edit, told)


def choose(job: Job, subject: Subject, mine: Sequence[Axis], kind: Kind, level: float, number: int) -> dict[str, Keep]:
    """Choose the units of each axis that stay."""
    config, arch = job.config, subject.arch
    assert isinstance(config, Units)
    scores = score(job, subject, mine, kind, number)
    multiple = _multiple(config, arch, kind)
    if config.budget:
        keeps = _within(config, subject, mine, scores, level, number)
        counts = {name: len(keep) // multiple * multiple or len(keep) for name, keep in keeps.items()}  # not above it
        return {name: highest(scores[name], count) for name, count in counts.items()}
    elif config.select == "model":
        drop = sum(axis.size for axis in mine) - min(round(level * len(mine)), sum(axis.size for axis in mine))
        keeps = highest_overall(_comparable(config, scores), drop, protect=config.protect)
    else:
        return {axis.name: highest(scores[axis.name], min(int(level), axis.size)) for axis in mine}
    return {name: round_keep(scores[name], len(keep), multiple) for name, keep in keeps.items()}


def score(job: Job, subject: Subject, mine: Sequence[Axis], kind: Kind, number: int) -> dict[str, np.ndarray]:
    """Score the units of each axis by the chosen measure; layers without units get an empty array."""
    config, params = job.config, subject.seen
    assert isinstance(config, Units)
    match config.score:
        case "l1":
            leaves = "*/[qkv]/*" if kind == "heads" else "*"  # the study leaves the heads' output map aside
            return {axis.name: magnitude(params, axis, leaves=leaves) for axis in mine}
        case "l2":
            return {axis.name: magnitude(params, axis, order=2) for axis in mine}
        case "activation":
            seen = moments(subject.arch, params, job.speech.calibration, stats=job.model.stats)
            maps = {matrix.path: matrix for matrix in matrices(subject.arch)}
            alive = [axis for axis in mine if axis.size]
            found = {  # a head that another layer reuses adds to the stream twice
                axis.name: reduce(np.hypot, [contribution(params, maps[p], axis, seen[p]) for p in axis.feeds])
                for axis in alive
            }
        case "gradient":
            found = _gradient(job, subject, kind, number)
    return {axis.name: found.get(axis.name, np.zeros(0)) for axis in mine}


def _gradient(job: Job, subject: Subject, kind: Kind, number: int) -> dict[str, np.ndarray]:
    """Score on training batches that depend on the event's number only, so that a resumed run draws the same."""
    config = job.config
    assert isinstance(config, Units)
    with loader(job.data, job.training) as feed:
        drawn = [feed.batch(number, i % feed.steps) for i in range(min(config.score_batches, feed.steps))]
    batches = [{name: jnp.asarray(getattr(b, name)) for name in ("inputs", "lengths", "labels", "mask")} for b in drawn]
    loss = pretraining_loss(subject.arch, job.data)
    return context_gradient(subject.arch, subject.seen, batches, loss, kind=kind, normalise=False)


def _within(
    config: Units, subject: Subject, mine: Sequence[Axis], scores: Mapping[str, np.ndarray], level: float, number: int
) -> dict[str, Keep]:
    """Keep what fits a budget for the whole model, of which the rest has its share already."""
    costs, rest = _prices(subject.arch, mine, parse((), (), config.budget)[number].kind)
    return within_budget(_comparable(config, scores), costs, level - rest, protect=config.protect)


def _prices(arch: Arch, mine: Sequence[Axis], wanted: str) -> tuple[dict[str, float], float]:
    """Return what a unit of each axis costs, and what the rest of the model takes."""
    assert wanted in ("params", "macs")
    prices = cost.unit_costs(arch, "params" if wanted == "params" else "macs")
    total = cost.parameters(arch) if wanted == "params" else cost.macs_per_second(arch).total
    return {a.name: prices[a.name] for a in mine}, total - sum(prices[a.name] * a.size for a in mine)


def _check_budgets(config: Units, arch: Arch, kind: Kind, budgets: Sequence[float]) -> None:
    """Refuse a budget that what must stay exceeds alone."""
    mine = _axes(arch, kind)
    for target, budget in zip(parse((), (), config.budget), budgets, strict=True):
        costs, least = _prices(arch, mine, target.kind)
        least += sum(costs[axis.name] * min(config.protect, axis.size) for axis in mine)
        if budget < least:
            raise InputError(f"--budget {target.kind}={budget:g}: what must stay takes {least:g} alone; raise it")


def _comparable(config: Units, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring the layers' scores to one scale, or layers with small weights would be emptied first."""
    if config.score == "activation" or not config.normalise:
        return dict(scores)
    return {name: values / (np.linalg.norm(values) + 1e-20) for name, values in scores.items()}


def _cut_masks(masks: Masks, mine: Sequence[Axis], keeps: Mapping[str, Keep]) -> Masks:
    """Cut the masks as the arrays they belong to."""
    tree = unflatten(masks)
    for axis in mine:
        leaves = tuple((path, at) for path, at in axis.leaves if path in masks)
        tree = cut(tree, replace(axis, leaves=leaves), keeps[axis.name])
    return flatten(tree)


def _axes(arch: Arch, kind: Kind) -> list[Axis]:
    return [axis for axis in axes(arch) if axis.name.endswith(f"/{kind}")]


def _now(arch: Arch, kind: Kind) -> float:
    return float(np.mean([axis.size for axis in _axes(arch, kind)] or [0]))


def _multiple(config: Units, arch: Arch, kind: Kind) -> int:
    """Return the multiple of units that gives multiples of --round columns."""
    return config.round if kind == "hidden" else config.round // math.gcd(config.round, arch.head_dim)


def _rounded(level: float, multiple: int) -> int:
    """Round to the nearest multiple, but to nothing only what is nothing."""
    return max(multiple, round(level / multiple) * multiple) if level else 0


def _rounding_cost(job: Job, kind: Kind) -> str:
    """Time the middle level against one unit less: what a shape that is no such multiple costs on this device."""
    config, arch, levels = job.config, job.model.arch, job.schedule.levels
    assert isinstance(config, Units)
    count = int(levels[len(levels) // 2])
    archs = {n: _with(arch, kind, n) for n in (count, max(count - 1, 0))}
    zeros = {n: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(each)) for n, each in archs.items()}
    load, dtype = Load(config.seconds), jnp.dtype(config.dtype)
    programs = {str(n): compile_forward(each, zeros[n], load, dtype=dtype) for n, each in archs.items()}
    timings = race(programs, rounds=config.rounds)
    round_, uneven = timings[str(count)], timings[str(max(count - 1, 0))]
    ratio = speedup(uneven, round_)
    line = (
        f"un-rounded shapes: {max(count - 1, 0)} {kind} in each layer take {ratio.median:.2f} (quartiles "
        f"{ratio.low:.2f} to {ratio.high:.2f}) of the time of {count}, a multiple of {config.round} columns; "
        f"{uneven.median * 1e3:.1f} and {round_.median * 1e3:.1f} ms, {load}"
    )
    console.print(line, markup=False)
    return line


def _with(arch: Arch, kind: Kind, count: int) -> Arch:
    def smaller(layer: Layer) -> Layer:
        return replace(layer, heads=count) if kind == "heads" else replace(layer, ffn=count)

    return replace(arch, layers=tuple(map(smaller, arch.layers)))
