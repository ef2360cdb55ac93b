"""The way back to as many frames as the front end gave, behind an encoder that heard fewer."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from compress.errors import InputError
from jaxssl.models.keys import Keys
from jaxssl.models.layers import uniform_init
from jaxssl.models.part import Arrays


@dataclass(frozen=True)
class Repeat:
    """Each frame of the output once for every frame that it was made of."""

    kind: Literal["repeat"] = "repeat"

    def macs(self, width: int, frames: int) -> int:
        """Count nothing: no weights are multiplied."""
        return 0

    def read(self, arrays: Arrays) -> "Repeat":
        """Return itself: it has no arrays."""
        return self

    def check(self, ratio: int | None) -> None:
        """Refuse nothing."""

    def started(self, width: int) -> Arrays:
        """Return the arrays of a repetition: none."""
        return {}


@dataclass(frozen=True)
class TransposedConvolution:
    """Each frame of the output by `ratio` learned maps, one for each frame that it was made of.

    A transposed convolution whose taps and stride are `ratio`. Frames that were put into no group get the last one's.

    Attributes:
        ratio: frames of the front end that the encoder makes one, all its shortenings together.
    """

    ratio: int
    kind: Literal["transposed_convolution"] = "transposed_convolution"

    def macs(self, width: int, frames: int) -> int:
        """Count the multiply-accumulates of one utterance that the encoder made `frames` frames of."""
        return frames * self.ratio * width**2

    def read(self, arrays: Arrays) -> "TransposedConvolution":
        """Return the convolution that these arrays are."""
        return TransposedConvolution(arrays["kernel"].shape[0])

    def check(self, ratio: int | None) -> None:
        """Refuse a number of taps that is not the frames that become one.

        Raises:
            InputError: the encoder makes another number of frames one, or no fixed number (None).
        """
        if ratio != self.ratio:
            made = "no fixed number of frames" if ratio is None else f"{ratio} frame(s)"
            raise InputError(f"upsampling by {self.ratio} behind an encoder that makes {made} one; make both the same")

    def started(self, width: int) -> Arrays:
        """Return arrays with which it repeats, from which a trained model learns on."""
        kernel = jnp.broadcast_to(jnp.eye(width), (self.ratio, width, width))
        return {"kernel": kernel, "bias": jnp.zeros(width)}

    def build(self, width: int, *, rngs: Keys) -> "Upsampled":
        """Make the module."""
        return Upsampled(self, width, rngs=rngs)


class Upsampled(nnx.Module):
    """Computes `TransposedConvolution`."""

    def __init__(self, part: TransposedConvolution, width: int, *, rngs: Keys):
        init = uniform_init(width)
        self.kernel = nnx.Param(init(rngs.params(), (part.ratio, width, width)))
        self.bias = nnx.Param(init(rngs.params(), (width,)))

    def __call__(self, x: Array, counts: Array, frames: int) -> Array:
        """Map `x: (batch, time, width)`, of which `counts: (batch,)` are valid, to (batch, frames, width)."""
        last = jnp.maximum(self.kernel.shape[0] * counts - 1, 0)[:, None]
        every = jnp.einsum("bti,rio->btro", x, self.kernel[...].astype(x.dtype)).reshape(x.shape[0], -1, x.shape[2])
        place = jnp.minimum(jnp.arange(frames, dtype=last.dtype)[None], last)
        found = jnp.take_along_axis(every, place[..., None], axis=1)
        return found + self.bias[...].astype(x.dtype)[None, None]
