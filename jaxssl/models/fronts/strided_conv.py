"""Strided convolutions without padding, which front ends are made of.

As in `layers`, the module computes in the dtype of its input and keeps its parameters in float32, or in int8.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

from compress.quantize import rounded
from jaxssl.models.int8_product import int8_product
from jaxssl.models.keys import Keys
from jaxssl.models.layers import convolve, gelu, uniform_init
from jaxssl.models.packed import convolved, packed_convolution
from jaxssl.runtime import native
from jaxssl.runtime.native import gradients


@dataclass(frozen=True)
class Conv:
    """One convolution of the waveform extractor."""

    channels: int
    kernel: int
    stride: int


class StridedConv(nnx.Module):
    """A strided convolution without padding."""

    def __init__(self, inputs: int, spec: Conv, *, bias: bool, int8: bool = False, packed: bool = False, rngs: Keys):
        self.spec, self.packed, self.learning = spec, packed, False
        kernel = initializers.he_normal()(rngs.params(), (spec.kernel, inputs, spec.channels), jnp.float32)
        if int8:
            kernel, scale = rounded(kernel, (0, 1))
            self.kernel_scale = nnx.Param(scale)
        self.kernel = nnx.Param(packed_convolution(kernel, dtype=jnp.float32) if packed else kernel)
        if bias:
            init = uniform_init(inputs * spec.kernel)
            self.bias = nnx.Param(init(rngs.params(), (spec.channels,)))

    def __call__(self, x: Array, activation: native.Activation = "linear") -> Array:
        """Map `x: (batch, time, in)` to (batch, fewer, channels), and apply an activation."""
        bias = self.bias[...] if hasattr(self, "bias") else None
        scale = self.kernel_scale[...] if hasattr(self, "kernel_scale") else None
        added = jnp.zeros(self.spec.channels) if bias is None else bias
        if self.packed:
            sizes = {"taps": self.spec.kernel, "stride": self.spec.stride}
            return convolved(x, self.kernel[...], scale, added, activation=activation, **sizes)
        if self.learning and gradients.has(x.dtype, x.shape[-1], self.spec.channels):
            y = gradients.convolution(x, self.kernel[...], added, stride=self.spec.stride)
            return gelu(y) if activation == "gelu" else y
        if scale is None:
            y = convolve(x, self.kernel[...], stride=self.spec.stride)
        else:
            y = int8_product(windows_of(x, self.spec), self.kernel[...], scale, 2)
        y = y if bias is None else y + bias.astype(x.dtype)[None, None]
        return gelu(y) if activation == "gelu" else y


def windows_of(x: Array, spec: Conv) -> Array:
    """Return what each output of a convolution hears of `x: (batch, time, in)`, (batch, fewer, taps, in)."""
    rows = max((x.shape[1] - spec.kernel) // spec.stride + 1, 0)
    last = max(rows - 1, 0) * spec.stride + 1
    taps = (x[:, i : i + last : spec.stride][:, :rows] for i in range(spec.kernel))
    return jnp.stack(list(taps), 2)
