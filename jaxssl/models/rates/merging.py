"""Sequences made shorter between layers: neighbours whose keys are most alike become one frame."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.tree_util import Partial

from compress.errors import InputError
from jaxssl.models.keys import Keys
from jaxssl.models.layers import frame_mask
from jaxssl.models.part import Arrays
from jaxssl.models.rates.track import Shortened, taken

WHOLE = 1000  # that `kept` is a part of
TINY = 1e-12  # of a product of two keys' lengths, so that keys of zeros are like none


@dataclass(frozen=True)
class KeyMerging:
    """Adjacent frames merged by the cosine of their keys, a fixed share of them (A-ToMe, Li et al. 2023).

    The keys are those that the layer's attention has for its input, all heads' together. Of n frames the n - m most
    alike pairs of neighbours are joined, m being what is kept; a run of joined frames becomes their mean, each by the
    frames that it was made of before. Of pairs that are equally alike the first are joined. Nothing is learned, so a
    trained model may be given it as it is; attention does not know afterwards how many frames one stands for.

    Attributes:
        kept: frames of 1000 that stay, 1 to 1000; rounded up.
    """

    kept: int
    kind: Literal["key_merging"] = "key_merging"

    regular: ClassVar = False
    ratio: ClassVar = 1  # no fixed number of frames becomes one

    def frames(self, frames: Any) -> Any:
        """Count what is kept of `frames` frames (an int or an array of ints)."""
        return (frames * self.kept + WHOLE - 1) // WHOLE

    def macs(self, width: int, frames: int) -> int:
        """Count nothing but what the layer's own map to keys takes, which `jaxssl.models.cost` adds."""
        return 0

    def macs_back(self, width: int, frames: int) -> int:
        """Count nothing: frames are repeated."""
        return 0

    def read(self, arrays: Arrays) -> "KeyMerging":
        """Return itself: it has no arrays."""
        return self

    def check(self, where: str) -> None:
        """Refuse to keep none, or more than there are.

        Raises:
            InputError: it does.
        """
        if not 1 <= self.kept <= WHOLE:
            raise InputError(f"{where}: {self.kept} of {WHOLE} frames stay; give 1 to {WHOLE}")

    def started(self, width: int) -> Arrays:
        """Return the arrays of a merging: none."""
        return {}

    def build(self, width: int, *, rngs: Keys) -> "Merging":
        """Make the module."""
        return Merging(self)


class Merging(nnx.Module):
    """Computes `KeyMerging`."""

    def __init__(self, part: KeyMerging):
        self.part = part

    def __call__(self, x: Array, lengths: Array | None, keys: Array, sizes: Array | None) -> Shortened:
        """Shorten `x: (batch, time, width)`, of which `lengths: (batch,)` are valid; None: all.

        Args:
            x: frames.
            lengths: of each row.
            keys: (batch, time, heads, head_dim).
            sizes: frames that each was made of, (batch, time) float32; None: equally many.
        """
        batch, time, _ = x.shape
        counts = jnp.full(batch, time) if lengths is None else lengths
        left, room = self.part.frames(counts), self.part.frames(time)
        own = places(keys, counts, left)
        weights = jnp.ones((batch, time), jnp.float32) if sizes is None else sizes
        weights = jnp.where(frame_mask(counts, time), weights, jnp.zeros_like(weights))
        whole = _totals(weights[..., None], own, room)[..., 0]
        share = weights / jnp.maximum(jnp.take_along_axis(whole, own, axis=1), TINY)
        # What is in the padding may be anything, and 0 times that is not always 0.
        heard = jnp.where(weights[..., None] > 0, x, jnp.zeros_like(x))
        z = _totals(share[..., None] * heard.astype(jnp.float32), own, room).astype(x.dtype)

        def hide(mask: Array) -> Array:
            return _totals(mask[..., None].astype(jnp.float32), own, room)[..., 0] > 0

        return Shortened(z, None if lengths is None else left, Partial(taken, own), hide, sizes=whole)


def places(keys: Array, counts: Array, left: Array) -> Array:
    """Return the place of the frame that each becomes a part of, (batch, time) int32.

    Args:
        keys: (batch, time, heads, head_dim).
        counts: (batch,), valid frames of each row.
        left: (batch,), frames that shall be left of them.
    """
    flat = jax.lax.stop_gradient(keys).astype(jnp.float32).reshape(*keys.shape[:2], -1)
    lengths = jnp.sqrt(jnp.square(flat).sum(-1))
    alike = (flat[:, 1:] * flat[:, :-1]).sum(-1) / jnp.maximum(lengths[:, 1:] * lengths[:, :-1], TINY)
    at = jnp.arange(1, keys.shape[1], dtype=counts.dtype)[None]
    alike = jnp.where(at < counts[:, None], alike, jnp.full_like(alike, -jnp.inf))
    order = jnp.argsort(alike, axis=1, descending=True, stable=True)
    rank = jnp.argsort(order, axis=1)  # the inverse of a permutation
    joined = rank < (counts - left)[:, None]
    begun = jnp.pad(1 - joined.astype(jnp.int32), ((0, 0), (1, 0)))
    return jnp.clip(jnp.cumsum(begun, axis=1), 0, jnp.maximum(left - 1, 0).astype(jnp.int32)[:, None])


def _totals(x: Array, own: Array, room: int) -> Array:
    """Add up the frames of each place, (batch, time, width) to (batch, room, width)."""
    rows = jnp.arange(x.shape[0])[:, None]
    return jnp.zeros((x.shape[0], room, x.shape[2]), x.dtype).at[rows, own].add(x)
