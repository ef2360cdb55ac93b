"""The product with a matrix of which only some square blocks are kept (`compress.blocks` says how it is stored).

Two forms compute the same, y = x · W, and leave the empty blocks of W out. On CPUs each column's blocks of inputs are
gathered, and all columns are one batched product. On GPUs and TPUs a Pallas kernel holds a tile of frames of all
inputs and runs through the blocks that a column keeps. The kernel has been run in Pallas's interpreter and compiled
for TPUs (v4, v5e, v6e) and NVIDIA's GPUs (compute capability 7.5 to 10.0), not yet run on either. The gathered form has
gradients; the kernel is for inference only. On GPUs it goes through Pallas's Triton backend, which jax 0.11 deprecates
and a later one will remove; where it is missing, the gathered form runs.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxssl.models import choice

GATHERED = 1 << 22  # inputs gathered at a time on CPUs: 16 MiB of float32, about what a large cache holds
ROWS = 16  # a kernel's tile is a multiple: what a bfloat16 register of a TPU and a GPU's matrix unit need
GPU_TILE = 64  # frames, outputs and inputs of one product on GPUs: its operands fit the shared memory of small ones
TPU_FRAMES = 256  # most frames in a tile on TPUs
TPU_TILE = 4 << 20  # bytes of a TPU's on-chip memory for a tile of all inputs, of which two are in flight
LANES = 128  # the last axis fills this many on TPUs, used or not


def block_product(x: Array, blocks: Array, index: Array) -> Array:
    """Multiply `x: (batch, time, fan_in)` by a matrix of kept blocks, to (batch, time, fan_out), in the dtype of `x`.

    Which form runs is `jaxssl.models.choice.blocks`'s to say.

    Args:
        x: inputs.
        blocks: (columns, kept, size, size).
        index: (columns, kept), the block of inputs that each one reads.
    """
    way = choice.blocks(blocks.shape[-1])
    if way == "gathered":
        return gathered_product(x, blocks, index)
    return kernel_product(x, blocks, index, platform=way)


def gathered_product(x: Array, blocks: Array, index: Array) -> Array:
    """Compute `block_product` with XLA's operations: gather, then one batched product.

    Measured on two CPU cores (AVX2), a feed-forward block of 768 → 3072 → 768 on 250 frames with a tenth of the blocks
    is 4.3 times as fast as dense with blocks of 32, 5.9 with 64, 5.3 with 128 (`experiments.blocks`). Many frames run
    in pieces, so that the gathered inputs stay in the cache: in one, a quarter of the blocks of 32 took twice as long
    on 750 frames, longer than the dense product.
    """
    columns, kept, size, _ = blocks.shape
    batch, time, _ = x.shape
    each, frames = _by_blocks(x, size), batch * time
    pieces = -(-frames * columns * kept * size // GATHERED)
    if pieces <= 1:
        return _from_columns(_gathered(each, blocks, index), batch, time)
    tile = -(-frames // pieces)
    each = _padded(each, tile).reshape(len(each), -1, tile, size).transpose(1, 0, 2, 3)
    y = jax.lax.map(lambda piece: _gathered(piece, blocks, index), each)
    return _from_columns(y.transpose(1, 0, 2, 3).reshape(columns, -1, size), batch, time)


def kernel_product(x: Array, blocks: Array, index: Array, *, platform: str, interpret: Any = False) -> Array:
    """Compute `block_product` in a Pallas kernel.

    Args:
        x: inputs.
        blocks: (columns, kept, size, size).
        index: (columns, kept).
        platform: "gpu" or "tpu".
        interpret: run in Pallas's interpreter, on any device; see `jax.experimental.pallas.pallas_call`.
    """
    (batch, time, _), size, tiled = x.shape, blocks.shape[-1], _tpu if platform == "tpu" else _gpu
    each, frames = _by_blocks(x, size), batch * time
    tile = GPU_TILE if platform == "gpu" else _tpu_frames(len(each), size, x.dtype.itemsize)
    tile = min(tile, -(-frames // ROWS) * ROWS)
    if platform == "gpu":
        tile = 1 << (tile - 1).bit_length()  # Triton knows no other sizes
    y = tiled(_padded(each, tile), blocks.astype(x.dtype), index, tile=tile, interpret=interpret)
    return _from_columns(y, batch, time)


def _by_blocks(x: Array, size: int) -> Array:
    """See `x: (batch, time, fan_in)` as (blocks of inputs, frames, size)."""
    return x.reshape(-1, x.shape[2] // size, size).transpose(1, 0, 2)


def _from_columns(y: Array, batch: int, time: int) -> Array:
    """See `y: (columns, frames or more, size)` as (batch, time, fan_out)."""
    return y[:, : batch * time].transpose(1, 0, 2).reshape(batch, time, -1)


def _padded(each: Array, tile: int) -> Array:
    """Add frames of zeros to `each: (blocks, frames, size)`, up to a multiple of `tile`."""
    return jnp.pad(each, ((0, 0), (0, -each.shape[1] % tile), (0, 0)))


def _gathered(each: Array, blocks: Array, index: Array) -> Array:
    """Multiply `each: (blocks of inputs, frames, size)` to (columns, frames, size)."""
    return jnp.einsum("ckts,ckso->cto", each.at[index].get(mode="clip"), blocks.astype(each.dtype))


def _kernel(index: Any, x: Any, blocks: Any, y: Any, *, step: int, column: int) -> None:
    """Multiply one tile of frames by one column's blocks, adding up in float32.

    `index: (columns, kept)`, `x: (blocks of inputs, tile, size)`, `blocks: (kept, size, outputs)`,
    `y: (tile, outputs)`, all in memory that the grid has cut out; each product takes `step` inputs, and the column is
    the grid's axis `column`.
    """
    from jax.experimental import pallas as pl

    at = pl.program_id(column)
    # None asks for what `jax.default_matmul_precision` says, which for bfloat16 TPUs refuse when it is the highest.
    precision = None if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    def add(k: Array, total: Array) -> Array:
        row = index[at, k]
        for start in range(0, blocks.shape[1], step):
            part = x[row, :, start : start + step], blocks[k, start : start + step, :]
            total = total + jnp.dot(*part, precision=precision, preferred_element_type=jnp.float32)
        return total

    y[...] = jax.lax.fori_loop(0, blocks.shape[0], add, jnp.zeros(y.shape, jnp.float32)).astype(y.dtype)


def _tpu(each: Array, blocks: Array, index: Array, *, tile: int, interpret: Any) -> Array:
    """Run the kernel on a TPU: `index` arrives before the rest, in scalar memory.

    All inputs of a tile stay on chip while the columns pass by, so inputs are read once and each block once a tile.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (rows, frames, size), (columns, kept, _, _) = each.shape, blocks.shape
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(frames // tile, columns),
        in_specs=[
            pl.BlockSpec((rows, tile, size), lambda t, c, index: (0, t, 0)),
            pl.BlockSpec((None, kept, size, size), lambda t, c, index: (c, 0, 0, 0)),
        ],
        out_specs=pl.BlockSpec((None, tile, size), lambda t, c, index: (c, t, 0)),
    )
    return pl.pallas_call(
        partial(_kernel, step=size, column=1),
        jax.ShapeDtypeStruct((columns, frames, size), each.dtype),
        grid_spec=grid,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(index, each, blocks)


def _gpu(each: Array, blocks: Array, index: Array, *, tile: int, interpret: Any) -> Array:
    """Run the kernel on a GPU: one program for each tile of frames and of a column's outputs; `index` is an input."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (rows, frames, size), (columns, kept, _, _) = each.shape, blocks.shape
    step = min(size, GPU_TILE)
    return pl.pallas_call(
        partial(_kernel, step=step, column=1),
        jax.ShapeDtypeStruct((columns, frames, size), each.dtype),
        grid=(frames // tile, columns, size // step),
        in_specs=[
            pl.BlockSpec((columns, kept), lambda t, c, o: (0, 0)),
            pl.BlockSpec((rows, tile, size), lambda t, c, o: (0, t, 0)),
            pl.BlockSpec((None, kept, size, step), lambda t, c, o: (c, 0, 0, o)),
        ],
        out_specs=pl.BlockSpec((None, tile, step), lambda t, c, o: (c, t, o)),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(index, each, blocks)


def _tpu_frames(rows: int, size: int, itemsize: int) -> int:
    """Choose how many frames of all inputs a TPU holds at a time."""
    fit = TPU_TILE // (rows * max(size, LANES) * itemsize)
    return max(min(fit, TPU_FRAMES) // ROWS * ROWS, ROWS)
