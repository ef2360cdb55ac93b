"""A plan: compression steps as plain values, run in order by one `match`.

A step says everything about itself: how far, where, by which score, whether it chooses in each layer or over the whole
model, whether ranks are for weights or for what speech makes of them. What a step needs beyond the tree, for `compress`
knows no model and hears no speech, is handed in as functions: `Sites` where a tree can be compressed, `Evidence` what
speech, a loss or a price list say of its parts.

`run` makes smaller arrays, `simulate` the same model in the shapes it has: for every model function f of ours,
f(simulate(plan, p)) == f(run(plan, p)), where no step chooses anew among what an earlier one left. Who cuts more than
parameters, as Adam's moments, asks `keeps` or `masks` what a step leaves and cuts by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from compress.address import Axis, Matrix, Tree, get, match
from compress.depth import keep_layers
from compress.edit import cut, mask
from compress.errors import InputError
from compress.lowrank import WEIGHTS, Decomposition, check_rank, decompose_maps, factorise_maps, truncate
from compress.score import magnitude
from compress.select import Keep, highest, highest_overall, round_keep, within_budget
from compress.sparse import Masks, apply_masks, block_masks, entry_masks, n_of_m_masks

Score = Literal["l1", "l2", "activation", "gradient"]
Select = Literal["layer", "model", "budget"]
Pattern = Literal["entries", "groups", "blocks"]
Way = Literal["mean", "convolution", "merge", "fire"]


@dataclass(frozen=True)
class LowRank:
    """Factorise the maps that `where` matches at `rank`; those that would grow stay as they are.

    Attributes:
        where: glob on paths of maps, as `layers/*/ffn/*`.
        rank: of each of them.
        aware: whether the error of their outputs on speech is least, instead of the weights'.
    """

    where: str
    rank: int
    aware: bool = False


@dataclass(frozen=True)
class Slim:
    """Keep the best units of one kind in the layers that `where` matches: `Heads` or `Rows`.

    Attributes:
        keep: how many stay in each layer, all of one that has fewer; on average with "model"; with "budget" what all of
            them together may cost.
        where: glob on names of axes, as `layers/3/*`.
        score: l1, l2: of the weights; activation: what a unit adds to the output, on speech; gradient: of a loss with
            respect to a gate on the unit.
        select: "layer", the best of each layer; "model", the best of all layers together; "budget", what fits, the
            best for their cost first.
        protect: best units of each layer that "model" and "budget" never take.
        normalise: divide a layer's scores by their L2 norm before layers are compared, or those with small weights
            would be emptied first; scores by activation compare as they are.
        multiple: of which "model" and "budget" keep multiples, where there are as many.
    """

    kind: ClassVar[str]  # last part of the axes' names
    leaves: ClassVar[str] = "*"  # glob on the arrays that L1 is of

    keep: float
    where: str = "layers/*"
    score: Score = "l1"
    select: Select = "layer"
    protect: int = 1
    normalise: bool = True
    multiple: int = 1


@dataclass(frozen=True)
class Heads(Slim):
    """Keep the best attention heads; L1 is of q, k and v, for the study leaves the heads' output map aside."""

    kind = "heads"
    leaves = "*/[qkv]/*"


@dataclass(frozen=True)
class Rows(Slim):
    """Keep the best feed-forward units."""

    kind = "hidden"


@dataclass(frozen=True)
class Weights:
    """Zero the share `sparsity` of the smallest weights of the maps that `where` matches.

    Attributes:
        sparsity: of what is pruned, above 0 and below 1.
        where: glob on paths of maps.
        pattern: entries: any weight; groups: of every `size` inputs the same number goes; blocks: squares of
            `size` × `size`, equally many for each column of blocks.
        size: of a group or a block.
        select: of entries: "model", one threshold for all maps together, or "layer", one for each layer.
        biases: of entries: prune biases as well.
    """

    sparsity: float
    where: str = "layers/*"
    pattern: Pattern = "entries"
    size: int = 1
    select: Literal["model", "layer"] = "model"
    biases: bool = True


@dataclass(frozen=True)
class Layers:
    """Keep the numbered layers."""

    keep: tuple[int, ...]


@dataclass(frozen=True)
class Shorter:
    """Let layers hear fewer frames: of `ratio` of them one is left.

    A model's arrays do not tell which frames it hears, so `run` cannot do it; for ours `jaxssl.models.shorten.by_step`
    does.

    Attributes:
        ratio: frames that become one, a whole number but of "merge" and "fire".
        at: number of the layer before which; None: behind the front end.
        way: mean: of each group of `ratio` frames; convolution: a learned map of it, which begins as the mean; merge:
            neighbours whose keys are most alike become one, as many as the ratio asks for; fire: by weights that are
            learned, and equal at first.
    """

    ratio: float
    at: int | None = None
    way: Way = "mean"


