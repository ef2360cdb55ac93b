"""State space duality (Dao and Gu 2024): a linear recurrence of one decay a head, as products of matrices."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.export import is_symbolic_dim

CHUNK = 64  # frames in one product: shorter ones have more states to compute, longer ones more pairs of frames


def chunked(frames: int) -> tuple[int, int]:
    """Return how many chunks so many frames make, and how long each is."""
    size = CHUNK if is_symbolic_dim(frames) else min(CHUNK, max(frames, 1))  # a stream's chunks may be short
    return -(-frames // size), size


def duality(
    x: Array, step: Array, decay: Array, into: Array, out: Array, state: Array | None = None, *, size: int | None = None
) -> tuple[Array, Array]:
    """Run h(t) = exp(step(t) decay) h(t - 1) + step(t) x(t) ⊗ into(t) and y(t) = h(t) · out(t), in float32.

    Within a chunk, frame l hears frame m ≤ l by exp(step(m + 1) decay + … + step(l) decay) (out(l) · into(m)), which is
    attention without a softmax; from chunk to chunk the state goes on (arXiv 2405.21060, section 6). A frame whose step
    is 0 leaves the state as it is.

    Args:
        x: (batch, time, heads, groups, head_dim).
        step: how far a head's state moves at each frame, not negative, (batch, time, heads, groups).
        decay: A, negative, (heads, groups).
        into: B, (batch, time, groups, state).
        out: C, (batch, time, groups, state).
        state: h before the first frame, (batch, heads, groups, head_dim, state); None: zeros.
        size: frames of a chunk, on which nothing but time and memory depends; None: as `chunked` has it.

    Returns:
        y, (batch, time, heads, groups, head_dim), and the state after the last frame.
    """
    rows, frames = x.shape[:2]
    chunks, size = chunked(frames) if size is None else (-(-frames // size), size)
    if state is None:
        state = jnp.zeros((rows, *x.shape[2:], into.shape[-1]), jnp.float32)

    def split(each: Array) -> Array:
        rest = ((0, 0),) * (each.ndim - 2)
        each = jnp.pad(each.astype(jnp.float32), ((0, 0), (0, chunks * size - frames), *rest))  # steps of 0
        return each.reshape(rows, chunks, size, *each.shape[2:])

    step, into, out = split(step), split(into), split(out)
    moved = step[..., None] * split(x)
    faded = jnp.cumsum(step * decay[None, None, None], axis=2)  # log of what is left of the state before the chunk
    share = jnp.exp(faded[:, :, -1:] - faded)[..., None]
    added = jnp.einsum("bcmhgp,bcmgn->cbhgpn", moved * share, into)

    def move(h: Array, each: tuple[Array, Array]) -> tuple[Array, Array]:
        left, more = each
        return left[..., None, None] * h + more, h

    last, before = jax.lax.scan(move, state, (jnp.exp(faded[:, :, -1]).swapaxes(0, 1), added))
    y = jnp.einsum("cbhgpn,bclgn->bclhgp", before, out) * jnp.exp(faded)[..., None]
    y = y + jax.checkpoint(_within, prevent_cse=False)(moved, faded, into, out)
    return y.reshape(rows, chunks * size, *x.shape[2:])[:, :frames], last


def _within(moved: Array, faded: Array, into: Array, out: Array) -> Array:
    """Return what frames hear of their own chunk; (batch, chunk, frames, …), its weights are computed again backwards.

    Later frames are left out before the exponential, so that none is of more than 0.
    """
    size = moved.shape[2]
    faded = jnp.moveaxis(faded, 2, -1)  # (batch, chunk, heads, groups, frames)
    apart = faded[..., :, None] - faded[..., None, :]
    earlier = jnp.tril(jnp.ones((size, size), bool))
    share = jnp.exp(jnp.where(jnp.broadcast_to(earlier, apart.shape), apart, -jnp.inf))
    weights = share * jnp.einsum("bclgn,bcmgn->bcglm", out, into)[:, :, None]
    return jnp.einsum("bchglm,bcmhgp->bclhgp", weights, moved)
