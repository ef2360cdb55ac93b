"""Attention without its maps, for running a model: what a backend computes fastest."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.export import is_symbolic_dim

LONG = 512  # frames from which one head's scores at a time, which stay in the cache, are faster on CPUs


def attend(q: Array, k: Array, v: Array, valid: Array | None) -> Array:
    """Let every frame look at every valid one.

    On CPUs long utterances go head by head. Measured on two cores with AVX-512, 12 heads of 64: 750 frames take 11 ms
    instead of 26, 1500 frames 37 instead of 113, 250 frames 2.3 instead of 1.3.

    Args:
        q: (batch, time, heads, head_dim), scaled.
        k: the same.
        v: the same.
        valid: (batch, time), false where a key is padding; None: all are valid.

    Returns:
        (batch, time, heads, head_dim) float32.
    """
    time = q.shape[1]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    if is_symbolic_dim(time):  # an exported program, for lengths and devices that are not known yet
        seen = jnp.ones((q.shape[0], time), bool) if valid is None else valid
        context = jax.lax.platform_dependent(q, k, v, seen, cpu=_one_by_one, default=_at_once)
    else:
        long = time >= LONG and jax.default_backend() == "cpu"
        context = (_one_by_one if long else _at_once)(q, k, v, valid)
    return context.transpose(0, 2, 1, 3)


def _at_once(q: Array, k: Array, v: Array, valid: Array | None) -> Array:
    """Attend in all heads together, (batch, heads, time, head_dim)."""
    return _context(q, k, v, None if valid is None else valid[:, None, None])


def _one_by_one(q: Array, k: Array, v: Array, valid: Array | None) -> Array:
    """Attend in one head of one row after the other."""
    batch, heads = q.shape[:2]
    rows = [x.reshape(batch * heads, *x.shape[2:]) for x in (q, k, v)]
    seen = None if valid is None else jnp.repeat(valid, heads, axis=0)[:, None]
    context = jax.lax.map(lambda each: _context(*each), (*rows, seen))
    return context.reshape(batch, heads, *context.shape[1:])


def _context(q: Array, k: Array, v: Array, valid: Array | None) -> Array:
    """Attend over the last two axes, (…, time, head_dim); `valid` is that of keys, (…, 1, time)."""
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    if valid is not None:
        scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    context = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return context / weights.sum(-1, keepdims=True)  # after the product: (time × head_dim) numbers instead of time²
