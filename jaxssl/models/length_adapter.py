"""Strided convolutions behind the last layer, which leave a model fewer frames of another width."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from compress.errors import InputError
from jaxssl.models.dense import Dense
from jaxssl.models.keys import Keys
from jaxssl.models.layers import LayerNorm, convolve, frame_mask, uniform_init
from jaxssl.models.names import CONV, dense_rules, norm_rules
from jaxssl.models.part import Arrays, Map, Names

PAD = 1  # zeros on each side of every convolution's input, whatever its kernel


@dataclass(frozen=True)
class LengthAdapter:
    """y = GLU(convolution(y)) some times over the encoder's output, as transformers has it (`add_adapter`).

    Where its width is not the encoder's, a linear map and a norm come first. It is not compressed: whatever is pruned
    keeps the encoder's width, and so stands before the same adapter.

    Attributes:
        width: of its output.
        layers: convolutions.
        kernel: taps of each.
        stride: frames that each makes one.
    """

    width: int
    layers: int = 3
    kernel: int = 3
    stride: int = 2
    kind: Literal["length_adapter"] = "length_adapter"

    names: ClassVar[Names] = {
        "fairseq": (),
        "huggingface": (
            *dense_rules(r"adapter\.proj", "length_adapter/project"),
            *norm_rules(r"adapter\.proj_layer_norm", "length_adapter/norm"),
            *dense_rules(r"adapter\.layers\.(\d+)\.conv", r"length_adapter/layers/\1", CONV),
        ),
    }

    def frames(self, frames: Any) -> Any:
        """Count the frames that are left of `frames` frames of the encoder (an int or an array of ints)."""
        for _ in range(self.layers):
            frames = self.once(frames)
        return frames

    def once(self, frames: Any) -> Any:
        """Count the frames that one convolution leaves of `frames`."""
        return (frames + 2 * PAD - self.kernel) // self.stride + 1

    @property
    def joined(self) -> int:
        """Frames of the encoder from one frame to the next."""
        return self.stride**self.layers

    @property
    def least(self) -> int:
        """Frames of the encoder from which one is left."""
        frames = 1
        for _ in range(self.layers):
            frames = max((frames - 1) * self.stride + self.kernel - 2 * PAD, 1)
        return frames

    def macs(self, width: int, frames: int) -> int:
        """Count the multiply-accumulates of one utterance, behind an encoder that is `width` wide."""
        total = frames * width * self.width if self.width != width else 0
        for _ in range(self.layers):
            frames = self.once(frames)
            total += frames * self.kernel * 2 * self.width**2
        return total

    def read(self, arrays: Arrays) -> "LengthAdapter":
        """Return the adapter that these arrays are; the stride is this one's."""
        kernel, width, _ = arrays["layers"]["0"]["kernel"].shape
        return LengthAdapter(width, len(arrays["layers"]), kernel, self.stride)

    def check(self) -> None:
        """Refuse an adapter that is none.

        Raises:
            InputError: it has no layers, width, taps or stride.
        """
        if min(self.width, self.layers, self.kernel, self.stride) < 1:
            raise InputError(f"{self}: a length adapter's numbers are 1 or more; leave it out, or correct them")

    def check_stream(self) -> None:
        """Refuse a stream.

        Raises:
            InputError: always.
        """
        raise InputError(
            "length_adapter: joins frames behind the encoder, which no stream does; leave it out to stream"
        )

    def build(self, width: int, *, rngs: Keys) -> "Shortening":
        """Make the module."""
        return Shortening(self, width, rngs=rngs)


class GatedConvolution(nnx.Module):
    """A strided convolution and a gated linear unit, a · sigmoid(b) (Dauphin et al. 2017)."""

    def __init__(self, part: LengthAdapter, *, rngs: Keys):
        self.stride = part.stride
        init, shape = uniform_init(part.width * part.kernel), (part.kernel, part.width, 2 * part.width)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(init(rngs.params(), shape[2:]))

    def __call__(self, x: Array) -> Array:
        """Map `x: (batch, time, width)` to (batch, fewer, width)."""
        y = convolve(x, self.kernel[...], stride=self.stride, padding=(PAD, PAD))
        value, gate = jnp.split(y + self.bias[...].astype(x.dtype)[None, None], 2, axis=-1)
        return value * jax.nn.sigmoid(gate)


class Shortening(nnx.Module):
    """Computes `LengthAdapter`."""

    def __init__(self, part: LengthAdapter, width: int, *, rngs: Keys):
        self.part = part
        if part.width != width:
            outer = uniform_init(width)
            spec = Map("project", (width,), (part.width,))
            self.project = Dense(spec, kernel_init=outer, bias_init=outer, rngs=rngs)
            self.norm = LayerNorm(part.width, rngs=rngs)
        self.layers = nnx.List([GatedConvolution(part, rngs=rngs) for _ in range(part.layers)])

    def __call__(self, x: Array, lengths: Array, *, alone: bool) -> tuple[Array, Array]:
        """Map `x: (batch, time, width)`, of which `lengths: (batch,)` are valid, to fewer frames and how many are.

        With `alone`, frames that are not valid are silent, as if the utterance ended there.
        """
        x = self.norm(self.project(x)) if hasattr(self, "project") else x
        for layer in self.layers:
            x = jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, jnp.zeros_like(x)) if alone else x
            x, lengths = layer(x), self.part.once(lengths)
        return x, lengths
