"""HuBERT's front end: strided convolutions over samples, and the modules they are made of.

As in `layers`, every module computes in the dtype of its input and keeps its parameters in float32.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.nn import initializers

from jaxssl.models.arch import Conv, Waveform
from jaxssl.models.layers import NORM_EPSILON, LayerNorm, convolve, frame_mask, gelu, uniform_init

EXACT = jax.lax.Precision.HIGHEST  # GPUs round float32 operands by default


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: Array, scale: float) -> Array:
    """Return `x`; what flows back through it is multiplied by `scale`."""
    return x


def _scale_forward(x: Array, scale: float) -> tuple[Array, None]:
    return x, None


def _scale_backward(scale: float, _: None, gradient: Array) -> tuple[Array]:
    return (scale * gradient,)


scale_gradient.defvjp(_scale_forward, _scale_backward)


class TimeNorm(nnx.Module):
    """Normalise each channel of a convolution of samples over time: GroupNorm with as many groups as channels.

    Convolution and norm together are a product y = (w - mean(w)) · k · scale / sqrt(kᵀ C k + ε) + bias of windows of
    samples, w, with the convolution's kernel, k; C is the covariance of windows over time. So its output is written
    once and never read for the statistics, which are exact in bfloat16 too.
    """

    def __init__(self, channels: int):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array, kernel: Array, stride: int, lengths: Array | None) -> Array:
        """Convolve `x: (batch, samples, 1)` with `kernel: (taps, 1, channels)` and normalise the outcome.

        Statistics are those of each row's first `lengths: (batch,)` frames; None: of all.
        """
        # Cosines, because neighbouring samples are nearly equal: in float32 the little that a high-pass channel hears
        # would drown in the rounding of what it does not.
        basis = _cosines(kernel.shape[0])
        windows = convolve(x.astype(jnp.float32), basis[:, None], stride=stride, precision=EXACT)
        valid = jnp.ones_like(windows[..., :1])
        if lengths is not None:
            valid = valid * frame_mask(lengths, windows.shape[1])[..., None].astype(jnp.float32)
        count = valid.sum(1, keepdims=True)
        windows = windows - (windows * valid).sum(1, keepdims=True) / count
        covariance = jnp.einsum("bti,btj->bij", windows * valid, windows, precision=EXACT) / count
        kernel = jnp.matmul(basis.T, kernel[:, 0], precision=EXACT)
        variance = jnp.einsum("bij,ic,jc->bc", covariance, kernel, kernel, precision=EXACT)
        scale = self.scale[...][None] * jax.lax.rsqrt(variance + NORM_EPSILON)
        y = jnp.matmul(windows.astype(x.dtype), (kernel[None] * scale[:, None]).astype(x.dtype))
        return y + self.bias[...].astype(x.dtype)[None, None]


def _cosines(taps: int) -> Array:
    """Return the orthonormal cosines of a window, (taps, taps), one a column (DCT-II)."""
    time = np.arange(taps)
    basis = np.cos(np.pi * (time[:, None] + 0.5) * time[None] / taps) * math.sqrt(2 / taps)
    basis[:, 0] /= math.sqrt(2)
    return jnp.asarray(basis, jnp.float32)


class StridedConv(nnx.Module):
    """A strided convolution without padding."""

    def __init__(self, inputs: int, spec: Conv, *, bias: bool, rngs: nnx.Rngs):
        self.stride = spec.stride
        shape = (spec.kernel, inputs, spec.channels)
        self.kernel = nnx.Param(initializers.he_normal()(rngs.params(), shape, jnp.float32))
        if bias:
            init = uniform_init(inputs * spec.kernel)
            self.bias = nnx.Param(init(rngs.params(), (spec.channels,)))

    def __call__(self, x: Array) -> Array:
        """Map `x: (batch, time, in)` to (batch, fewer, channels)."""
        y = convolve(x, self.kernel[...], stride=self.stride)
        return y + self.bias[...].astype(x.dtype)[None, None] if hasattr(self, "bias") else y


class ConvLayer(nnx.Module):
    """One step of the extractor: convolution, norm where the model has one, GELU."""

    def __init__(self, front: Waveform, index: int, *, rngs: nnx.Rngs):
        spec = front.convs[index]
        self.conv = StridedConv(front.convs[index - 1].channels if index else 1, spec, bias=front.bias, rngs=rngs)
        if front.norm == "layer":
            self.norm = LayerNorm(spec.channels, rngs=rngs)
        elif index == 0:
            self.norm = TimeNorm(spec.channels)

    def __call__(self, x: Array, lengths: Array | None) -> Array:
        """Map `x: (batch, time, in)` to (batch, fewer, channels); `lengths` count the output's valid frames."""
        match getattr(self, "norm", None):
            case None:
                return gelu(self.conv(x))
            case TimeNorm() as norm:  # takes away any bias that the convolution has
                return gelu(norm(x, self.conv.kernel[...], self.conv.stride, lengths))
            case norm:
                return gelu(norm(self.conv(x)))


class Extractor(nnx.Module):
    """HuBERT's front end: the convolutions and, where the model has one, the norm of their output."""

    def __init__(self, front: Waveform, *, rngs: nnx.Rngs):
        self.specs, self.gradient_scale = front.convs, front.gradient_scale
        self.convs = nnx.List([ConvLayer(front, i, rngs=rngs) for i in range(len(front.convs))])
        if front.feature_norm:
            self.norm = LayerNorm(front.size, rngs=rngs)

    def __call__(self, samples: Array, lengths: Array | None) -> tuple[Array, Array]:
        """Turn `samples: (batch, samples)` into raw and normalised features, both (batch, time, channels)."""
        x = samples[..., None]
        for spec, conv in zip(self.specs, self.convs, strict=True):
            lengths = None if lengths is None else (lengths - spec.kernel) // spec.stride + 1
            x = conv(x, lengths)
        x = scale_gradient(x, self.gradient_scale)
        return x, self.norm(x) if hasattr(self, "norm") else x


def standardise(samples: Array, lengths: Array | None = None) -> Array:
    """Bring each row of `samples: (batch, samples)` to zero mean and unit variance over its valid samples."""
    valid = None if lengths is None else frame_mask(lengths, samples.shape[1])
    mean = samples.mean(1, keepdims=True, where=valid)
    variance = jnp.square(samples - mean).mean(1, keepdims=True, where=valid)
    out = (samples - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)
    return out if valid is None else jnp.where(valid, out, jnp.zeros_like(out))
