"""A plan: compression steps as plain values, run in order by one `match`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.address import Axis, Matrix, Tree, get, match
from compress.depth import keep_layers
from compress.edit import cut
from compress.errors import InputError
from compress.lowrank import check_rank, decompose_maps, factorise_maps
from compress.score import magnitude
from compress.select import highest
from compress.sparse import apply_masks, entry_masks


@dataclass(frozen=True)
class LowRank:
    """Factorise the maps that `where` matches at `rank`; those that would grow stay as they are."""

    where: str
    rank: int


@dataclass(frozen=True)
class Heads:
    """Keep the `keep` heads of greatest L1 norm of q, k and v in every layer that `where` matches."""

    keep: int
    where: str = "layers/*"


@dataclass(frozen=True)
class Rows:
    """Keep the `keep` feed-forward units of greatest L1 norm in every layer that `where` matches."""

    keep: int
    where: str = "layers/*"


@dataclass(frozen=True)
class Weights:
    """Zero the share `sparsity` of smallest weights and biases, over all maps that `where` matches together."""

    sparsity: float
    where: str = "layers/*"


@dataclass(frozen=True)
class Layers:
    """Keep the numbered layers."""

    keep: tuple[int, ...]


Step = LowRank | Heads | Rows | Weights | Layers


@dataclass(frozen=True)
class Sites:
    """Where a tree, as it is now, can be compressed."""

    axes: tuple[Axis, ...]
    matrices: tuple[Matrix, ...]


def run(plan: Sequence[Step], params: Mapping[str, Any], *, sites: Callable[[Tree], Sites]) -> Tree:
    """Apply the steps in order.

    run(a + b, p) == run(b, run(a, p)), and run((), p) == p.

    Args:
        plan: the steps.
        params: the tree; it stays as it is.
        sites: reads the axes and maps off a tree; asked anew before every step, since steps change shapes.

    Raises:
        InputError: a step asks for what is not there.
    """
    tree: Tree = dict(params)
    for step in plan:
        tree = _apply(step, tree, sites(tree))
    return tree


def _apply(step: Step, tree: Tree, at: Sites) -> Tree:
    match step:
        case LowRank(where, rank):
            return _factorise(tree, at.matrices, where, rank)
        case Heads(keep, where):
            return _prune(tree, at.axes, "heads", where, keep, "*/[qkv]/*")
        case Rows(keep, where):
            return _prune(tree, at.axes, "hidden", where, keep, "*")
        case Weights(sparsity, where):
            return _sparsify(tree, at.matrices, where, sparsity)
        case Layers(keep):
            return keep_layers(tree, keep)


def _factorise(tree: Tree, matrices: Sequence[Matrix], where: str, rank: int) -> Tree:
    paths = match_paths(where, matrices)
    chosen = [matrix for matrix in matrices if matrix.path in paths]
    for matrix in chosen:
        check_rank(matrix, rank)
    return factorise_maps(tree, decompose_maps(tree, [m for m in chosen if m.pays(rank)]), rank)


def _sparsify(tree: Tree, matrices: Sequence[Matrix], where: str, sparsity: float) -> Tree:
    arrays = [f"{path}/{name}" for path in match_paths(where, matrices) for name in get(tree, path)]
    return apply_masks(tree, entry_masks(tree, (arrays,), sparsity))


def match_paths(where: str, matrices: Sequence[Matrix]) -> tuple[str, ...]:
    """Select the maps that have weights at all by a glob on their paths; errors as `compress.address.match`."""
    return match(where, [matrix.path for matrix in matrices if matrix.max_rank])


def _prune(tree: Tree, axes: Sequence[Axis], kind: str, where: str, keep: int, leaves: str) -> Tree:
    chosen = [axis for axis in axes if axis.name.endswith(f"/{kind}")]
    names = match(where, [axis.name for axis in chosen])
    for axis in (axis for axis in chosen if axis.name in names):
        if not 0 <= keep <= axis.size:
            raise InputError(f"{axis.name}: cannot keep {keep} of {axis.size}; keep 0 to {axis.size}")
        tree = cut(tree, axis, highest(magnitude(tree, axis, leaves=leaves), keep))
    return tree
