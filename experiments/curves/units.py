"""Pruning runs on heads and on feed-forward units, which differ in the kind of unit alone: settings, levels, budgets.

What an event does is a `compress.plan` step, `Heads` or `Rows`; `experiments.curves.events` carries it out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from compress.address import Axis
from compress.errors import InputError
from compress.plan import Evidence, Heads, Rows
from experiments.curves.curve import Pruning
from experiments.curves.events import unit_event
from experiments.curves.evidence import Labelled, evidence
from experiments.curves.job import Job, open_model, open_pruning, prune
from experiments.curves.points import Subject
from experiments.curves.schedule import Schedule, arrange
from experiments.curves.sweep import Event
from experiments.curves.targets import Budget, parse
from jaxssl.inference.latency import Load, compile_forward, race, speedup
from jaxssl.models import cost
from jaxssl.models.arch import Arch
from jaxssl.models.model import shapes
from jaxssl.models.sites import axes
from jaxssl.runtime.cli import On, console
from jaxssl.runtime.ranges import Count, Natural

Kind = Literal["heads", "hidden"]
Measure = Literal["params", "macs"]


@dataclass(frozen=True, kw_only=True)
class UnitPruning(Pruning):
    """Settings of heads and rows."""

    keep: Natural[tuple[int, ...]] = ()
    """units to keep in each layer, one point each, falling; with --select model on average; 0 is allowed"""
    budget: Budget[tuple[str, ...]] = ()
    """instead of --keep: whole-model budgets, falling, as params=4e6, or macs=0.2e9 (per second of speech)"""
    score: Literal["l1", "l2", "activation", "gradient"] = "l1"
    """l1, l2: of the weights; activation: what a unit adds to the output, on calibration speech; gradient: of the
    training loss with respect to a gate on the unit, on --score-batches"""
    select: Literal["layer", "model"] = "layer"
    """whether the lowest of each layer go, or the lowest of the whole model"""
    protect: Natural[int] = 1
    """best units of each layer that --select model and --budget never take"""
    round: Count[int] = 1
    """keep multiples of so many columns: units of the feed-forward block, head size times heads"""
    score_batches: Count[int] = 8
    """training batches that --score gradient looks at"""
    normalise: On = True
    """divide a layer's scores by their L2 norm before layers are compared; activation scores compare as they are"""


def run_units(config: UnitPruning, kind: Kind, *, out: Path, technique: str, paper: Schedule) -> None:
    """Carry out a pruning run on one kind of units."""
    model, subject = open_model(config)
    schedule = schedule_of(config, subject.arch, kind, paper=paper)
    job = open_pruning(config, model, subject, schedule, out=out)
    notes = [_rounding_cost(config, job, kind)] if config.round > 1 else []
    label = f"{technique}, {config.score} by {'budget' if config.budget else config.select}"

    def act(subject: Subject, level: float, number: int) -> Event:
        step = step_of(config, subject.arch, kind, level, number)
        return unit_event(job, subject, step, evidence_of(config, job, subject.arch, number))

    prune(job, act, out=out, technique=technique, label=label, now=_now(subject.arch, kind), notes=notes)


def schedule_of(config: UnitPruning, arch: Arch, kind: Kind, *, paper: Schedule) -> Schedule:
    """Read off the command line when to prune and how far.

    Raises:
        InputError: more units than there are, levels that do not fall, an event after the last update, both --keep and
            --budget.
    """
    if config.keep and config.budget:
        raise InputError("--keep and --budget both say how far to prune; give one of them")
    now, most = _now(arch, kind), max((axis.size for axis in _axes(arch, kind)), default=0)
    if config.budget:
        asked: Sequence[float] = [target.value for target in parse((), (), config.budget)]
        _check_budgets(config, arch, kind, asked)
        return arrange(config, asked, now=math.inf, quick=asked, paper=paper, rising=False)
    multiple = _multiple(config, arch, kind)
    quick = list(dict.fromkeys(_rounded(now * part / 8, multiple) for part in range(7, 0, -1)))
    found = arrange(config, config.keep, now=now, quick=[k for k in quick if k < now], paper=paper, rising=False)
    levels = tuple(dict.fromkeys(_rounded(level, multiple) for level in found.levels))
    for level in levels:
        if level > most:
            raise InputError(f"{kind}: cannot keep {level:g} of {most} in a layer; keep 0 to {most}")
    return found if levels == found.levels else arrange(config, levels, now=now, quick=quick, paper=paper, rising=False)


