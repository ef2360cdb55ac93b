"""The options that a plan chooses from: what each block of a model may become, simulated, built, judged and timed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from compress.address import Axis, Matrix, Tree
from compress.depth import keep_layers
from compress.edit import cut, mask
from compress.lowrank import Decomposition, decompose_maps, factorise_maps, truncate
from compress.score import contribution
from compress.select import highest
from experiments.curves.points import Bench, Subject
from experiments.curves.pruning import Job
from jaxssl.analysis.calibration import moments
from jaxssl.inference.latency import compile_forward, race
from jaxssl.models.arch import Arch, Layer
from jaxssl.models.describe import describe
from jaxssl.models.model import Params, shapes
from jaxssl.models.sites import axes, matrices
from jaxssl.runtime.cli import follow, progress

Block = Literal["attention", "ffn"]
SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8, 0.0)  # of heads or units that an option keeps
RANKS = (3 / 8, 1 / 4, 3 / 16, 1 / 8)  # of the width
FAMILIES = ("layers", "heads", "rows", "heads and rows", "rank")  # of uniform plans


@dataclass(frozen=True)
class Option:
    """One way to run a block: so many heads or units, or maps of a rank; the block as it is has its full number."""

    kind: Literal["units", "rank"]
    value: int


@dataclass(frozen=True)
class Group:
    """A block of a layer and its options, the first the block as it is."""

    layer: int
    block: Block
    options: tuple[Option, ...]

    @property
    def axis(self) -> str:
        """Name of the axis whose units it keeps."""
        return f"layers/{self.layer}/{'attention/heads' if self.block == 'attention' else 'ffn/hidden'}"


@dataclass(frozen=True)
class Known:
    """What the search knows of a model: scores of units and decompositions of maps, by name."""

    axes: Mapping[str, Axis]
    scores: Mapping[str, np.ndarray]
    maps: Mapping[str, Decomposition]


def groups_of(arch: Arch) -> tuple[Group, ...]:
    """List the blocks that have units of their own, and their options: shares of the units, and maps of low rank."""
    groups = []
    for i, layer in enumerate(arch.layers):
        for block, units, unit in (("attention", layer.heads, 1), ("ffn", layer.ffn, 64 if layer.ffn >= 512 else 1)):
            if not units or (block == "attention" and _shares_heads(arch, i)):
                continue
            counts = dict.fromkeys([units, *(max(round(units * share / unit) * unit, 0) for share in SHARES)])
            options = [Option("units", count) for count in counts]
            ranks = dict.fromkeys(max(round(arch.width * share), 1) for share in RANKS)
            name: Any = block
            options += [Option("rank", r) for r in ranks if all(m.pays(r) for m in _maps(arch, i, name))]
            groups.append(Group(i, name, tuple(options)))
    return tuple(groups)


def know(job: Job) -> Known:
    """Score units by what they add on speech, and decompose maps by what they hear."""
    subject = job.subject
    seen = moments(subject.arch, subject.seen, job.speech.calibration, stats=job.model.stats)
    maps = {matrix.path: matrix for matrix in matrices(subject.arch) if matrix.path in seen}
    found = {axis.name: axis for axis in axes(subject.arch) if axis.size}
    scores = {
        name: contribution(subject.seen, maps[axis.into], axis, seen[axis.into])
        for name, axis in found.items()
        if len(axis.feeds) == 1
    }
    inner = [matrix for path, matrix in maps.items() if path.startswith("layers/")]
    bar = follow(inner, "decomposing", total=len(inner))
    return Known(found, scores, decompose_maps(subject.seen, bar, seen))


def simulate(params: Params, group: Group, option: Option, known: Known) -> Params:
    """Let a model run as with an option, in its present shapes."""
    if option.kind == "units":
        axis = known.axes[group.axis]
        return mask(params, axis, highest(known.scores[axis.name], option.value))
    for path in _paths(group):
        params = truncate(params, known.maps[path], option.value)
    return params


def realise(subject: Subject, picked: Sequence[tuple[Group, Option]], known: Known) -> Subject:
    """Build the model of the options: smaller arrays."""
    params: Tree = subject.seen
    for group, option in picked:
        if option.kind == "units":
            axis = known.axes[group.axis]
            params = cut(params, axis, highest(known.scores[axis.name], option.value))
        else:
            params = factorise_maps(params, {path: known.maps[path] for path in _paths(group)}, option.value)
    return Subject(describe(subject.arch, params), params, {})


def latency(arch: Arch, groups: Sequence[Group], bench: Bench) -> tuple[list[np.ndarray], float, float]:
    """Measure what options cost: all layers with one option, in turns with the dense model, shared among the layers.

    Returns:
        Seconds of each option above its block's fastest, by group; seconds of the model with every block at its
        fastest; seconds of the dense model.
    """
    kinds = dict.fromkeys((group.block, option) for group in groups for option in group.options[1:])
    archs = {"dense": arch} | {str(kind): _everywhere(arch, *kind) for kind in kinds}
    programs = {
        name: compile_forward(each, _zeros(each), bench.load, dtype=bench.dtype)
        for name, each in follow(archs.items(), "compiling options", total=len(archs))
    }
    with progress("timing options", bench.rounds + 2) as tick:
        timings = race(programs, rounds=bench.rounds, tick=tick)
    dense = np.array(timings["dense"].seconds)
    saved = {kind: float(np.median(dense - np.array(timings[str(kind)].seconds))) / len(arch.layers) for kind in kinds}
    rows = [np.array([0.0, *(saved[group.block, option] for option in group.options[1:])]) for group in groups]
    middle = float(np.median(dense))
    return [row.max() - row for row in rows], middle - sum(float(row.max()) for row in rows), middle


def uniform_plans(subject: Subject, family: str, known: Known) -> Sequence[Subject]:
    """List the uniform plans of a kind, the largest first."""
    arch, groups = subject.arch, groups_of(subject.arch)
    if family == "layers":
        trees = [keep_layers(subject.seen, range(count)) for count in range(len(arch.layers) - 1, 0, -1)]
        return [Subject(describe(arch, tree), tree, {}) for tree in trees]
    if family == "rank":
        ranks = [max(round(arch.width * part / 16), 1) for part in range(12, 0, -1)]
        return [
            realise(subject, [(g, Option("rank", r)) for g in groups], known)
            for r in ranks
            if all(m.pays(r) for g in groups for m in _maps(arch, g.layer, g.block))
        ]
    wanted = {"heads": ("attention",), "rows": ("ffn",), "heads and rows": ("attention", "ffn")}[family]
    shares = [part / 32 for part in range(31, -1, -1)]  # fine, for fair rivals

    def units(group: Group, share: float) -> Option:
        full = group.options[0].value
        return Option("units", math.floor(full * share)) if group.block in wanted else group.options[0]

    plans = [[(group, units(group, share)) for group in groups] for share in shares]
    distinct = [plan for i, plan in enumerate(plans) if plan not in plans[:i]]
    return [realise(subject, plan, known) for plan in distinct]


def with_option(arch: Arch, index: int, block: Block, option: Option) -> Arch:
    """Return the arch with an option in one layer."""
    layers = list(arch.layers)
    layers[index] = _optioned(layers[index], block, option)
    return replace(arch, layers=tuple(layers))


def _shares_heads(arch: Arch, index: int) -> bool:
    """Tell whether a layer's attention maps are another's too; such heads stay as they are."""
    return any(layer.reuse for layer in arch.layers[index : index + 2])


def _maps(arch: Arch, layer: int, block: Block) -> list[Matrix]:
    return [m for m in matrices(arch) if m.path.startswith(f"layers/{layer}/{block}/")]


def _paths(group: Group) -> tuple[str, ...]:
    names = ("q", "k", "v", "out") if group.block == "attention" else ("fc1", "fc2")
    return tuple(f"layers/{group.layer}/{group.block}/{name}" for name in names)


def _optioned(layer: Layer, block: Block, option: Option) -> Layer:
    if option.kind == "units":
        return replace(layer, heads=option.value) if block == "attention" else replace(layer, ffn=option.value)
    names = ("q", "k", "v", "out") if block == "attention" else ("fc1", "fc2")
    return replace(layer, ranks=replace(layer.ranks, **dict.fromkeys(names, option.value)))


def _everywhere(arch: Arch, block: Block, option: Option) -> Arch:
    return replace(arch, layers=tuple(_optioned(layer, block, option) for layer in arch.layers))


def _zeros(arch: Arch) -> Params:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(arch))
