"""The selective scan of Mamba-1 by a kernel of our own, with derivatives, in float32.

The forward pass keeps the state before each chunk alone, and only for a backward pass, which computes those within
again. Sums over channels and rows are added in one order, whatever threads there are: an update gives the same bits
again.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError
from jaxssl.runtime import native

Scanned = tuple[Array, Array, Array, Array, Array, Array]


def selective_scan(
    x: Array, step: Array, decay: Array, into: Array, out: Array, state: Array, *, chunk: int, prefix: str = "jaxssl"
) -> tuple[Array, Array]:
    """Run h(t) = exp(step(t) decay) h(t - 1) + step(t) x(t) into(t) and y(t) = h(t) · out(t).

    Args:
        x: (batch, time, inner) float32, as all that follow.
        step: the same shape.
        decay: (inner, state).
        into: (batch, time, state).
        out: (batch, time, state).
        state: h before the first frame, (batch, inner, state).
        chunk: frames whose states a backward pass has in memory together.
        prefix: of the library's kernels.

    Returns:
        y, (batch, time, inner), and the state after the last frame.

    Raises:
        InputError: the shapes do not belong together.
    """
    batch, time, inner = x.shape
    size = decay.shape[-1]
    wanted = (x.shape, x.shape, (inner, size), (batch, time, size), (batch, time, size), (batch, inner, size))
    given = tuple(each.shape for each in (x, step, decay, into, out, state))
    if given != wanted or chunk < 1:
        raise InputError(f"a scan of {given} in chunks of {chunk}; make them {wanted}, in chunks of 1 or more")
    y, last = _scan(x, step, decay.T, into, out, state.swapaxes(1, 2), chunk, prefix)  # vectors are of channels
    return y, last.swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _scan(
    x: Array, step: Array, decay: Array, into: Array, out: Array, state: Array, chunk: int, prefix: str
) -> tuple[Array, Array]:
    return _call(x, step, decay, into, out, state, chunk, prefix, 0)[:2]


def _call(
    x: Array, step: Array, decay: Array, into: Array, out: Array, state: Array, chunk: int, prefix: str, chunks: int
) -> tuple[Array, Array, Array]:
    """Scan, and return the state before each of the first chunks too, all of which are of (batch, state, inner)."""
    shapes = (x.shape, state.shape, (x.shape[0], chunks, *decay.shape))
    call = native.call(f"{prefix}_scan_float32", _floats(shapes))
    return call(x, step, decay, into, out, state, chunk=np.int64(chunk))


def _forward(
    x: Array, step: Array, decay: Array, into: Array, out: Array, state: Array, chunk: int, prefix: str
) -> tuple[tuple[Array, Array], Scanned]:
    y, last, starts = _call(x, step, decay, into, out, state, chunk, prefix, -(-x.shape[1] // chunk))
    return (y, last), (x, step, decay, into, out, starts)


def _backward(chunk: int, prefix: str, kept: Scanned, given: tuple[Array, Array]) -> tuple[Array, ...]:
    *scanned, _ = kept
    shapes = (*(each.shape for each in scanned), given[1].shape)
    call = native.call(f"{prefix}_scan_gradient_float32", _floats(shapes))
    return call(*kept, *given, chunk=np.int64(chunk))


def _floats(shapes: tuple[tuple[int, ...], ...]) -> tuple[jax.ShapeDtypeStruct, ...]:
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


_scan.defvjp(_forward, _backward)
