"""The modules of the Transformer: dense maps, attention, feed-forward, positions.

Every module computes in the dtype of its input and keeps its parameters in float32; norms and softmax accumulate in
float32. Shapes use `batch`, `time` (frames), `width`. `rngs` is None in evaluation: nothing is dropped then.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.export import is_symbolic_dim
from jax.nn import initializers
from jax.typing import DTypeLike

from compress.errors import InputError
from compress.quantize import rounded
from jaxssl.models import choice
from jaxssl.models.arch import Arch, Layer
from jaxssl.models.attend import attend
from jaxssl.models.banded import banded, bands, by_bands
from jaxssl.models.bits import kept
from jaxssl.models.block_product import block_product
from jaxssl.models.fourier import filtered, overlap_save, spectrum
from jaxssl.models.int8_product import int8_product
from jaxssl.runtime import native

Init = Callable[..., Array]
Maps = tuple[Array, Array]  # attention of all heads: exp(score), (batch, heads, query, key), and its sums over keys

NORM_EPSILON = 1e-5
KEPT = "kept"  # the name of what a backward pass does not compute again, see `Stack`
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


def dropout(x: Array, rate: float, rngs: nnx.Rngs | None) -> Array:
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


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis, in float32, with PyTorch's epsilon and the two-pass variance."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, epsilon=NORM_EPSILON, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Normalise `x: (batch, time, width)`."""
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


