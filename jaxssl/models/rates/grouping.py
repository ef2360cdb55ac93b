"""Sequences made shorter by a fixed ratio: each group of so many frames becomes one."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.tree_util import Partial

from compress.errors import InputError
from jaxssl.models.keys import Keys
from jaxssl.models.layers import convolve, uniform_init
from jaxssl.models.part import Arrays, Names
from jaxssl.models.rates.track import Shortened, taken

MOST = 1000  # frames that may become one, 20 s of speech


@dataclass(frozen=True)
class Groups:
    """What all groups of a fixed size have in common; a last partial group is none.

    Attributes:
        ratio: frames that become one.
    """

    ratio: int

    regular: ClassVar = True
    names: ClassVar[Names] = {"fairseq": (), "huggingface": ()}

    def frames(self, frames: Any) -> Any:
        """Count the groups of `frames` frames (an int or an array of ints)."""
        return frames // self.ratio

    def macs_back(self, width: int, frames: int) -> int:
        """Count nothing: frames are repeated."""
        return 0

    def check(self, where: str) -> None:
        """Refuse groups of no frames.

        Raises:
            InputError: the ratio is below 1 or above 1000.
        """
        if not 1 <= self.ratio <= MOST:
            raise InputError(f"{where}: groups of {self.ratio} frames; give a ratio from 1 to {MOST}")


@dataclass(frozen=True)
class AveragePooling(Groups):
    """The mean of each group of `ratio` frames (Meng et al. 2022, arXiv 2210.07189)."""

    kind: Literal["average_pooling"] = "average_pooling"

    def macs(self, width: int, frames: int) -> int:
        """Count nothing: no weights are multiplied."""
        return 0

    def read(self, arrays: Arrays) -> "AveragePooling":
        """Return itself: it has no arrays."""
        return self

    def started(self, width: int) -> Arrays:
        """Return the arrays of a mean: none."""
        return {}

    def build(self, width: int, *, rngs: Keys) -> "Pooling":
        """Make the module."""
        return Pooling(self)


@dataclass(frozen=True)
class StridedConvolution(Groups):
    """A learned map of each group of `ratio` frames: a convolution of as many taps."""

    kind: Literal["strided_convolution"] = "strided_convolution"

    def macs(self, width: int, frames: int) -> int:
        """Count the multiply-accumulates of one utterance of `frames` frames."""
        return self.frames(frames) * self.ratio * width**2

    def read(self, arrays: Arrays) -> "StridedConvolution":
        """Return the convolution that these arrays are."""
        return StridedConvolution(arrays["kernel"].shape[0])

    def started(self, width: int) -> Arrays:
        """Return arrays with which it is a mean, from which a trained model learns on."""
        kernel = jnp.broadcast_to(jnp.eye(width) / self.ratio, (self.ratio, width, width))
        return {"kernel": kernel, "bias": jnp.zeros(width)}

    def build(self, width: int, *, rngs: Keys) -> "Convolution":
        """Make the module."""
        return Convolution(self, width, rngs=rngs)


class Pooling(nnx.Module):
    """Computes `AveragePooling`."""

    def __init__(self, part: AveragePooling):
        self.part = part

    def __call__(self, x: Array, lengths: Array | None, rngs: Keys | None = None) -> Shortened:
        """Shorten `x: (batch, time, width)`, of which `lengths: (batch,)` are valid; None: all."""
        window = (1, self.part.ratio, 1)
        zero = np.zeros((), x.dtype)  # a constant, or JAX does not know that it may differentiate
        sums = jax.lax.reduce_window(x, zero, jax.lax.add, window, window, "VALID")
        return _grouped(sums / self.part.ratio, x.shape[1], lengths, self.part.ratio)


class Convolution(nnx.Module):
    """Computes `StridedConvolution`."""

    def __init__(self, part: StridedConvolution, width: int, *, rngs: Keys):
        self.part = part
        init, shape = uniform_init(part.ratio * width), (part.ratio, width, width)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(init(rngs.params(), (width,)))

    def __call__(self, x: Array, lengths: Array | None, rngs: Keys | None = None) -> Shortened:
        """Shorten `x: (batch, time, width)`, of which `lengths: (batch,)` are valid; None: all."""
        y = convolve(x, self.kernel[...], stride=self.part.ratio) + self.bias[...].astype(x.dtype)[None, None]
        return _grouped(y, x.shape[1], lengths, self.part.ratio)


def _grouped(x: Array, frames: int, lengths: Array | None, ratio: int) -> Shortened:
    """Tell of groups, (batch, groups, width), where each frame is found again: in its own, or in the last whole one."""
    groups = jnp.full(x.shape[0], x.shape[1]) if lengths is None else lengths // ratio
    own = jax.lax.div(jnp.arange(frames, dtype=groups.dtype), jnp.asarray(ratio, groups.dtype))[None]
    own = jnp.clip(own, 0, jnp.maximum(groups - 1, 0)[:, None])

    def hide(mask: Array) -> Array:
        return jax.lax.reduce_window(mask, False, jax.lax.bitwise_or, (1, ratio), (1, ratio), "VALID")

    return Shortened(x, None if lengths is None else groups, Partial(taken, own), hide)


def spread(mask: Array | None, frames: int, ratio: int) -> Array | None:
    """Let a mask of reduced frames, (batch, frames // ratio), hide all that these are made of, (batch, frames)."""
    if mask is None or ratio == 1 or mask.shape[1] == frames:
        return mask
    whole = jnp.repeat(mask, ratio, axis=1)
    return jnp.pad(whole, ((0, 0), (0, frames - whole.shape[1])))  # frames left over are in none
