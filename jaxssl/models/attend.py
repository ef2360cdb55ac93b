"""Attention without its maps: what a backend computes fastest, in running and in training a model."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.export import is_symbolic_dim

from jaxssl.models import choice
from jaxssl.models.bits import kept, words
from jaxssl.runtime import native
from jaxssl.runtime.native import gradients

Added = tuple[Array, Array]
Context = tuple[int | None, int | None]  # frames before and after a query that it may see; None: all
Way = Callable[..., Array]


def attend(
    q: Array,
    k: Array,
    v: Array,
    valid: Array | None,
    *,
    rate: float = 0.0,
    key: Array | None = None,
    prepared: bool = False,
    learning: bool = False,
    added: Added | None = None,
    context: Context = (None, None),
) -> Array:
    """Let every frame look at every valid one, or at those of them that are near.

    Args:
        q: (batch, time, heads, head_dim), scaled.
        k: the same.
        v: the same.
        valid: (batch, time), false where a key is padding, which is at the end; None: all are valid.
        rate: of dropout of what a frame takes from another.
        key: of dropout; None without any.
        prepared: whether the model is for running only (`jaxssl.inference.prepack`).
        learning: whether the model is being trained where our kernels do that (`jaxssl.models.choice.learns`).
        added: to the scores: factors of each query and head, (batch, time, heads), and what they multiply, (heads,
            time, time), in float32; None: nothing.
        context: frames before and after its own that a frame may see; the products are made of all of them.

    Returns:
        (batch, time, heads, head_dim), in float32 or `v`'s dtype.
    """
    time = q.shape[1]
    if is_symbolic_dim(time):  # an exported program, for lengths and devices that are not known yet
        seen = jnp.ones((q.shape[0], time), bool) if valid is None else valid
        ways = {"one by one": _one_by_one, "at once": _at_once}
        chosen = {platform: ways[way] for platform, way in choice.exported_attention().items()}
        chosen = {platform: partial(_in_order, way, context) for platform, way in chosen.items()}
        return jax.lax.platform_dependent(q, k, v, seen, added, **chosen)
    plain = added is None and context == (None, None)
    if learning and plain and v.dtype in gradients.DTYPES:
        return _learned(q, k, v, valid, rate, key)
    match choice.attention(time, q.shape[3], v.dtype, prepared=prepared, plain=plain):
        case "native" if key is None:
            return native.attention(q, k, v, valid)
        case "flash" if key is None:
            return _flash(q, k, v, valid)
        case "pallas" if key is None:
            return _pallas(q, k, v, valid)
        case "one by one":
            return _one_by_one(q, k, v, valid, rate, key, added, context)
    return _at_once(q, k, v, valid, rate, key, added, context)


def _learned(q: Array, k: Array, v: Array, valid: Array | None, rate: float, key: Array | None) -> Array:
    """Attend by our kernels, and drop what the plain formulation of this length drops."""
    batch, time, heads, _ = q.shape
    together = choice.attention(time, q.shape[3], v.dtype) == "at once"
    keys = None
    if key is not None:
        each = jnp.broadcast_to(key, batch * heads) if together else jax.random.split(key, batch * heads)
        keys = words(each)
    return gradients.attention(q, k, v, valid, rate=rate, keys=keys, together=together)


def near(queries: Array, keys: Array, context: Context) -> Array:
    """Tell which frames a frame may see: (queries, keys), of their numbers, (queries,) and (keys,)."""
    left, right = context
    apart = keys[None, :] - queries[:, None]
    seen = jnp.ones_like(apart, bool)
    if left is not None:
        seen &= apart >= -left
    return seen if right is None else seen & (apart <= right)


def _flash(q: Array, k: Array, v: Array, valid: Array | None) -> Array:
    """Attend without writing scores to memory."""
    keys = None if valid is None else valid.sum(1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(q, k, v, scale=1.0, key_value_seq_lengths=keys, implementation="cudnn")


def _pallas(q: Array, k: Array, v: Array, valid: Array | None) -> Array:
    """Attend likewise on a TPU, in whole blocks of frames."""
    from jax.experimental.pallas.ops.tpu.flash_attention import MIN_BLOCK_SIZE, SegmentIds, flash_attention

    batch, time = q.shape[:2]
    more = -time % MIN_BLOCK_SIZE
    seen = jnp.ones((batch, time), jnp.int32) if valid is None else valid.astype(jnp.int32)
    keys = jnp.pad(seen, ((0, 0), (0, more)))
    blocks = (jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, more), (0, 0))) for x in (q, k, v))
    context = flash_attention(*blocks, segment_ids=SegmentIds(jnp.ones_like(keys), keys))
    return context[:, :, :time].transpose(0, 2, 1, 3)


def visible(frames: Any, valid: Array | None, context: Context) -> Array:
    """Tell which keys a query may see: (batch or 1, 1, queries, keys); `valid: (batch, keys)`, None: all."""
    at = jnp.arange(frames)
    seen = near(at, at, context)[None, None]
    return seen if valid is None else seen & valid[:, None, None, :]


def _in_order(way: Way, context: Context, q: Array, k: Array, v: Array, valid: Array, added: Added | None) -> Array:
    return way(q, k, v, valid, added=added, context=context)


def _at_once(
    q: Array,
    k: Array,
    v: Array,
    valid: Array | None,
    rate: float = 0.0,
    key: Array | None = None,
    added: Added | None = None,
    context: Context = (None, None),
) -> Array:
    """Attend in all heads together."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    seen = None if valid is None else valid[:, None, None]
    more = None if added is None else (added[0].transpose(0, 2, 1), added[1][None])
    return _context(q, k, v, seen, key, more, rate=rate, context=context).transpose(0, 2, 1, 3)