class Dense(nnx.Module):
    """A dense map `y = x · kernel + bias`, or `y = x · down · up + bias` when it has a rank.

    `kernel` is (*inputs, *outputs); factorised, `down` is (*inputs, rank) and `up` is (rank, *outputs); packed, the
    kernel is given by `blocks` and `index` (`compress.blocks`). In int8, `kernel`, `down` and `up` have scales
    beside them (`compress.quantize`), and inputs are quantised as they come (`jaxssl.models.int8_product`).
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        *,
        rank: int | None = None,
        packed: tuple[int, int] | None = None,
        int8: bool = False,
        prepared: bool = False,
        kernel_init: Init = encoder_init,
        bias_init: Init = initializers.zeros,
        rngs: nnx.Rngs,
    ):
        self.contracted = len(inputs)
        self.prepared, self.special = prepared, int8 or packed is not None
        self.listening = False
        if packed is not None:
            index = _spread(math.prod(inputs), math.prod(outputs), rank, *packed)
            self.blocks = nnx.Param(kernel_init(rngs.params(), (*index.shape, packed[0], packed[0])))
            self.index = nnx.Param(jnp.asarray(index))
        elif rank is None:
            self._hold("kernel", kernel_init(rngs.params(), (*inputs, *outputs)), len(inputs), int8)
        else:
            self._hold("down", kernel_init(rngs.params(), (*inputs, rank)), len(inputs), int8)
            self._hold("up", kernel_init(rngs.params(), (rank, *outputs)), 1, int8)
        self.bias = nnx.Param(bias_init(rngs.params(), outputs, jnp.float32))

    def __call__(self, x: Array) -> Array:
        """Map the last axes of `x: (batch, time, *inputs)` to (batch, time, *outputs)."""
        if self.listening:
            self.heard = nnx.Intermediate(x)
        if hasattr(self, "gate"):  # (batch or 1, time or 1, units)
            x = x * jnp.expand_dims(self.gate[...].astype(x.dtype), range(3, x.ndim))
        if self._native(x):
            weights = [self.kernel] if hasattr(self, "kernel") else [self.down, self.up]
            return native.dense(x, *(each[...].astype(x.dtype) for each in (*weights, self.bias)))
        if hasattr(self, "kernel"):
            y = self._product(x, "kernel", self.contracted)
        elif hasattr(self, "blocks"):
            y = block_product(x.reshape(*x.shape[:2], -1), self.blocks[...], self.index[...])
            y = y.reshape(*x.shape[:2], *self.bias.shape)
        else:
            y = self._product(self._product(x, "down", self.contracted), "up", 1)
        return checkpoint_name(y + jnp.expand_dims(self.bias[...].astype(x.dtype), (0, 1)), KEPT)

    def bias_alone(self, x: Array) -> Array:
        """Return what the map gives for an input of no units: its bias at every frame of `x: (batch, time, …)`."""
        bias = self.bias[...].astype(x.dtype)
        return jnp.broadcast_to(bias, (*x.shape[:2], *bias.shape))

    def _native(self, x: Array) -> bool:
        """Tell whether the map of `x` is left to our kernels."""
        if not self.prepared or self.special or any(map(is_symbolic_dim, x.shape)):
            return False
        rank = self.up.shape[0] if hasattr(self, "up") else None
        return choice.dense(x.shape[0] * x.shape[1], math.prod(self.bias.shape), rank, x.dtype) == "native"

    def _hold(self, name: str, array: Array, inputs: int, int8: bool) -> None:
        """Take an array of weights, of which the first `inputs` axes are inputs, as it is or in int8."""
        if int8:
            array, scale = rounded(array, tuple(range(inputs)))
            setattr(self, f"{name}_scale", nnx.Param(scale))
        setattr(self, name, nnx.Param(array))

    def _product(self, x: Array, name: str, contracted: int) -> Array:
        weights = getattr(self, name)[...]
        if hasattr(self, f"{name}_scale"):
            return int8_product(x, weights, getattr(self, f"{name}_scale")[...], contracted)
        # Sums in float32 are also what XLA's CPU code has fast bfloat16 products for; GPUs do so of themselves.
        wide = jnp.float32 if jax.default_backend() == "cpu" else None
        return jnp.tensordot(x, weights.astype(x.dtype), contracted, preferred_element_type=wide).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention, heads on an axis of their own; with `reuse`, on the maps of the layer before."""

    def __init__(self, arch: Arch, layer: Layer, *, lends: bool = False, rngs: nnx.Rngs):
        self.heads, self.head_dim, self.reuse, self.lends = layer.heads, arch.head_dim, layer.reuse, lends
        self.rate = 0.0 if layer.reuse else arch.dropout.attention  # ARMHuBERT drops no weight of a reused map
        self.prepared = arch.prepared
        outer, inner, ranks, packed = (arch.width,), (layer.heads, arch.head_dim), layer.ranks, layer.packed
        dense = partial(Dense, int8=layer.int8, prepared=arch.prepared, rngs=rngs)
        if not layer.reuse:
            self.q = dense(outer, inner, rank=ranks.q, packed=packed.q)
            self.k = dense(outer, inner, rank=ranks.k, packed=packed.k)
        self.v = dense(outer, inner, rank=ranks.v, packed=packed.v)
        self.out = dense(inner, outer, rank=ranks.out, packed=packed.out)

    def __call__(
        self, x: Array, valid: Array | None, rngs: nnx.Rngs | None, before: Maps | None
    ) -> tuple[Array, Maps | None]:
        """Attend over `x: (batch, time, width)`; keys where `valid: (batch, time)` is false are not seen.

        `before` are the maps of the layer before, for a layer that reuses them; this layer's are returned, without
        dropout, where it made or reused some: None without heads, or where nobody needs more than their product.
        """
        if self.heads == 0:
            return self.out.bias_alone(x), None
        if not (self.reuse or self.lends):
            rate, key = (0.0, None) if rngs is None or self.rate == 0.0 else (self.rate, rngs.dropout())
            q = self.q(x) * self.head_dim**-0.5
            context = attend(q, self.k(x), self.v(x), valid, rate=rate, key=key, prepared=self.prepared)
            return self.out(checkpoint_name(context.astype(x.dtype), KEPT)), None
        maps = before if self.reuse else self.maps(x, valid)
        assert maps is not None
        weights, total = maps
        weights = dropout(weights, self.rate, rngs).astype(x.dtype)
        context = jnp.einsum("bhts,bshd->bthd", weights, self.v(x), preferred_element_type=jnp.float32)
        # Dividing after the value product touches (time × head_dim) numbers instead of (time × time).
        context = context / total.transpose(0, 2, 1)[..., None]
        return self.out(context.astype(x.dtype)), maps

    def maps(self, x: Array, valid: Array | None) -> Maps:
        """Let every frame of `x` look at every valid one."""
        q = self.q(x) * self.head_dim**-0.5
        scores = jnp.einsum("bthd,bshd->bhts", q, self.k(x), preferred_element_type=jnp.float32)
        if valid is not None:
            scores = jnp.where(valid[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        return weights, weights.sum(-1)


class FeedForward(nnx.Module):
    """The two dense maps with a GELU between them."""

    def __init__(self, arch: Arch, layer: Layer, *, rngs: nnx.Rngs):
        self.units, self.rate = layer.ffn, arch.dropout.activation
        outer, inner, ranks, packed = (arch.width,), (layer.ffn,), layer.ranks, layer.packed
        dense = partial(Dense, int8=layer.int8, prepared=arch.prepared, rngs=rngs)
        self.fc1 = dense(outer, inner, rank=ranks.fc1, packed=packed.fc1)
        self.fc2 = dense(inner, outer, rank=ranks.fc2, packed=packed.fc2)

    def __call__(self, x: Array, rngs: nnx.Rngs | None) -> Array:
        """Map `x: (batch, time, width)` to the same shape."""
        if self.units == 0:
            return self.fc2.bias_alone(x)
        return self.fc2(dropout(gelu(self.fc1(x)), self.rate, rngs))


class TransformerLayer(nnx.Module):
    """Attention and feed-forward, each with a residual and a norm: before the block (pre-LN) or after the sum."""

    def __init__(self, arch: Arch, layer: Layer, *, lends: bool = False, rngs: nnx.Rngs):
        self.norm_first, self.rate = arch.norm_first, arch.dropout.hidden
        self.attention = Attention(arch, layer, lends=lends, rngs=rngs)
        self.attention_norm = LayerNorm(arch.width, rngs=rngs)
        self.ffn = FeedForward(arch, layer, rngs=rngs)
        self.ffn_norm = LayerNorm(arch.width, rngs=rngs)

    def __call__(
        self, x: Array, valid: Array | None, rngs: nnx.Rngs | None, before: Maps | None = None
    ) -> tuple[Array, Maps | None]:
        """Map `x: (batch, time, width)` to the same shape; take and return attention maps as `Attention` does."""

        def attend(x: Array) -> tuple[Array, Maps | None]:
            y, maps = self.attention(x, valid, rngs, before)
            return dropout(y, self.rate, rngs), maps

        def feed(x: Array) -> Array:
            return dropout(self.ffn(x, rngs), self.rate, rngs)

        if self.norm_first:
            y, maps = attend(self.attention_norm(x))
            x = x + y
            return x + feed(self.ffn_norm(x)), maps
        y, maps = attend(x)
        x = self.attention_norm(x + y)
        return self.ffn_norm(x + feed(x)), maps


class Position(nnx.Module):
    """The grouped convolution that tells frames where they are, weight-normalised with one gain per tap.

    The convolution runs with `gain · kernel / ‖kernel‖`, the norm over the two other axes (wav2vec 2.0, §2); a prepared
    one (`jaxssl.inference.prepack`) has `filters` of that.
    """

    def __init__(self, arch: Arch, *, rngs: nnx.Rngs):
        self.taps, self.groups, width = arch.position_kernel, arch.position_groups, arch.width
        deviation = math.sqrt(4 / (self.taps * width))
        kernel = initializers.normal(deviation)(rngs.params(), (self.taps, width // self.groups, width))
        if arch.prepared:
            self.filters = nnx.Param(filters(kernel, groups=self.groups))
        else:
            self.kernel, self.gain = nnx.Param(kernel), nnx.Param(jnp.sqrt((kernel**2).sum((1, 2))))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Array) -> Array:
        """Convolve `x: (batch, time, width)`; an even kernel sees one frame more of the past than of the future."""
        y = self.convolved(x, (self.taps // 2, (self.taps - 1) // 2))
        return gelu(y + self.bias[...].astype(x.dtype)[None, None])

    def convolved(self, x: Array, pads: tuple[int, int]) -> Array:
        """Convolve by whichever way is the fastest here."""
        if hasattr(self, "filters"):
            run = banded if choice.prepared_positions() == "banded" else filtered
            return run(x, self.filters[...], taps=self.taps, padding=pads)
        weight, frames = normalised(self.kernel[...], self.gain[...]), x.shape[0] * x.shape[1]
        ways = {"fourier": overlap_save, "banded": by_bands, "plain": convolve}
        runs = {name: partial(way, padding=pads, groups=self.groups) for name, way in ways.items()}
        if is_symbolic_dim(frames):  # an exported program, for lengths and devices that are not known yet
            return jax.lax.platform_dependent(
                x, weight, cpu=runs["fourier"], cuda=runs["banded"], default=runs["plain"]
            )
        return runs[choice.positions(frames)](x, weight)


def filters(kernel: Array, *, groups: int) -> Array:
    """Return a positional kernel in the form that a prepared model has here."""
    return (bands if choice.prepared_positions() == "banded" else spectrum)(kernel, groups=groups)


def normalised(kernel: Array, gain: Array) -> Array:
    """Return the positional kernel as it runs, (taps, width / groups, width)."""
    return kernel * (gain / jnp.sqrt((kernel**2).sum((1, 2))))[:, None, None]


def _spread(ins: int, outs: int, rank: int | None, size: int, kept: int) -> np.ndarray:
    """Choose a fresh packed map's input blocks, (columns, kept) int32: one column goes on where the last one ended.

    Raises:
        InputError: there are no such blocks, or the map has a rank too.
    """
    if size < 1 or ins % size or outs % size or not 1 <= kept <= ins // size or not outs:
        raise InputError(f"{kept} blocks of {size} in each column cannot make up a map of {ins} × {outs}")
    if rank is not None:
        raise InputError(f"a map of {ins} × {outs} is either packed (blocks of {size}) or factorised (rank {rank})")
    rows = np.arange(outs // size)[:, None] * kept + np.arange(kept)[None]
    return np.sort(rows % (ins // size), axis=1).astype(np.int32)


def frame_mask(lengths: Array, frames: int) -> Array:
    """Return (batch, frames), true where a frame is among the first `lengths: (batch,)`."""
    return jnp.arange(frames)[None, :] < lengths[:, None]
