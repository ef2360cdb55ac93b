"""What the modules of all parts are made of: norm, convolution, activation, dropout.

Every module computes in the dtype of its input and keeps its parameters in float32; norms and softmax accumulate in
float32. Shapes use `batch`, `time` (frames), `width`. `rngs` is None in evaluation: nothing is dropped then.
"""

import math
from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.export import is_symbolic_dim
from jax.nn import initializers
from jax.typing import DTypeLike

from jaxssl.models import choice
from jaxssl.models.bits import kept
from jaxssl.models.keys import Keys

Init = Callable[..., Array]

NORM_EPSILON = 1e-5
KEPT = "kept"  # the name of what a backward pass does not compute again, see `stack.run_all`
encoder_init = initializers.normal(0.02)


def uniform_init(fan_in: int) -> Init:
    """Return PyTorch's default for Linear and Conv: uniform in ±1/sqrt(fan_in), for weights and biases alike."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def gelu(x: Array) -> Array:
    """Apply the exact (erf) GELU, as fairseq does; written with `erf`, which XLA vectorises better than `erfc`."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def dropout(x: Array, rate: float, rngs: Keys | None) -> Array:
    """Zero entries of `x` with probability `rate` and scale the rest up; the identity without `rngs`."""
    if rngs is None or rate == 0.0:
        return x
    return jnp.where(kept(rngs.dropout(), rate, x.shape), x / (1 - rate), jnp.zeros_like(x))


def convolve(
    x: Array,
    kernel: Array,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
    precision: jax.lax.Precision | None = None,
) -> Array:
    """Convolve `x: (batch, time, in)` with `kernel: (taps, in / groups, out)`; without a bias."""
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride,),
        padding=[padding],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
        precision=precision,
    )


def depthwise(x: Array, kernel: Array, *, padding: tuple[int, int]) -> Array:
    """Convolve each channel of `x: (batch, time, channels)` alone, with `kernel: (taps, 1, channels)`; without a bias.

    Sums are float32.
    """
    taps, _, channels = kernel.shape
    frames = x.shape[1] + sum(padding) - taps + 1
    if is_symbolic_dim(frames) or choice.depthwise(taps) == "convolution":
        return convolve(x, kernel, padding=padding, groups=channels)
    whole = jnp.pad(x.astype(jnp.float32), ((0, 0), padding, (0, 0)))
    weights = kernel.astype(x.dtype).astype(jnp.float32)  # what a convolution would multiply by
    products = (whole[:, i : i + frames] * weights[i][None] for i in range(taps))
    return reduce(jnp.add, products).astype(x.dtype)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis, in float32, with PyTorch's epsilon and the two-pass variance."""

    def __init__(self, width: int, *, rngs: Keys):
        super().__init__(width, epsilon=NORM_EPSILON, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Normalise `x: (batch, time, width)`; of a subnet, its channels (`jaxssl.models.supernet`)."""
        if hasattr(self, "channels"):
            return self.narrow(x.astype(jnp.float32), self.channels[...]).astype(x.dtype)
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)

    def narrow(self, x: Array, channels: Array) -> Array:
        """Normalise some `channels: (width,)` by themselves, the others being 0, and return 0 for these."""
        channels = channels[None, None]
        count = channels.sum(-1, keepdims=True).astype(x.dtype)
        apart = jnp.where(channels, x - x.sum(-1, keepdims=True) / count, jnp.zeros_like(x))
        scale = jax.lax.rsqrt(jnp.square(apart).sum(-1, keepdims=True) / count + NORM_EPSILON)
        found = apart * scale * self.scale[...][None, None] + self.bias[...][None, None]
        return jnp.where(channels, found, jnp.zeros_like(x))


def frame_mask(lengths: Array, frames: int) -> Array:
    """Return (batch, frames), true where a frame is among the first `lengths: (batch,)`."""
    return jnp.arange(frames)[None, :] < lengths[:, None]
