"""Dense maps that keep only their non-empty square blocks, so that the product can leave the others out.

A map's kernel is seen as a matrix, (fan_in, fan_out), axes of heads flattened. Packed, `kernel` becomes

    blocks  (columns, kept, size, size)  the blocks that each column of blocks keeps; column c gives outputs
                                         c · size … (c + 1) · size
    index   (columns, kept) int32        which blocks of inputs these are, ascending

Every column keeps as many, so that a product is one batched product of equal parts; a column that has fewer non-empty
blocks is filled up with empty ones. unpack(pack(p)) == p, for any kernel.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from compress.address import Matrix, Tree, get, put
from compress.errors import InputError
from compress.quantize import check_float


def pack(params: Mapping[str, Any], matrix: Matrix, size: int) -> Tree:
    """Store a dense map as its non-empty blocks of `size` × `size`; the bias stays.

    The greatest number of non-empty blocks in any column is what every column keeps, at least 1. What is kept is kept
    bit for bit; zeros of either sign are empty.

    Raises:
        InputError: the map is empty, factorised, int8 or packed already, or `size` does not divide inputs and outputs.
    """
    view = _view(params, matrix, size)
    filled = (view != 0).any((2, 3))
    index = _first(filled, max(int(filled.sum(1).max()), 1))
    blocks = np.take_along_axis(view, index[:, :, None, None], 1)
    return _replace(params, matrix, jax.device_put({"blocks": blocks, "index": index.astype(np.int32)}))


def unpack(params: Mapping[str, Any], matrix: Matrix) -> Tree:
    """Put a packed map's blocks back into a dense kernel of shape `matrix.shape`, zero elsewhere.

    Raises:
        InputError: the map is not packed as `matrix` says.
    """
    return _replace(params, matrix, {"kernel": jax.device_put(unpacked_kernel(params, matrix).reshape(matrix.shape))})


def unpacked_kernel(params: Mapping[str, Any], matrix: Matrix) -> np.ndarray:
    """Return a packed map's kernel, (fan_in, fan_out), in the dtype of its blocks.

    Raises:
        InputError: the map is not packed as `matrix` says.
    """
    if matrix.blocks is None:
        raise InputError(f"{matrix.path}: not packed, so there is nothing to unpack; read the maps off this tree again")
    size, kept = matrix.blocks
    columns, rows = matrix.fan_out // size, matrix.fan_in // size
    blocks = _array(params, f"{matrix.path}/blocks", (columns, kept, size, size))
    index = _array(params, f"{matrix.path}/index", (columns, kept))
    if (np.diff(index) <= 0).any() or index.min() < 0 or index.max() >= rows:
        raise InputError(f"{matrix.path}/index: not ascending numbers of 0 … {rows - 1}; the arrays are damaged")
    view = np.zeros((columns, rows, size, size), blocks.dtype)
    np.put_along_axis(view, index[:, :, None, None], blocks, 1)
    return view.transpose(1, 2, 0, 3).reshape(matrix.fan_in, matrix.fan_out)


def kept_blocks(params: Mapping[str, Any], matrix: Matrix, size: int) -> int:
    """Count the blocks that each column would keep, packed; errors as `pack`."""
    filled = (_view(params, matrix, size) != 0).any((2, 3))
    return max(int(filled.sum(1).max()), 1)


def occupancy(params: Mapping[str, Any], matrix: Matrix, size: int) -> float:
    """Return the share of a dense map's blocks that packing would keep; errors as `pack`."""
    return kept_blocks(params, matrix, size) * size / matrix.fan_in


def _view(params: Mapping[str, Any], matrix: Matrix, size: int) -> np.ndarray:
    """See a kernel as (columns, rows, size, size)."""
    ins, outs = matrix.fan_in, matrix.fan_out
    _check(matrix, size)
    kernel = _array(params, f"{matrix.path}/kernel", matrix.shape)
    return kernel.reshape(ins // size, size, outs // size, size).transpose(2, 0, 1, 3)


def _first(filled: np.ndarray, kept: int) -> np.ndarray:
    """Take `kept` rows of each column of `filled: (columns, rows)`: the non-empty, then empty ones; ascending."""
    return np.sort(np.argsort(~filled, axis=1, kind="stable")[:, :kept], axis=1)


def _check(matrix: Matrix, size: int) -> None:
    path, ins, outs = matrix.path, matrix.fan_in, matrix.fan_out
    if matrix.rank is not None:
        raise InputError(f"{path}: factorised (rank {matrix.rank}), not a dense kernel; pack only dense maps")
    if matrix.blocks is not None:
        raise InputError(f"{path}: packed already, in blocks of {matrix.blocks[0]}; unpack it first")
    if not ins * outs:
        raise InputError(f"{path}: {ins} × {outs} is empty; there is nothing to pack")
    if size < 1 or ins % size or outs % size:
        raise InputError(f"{path}: blocks of {size} do not divide {ins} × {outs}; use a size that divides both")


def _replace(params: Mapping[str, Any], matrix: Matrix, weights: Tree) -> Tree:
    stays = {k: v for k, v in get(params, matrix.path).items() if k not in ("kernel", "blocks", "index")}
    return put(params, matrix.path, {**weights, **stays})


def _array(params: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> np.ndarray:
    array = check_float(path, np.asarray(get(params, path)))
    if array.shape != shape:
        raise InputError(f"{path}: shape {array.shape}, expected {shape}; read the maps off this tree again")
    return array
