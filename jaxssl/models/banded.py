"""Long grouped convolutions as products of blocks of frames with a banded matrix, which matrix units take fastest.

HOP frames of output hear HOP + taps - 1 frames of input; a matrix that holds the kernel HOP times, each time one frame
further, gives them all in one product: (HOP + taps - 1) / taps of the convolution's multiplications, in large pieces.
"""

import jax.numpy as jnp
from jax import Array

HOP = 16  # frames of output in one product; 8 and 32 took 25 % longer and as long for 128 taps


def bands(kernel: Array, *, groups: int) -> Array:
    """Return the matrix of a kernel, (groups, (HOP + taps - 1) · in, HOP · out); in and out are those of a group.

    `kernel` is (taps, in / groups, out).
    """
    taps, each, outputs = kernel.shape
    rows, kernel = HOP + taps - 1, kernel.reshape(taps, each, groups, outputs // groups).transpose(2, 0, 1, 3)
    further = [jnp.pad(kernel, ((0, 0), (hop, rows - taps - hop), (0, 0), (0, 0))) for hop in range(HOP)]
    return jnp.stack(further, 3).reshape(groups, rows * each, -1)


def banded(x: Array, matrix: Array, *, taps: int, padding: tuple[int, int]) -> Array:
    """Convolve as `layers.convolve` does, by the matrix that `bands` made of the kernel.

    Args:
        x: (batch, time, in).
        matrix: (groups, rows, columns), as of `bands`.
        taps: of the kernel.
        padding: zeros before and after; their sum is taps - 1, so that time stays.
    """
    batch, time, width = x.shape
    groups, rows = matrix.shape[0], HOP + taps - 1
    count = -(-time // HOP)
    padded = jnp.pad(x, ((0, 0), (padding[0], count * HOP + taps - 1 - time - padding[0]), (0, 0)))
    blocks = padded[:, jnp.arange(count)[:, None] * HOP + jnp.arange(rows)[None]]
    blocks = blocks.reshape(batch * count, rows, groups, width // groups).transpose(2, 0, 1, 3)
    y = jnp.matmul(blocks.reshape(groups, batch * count, -1), matrix.astype(x.dtype))
    y = y.reshape(groups, batch, count, HOP, -1).transpose(1, 2, 3, 0, 4)
    return y.reshape(batch, count * HOP, -1)[:, :time]


def by_bands(x: Array, kernel: Array, *, padding: tuple[int, int], groups: int) -> Array:
    """Convolve `x: (batch, time, in)` with `kernel: (taps, in / groups, out)`; padding as of `banded`."""
    return banded(x, bands(kernel.astype(x.dtype), groups=groups), taps=kernel.shape[0], padding=padding)
