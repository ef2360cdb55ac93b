"""The selective scan of Mamba-1 (Gu and Dao 2023): a linear recurrence whose coefficients follow from its input."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.export import is_symbolic_dim

from jaxssl.runtime.native import scan

CHUNK = 64  # frames whose states are in memory together; the others are computed again in the backward pass


def selective_scan(
    x: Array,
    step: Array,
    decay: Array,
    into: Array,
    out: Array,
    state: Array | None = None,
    *,
    way: Literal["native", "XLA"] = "XLA",
) -> tuple[Array, Array]:
    """Run h(t) = exp(step(t) decay) h(t - 1) + step(t) x(t) into(t) and y(t) = h(t) · out(t), in float32.

    Frame by frame, in chunks: the backward pass keeps the state before each chunk, and computes those within again. A
    frame whose step is 0 leaves the state as it is.

    Args:
        x: (batch, time, inner).
        step: how far the state moves at each frame, not negative, (batch, time, inner).
        decay: A, negative, (inner, state).
        into: B, (batch, time, state).
        out: C, (batch, time, state).
        state: h before the first frame, (batch, inner, state); None: zeros.
        way: by our kernel, which has first derivatives, or a loop that XLA compiles, as for lengths not known yet.

    Returns:
        y, (batch, time, inner), and the state after the last frame.
    """
    rows, frames, inner = x.shape
    if state is None:
        state = jnp.zeros((rows, inner, decay.shape[1]), jnp.float32)
    if way == "native" and not (is_symbolic_dim(rows) or is_symbolic_dim(frames)):
        given = (each.astype(jnp.float32) for each in (x, step, decay, into, out, state))
        return scan.selective_scan(*given, chunk=CHUNK)
    size = CHUNK if is_symbolic_dim(frames) else min(CHUNK, max(frames, 1))  # a stream's chunks may be short
    chunks = -(-frames // size)

    def split(each: Array) -> Array:
        each = jnp.pad(each.astype(jnp.float32), ((0, 0), (0, chunks * size - frames), (0, 0)))  # steps of 0
        return each.reshape(rows, chunks, size, each.shape[-1]).transpose(1, 2, 0, 3)

    def move(h: Array, each: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        x, step, into, out = each  # (batch, …)
        h = jnp.exp(step[..., None] * decay[None]) * h + (step * x)[..., None] * into[:, None, :]
        return h, (h * out[:, None, :]).sum(-1)

    def run(h: Array, each: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        return jax.lax.scan(move, h, each)  # (chunk, batch, …)

    last, y = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), state, tuple(map(split, (x, step, into, out))))
    return y.transpose(2, 0, 1, 3).reshape(rows, chunks * size, inner)[:, :frames], last