def step_of(config: UnitPruning, arch: Arch, kind: Kind, level: float, number: int) -> Heads | Rows:
    """Say an event's pruning in the words of `compress.plan`; of a budget, what the rest of the model leaves."""
    make = Heads if kind == "heads" else Rows
    if config.budget:
        level -= _prices(arch, _axes(arch, kind), _measures(config)[number])[1]
    return make(
        level,
        score=config.score,
        select="budget" if config.budget else config.select,
        protect=config.protect,
        normalise=config.normalise,
        multiple=_multiple(config, arch, kind),
    )


def evidence_of(config: UnitPruning, job: Job, arch: Arch, number: int) -> Evidence:
    """Return what scores and budgets of an event look at, when they ask."""
    labelled = Labelled(job.data, job.training, number, config.score_batches)
    measure = _measures(config)[number] if config.budget else "params"
    return evidence(arch, job.speech, job.model.stats, labelled=labelled, measure=measure)


def _measures(config: UnitPruning) -> list[Measure]:
    """Tell what each budget is of."""
    return ["params" if target.kind == "params" else "macs" for target in parse((), (), config.budget)]


def _prices(arch: Arch, mine: Sequence[Axis], measure: Measure) -> tuple[dict[str, float], float]:
    """Return what a unit of each axis costs, and what the rest of the model takes."""
    prices = cost.unit_costs(arch, measure)
    total = cost.parameters(arch) if measure == "params" else cost.macs_per_second(arch).total
    return {a.name: prices[a.name] for a in mine}, total - sum(prices[a.name] * a.size for a in mine)


def _check_budgets(config: UnitPruning, arch: Arch, kind: Kind, budgets: Sequence[float]) -> None:
    """Refuse a budget that what must stay exceeds alone."""
    mine = _axes(arch, kind)
    for measure, budget in zip(_measures(config), budgets, strict=True):
        costs, least = _prices(arch, mine, measure)
        least += sum(costs[axis.name] * min(config.protect, axis.size) for axis in mine)
        if budget < least:
            raise InputError(f"--budget {measure}={budget:g}: what must stay takes {least:g} alone; raise it")


def _axes(arch: Arch, kind: Kind) -> list[Axis]:
    return [axis for axis in axes(arch) if axis.name.endswith(f"/{kind}")]


def _now(arch: Arch, kind: Kind) -> float:
    return float(np.mean([axis.size for axis in _axes(arch, kind)] or [0]))


def _multiple(config: UnitPruning, arch: Arch, kind: Kind) -> int:
    """Return the multiple of units that gives multiples of --round columns."""
    sizes = {layer.attention.head_dim for layer in arch.layers} if kind == "heads" else {1}
    return config.round // math.gcd(config.round, *sizes)


def _rounded(level: float, multiple: int) -> int:
    """Round to the nearest multiple, but to nothing only what is nothing."""
    return max(multiple, round(level / multiple) * multiple) if level else 0


def _rounding_cost(config: UnitPruning, job: Job, kind: Kind) -> str:
    """Time the middle level against one unit less: what a shape that is no such multiple costs on this device."""
    arch, levels = job.model.arch, job.schedule.levels
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
    def smaller(block: Any) -> Any:
        return block.resized(kind, count) if any(units.name == kind for units in block.units()) else block

    return replace(arch, layers=tuple(layer.changed(smaller) for layer in arch.layers))