def _one_by_one(
    q: Array,
    k: Array,
    v: Array,
    valid: Array | None,
    rate: float = 0.0,
    key: Array | None = None,
    added: Added | None = None,
    context: Context = (None, None),
) -> Array:
    """Attend in one head of one row after the other; a backward pass makes each one's scores again."""
    batch, time, heads, size = q.shape
    run = partial(_context, rate=rate, context=context)
    each = jax.checkpoint(run, prevent_cse=False)  # the loop keeps the two apart
    if added is not None:
        return _head_by_head(each, q, k, v, valid, key, added)
    rows = [x.transpose(0, 2, 1, 3).reshape(batch * heads, time, size) for x in (q, k, v)]
    seen = None if valid is None else jnp.repeat(valid, heads, axis=0)[:, None]
    keys = None if key is None else jax.random.split(key, batch * heads)
    found = jax.lax.map(lambda one: each(*one), (*rows, seen, keys))
    return found.reshape(batch, heads, time, size).transpose(0, 2, 1, 3)


def _head_by_head(
    each: Callable[..., Array], q: Array, k: Array, v: Array, valid: Array | None, key: Array | None, added: Added
) -> Array:
    """Attend likewise, all rows of a head before those of the next: what is added is one array for them all."""
    batch, _, heads, _ = q.shape
    gates, scores = added
    seen = None if valid is None else valid[:, None]
    keys = None if key is None else jax.random.split(key, (heads, batch))

    def head(one: Any) -> Array:
        *rows, keys, scores = one

        def row(one: Any) -> Array:
            *qkv, gates, seen, key = one
            return each(*qkv, seen, key, (gates, scores))

        return jax.lax.map(row, (*rows, seen, keys))

    context = jax.lax.map(head, (*(x.transpose(2, 0, 1, 3) for x in (q, k, v)), gates.transpose(2, 0, 1), keys, scores))
    return context.transpose(1, 2, 0, 3)


def _context(
    q: Array,
    k: Array,
    v: Array,
    valid: Array | None,
    key: Array | None,
    added: Added | None = None,
    *,
    rate: float,
    context: Context,
) -> Array:
    """Attend over the last two axes, (…, time, head_dim); `valid` is that of keys, (…, 1, time)."""
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    if added is not None:
        scores = scores + added[0][..., None] * added[1]
    if valid is not None:
        scores = jnp.where(valid, scores, jnp.finfo(scores.dtype).min)
    if context != (None, None):
        frames = jnp.arange(q.shape[-2])
        seen = jnp.expand_dims(near(frames, frames, context), range(scores.ndim - 2))
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    if key is not None:
        weights = jnp.where(kept(key, rate, weights.shape), weights / (1 - rate), jnp.zeros_like(weights))
    found = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return found / total  # after the product: (time × head_dim) numbers instead of time²
