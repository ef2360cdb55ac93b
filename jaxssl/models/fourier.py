"""Long grouped convolutions in the frequency domain, where that is faster."""

import math

import jax
import jax.numpy as jnp
from jax import Array

WORTH = 1000  # frames of a batch from which the transforms of the kernel are paid back


def pays(frames: int) -> bool:
    """Tell whether the Fourier transform beats XLA's grouped convolution for a batch of that many frames.

    Measured on two CPU cores with AVX-512: the gradient of 8 × 375 frames of width 256 takes 37 ms instead of 1,600
    (XLA's CPU code for a grouped kernel's gradient is a plain loop), the forward pass of 4 × 750 frames of width 768
    190 ms instead of 400, but that of 1 × 250 frames 100 ms instead of 45. GPUs and TPUs have fast convolutions.
    """
    return jax.default_backend() == "cpu" and frames >= WORTH


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
    """Return the transform of a kernel that runs backwards, (real and imaginary, size // 2 + 1, groups, in, out).

    `kernel` is (taps, in / groups, out); size is `block(taps)`; in and out are those of a group.
    """
    taps, each, outputs = kernel.shape
    found = jnp.fft.rfft(kernel[::-1], n=block(taps), axis=0).reshape(-1, each, groups, outputs // groups)
    return jnp.stack([found.real, found.imag]).transpose(0, 1, 3, 2, 4)


def filtered(x: Array, filters: Array, *, taps: int, padding: tuple[int, int]) -> Array:
    """Convolve with a kernel that is given by its spectrum; arguments as of `overlap_save` and `spectrum`.

    Each block of n frames gives n − taps + 1 valid ones: y = irfft(rfft(block) · rfft(reversed kernel)). The product is
    that of real parts and imaginary parts, for which XLA has fast code: of complex numbers it took twice as long.
    """
    batch, time, _ = x.shape
    _, _, groups, each, outputs = filters.shape
    size = block(taps)
    hop = size - taps + 1
    count = -(-time // hop)
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (padding[0], count * hop + taps - 1 - time - padding[0]), (0, 0)))
    blocks = padded[:, jnp.arange(count)[:, None] * hop + jnp.arange(size)[None, :]]
    heard = jnp.fft.rfft(blocks, axis=2).reshape(batch * count, -1, groups, each).transpose(1, 2, 0, 3)
    parts = jnp.concatenate([heard.real, heard.imag], 2)  # one product with each part of the filters
    one, two = (jnp.einsum("fgmi,fgio->fgmo", parts, part) for part in filters)
    (real, cross), (other, imag) = (jnp.split(each, 2, axis=2) for each in (one, two))
    product = jax.lax.complex(real - imag, cross + other).transpose(2, 0, 1, 3)
    y = jnp.fft.irfft(product.reshape(batch, count, -1, groups * outputs), n=size, axis=2)[:, :, taps - 1 :]
    return y.reshape(batch, count * hop, groups * outputs)[:, :time].astype(x.dtype)


def block(taps: int) -> int:
    """Choose a transform length: 256 where that leaves half of it valid, at least 4 taps long below, 2 above."""
    return 1 << math.ceil(math.log2(max(2 * taps, min(4 * taps, 256))))
