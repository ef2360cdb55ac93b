"""Long grouped convolutions in the frequency domain, where that is faster."""

import math

import jax
import jax.numpy as jnp
from jax import Array


def overlap_save(x: Array, kernel: Array, *, padding: tuple[int, int], groups: int) -> Array:
    """Convolve as `layers.convolve` does, by overlapping blocks in the frequency domain (overlap-save).

    Args:
        x: (batch, time, in).
        kernel: (taps, in / groups, out).
        padding: zeros before and after; their sum is taps − 1, so that time stays.
        groups: of channels.
    """
    return filtered(x, spectrum(kernel, groups=groups), taps=kernel.shape[0], padding=padding)


def spectrum(kernel: Array, *, groups: int) -> Array:
    """Return the transform of a kernel that runs backwards, (size // 2 + 1, groups, in, 2 · out), imaginary parts last.

    `kernel` is (taps, in / groups, out); size is `block(taps)`; in and out are those of a group.
    """
    taps, each, outputs = kernel.shape
    found = jnp.fft.rfft(kernel[::-1], n=block(taps), axis=0).reshape(-1, each, groups, outputs // groups)
    return jnp.concatenate([found.real, found.imag], -1).transpose(0, 2, 1, 3)


def filtered(x: Array, filters: Array, *, taps: int, padding: tuple[int, int]) -> Array:
    """Convolve with a kernel that is given by its spectrum; arguments as of `overlap_save` and `spectrum`.

    Each block of n frames gives n − taps + 1 valid ones: y = irfft(rfft(block) · rfft(reversed kernel)). The product is
    one of real numbers, of both parts with both parts, for which XLA has fast code: of complex numbers it took twice as
    long, and filters whose parts lie apart are copied on every run.
    """
    batch, time, _ = x.shape
    _, groups, each, outputs = filters.shape
    size = block(taps)
    hop = size - taps + 1
    count = -(-time // hop)
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (padding[0], count * hop + taps - 1 - time - padding[0]), (0, 0)))
    blocks = padded[:, jnp.arange(count)[:, None] * hop + jnp.arange(size)[None, :]]
    heard = jnp.fft.rfft(blocks, axis=2).reshape(batch * count, -1, groups, each).transpose(1, 2, 0, 3)
    product = jnp.einsum("fgmi,fgio->fgmo", jnp.concatenate([heard.real, heard.imag], 2), filters)
    (one, cross), (other, two) = (jnp.split(half, 2, axis=3) for half in jnp.split(product, 2, axis=2))
    y = jax.lax.complex(one - two, cross + other).transpose(2, 0, 1, 3).reshape(batch, count, -1, groups * outputs // 2)
    y = jnp.fft.irfft(y, n=size, axis=2)[:, :, taps - 1 :]
    return y.reshape(batch, count * hop, -1)[:, :time].astype(x.dtype)


def block(taps: int) -> int:
    """Choose a transform length: 256 where that leaves half of it valid, at least 4 taps long below, 2 above."""
    return 1 << math.ceil(math.log2(max(2 * taps, min(4 * taps, 256))))
