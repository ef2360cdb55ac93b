"""Remove units of an axis: `cut` makes the arrays smaller, `mask` zeroes the same entries in place.

For every model function f of ours, f(cut(p, axis, keep)) == f(mask(p, axis, keep)). Both work on any tree with the
same paths, so an optimiser's moments are cut with the parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.address import Axis, Tree, get, numbered, numbers, put
from compress.errors import InputError


def cut(tree: Mapping[str, Any], axis: Axis, keep: Sequence[int]) -> Tree:
    """Leave only the units `keep` of an axis in every tensor that has it.

    A tensor whose name lists its units (`compress.address.numbered`) is called after those that stay.

    cut(cut(t, a, k1), a', k2) == cut(t, a, k1[k2]), and cut(t, a, all) == t.

    Args:
        tree: parameters, or anything with their paths.
        axis: as declared for this tree; its size must be the tree's.
        keep: ascending indices of the units that stay; none is allowed.

    Raises:
        InputError: an index is no integer, out of range, repeated or out of order, or a tensor is not as the axis
            says.
    """
    indices = _checked(axis, keep)

    def take(array: Any, at: int) -> Any:
        library, array = _at_hand(array)
        return jax.device_put(library.take(array, indices, axis=at))

    def called(path: str) -> str:
        units = numbers(path)
        return path if units is None else numbered(path.partition("@")[0], (units[i] for i in indices))

    return _over(tree, axis, take, called)


def mask(tree: Mapping[str, Any], axis: Axis, keep: Sequence[int]) -> Tree:
    """Zero all units of an axis but `keep`; shapes stay. Arguments and errors as `cut`."""
    stays = np.isin(np.arange(axis.size), _checked(axis, keep))

    def zero(array: Any, at: int) -> Any:
        wide = stays.reshape([-1 if i == at else 1 for i in range(array.ndim)])
        library, array = _at_hand(array)
        return jax.device_put(library.where(wide, array, library.zeros_like(array)))

    return _over(tree, axis, zero)


def _at_hand(array: Any) -> tuple[Any, Any]:
    """Return NumPy and an array of it where the numbers are at hand: JAX would compile a program for every shape.

    So it does in `jnp.asarray` of such an array, but not in `jax.device_put`.
    """
    if isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True):
        return jnp, array
    return np, np.asarray(array)


def _checked(axis: Axis, keep: Sequence[int]) -> np.ndarray:
    indices = np.asarray(keep).reshape(-1)
    if indices.size and indices.dtype.kind not in "iu":  # a cast would read [False, True] as units 0 and 1
        raise InputError(f"{axis.name}: keep takes indices, not {indices.dtype}; np.flatnonzero turns a mask into them")
    indices = indices.astype(np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= axis.size):
        raise InputError(f"{axis.name}: index {indices.max()} or {indices.min()} is outside 0 … {axis.size - 1}")
    if (np.diff(indices) <= 0).any():
        raise InputError(f"{axis.name}: the {indices.size} indices to keep must ascend without repeats")
    return indices


def _over(
    tree: Mapping[str, Any],
    axis: Axis,
    edit: Callable[[Any, int], Any],
    called: Callable[[str], str] = lambda path: path,
) -> Tree:
    edited: Tree = dict(tree)
    for path, at in axis.leaves:
        array = get(tree, path)
        shape = getattr(array, "shape", ())
        if shape[at : at + 1] != (axis.size,):
            raise InputError(f"{path}: axis {at} of shape {shape} is not the {axis.size} units of {axis.name}")
        edited = put(_without(edited, path) if called(path) != path else edited, called(path), edit(array, at))
    return edited


def _without(tree: Mapping[str, Any], path: str) -> Tree:
    """Return the tree without what is at a path."""
    key, _, rest = path.partition("/")
    if not rest:
        return {name: value for name, value in tree.items() if name != key}
    return {**tree, key: _without(tree[key], rest)}
