"""How much each unit of an axis matters, judged by its weights, or by its weights and what speech makes of them."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any

import numpy as np

from compress.address import Axis, Matrix, get
from compress.errors import InputError
from compress.lowrank import dense_kernel

BLOCK = 1 << 17  # entries whose absolute values are held at a time: few enough for a core's cache
RUN = 128  # most terms added one after the other in single precision, at worst 128 roundings of 6e-8


def magnitude(params: Mapping[str, Any], axis: Axis, *, order: int = 1, leaves: str = "*") -> np.ndarray:
    """Sum |w|^order over everything that belongs to each unit.

    With order 1 and all leaves this is the study's FFN-row score, ‖W1[i]‖₁ + |b1[i]| + ‖W2[:, i]‖₁; with
    `leaves="*/[qkv]/*"` its head score, which leaves the output map aside ("Is Smaller Always Faster?", §3).

    Of a factorised map only the side with the units counts, `up` or `down`; its norms are not the dense kernel's, so
    the ranking can differ though the function is the same. Score first and factorise then to keep the study's order.

    Args:
        params: the tree.
        axis: whose units to score.
        order: 1 for the L1 norm, 2 for the squared L2 norm.
        leaves: glob on the paths that count.

    Returns:
        Scores, (axis.size,), float64, right to 1e-5 of each.

    Raises:
        InputError: no leaf of the axis matches `leaves`.
    """
    chosen = [(path, at) for path, at in axis.leaves if fnmatchcase(path, leaves)]
    if not chosen:
        raise InputError(f"{axis.name}: '{leaves}' matches none of its {len(axis.leaves)} tensors")
    return np.sum([_per_unit(get(params, path), at, order) for path, at in chosen], axis=0)


def contribution(params: Mapping[str, Any], matrix: Matrix, axis: Axis, moment: np.ndarray) -> np.ndarray:
    """Measure what each unit adds to the output of the map that reads it, as the root of the mean square over frames.

    A unit u feeds the map with its inputs x_u and the rows W_u of its kernel; what it adds is x_u W_u, and the score is
    sqrt(E‖x_u W_u‖²) = sqrt(tr(W_uᵀ C_uu W_u)) with C = E[x xᵀ]. Scores of all layers are in the units
    of the residual stream. Whether the map is factorised makes no difference.

    Args:
        params: the tree.
        matrix: the map that the units feed, `axis.into`; each of `axis.feeds` where they are several.
        axis: whose units to score.
        moment: second moment E[x xᵀ] of the map's inputs, (fan_in, fan_in), as a calibration gives it; or of each
            unit's alone, (units, width, width).

    Returns:
        Scores, (axis.size,), float64.

    Raises:
        InputError: the units feed another map, or the moment is not finite or of another size.
    """
    _check_moment(matrix, axis, moment)
    if not axis.size:
        return np.zeros(0)
    width = matrix.fan_in // axis.size
    kernel = dense_kernel(params, matrix).reshape(axis.size, width, matrix.fan_out)
    at, blocks = np.arange(axis.size), moment
    if moment.ndim == 2:
        blocks = moment.reshape(axis.size, width, axis.size, width)[at, :, at]
    power = np.einsum("uij,uij->u", kernel @ kernel.transpose(0, 2, 1), blocks.astype(np.float64))
    return np.sqrt(np.maximum(power, 0))


def contributions(
    params: Mapping[str, Any], axes: Sequence[Axis], matrices: Sequence[Matrix], moments: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Score the units of several axes by what they add to the output, by axis; axes without units are left out.

    A unit that feeds several maps, as a head that another layer reuses, adds to the stream in each of them.

    Args:
        params: the tree.
        axes: whose units to score.
        matrices: the tree's maps.
        moments: second moments of the maps' inputs, or of each unit's alone, by path.
    """
    maps = {matrix.path: matrix for matrix in matrices}
    return {
        axis.name: reduce(np.hypot, [contribution(params, maps[path], axis, moments[path]) for path in axis.feeds])
        for axis in axes
        if axis.size
    }


def _per_unit(array: Any, at: int, order: int) -> np.ndarray:
    """Sum |w|^order over all axes but `at`, block by block: one pass through memory, partial sums in double."""
    array = np.asarray(array)
    array = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    size, after = array.shape[at], math.prod(array.shape[at + 1 :])
    array = array.reshape(math.prod(array.shape[:at]), size, after)
    units = min(max(BLOCK // max(after, 1), 1), max(size, 1))
    before = min(max(BLOCK // max(units * after, 1), 1), RUN)
    total = np.zeros(size)
    for u in range(0, size, units):
        for b in range(0, len(array), before):
            block = np.abs(array[b : b + before, u : u + units])
            total[u : u + units] += (block if order == 1 else block**order).sum(0).sum(1)
    return total


def _check_moment(matrix: Matrix, axis: Axis, moment: np.ndarray) -> None:
    if matrix.path not in axis.feeds:
        fed = " and ".join(f"'{path}'" for path in axis.feeds)
        raise InputError(f"{axis.name}: its units feed {fed}, not {matrix.path}; give that map and its moment")
    width = matrix.fan_in // max(axis.size, 1)
    if moment.shape not in ((matrix.fan_in, matrix.fan_in), (axis.size, width, width)):
        raise InputError(f"{matrix.path}: the inputs' moment is {moment.shape}, the map has {matrix.fan_in} inputs")
    if not np.isfinite(moment).all():
        raise InputError(f"{matrix.path}: the inputs' moment is not finite; is the calibration speech?")
