"""Positions by a grouped convolution of scaled and shifted channels: what batch norm is once training is over."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

from jaxssl.models import choice
from jaxssl.models.held import Memory
from jaxssl.models.keys import Keys
from jaxssl.models.layers import gelu
from jaxssl.models.names import CONV, dense_rules, norm_rules
from jaxssl.models.part import Names
from jaxssl.models.positions.convolution import LongKernel, convolved, padding, stepped
from jaxssl.models.positions.filters import Filters


@dataclass(frozen=True)
class ScaledConvolution(LongKernel):
    """x + GELU(convolution(scale · x + shift)), zeros standing before and after what is shifted.

    So a shift is heard everywhere but at an utterance's ends, which is why it cannot be part of the convolution's bias.
    In our own padding mode an utterance ends with its last frame; other programs shift padded frames too.
    """

    kind: Literal["scaled_convolution"] = "scaled_convolution"

    names: ClassVar[Names] = {  # the norm's as the converters fold it
        "fairseq": (),
        "huggingface": (
            *norm_rules(r"encoder\.pos_conv_embed\.batch_norm", "position/norm"),
            *dense_rules(r"encoder\.pos_conv_embed\.conv", "position", CONV),
        ),
    }

    def build(self, width: int, *, prepared: bool, rngs: Keys) -> "ScaledPosition":
        """Make the module."""
        return ScaledPosition(self, width, prepared=prepared, rngs=rngs)


class Shift(nnx.Module):
    """A scale and a bias of every channel."""

    def __init__(self, width: int):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: Array) -> Array:
        """Scale and shift `x: (batch, time, width)`."""
        return x * self.scale[...].astype(x.dtype)[None, None] + self.bias[...].astype(x.dtype)[None, None]


class ScaledPosition(nnx.Module):
    """Computes what `ScaledConvolution` adds; a prepared one has `filters` of its kernel."""

    def __init__(self, part: ScaledConvolution, width: int, *, prepared: bool, rngs: Keys):
        self.taps, self.groups, self.pads = part.kernel, part.groups, padding(part.kernel, causal=part.causal)
        deviation = math.sqrt(4 / (self.taps * width))
        kernel = initializers.normal(deviation)(rngs.params(), (self.taps, width // self.groups, width))
        if prepared and choice.prepared_positions() is not None:
            self.filters = Filters(kernel, groups=self.groups)
        else:
            self.kernel = nnx.Param(kernel)
        self.bias, self.norm = nnx.Param(jnp.zeros(width)), Shift(width)

    def __call__(self, x: Array, valid: Array | None) -> Array:
        """Return what is added to `x: (batch, time, width)`; frames that are not `valid: (batch, time)` count as 0."""
        x = self.norm(x)
        if valid is not None:
            x = jnp.where(valid[..., None], x, jnp.zeros_like(x))
        if hasattr(self, "filters"):
            return self.filters(x, self.bias[...], self.pads)
        y = convolved(x, self.weight, padding=self.pads, groups=self.groups)
        return gelu(y + self.bias[...].astype(x.dtype)[None, None])

    @property
    def weight(self) -> Array:
        """The kernel as it runs."""
        return self.kernel[...]

    def stream(self, x: Array, valid: Array, memory: Memory) -> tuple[Array, Memory]:
        """Return what is added to the frames of a stream that are `ahead` before those of `x`, and the memory."""
        x = self.norm(x)
        return stepped(self, jnp.where(valid[..., None], x, jnp.zeros_like(x)), memory)
