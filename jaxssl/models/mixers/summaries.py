"""Means over frames in time linear in their number: over all, over a window, or less the further away they are."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxssl.models.held import Memory, joined

FAR = 2**30  # frames, beyond every utterance; more would not add up in 32 bits


def summaries(s: Array, valid: Array | None, *, decay: float = 1.0, window: tuple[int, ...] = ()) -> Array:
    """Average what frames say, for every frame; padded frames are in neither sum.

    At frame t, sum over u of w(t, u) s(u), divided by the sum of w(t, u), over valid u: w is decay^|t - u|, within the
    window.

    Args:
        s: (batch, time, units).
        valid: (batch, time), true where a frame counts; None: all.
        decay: above 0, at most 1.
        window: frames to the left and to the right; (): all.

    Returns:
        (batch, time, units), in the dtype of `s`; 0 where no frame counts. Sums are taken in float32.
    """
    counts = jnp.ones(s.shape[:2], jnp.float32) if valid is None else valid.astype(jnp.float32)
    counted = jnp.where(counts[..., None] > 0, s.astype(jnp.float32), jnp.zeros(s.shape, jnp.float32))
    if window:
        left, right = (min(side, FAR) for side in window)
        total, count = _windowed(counted, left, right), _windowed(counts[..., None], left, right)
    elif decay < 1:
        total, count = _decaying(counted, decay), _decaying(counts[..., None], decay)
    else:
        total, count = counted.sum(1, keepdims=True), counts.sum(1)[:, None, None]
    mean = total / jnp.where(count > 0, count, jnp.ones_like(count))
    return jnp.broadcast_to(mean, s.shape).astype(s.dtype)


def running(s: Array, valid: Array, memory: Memory, *, window: tuple[int, ...]) -> tuple[Array, Memory]:
    """Average what frames of a stream say, for those that are `right` before those of `s`, as `summaries` does.

    Args:
        s: (batch, frames, units).
        valid: (batch, frames).
        memory: `total` (batch, units) and `count` (batch, 1) where the window begins with the stream; else `summary`
            (batch, left + right, units) and `valid` (batch, left + right), where there are any.
        window: left and right.

    Returns:
        (batch, frames, units), and the memory.
    """
    counts = valid[..., None].astype(jnp.float32)
    counted = jnp.where(valid[..., None], s.astype(jnp.float32), jnp.zeros(s.shape, jnp.float32))
    if window[0] >= FAR:
        total = memory["total"][:, None] + jnp.cumsum(counted, axis=1)
        count = memory["count"][:, None] + jnp.cumsum(counts, axis=1)
        held = {"total": total[:, -1], "count": count[:, -1]}
    else:
        whole, held = joined(memory, "summary", counted)
        seen, also = joined(memory, "valid", valid)
        held, wide = {**held, **also}, sum(window) + 1
        total, count = _ending(whole, wide), _ending(seen[..., None].astype(jnp.float32), wide)
    mean = total / jnp.where(count > 0, count, jnp.ones_like(count))
    return mean.astype(s.dtype), held


def _ending(x: Array, wide: int) -> Array:
    """Sum `x: (batch, time, units)` over every `wide` frames that there are, by differences of sums."""
    sums = jnp.cumsum(jnp.pad(x, ((0, 0), (1, 0), (0, 0))), axis=1)
    return sums[:, wide:] - sums[:, : sums.shape[1] - wide]


def _windowed(x: Array, left: int, right: int) -> Array:
    """Sum `x: (batch, time, units)` from `left` frames before each to `right` after it, by differences of sums."""
    frames = x.shape[1]
    sums = jnp.cumsum(jnp.pad(x, ((0, 0), (1, 0), (0, 0))), axis=1)
    at = jnp.arange(frames)
    first, last = jnp.maximum(at - left, 0), jnp.minimum(at + right, frames - 1) + 1
    return jnp.take(sums, last, axis=1) - jnp.take(sums, first, axis=1)


def _decaying(x: Array, decay: float) -> Array:
    """Sum `x: (batch, time, units)` with weights decay^|t - u|: running sums both ways, the frame itself once."""

    def step(before: tuple[Array, Array], after: tuple[Array, Array]) -> tuple[Array, Array]:
        return before[0] * after[0], after[0] * before[1] + after[1]

    shares = jnp.full((1, x.shape[1], 1), decay, x.dtype)
    _, past = jax.lax.associative_scan(step, (shares, x), axis=1)
    _, future = jax.lax.associative_scan(step, (shares, x), axis=1, reverse=True)
    return past + future - x