Step = LowRank | Heads | Rows | Weights | Layers | Shorter
UNHEARD = "ratio: arrays do not tell which frames a model hears; shorten the model itself, then run the other steps"


@dataclass(frozen=True)
class Sites:
    """Where a tree, as it is now, can be compressed."""

    axes: tuple[Axis, ...]
    matrices: tuple[Matrix, ...]


def _unscored(tree: Tree, score: Score, axes: Sequence[Axis]) -> Mapping[str, np.ndarray]:
    raise InputError(f"{score}: weights do not tell this score; give `evidence` with scores, or choose l1 or l2")


def _undecomposed(tree: Tree, matrices: Sequence[Matrix]) -> Mapping[str, Decomposition]:
    raise InputError("ranks that are aware of speech need `evidence` with decompositions; or leave `aware` out")


def _unpriced(tree: Tree) -> Mapping[str, float]:
    raise InputError("budget: weights do not tell what a unit costs; give `evidence` with costs")


@dataclass(frozen=True)
class Evidence:
    """What steps ask that no weights tell; each function is called when a step asks, with the tree as it is by then.

    Attributes:
        scores: of the units of some axes by activation or gradient, by axis; one that it leaves out has no units.
        decompositions: activation-aware, of some maps, by path.
        costs: of one unit of each axis, by axis.
    """

    scores: Callable[[Tree, Score, Sequence[Axis]], Mapping[str, np.ndarray]] = _unscored
    decompositions: Callable[[Tree, Sequence[Matrix]], Mapping[str, Decomposition]] = _undecomposed
    costs: Callable[[Tree], Mapping[str, float]] = _unpriced


WEIGHTS_ALONE = Evidence()


def run(
    plan: Sequence[Step],
    params: Mapping[str, Any],
    *,
    sites: Callable[[Tree], Sites],
    evidence: Evidence = WEIGHTS_ALONE,
) -> Tree:
    """Apply the steps in order.

    run(a + b, p) == run(b, run(a, p)), and run((), p) == p.

    Args:
        plan: the steps.
        params: the tree; it stays as it is.
        sites: reads the axes and maps off a tree; asked anew before every step, since steps change shapes.
        evidence: what scores by activation or gradient, aware ranks and budgets need.

    Raises:
        InputError: a step asks for what is not there.
    """
    tree: Tree = dict(params)
    for step in plan:
        at = sites(tree)
        match step:
            case LowRank():
                tree = factorise_maps(tree, decompositions(step, tree, at, evidence), step.rank)
            case Heads() | Rows():
                stays = keeps(step, tree, at, evidence)
                for axis in axes_of(step, at):
                    tree = cut(tree, axis, stays[axis.name])
            case Weights():
                tree = apply_masks(tree, masks(step, tree, at))
            case Layers(keep):
                tree = keep_layers(tree, keep)
            case Shorter():
                raise InputError(UNHEARD)
    return tree


def simulate(plan: Sequence[Step], params: Mapping[str, Any], *, at: Sites, evidence: Evidence = WEIGHTS_ALONE) -> Tree:
    """Let a model run as the steps would make it, in the shapes it has, which one compiled program runs.

    Arguments and errors as `run`, but for `at`, which holds for all steps; layers cannot be left out so.
    """
    tree: Tree = dict(params)
    for step in plan:
        match step:
            case LowRank():
                for found in decompositions(step, tree, at, evidence).values():
                    tree = truncate(tree, found, step.rank)
            case Heads() | Rows():
                stays = keeps(step, tree, at, evidence)
                for axis in axes_of(step, at):
                    tree = mask(tree, axis, stays[axis.name])
            case Weights():
                tree = apply_masks(tree, masks(step, tree, at))
            case Layers():
                raise InputError("layers: a stack has another shape without some; run the plan, do not simulate it")
            case Shorter():
                raise InputError(UNHEARD)
    return tree


def match_paths(where: str, matrices: Sequence[Matrix]) -> tuple[str, ...]:
    """Select the maps that have weights at all by a glob on their paths; errors as `compress.address.match`."""
    return match(where, [matrix.path for matrix in matrices if matrix.max_rank])


def decompositions(
    step: LowRank, tree: Mapping[str, Any], at: Sites, evidence: Evidence = WEIGHTS_ALONE
) -> Mapping[str, Decomposition]:
    """Decompose the maps that a step makes smaller, by path.

    Raises:
        InputError: the rank is impossible for every map that `where` matches.
    """
    paths = match_paths(step.where, at.matrices)
    chosen = [matrix for matrix in at.matrices if matrix.path in paths]
    check_rank(max(chosen, key=lambda matrix: matrix.max_rank), step.rank)
    paying = [matrix for matrix in chosen if matrix.pays(step.rank)]
    if step.aware and paying:
        return evidence.decompositions(dict(tree), paying)
    return decompose_maps(tree, paying)


