"""The options that a plan chooses from: what each block of a model may become, and what each of these ways costs.

An option is a step of `compress.plan` on one block of one layer. `simulate` hears it in the model's shapes, `realise`
builds it, both from what `know` found out once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from compress import plan
from compress.address import Axis, Matrix, Tree
from compress.lowrank import Decomposition, decompose
from compress.plan import Evidence, Heads, Layers, LowRank, Rows, Score, Step
from compress.score import contributions
from experiments.curves.evidence import sites_below, sites_of
from experiments.curves.job import Job
from experiments.curves.points import Bench, Subject
from jaxssl.analysis.calibration import moments
from jaxssl.inference.latency import compile_forward, race
from jaxssl.models.arch import Arch, Layer, Rank
from jaxssl.models.describe import describe
from jaxssl.models.model import Params, shapes
from jaxssl.models.part import formed
from jaxssl.models.sites import axes, matrices
from jaxssl.runtime.cli import follow, progress
from jaxssl.runtime.spread import collect, spread

Block = Literal["attention", "ffn"]
Option = Heads | Rows | LowRank
SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8, 0.0)  # of heads or units that an option keeps
RANKS = (3 / 8, 1 / 4, 3 / 16, 1 / 8)  # of the width
FAMILIES = ("layers", "heads", "rows", "heads and rows", "rank")  # of uniform plans


@dataclass(frozen=True)
class Group:
    """A block of a layer and its options, the first the block as it is, with all its heads or units."""

    layer: int
    block: Block
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Known:
    """What is found out once about a model: scores of units and decompositions of maps, by name.

    No option changes what is known of another block, so that it holds for every plan of options.
    """

    scores: Mapping[str, np.ndarray]
    maps: Mapping[str, Decomposition]

    @property
    def evidence(self) -> Evidence:
        """The same, as steps ask for it."""

        def scores(tree: Tree, score: Score, mine: Sequence[Axis]) -> dict[str, np.ndarray]:
            return {axis.name: self.scores[axis.name] for axis in mine}

        def maps(tree: Tree, chosen: Sequence[Matrix]) -> dict[str, Decomposition]:
            return {matrix.path: self.maps[matrix.path] for matrix in chosen}

        return Evidence(scores, maps)


def keeping(block: Block, count: float, layer: int | str) -> Heads | Rows:
    """Say that a block of a layer, or of all with "*", keeps its best units by what they add on speech."""
    make = Heads if block == "attention" else Rows
    return make(count, where=_where(block, layer), score="activation")


def factorised(block: Block, rank: int, layer: int | str) -> LowRank:
    """Say that the maps of a block of a layer, or of all with "*", have a rank, by what they hear."""
    return LowRank(_where(block, layer), rank, aware=True)


def groups_of(arch: Arch) -> tuple[Group, ...]:
    """List the blocks that have units of their own, and their options: shares of the units, and maps of low rank."""
    groups = []
    for i, layer in enumerate(arch.layers):
        blocks: tuple[tuple[Block, int, int], ...]
        blocks = (("attention", layer.heads, 1), ("ffn", layer.ffn.size, 64 if layer.ffn.size >= 512 else 1))
        for block, units, unit in blocks:
            if not units or (block == "attention" and _shares_heads(arch, i)):
                continue
            counts = dict.fromkeys([units, *(max(round(units * share / unit) * unit, 0) for share in SHARES)])
            options: list[Option] = [keeping(block, count, i) for count in counts]
            ranks = dict.fromkeys(max(round(arch.width * share), 1) for share in RANKS)
            options += [factorised(block, r, i) for r in ranks if _pays(arch, i, block, r)]
            groups.append(Group(i, block, tuple(options)))
    return tuple(groups)


def know(job: Job) -> Known:
    """Score units by what they add on speech, and decompose maps by what they hear."""
    subject = job.subject
    with progress("listening", len(job.speech.calibration)) as tick:
        seen = moments(subject.arch, subject.seen, job.speech.calibration, stats=job.model.stats, tick=tick)
    maps = [matrix for matrix in matrices(subject.arch) if matrix.path in seen]
    lone = [axis for axis in axes(subject.arch) if len(axis.feeds) == 1]
    scores = contributions(subject.seen, lone, maps, seen)
    inner = [matrix for matrix in maps if matrix.path.startswith("layers/")]
    params = subject.seen
    with (
        progress("decomposing", len(inner)) as tick,
        spread(lambda matrix: decompose(params, matrix, seen[matrix.path]), inner) as found,
    ):
        return Known(scores, {each.matrix.path: each for each in collect(found, tick)})


def simulate(params: Params, arch: Arch, options: Sequence[Option], known: Known) -> Params:
    """Let a model run as with some options, in its present shapes."""
    return plan.simulate(options, params, at=sites_of(arch), evidence=known.evidence)


def realise(subject: Subject, steps: Sequence[Step], known: Known) -> Subject:
    """Build the model of the options: smaller arrays."""
    params = plan.run(steps, subject.seen, sites=sites_below(subject.arch), evidence=known.evidence)
    return Subject(describe(subject.arch, params), params, {})


def latency(arch: Arch, groups: Sequence[Group], bench: Bench) -> tuple[list[np.ndarray], float, float]:
    """Measure what options cost: all layers with one option, in turns with the dense model, shared among the layers.

    Returns:
        Seconds of each option above its block's fastest, by group; seconds of the model with every block at its
        fastest; seconds of the dense model.
    """
    everywhere = dict.fromkeys(_everywhere(group, option) for group in groups for option in group.options[1:])
    depth = len(arch.layers)
    archs = {"dense": arch} | {str(o): with_option(arch, block, o, range(depth)) for block, o in everywhere}
    programs = {
        name: compile_forward(each, _zeros(each), bench.load, dtype=bench.dtype)
        for name, each in follow(archs.items(), "compiling options", total=len(archs))
    }
    with progress("timing options", bench.rounds + 2) as tick:
        timings = race(programs, rounds=bench.rounds, tick=tick)
    dense = np.array(timings["dense"].seconds)
    saved = {key: float(np.median(dense - np.array(timings[str(key[1])].seconds))) / depth for key in everywhere}
    rows = [np.array([0.0, *(saved[_everywhere(group, option)] for option in group.options[1:])]) for group in groups]
    middle = float(np.median(dense))
    return [row.max() - row for row in rows], middle - sum(float(row.max()) for row in rows), middle


def uniform_plans(subject: Subject, family: str, known: Known) -> Sequence[Subject]:
    """List the uniform plans of a kind, the largest first."""
    arch, groups = subject.arch, groups_of(subject.arch)
    if family == "layers":
        depths = range(len(arch.layers) - 1, 0, -1)
        return [realise(subject, [Layers(tuple(range(count)))], known) for count in depths]
    if family == "rank":
        ranks = [max(round(arch.width * part / 16), 1) for part in range(12, 0, -1)]
        return [
            realise(subject, [factorised(g.block, r, g.layer) for g in groups], known)
            for r in ranks
            if all(_pays(arch, g.layer, g.block, r) for g in groups)
        ]
    wanted = {"heads": ("attention",), "rows": ("ffn",), "heads and rows": ("attention", "ffn")}[family]
    shares = [part / 32 for part in range(31, -1, -1)]  # fine, for fair rivals

    def units(group: Group, share: float) -> Option:
        full = _units(arch.layers[group.layer], group.block)
        return keeping(group.block, math.floor(full * share) if group.block in wanted else full, group.layer)

    plans = [[units(group, share) for group in groups] for share in shares]
    distinct = [plan for i, plan in enumerate(plans) if plan not in plans[:i]]
    return [realise(subject, plan, known) for plan in distinct]


def with_option(arch: Arch, block: Block, option: Option, layers: Sequence[int]) -> Arch:
    """Return the arch with an option in some layers."""
    found = list(arch.layers)
    for i in layers:
        found[i] = _optioned(found[i], block, option)
    return replace(arch, layers=tuple(found))


def _optioned(layer: Layer, block: Block, option: Option) -> Layer:
    match option:
        case Heads(keep):
            return replace(layer, mixer=layer.mixer.resized("heads", int(keep)))
        case Rows(keep):
            return replace(layer, ffn=layer.ffn.resized("hidden", int(keep)))
        case LowRank(_, rank) if block == "attention":
            return replace(layer, mixer=formed(layer.mixer, Rank(rank)))
        case LowRank(_, rank):
            return replace(layer, ffn=formed(layer.ffn, Rank(rank)))


def _units(layer: Layer, block: Block) -> int:
    return layer.heads if block == "attention" else layer.ffn.size


def _everywhere(group: Group, option: Option) -> tuple[Block, Option]:
    """Return an option as it is for all layers."""
    return group.block, replace(option, where=_where(group.block, "*"))


def _where(block: Block, layer: int | str) -> str:
    return f"layers/{layer}/{block}/*"


def _shares_heads(arch: Arch, index: int) -> bool:
    """Tell whether a layer's attention maps are another's too; such heads stay as they are."""
    return any(layer.mixer.carries for layer in arch.layers[index : index + 2])


def _pays(arch: Arch, layer: int, block: Block, rank: int) -> bool:
    """Tell whether a rank makes every map of a block smaller."""
    return all(m.pays(rank) for m in matrices(arch) if m.path.startswith(f"layers/{layer}/{block}/"))


def _zeros(arch: Arch) -> Params:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(arch))
