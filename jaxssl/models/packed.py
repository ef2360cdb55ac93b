"""Weights packed for our kernels, and what runs on them: dense maps and strided convolutions.

A prepared model has them where `jaxssl.models.choice.packs` says so. They are packed for float32 or for bfloat16, and a
model runs in that only.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from compress.address import Matrix
from compress.errors import InputError
from jaxssl.models import choice
from jaxssl.models.part import Arrays
from jaxssl.runtime import native


def packs(matrix: Matrix) -> bool:
    """Tell whether a prepared model has the weights of a dense map packed: not one in blocks, nor one without units."""
    return matrix.blocks is None and matrix.max_rank > 0 and choice.packs(int8=matrix.int8)


def packed_map(arrays: Arrays, matrix: Matrix, dtype: Any) -> Arrays:
    """Return the arrays of a dense map with its weights packed, where our kernels take them."""
    if not packs(matrix):
        return arrays
    inputs = {"kernel": matrix.fan_in, "down": matrix.fan_in, "up": matrix.rank}
    weights = {name: arrays[name].reshape(inputs[name], -1) for name in inputs if name in arrays}
    return {**arrays, **{name: _pack(each, int8=matrix.int8, dtype=dtype) for name, each in weights.items()}}


def packed_convolution(kernel: Array, *, dtype: Any) -> Array:
    """Pack a kernel, (taps, in, out), in int8 or not, for windows of taps × in numbers."""
    return _pack(kernel.reshape(-1, kernel.shape[-1]), int8=kernel.dtype == jnp.int8, dtype=dtype)


def convolved(
    x: Array,
    packed: Array,
    scale: Array | None,
    bias: Array,
    *,
    taps: int,
    stride: int,
    activation: native.Activation,
) -> Array:
    """Convolve `x: (batch, time, in)` without padding, to (batch, fewer, outputs), and apply an activation.

    Args:
        x: inputs.
        packed: as `packed_convolution` lays a kernel out.
        scale: (outputs,) of a kernel in int8; None: it is none.
        bias: (outputs,).
        taps: frames that a window has.
        stride: frames from one window to the next.
        activation: what comes last.
    """
    batch, time, inputs = x.shape
    rows = max((time - taps) // stride + 1, 0)
    flat, step = x.reshape(batch, time * inputs), stride * inputs
    if scale is None:
        check_dtype(packed, x.dtype)
        return native.windows(flat, packed, bias[None], rows=rows, stride=step, activation=activation)
    given = flat, packed, scale, bias
    return native.windows_int8(*given, inputs=taps * inputs, rows=rows, stride=step, activation=activation)


def multiplied(x: Array, kernels: Array, bias: Array, activation: native.Activation) -> Array:
    """Multiply each row of `x: (batch, time, in)` by a kernel of its own, (batch, in, out), packed as it runs."""
    batch, time, inputs = x.shape
    packed, flat = native.pack(kernels, x.dtype), x.reshape(batch, -1)
    return native.windows(flat, packed, bias, rows=time, stride=inputs, activation=activation)


def check_dtype(packed: Array, dtype: Any) -> None:
    """Refuse weights that are packed for another dtype.

    Raises:
        InputError: they are.
    """
    kinds = {"uint16": "bfloat16", "int16": "bfloat16", "float32": "float32"}
    made = kinds.get(packed.dtype.name)
    if made is not None and made != jnp.dtype(dtype).name:
        raise InputError(f"a model prepared for {made} runs in {jnp.dtype(dtype).name}; prepare it with that dtype")


@partial(jax.jit, static_argnames=("int8", "dtype"))
def _pack(kernel: Array, *, int8: bool, dtype: Any) -> Array:
    if int8:
        return native.pack_int8(kernel)
    kernel = kernel.astype(jnp.float32)
    return native.pack_int16(kernel) if choice.whole(dtype) else native.pack(kernel, dtype)