def axes_of(step: Slim, at: Sites) -> list[Axis]:
    """List the axes whose units a step chooses from; errors as `compress.address.match`."""
    mine = [axis for axis in at.axes if axis.name.endswith(f"/{step.kind}")]
    names = match(step.where, [axis.name for axis in mine])
    return [axis for axis in mine if axis.name in names]


def scores(step: Slim, tree: Mapping[str, Any], at: Sites, evidence: Evidence = WEIGHTS_ALONE) -> dict[str, np.ndarray]:
    """Score the units that a step chooses from, by axis, (units,)."""
    mine = axes_of(step, at)
    match step.score:
        case "l1":
            return {axis.name: magnitude(tree, axis, leaves=step.leaves) for axis in mine}
        case "l2":
            return {axis.name: magnitude(tree, axis, order=2) for axis in mine}
        case "activation" | "gradient":
            found = evidence.scores(dict(tree), step.score, mine)
            return {axis.name: found.get(axis.name, np.zeros(0)) for axis in mine}


def keeps(step: Slim, tree: Mapping[str, Any], at: Sites, evidence: Evidence = WEIGHTS_ALONE) -> dict[str, Keep]:
    """Choose the units that stay, by axis.

    Raises:
        InputError: more are to stay in each layer than any has, or a budget is below what is protected.
    """
    mine = axes_of(step, at)
    if step.select == "layer":
        _check_keep(step, mine)
        found = scores(step, tree, at, evidence)
        return {name: highest(values, min(int(step.keep), len(values))) for name, values in found.items()}
    found = scores(step, tree, at, evidence)
    if step.select == "model":
        total = sum(axis.size for axis in mine)
        drop = total - min(round(step.keep * len(mine)), total)
        stay = highest_overall(_comparable(step, found), drop, protect=step.protect)
        return {name: round_keep(found[name], len(keep), step.multiple) for name, keep in stay.items()}
    stay = within_budget(_comparable(step, found), evidence.costs(dict(tree)), step.keep, protect=step.protect)
    counts = {name: len(keep) // step.multiple * step.multiple or len(keep) for name, keep in stay.items()}  # not above
    return {name: highest(found[name], count) for name, count in counts.items()}


def pruned_arrays(step: Weights, tree: Mapping[str, Any], at: Sites) -> tuple[tuple[str, ...], ...]:
    """List the arrays that a step prunes, those that share a threshold together."""
    if step.pattern != "entries":
        paths = match_paths(step.where, at.matrices)
        return tuple((f"{path}/{name}",) for path in paths for name in _weights(tree, path))
    together: dict[str, list[str]] = {}
    has_bias = {matrix.path: matrix.bias for matrix in at.matrices}
    for path in match(step.where, list(has_bias)):
        names = [*_weights(tree, path), *(["bias"] if step.biases and has_bias[path] else [])]
        layer = "/".join(path.split("/")[:2]) if step.select == "layer" else ""
        together.setdefault(layer, []).extend(f"{path}/{name}" for name in names)
    return tuple(map(tuple, together.values()))


def masks(step: Weights, tree: Mapping[str, Any], at: Sites, *, before: Masks | None = None) -> Masks:
    """Choose the entries that stay, by array; what `before` drops stays dropped.

    Raises:
        InputError: the sparsity is no share, or the pattern's size does not suit it or the maps.
    """
    if step.pattern == "entries":
        return entry_masks(tree, pruned_arrays(step, tree, at), step.sparsity, before=before)
    paths = match_paths(step.where, at.matrices)
    chosen = [matrix for matrix in at.matrices if matrix.path in paths]
    if step.pattern == "blocks":
        return block_masks(tree, chosen, step.sparsity, step.size, before=before)
    gone = step.sparsity * step.size
    if not 0 < round(gone) < step.size or abs(gone - round(gone)) > 1e-9:
        raise InputError(
            f"sparsity {step.sparsity:g} takes {gone:g} of every {step.size}; it must be a whole number of them"
        )
    return n_of_m_masks(tree, chosen, step.size - round(gone), step.size, before=before)


def _weights(tree: Mapping[str, Any], path: str) -> list[str]:
    """Name a map's arrays without the bias."""
    there = get(tree, path)
    return [name for name in WEIGHTS if name in there]


def _check_keep(step: Slim, mine: Sequence[Axis]) -> None:
    largest = max(mine, key=lambda axis: axis.size)
    if not 0 <= step.keep <= largest.size:
        raise InputError(f"{largest.name}: cannot keep {step.keep:g} of {largest.size}; keep 0 to {largest.size}")


def _comparable(step: Slim, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring the layers' scores to one scale."""
    if step.score == "activation" or not step.normalise:
        return dict(found)
    return {name: values / (np.linalg.norm(values) + 1e-20) for name, values in found.items()}
