"""Kernels of our own that have derivatives, for training: attention with dropout, dense maps, convolutions.

Attention keeps nothing of (time, time): its backward pass makes a few frames' scores again, and drops again what was
dropped, by the hash of `jaxssl.models.bits`. Weights of dense maps change with every update, so that products pack them
as they come: of 3000 frames in 256 numbers each, packing is a hundredth of the work. Sums are float32 in bfloat16 too,
and their order depends on neither threads nor time, so that an update gives the same bits again.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxssl.runtime import native

DTYPES = (jnp.float32, jnp.bfloat16)
Cotangents = tuple[Array | None, ...]


def attention(
    q: Array,
    k: Array,
    v: Array,
    valid: Array | None,
    *,
    rate: float = 0.0,
    keys: Array | None = None,
    together: bool = False,
    prefix: str = "jaxssl",
) -> Array:
    """Attend as `jaxssl.models.attend` does, in float32 or bfloat16, with derivatives.

    Args:
        q: (batch, time, heads, head_dim), scaled.
        k: the same.
        v: the same.
        valid: (batch, time), false where a key is padding, which is at the end; None: all are valid.
        rate: of dropout.
        keys: (batch × heads, 2) uint32, the words of each head's key of dropout; None without any.
        together: whether entries are numbered through all heads, instead of in each one anew.
        prefix: of the library's kernels.

    Returns:
        (batch, time, heads, head_dim), in the dtype of `v`.
    """
    batch, time, heads, _ = q.shape
    lengths = jnp.full(batch, time, jnp.int32) if valid is None else valid.sum(1, dtype=jnp.int32)
    words = jnp.zeros((batch * heads, 2), jnp.uint32) if keys is None else keys
    return _attend(q, k, v, lengths, words, 0.0 if keys is None else rate, together, prefix)


def has(dtype: jnp.dtype, inputs: int, outputs: int) -> bool:
    """Tell whether there are products of numbers of that kind, of which two of bfloat16 always go together."""
    return dtype in DTYPES and inputs % 2 == outputs % 2 == 0 and inputs * outputs > 0


def linear(x: Array, kernel: Array, bias: Array, *, prefix: str = "jaxssl") -> Array:
    """Return x · kernel + bias, with derivatives.

    Args:
        x: (rows, inputs), float32 or bfloat16, an even number of inputs.
        kernel: (inputs, outputs) float32, an even number of outputs.
        bias: (outputs,) float32.
        prefix: of the library's kernels.

    Returns:
        (rows, outputs) in the dtype of `x`.
    """
    return _convolve(x[None], kernel[None], bias, 1, prefix)[0]


def convolution(x: Array, kernel: Array, bias: Array, *, stride: int, prefix: str = "jaxssl") -> Array:
    """Convolve over time, without padding, with derivatives.

    Args:
        x: (batch, time, inputs), float32 or bfloat16, an even number of inputs.
        kernel: (taps, inputs, outputs) float32, an even number of outputs.
        bias: (outputs,) float32.
        stride: frames from one window to the next.
        prefix: of the library's kernels.

    Returns:
        (batch, fewer, outputs) in the dtype of `x`.
    """
    return _convolve(x, kernel, bias, stride, prefix)


def later(x: Array, first: Array, *, prefix: str = "jaxssl") -> Array:
    """Return x, which nothing that comes of it precedes `first`, nor is it what was made of x elsewhere.

    XLA's CPU compiler takes its own barriers away, and then what was to be computed again for a thing already known.
    """
    result = jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = jax.ffi.ffi_call(f"{prefix}_later", result, input_output_aliases={0: 0}, vmap_method="sequential")
    return call(x, first)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attend(
    q: Array, k: Array, v: Array, lengths: Array, words: Array, rate: float, together: bool, prefix: str
) -> Array:
    call = native.call(f"{prefix}_attention_{q.dtype}", jax.ShapeDtypeStruct(q.shape, q.dtype))
    return call(q, k, v, lengths, words, **drop(rate, together))


def _attend_forward(
    q: Array, k: Array, v: Array, lengths: Array, words: Array, rate: float, together: bool, prefix: str
) -> tuple[Array, tuple[Array, ...]]:
    return _attend(q, k, v, lengths, words, rate, together, prefix), (q, k, v, lengths, words)


def _attend_backward(rate: float, together: bool, prefix: str, kept: tuple[Array, ...], given: Array) -> Cotangents:
    q = kept[0]
    call = native.call(f"{prefix}_attention_gradient_{q.dtype}", (jax.ShapeDtypeStruct(q.shape, q.dtype),) * 3)
    return (*call(*kept, given, **drop(rate, together)), None, None)


def drop(rate: float, together: bool) -> dict[str, np.generic]:
    """Return what kernels are told of dropout, besides keys."""
    threshold, scale = math.floor(rate * 2**32), 1 / (1 - rate)
    return {"threshold": np.int64(threshold), "scale": np.float32(scale), "together": np.bool_(together)}


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _convolve(x: Array, kernel: Array, bias: Array, stride: int, prefix: str) -> Array:
    rows = max((x.shape[1] - kernel.shape[0]) // stride + 1, 0)
    shape = jax.ShapeDtypeStruct((x.shape[0], rows, bias.size), x.dtype)
    return native.call(f"{prefix}_convolution_{x.dtype}", shape)(x, kernel, bias, stride=np.int64(stride))


def _convolve_forward(
    x: Array, kernel: Array, bias: Array, stride: int, prefix: str
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, bias, stride, prefix), (x, kernel)


def _convolve_backward(stride: int, prefix: str, kept: tuple[Array, Array], given: Array) -> Cotangents:
    x, kernel = kept
    shapes = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (kernel.shape, kernel.shape[2:]))
    step = np.int64(stride)
    to_x = native.call(f"{prefix}_frames_gradient_{x.dtype}", jax.ShapeDtypeStruct(x.shape, x.dtype))
    to_weights = native.call(f"{prefix}_kernel_gradient_{x.dtype}", shapes)
    return (to_x(given, kernel, stride=step), *to_weights(x, given, stride=step))


_attend.defvjp(_attend_forward, _attend_backward)
_convolve.defvjp(_convolve_forward, _convolve_backward)
