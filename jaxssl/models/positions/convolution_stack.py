"""Positions by a stack of short grouped convolutions over frames, as data2vec has them."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

from compress.errors import InputError
from jaxssl.models.held import Memory, delayed, joined, nothing
from jaxssl.models.keys import Keys
from jaxssl.models.layers import NORM_EPSILON, convolve, gelu
from jaxssl.models.names import CONV, dense_rules
from jaxssl.models.part import Arrays, Names
from jaxssl.models.positions.convolution import check_kernel, padding, past


@dataclass(frozen=True)
class ConvolutionStack:
    """x + step(step(… x)), a step being GELU(norm(convolution)), the norm over channels without scale and bias.

    So data2vec-audio has them in fairseq and transformers.

    Attributes:
        depth: convolutions, one after the other.
        kernel: taps of each; an even number sees one frame more of the past than of the future.
        groups: of channels.
        causal: whether zeros stand before the first frame only, so that none sees the future.
    """

    depth: int = 5
    kernel: int = 19
    groups: int = 16
    causal: bool = False
    kind: Literal["convolution_stack"] = "convolution_stack"

    names: ClassVar[Names] = {
        "fairseq": dense_rules(r"encoder\.pos_conv\.(\d+)\.0", r"position/convs/\1", CONV),
        "huggingface": dense_rules(r"encoder\.pos_conv_embed\.layers\.(\d+)\.conv", r"position/convs/\1", CONV),
    }

    @property
    def ahead(self) -> int:
        """Frames that it waits for in a stream."""
        return self.depth * padding(self.kernel, causal=self.causal)[1]

    def memory(self, batch: int, width: int) -> dict[str, Any]:
        """Return what each convolution holds before the first frame."""
        after = padding(self.kernel, causal=self.causal)[1]
        return {str(i): nothing(batch, frames=(self.kernel - 1, width), valid=(after,)) for i in range(self.depth)}

    @property
    def pieces(self) -> int:
        """How many numbered pieces with arrays of their own it has."""
        return self.depth

    def macs(self, width: int, frames: int) -> int:
        """Count the multiply-accumulates of one utterance."""
        return self.depth * frames * width * (width // self.groups) * self.kernel

    def check(self, width: int) -> None:
        """Refuse groups that do not divide the width, kernels without taps, and no convolutions.

        Raises:
            InputError: the message says which.
        """
        check_kernel(self.kernel, self.groups, width)
        if self.depth < 1:
            raise InputError(f"a stack of {self.depth} positional convolutions is none; use 1 or more")

    def read(self, arrays: Arrays) -> "ConvolutionStack":
        """Return the stack that these arrays are; whether it is causal, this one tells."""
        kernel = arrays["convs"]["0"]["kernel"]
        groups = kernel.shape[2] // kernel.shape[1]
        return replace(self, depth=len(arrays["convs"]), kernel=kernel.shape[0], groups=groups)

    def of_the_past(self, arrays: Arrays) -> "tuple[ConvolutionStack, Arrays]":
        """Return the same without what it hears of the future, and the arrays for that (`convolution.past`)."""
        if self.causal:
            return self, arrays
        ahead = padding(self.kernel, causal=False)[1]
        convs = {i: {**conv, **past({"kernel": conv["kernel"]}, ahead)} for i, conv in arrays["convs"].items()}
        return replace(self, causal=True), {**arrays, "convs": convs}

    def prepare(self, arrays: Arrays, dtype: Any) -> Arrays:
        """Return the arrays as given: kernels so short run fastest as they are (`jaxssl.models.choice`)."""
        return arrays

    def build(self, width: int, *, prepared: bool, rngs: Keys) -> "Steps":
        """Make the module."""
        return Steps(self, width, rngs=rngs)


class Step(nnx.Module):
    """One convolution of the stack, before its norm."""

    def __init__(self, part: ConvolutionStack, width: int, *, rngs: Keys):
        deviation = math.sqrt(4 / (part.kernel * width))
        shape = (part.kernel, width // part.groups, width)
        self.groups, self.pads = part.groups, padding(part.kernel, causal=part.causal)
        self.kernel = nnx.Param(initializers.normal(deviation)(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Array) -> Array:
        """Convolve `x: (batch, time, width)`."""
        return self.convolved(x, self.pads)

    def convolved(self, x: Array, pads: tuple[int, int]) -> Array:
        """Convolve it with zeros before and after."""
        y = convolve(x, self.kernel[...], padding=pads, groups=self.groups)
        return y + self.bias[...].astype(x.dtype)[None, None]


class Steps(nnx.Module):
    """Computes what `ConvolutionStack` adds."""

    def __init__(self, part: ConvolutionStack, width: int, *, rngs: Keys):
        self.convs = nnx.List([Step(part, width, rngs=rngs) for _ in range(part.depth)])

    def __call__(self, x: Array, valid: Array | None) -> Array:
        """Return what is added to `x: (batch, time, width)`, which is zero where frames are padding.

        Bias and norm fill those, so every step hears zeros again where `valid: (batch, time)` is false. Without it
        what stands there leaks, `kernel // 2` frames a step, as in fairseq and transformers.
        """
        for i, conv in enumerate(self.convs):
            if i and valid is not None:
                x = jnp.where(valid[..., None], x, jnp.zeros_like(x))
            x = gelu(over_channels(conv(x)))
        return x

    def stream(self, x: Array, valid: Array, memory: dict[str, Memory]) -> tuple[Array, dict[str, Memory]]:
        """Return what is added to the frames of a stream that are `ahead` before those of `x`, and the memory."""
        held = {}
        for i, conv in enumerate(self.convs):
            before = memory[str(i)]
            whole, mine = joined(before, "frames", jnp.where(valid[..., None], x, jnp.zeros_like(x)))
            (valid,), also = delayed(before, valid=valid)
            x, held[str(i)] = gelu(over_channels(conv.convolved(whole, (0, 0)))), {**mine, **also}
        return x, held


def over_channels(x: Array) -> Array:
    """Bring each frame of `x: (batch, time, width)` to zero mean and unit variance over channels, in float32."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + NORM_EPSILON)).astype(x.dtype)
