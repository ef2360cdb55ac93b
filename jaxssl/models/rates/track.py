"""A batch of sequences on its way through a model: what it is now, and how it was made shorter."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import Array

from jaxssl.models.layers import frame_mask


@dataclass(frozen=True)
class Shortened:
    """What a shortening makes of a batch of sequences.

    Attributes:
        x: (batch, fewer, width).
        lengths: valid frames of each row, (batch,); None: all.
        restore: brings what stands on these frames, (batch, fewer, any width), back to those of the sequence before:
            each gets what it was put into, and frames that were put into none the last there is. A
            `jax.tree_util.Partial`, so that a program can return it and another go on.
        hide: turns a mask of the frames before, (batch, time), into that of these, (batch, fewer): what is made of a
            hidden frame is hidden.
        weights: what each of the frames before was weighed by, (batch, time) float32, before any mixing; None: they
            are not weighed.
        sizes: frames that each of these was made of, (batch, fewer) float32; None: equally many.
    """

    x: Array
    lengths: Array | None
    restore: Callable[[Array], Array]
    hide: Callable[[Array], Array]
    weights: Array | None = None
    sizes: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Before:
    """What a sequence was before it was made shorter.

    Attributes:
        frames: of a row, valid or not.
        lengths: valid frames of each row, (batch,); None: all.
        restore: see `Shortened`.
    """

    frames: int = field(metadata={"static": True})
    lengths: Array | None
    restore: Callable[[Array], Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Track:
    """A batch of sequences, (batch, time, width), and its way back to the frames it had at first.

    Attributes:
        x: (batch, time, width).
        lengths: valid frames of each row, (batch,); None: all.
        way: what it was before each shortening so far.
        sizes: frames that each was made of by the last shortening and those before it, (batch, time) float32; None:
            equally many.
        weights: what the frames were weighed by that fired, (batch, those before it) float32; None: none did.
    """

    x: Array
    lengths: Array | None
    way: tuple[Before, ...] = ()
    sizes: Array | None = None
    weights: Array | None = None

    @property
    def frames(self) -> int:
        """Frames of a row, valid or not."""
        return self.x.shape[1]

    @property
    def first(self) -> int:
        """Frames that a row had at first."""
        return self.way[0].frames if self.way else self.frames

    @property
    def counts(self) -> Array:
        """Valid frames of each row, (batch,)."""
        return jnp.full(self.x.shape[0], self.frames) if self.lengths is None else self.lengths

    @property
    def valid(self) -> Array | None:
        """Which frames are valid, (batch, time); None: all."""
        return None if self.lengths is None else frame_mask(self.lengths, self.frames)

    def then(self, short: Shortened) -> "Track":
        """Go on with what a shortening made of this."""
        weights = self.weights if short.weights is None else short.weights
        before = Before(self.frames, self.lengths, short.restore)
        return Track(short.x, short.lengths, (*self.way, before), short.sizes, weights)

    def of(self, x: Array) -> "Track":
        """Go on with other values on the same frames."""
        return replace(self, x=x)

    def restored(self) -> Array:
        """Return x on the frames that it had at first: (batch, time at first, width)."""
        x = self.x
        for before in reversed(self.way):
            x = before.restore(x)
        return x

    def whole(self, x: Array) -> "Track":
        """Go on with values on the frames that it had at first; where none is left of a row, none is valid."""
        first = self.way[0].lengths if self.way else self.lengths
        return Track(x, first if first is None else jnp.where(self.counts > 0, first, jnp.zeros_like(first)))


def taken(own: Array, x: Array) -> Array:
    """Give each frame the one it was put into: (batch, fewer, width) to (batch, time, width); `own: (batch, time)`."""
    return jnp.take_along_axis(x, own[..., None], axis=1)
