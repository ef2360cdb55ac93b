"""Dense maps in int8: every output channel on a grid of 255 steps of its own; and whole trees in bfloat16.

With s = max |w| / 127 over a channel's inputs, 1 for a channel that is all zero, `kernel` becomes

    kernel        int8, w / s rounded to nearest, of two equally near to the even one: −127 … 127
    kernel_scale  (*out,) float32, s

and a factorised map two of that kind, `down` with `down_scale: (rank,)` and `up` with `up_scale: (*out,)`. Biases
stay. No weight moves by more than s / 2, and simulate(p) == dequantize(quantize(p)). Quantisation comes last: int8 maps
are not cut, factorised, packed or trained.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.address import Matrix, Tree, flatten, get, put, unflatten
from compress.errors import InputError

STEPS = 127  # on each side of zero; −128 is left out, so that w and −w are rounded alike
SCALES = ("kernel_scale", "down_scale", "up_scale")
TINY = float(jnp.finfo(jnp.float32).tiny)  # what is smaller is taken for zero by many processors


@partial(jax.jit, static_argnums=1)
def rounded(array: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Round to int8 with one scale for all entries along `axes`: array ≈ values · scale, off by scale / 2 at most.

    The scale is float32 and has the shape of `array` without `axes`; it is 1 where all entries are zero, and not finite
    where one of them is not.
    """
    wide = array.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=axes, keepdims=True, initial=0.0) / STEPS
    scale = jnp.where(scale < TINY, 1.0, scale)  # asked so that NaN stays
    return jnp.round(wide / scale).astype(jnp.int8), jnp.squeeze(scale, axes)


def quantize(params: Mapping[str, Any], matrix: Matrix) -> Tree:
    """Store a map's weights as int8 with a scale for each output channel; the bias stays.

    Raises:
        InputError: the map is packed or int8 already, its arrays are not as `matrix` says, or a weight is not finite.
    """
    if matrix.blocks is not None:
        raise InputError(f"{matrix.path}: packed, in blocks of {matrix.blocks[0]}, not int8 as well; unpack it first")
    if matrix.int8:
        raise InputError(f"{matrix.path}: int8 already, not to be rounded twice; dequantize first (compress.quantize)")
    weights: Tree = dict(get(params, matrix.path))
    for name, inputs, shape in _weights(matrix):
        path = f"{matrix.path}/{name}"
        array = check_float(path, _array(params, path, shape))
        if bad := int(np.sum(~np.isfinite(array.astype(np.float32)))):
            raise InputError(f"{path}: {bad} of {array.size} weights are not finite, which int8 cannot be")
        weights[name], weights[f"{name}_scale"] = rounded(jax.device_put(array), tuple(range(inputs)))
    return put(params, matrix.path, weights)


def dequantize(params: Mapping[str, Any], matrix: Matrix) -> Tree:
    """Store an int8 map's weights as float32 again; they are the rounded ones.

    Raises:
        InputError: the map is not int8, or its arrays are not as `matrix` says.
    """
    if not matrix.int8:
        raise InputError(f"{matrix.path}: not int8, nothing to dequantize; read the maps off this tree again")
    weights = {name: leaf for name, leaf in get(params, matrix.path).items() if name not in SCALES}
    for name, inputs, shape in _weights(matrix):
        path = f"{matrix.path}/{name}"
        values, scale = _array(params, path, shape), _array(params, f"{path}_scale", shape[inputs:])
        if values.dtype != np.int8:
            raise InputError(f"{path}: {values.dtype}, expected int8; read the maps off this tree again")
        weights[name] = jax.device_put(values.astype(np.float32) * scale)
    return put(params, matrix.path, weights)


def simulate(params: Mapping[str, Any], matrix: Matrix) -> Tree:
    """Round a map's weights to what int8 holds, in float32 and the same shapes; errors as `quantize`."""
    return dequantize(quantize(params, matrix), replace(matrix, int8=True))


def bfloat16(params: Mapping[str, Any]) -> Tree:
    """Store all floating arrays as bfloat16, in half the bytes; a weight moves by 1 part in 256 at most.

    The scales of int8 maps stay float32: they are few, and rounding one would move a whole channel.
    """
    flat = flatten(params).items()
    return unflatten({path: leaf if path.endswith(SCALES) else _cast(leaf, jnp.bfloat16) for path, leaf in flat})


def float32(params: Mapping[str, Any]) -> Tree:
    """Store all arrays that are bfloat16 as float32, which loses nothing; the others stay as they are."""
    return jax.tree.map(lambda leaf: _cast(leaf, jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf, dict(params))


def check_float(path: str, array: Any) -> Any:
    """Return an array of weights.

    Raises:
        InputError: it is int8, and its numbers mean nothing without their scales.
    """
    if array.dtype == np.int8:
        raise InputError(f"{path}: int8, numbers without their scales; dequantize first (compress.quantize)")
    return array


def _cast(leaf: Any, dtype: Any) -> Any:
    return jnp.asarray(leaf).astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _weights(matrix: Matrix) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """List a map's arrays of weights: name, how many leading axes are inputs, shape."""
    ins, outs = matrix.shape[: matrix.inputs], matrix.shape[matrix.inputs :]
    if matrix.rank is None:
        yield "kernel", matrix.inputs, matrix.shape
    else:
        yield "down", matrix.inputs, (*ins, matrix.rank)
        yield "up", 1, (matrix.rank, *outs)


def _array(params: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(get(params, path))
    if array.shape != shape:
        raise InputError(f"{path}: shape {array.shape}, expected {shape}; read the maps off this tree again")
    return array
