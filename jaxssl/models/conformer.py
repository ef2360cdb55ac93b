"""What makes a Conformer's layer of a mixer and a feed-forward block (Gulati et al. 2020): two blocks more.

x + half of a first feed-forward block, the mixer, a convolution, half of the feed-forward block, and a norm of all.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from compress.errors import InputError
from jaxssl.models.activations import FUNCTIONS, Activation
from jaxssl.models.dense import Dense
from jaxssl.models.feed_forward import FeedForward
from jaxssl.models.keys import Keys
from jaxssl.models.layers import NORM_EPSILON, depthwise, uniform_init
from jaxssl.models.part import FULL, Arrays, Dropout, Form, Map, Names, Units, check_counts, form_of


@dataclass(frozen=True)
class Macaron(FeedForward):
    """A feed-forward block before the mixer; where a layer has it, both of them count half (Lu et al. 2019)."""

    kind: Literal["macaron"] = "macaron"  # type: ignore[assignment]

    place: ClassVar = "macaron"
    names: ClassVar[Names] = {"fairseq": (), "huggingface": ()}


@dataclass(frozen=True)
class ConvolutionModule:
    """out(activation(norm(conv(a · sigmoid(b))))) with [a; b] = pointwise(x), each channel convolved alone.

    The norm is a LayerNorm over channels, as SpeechBrain has it, where Gulati et al. (2020) have a batch norm. Padding
    is zeros to the convolution, as both ends of an utterance are. Without channels it is its output's bias.

    Attributes:
        size: channels; may be 0.
        kernel: taps of the convolution, half of them on either side.
        normed: channels that the norm takes mean and variance over, those that were cut as zeros, for without them all
            others would change; 0: as many as there are.
        pointwise: form of the map to a and b, (width,) to (size, 2).
        out: form of the map back.
        activation: behind the norm.
    """

    size: int
    kernel: int = 31
    normed: int = 0
    pointwise: Form = FULL
    out: Form = FULL
    activation: Activation = "silu"
    kind: Literal["convolution_module"] = "convolution_module"

    place: ClassVar = "convolution"
    names: ClassVar[Names] = {"fairseq": (), "huggingface": ()}  # no format that we read has one

    @property
    def empty(self) -> bool:
        """Whether it is but a bias."""
        return not self.size

    def maps(self, width: int) -> tuple[Map, ...]:
        """List the pointwise map and the map back."""
        return (
            Map("pointwise", (width,), (self.size, 2), self.pointwise),
            Map("out", (self.size,), (width,), self.out),
        )

    def units(self) -> tuple[Units, ...]:
        """List the channels."""
        arrays = (("conv/kernel", 2), ("conv/bias", 0), ("norm/scale", 0), ("norm/bias", 0))
        sides = (("pointwise", "out"), ("out", "in"))
        return (Units("channels", self.size, sides, "out", arrays=arrays, normed=True),)  # type: ignore[arg-type]

    def resized(self, name: str, size: int) -> Self:
        """Return the same with another number of channels; the norm goes on counting those that are gone."""
        return replace(self, size=size, normed=self.normed or (self.size if size < self.size else 0))

    def core_macs(self, frames: int, width: int) -> int:
        """Count the convolution."""
        return frames * self.kernel * self.size

    def activation_bytes(self, frames: int, itemsize: int, dropout: Dropout) -> float:
        """Return what one frame leaves: both halves and their product, what is convolved, normalised and activated."""
        return self.size * (6 * itemsize + 8)

    def read(self, arrays: Arrays) -> Self:
        """Return the block that these arrays are; this one tells its activation, and what its norm counts."""
        kernel, _, size = arrays["conv"]["kernel"].shape
        forms = {name: form_of(arrays[name]) for name in ("pointwise", "out")}
        return replace(self.resized("channels", size), kernel=kernel, **forms)  # type: ignore[arg-type]

    def check(self, where: str) -> None:
        """Refuse sizes that cannot be.

        Raises:
            InputError: the message says which.
        """
        check_counts(where, kernel=self.kernel)
        if self.size < 0:
            raise InputError(f"{where}: a convolution of {self.size} channels; use 0 or more")
        if not self.kernel % 2:
            raise InputError(f"{where}: a convolution of {self.kernel} taps has no middle one; use an odd number")
        if self.normed and self.normed < self.size:
            raise InputError(
                f"{where}: a norm over {self.normed} of {self.size} channels; let it count all, or 0 for these"
            )

    def build(self, width: int, *, dropout: Dropout, prepared: bool, rngs: Keys) -> "Convolved":
        """Make the module."""
        return Convolved(self, width, prepared=prepared, rngs=rngs)


class Depthwise(nnx.Module):
    """A convolution of each channel alone: `kernel` (taps, 1, channels), `bias` (channels,)."""

    def __init__(self, taps: int, channels: int, *, rngs: Keys):
        init = uniform_init(taps)
        self.kernel = nnx.Param(init(rngs.params(), (taps, 1, channels)))
        self.bias = nnx.Param(init(rngs.params(), (channels,)))

    def __call__(self, x: Array) -> Array:
        """Convolve `x: (batch, time, channels)`, zeros beyond both ends."""
        side = self.kernel[...].shape[0] // 2
        y = depthwise(x, self.kernel[...], padding=(side, side))
        return y + self.bias[...].astype(x.dtype)[None, None]


class ChannelNorm(nnx.Module):
    """LayerNorm over `count` channels, in float32, of which those that are not there were 0."""

    def __init__(self, channels: int, count: int):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.count, self.gone = count, count - channels

    def __call__(self, x: Array) -> Array:
        """Normalise `x: (batch, time, channels)`."""
        y = x.astype(jnp.float32)
        mean = y.sum(-1, keepdims=True) / self.count
        apart = y - mean
        squares = jnp.square(apart).sum(-1, keepdims=True) + self.gone * jnp.square(mean)
        scaled = apart * jax.lax.rsqrt(squares / self.count + NORM_EPSILON)
        return (scaled * self.scale[...][None, None] + self.bias[...][None, None]).astype(x.dtype)


class Convolved(nnx.Module):
    """Computes `ConvolutionModule`."""

    def __init__(self, part: ConvolutionModule, width: int, *, prepared: bool, rngs: Keys):
        self.part = part
        self.pointwise, self.out = (Dense(spec, prepared=prepared, rngs=rngs) for spec in part.maps(width))
        self.conv = Depthwise(part.kernel, part.size, rngs=rngs)
        self.norm = ChannelNorm(part.size, part.normed or part.size)

    def __call__(self, x: Array, valid: Array | None) -> Array:
        """Map `x: (batch, time, width)` to the same shape; frames where `valid: (batch, time)` is false are silent."""
        if not self.part.size:
            return self.out.bias_alone(x)
        mixed = self.pointwise(x)
        y = mixed[..., 0] * jax.nn.sigmoid(mixed[..., 1])
        y = self.conv(y if valid is None else jnp.where(valid[..., None], y, jnp.zeros_like(y)))
        return self.out(y, norm=lambda y: FUNCTIONS[self.part.activation](self.norm(y)))
