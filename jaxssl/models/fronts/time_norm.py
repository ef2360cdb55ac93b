"""A convolution of samples whose channels are normalised over time, in one product."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxssl.models.layers import NORM_EPSILON, convolve, frame_mask, gelu
from jaxssl.models.packed import multiplied

EXACT = jax.lax.Precision.HIGHEST  # GPUs round float32 operands by default


class TimeNorm(nnx.Module):
    """Normalise each channel of a convolution of samples over time: GroupNorm with as many groups as channels.

    Convolution and norm together are a product y = (w - mean(w)) · k · scale / sqrt(kᵀ C k + ε) + bias of windows of
    samples, w, with the convolution's kernel, k; C is the covariance of windows over time. So its output is written
    once and never read for the statistics, which are exact in bfloat16 too.
    """

    def __init__(self, channels: int, *, packed: bool):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.packed = packed

    def __call__(self, x: Array, kernel: Array, stride: int, lengths: Array | None) -> Array:
        """Convolve `x: (batch, samples, 1)` with `kernel: (taps, 1, channels)`, normalise the outcome and apply GELU.

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
        windows, kernels = windows.astype(x.dtype), kernel[None] * scale[:, None]
        if self.packed:
            return multiplied(windows, kernels, jnp.broadcast_to(self.bias[...], scale.shape), "gelu")
        # The bias as the weight of a one: its gradient comes out of the product, summed in float32.
        bias = jnp.broadcast_to(self.bias[...], (x.shape[0], 1, scale.shape[1]))
        windows = jnp.pad(windows, ((0, 0), (0, 0), (0, 1)), constant_values=1)
        return gelu(jnp.matmul(windows, jnp.concatenate([kernels, bias], 1).astype(x.dtype)))


def _cosines(taps: int) -> Array:
    """Return the orthonormal cosines of a window, (taps, taps), one a column (DCT-II)."""
    time = np.arange(taps)
    basis = np.cos(np.pi * (time[:, None] + 0.5) * time[None] / taps) * math.sqrt(2 / taps)
    basis[:, 0] /= math.sqrt(2)
    return jnp.asarray(basis, jnp.float32)
