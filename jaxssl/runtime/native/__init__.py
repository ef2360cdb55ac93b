"""Kernels of our own for the parts of a forward pass that XLA's CPU code spreads badly over threads.

They are built from `kernels.cc` when a model first asks for them (`jaxssl.runtime.native.build`), in 12 s once, and
called through XLA's foreign function interface. Those that have derivatives, for training, are called by `gradients`
and `scan`. Where they cannot be built, models run as XLA compiles them: `jaxssl.models.choice` asks `ready`.

Products take weights that are packed (`pack`), in float32, bfloat16 or int8. As the processor has it, bfloat16 is
multiplied by AMX, by AVX512-BF16, by VNNI or AVX2 in whole numbers (`pack_int16`), or in float32 from half as
many bytes; int8 by AMX, by VNNI, or number by number, which is slow (`fast_int8`).
"""

import ctypes
import math
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxssl.runtime.native import build

PANEL = 64  # columns of packed weights that lie together
FILL = 4  # what their inputs are a multiple of: numbers of the largest group
HEAD = 4  # rows of a panel before its numbers, for what whole numbers need besides
GROUPS = {"float32": 1, "bfloat16": 2, "int8": 4}  # numbers of one sum that lie beside each other there
TOP = 2047  # the largest whole number of int16 weights: 12 bits with the sign
TIERS = {  # what multiplies, in the kernels' order
    "bfloat16": ("float32", "AVX512-BF16", "AMX", "VNNI", "AVX2"),
    "int8": ("plain C++", "VNNI", "AMX"),
}
ACTIVATIONS = ("linear", "gelu")  # with which a product can end, by the kernels' numbers

Activation = Literal["linear", "gelu"]


@cache
def ready() -> bool:
    """Tell whether the kernels are there, building them if need be."""
    path = build.shared_object()
    if path is not None:
        register(path)
    return path is not None


@cache
def fast_int8() -> bool:
    """Tell whether the kernels are there, and have instructions of the processor for int8."""
    return tiers().get("int8", TIERS["int8"][0]) != TIERS["int8"][0]


@cache
def fast_bfloat16() -> bool:
    """Tell whether the kernels are there, and multiply bfloat16 quicker than float32 by the processor's instructions.

    AVX2 does in its largest products, by a third on an Intel processor, and is not counted: others were not timed.
    """
    return tiers().get("bfloat16") in TIERS["bfloat16"][1:4]


@cache
def whole_bfloat16() -> bool:
    """Tell whether products of bfloat16 are quickest in whole numbers, of weights that `pack_int16` lays out."""
    return tiers().get("bfloat16") in TIERS["bfloat16"][3:]


def tiers(*processor: str) -> dict[str, str]:
    """Return what multiplies each dtype, of `TIERS`; nothing where there are no kernels.

    Args:
        *processor: the compiler's flags for what kernels to ask; none: this machine's.
    """
    path = build.shared_object(*processor)
    library = None if path is None else ctypes.CDLL(str(path))
    return {} if library is None else {dtype: by[getattr(library, f"tier_{dtype}")()] for dtype, by in TIERS.items()}


def register(path: str | build.Path, prefix: str = "jaxssl") -> None:
    """Let XLA call a library's kernels as `prefix`_attention_float32 and so on."""
    library = ctypes.CDLL(str(path))
    for name in build.KERNELS:
        jax.ffi.register_ffi_target(f"{prefix}_{name}", jax.ffi.pycapsule(getattr(library, name)), platform="cpu")


def attention(q: Array, k: Array, v: Array, valid: Array | None, *, prefix: str = "jaxssl") -> Array:
    """Attend as `jaxssl.models.attend` does, in float32 or bfloat16; a few frames' scores at a time stay in the cache.

    Scores and sums are float32 in both. Measured on two cores with AVX-512, 12 heads of 64, float32: 250 frames take
    0.6 ms instead of 1.1, 749 4.7 instead of 7.8, 1500 18 instead of 25.
    """
    valid = jnp.ones(q.shape[:2], bool) if valid is None else valid
    nothing = {"threshold": np.int64(0), "scale": np.float32(1), "together": np.bool_(False)}  # that is dropped
    words = jnp.zeros((0, 2), jnp.uint32)
    call = _call(f"{prefix}_attention_{q.dtype}", q.shape, q.dtype)
    return call(q, k, v, valid.sum(1, dtype=jnp.int32), words, **nothing)


def pack(kernel: Array, dtype: Any) -> Array:
    """Lay weights out as products read them, in float32 or bfloat16.

    Args:
        kernel: (inputs, outputs), or (sets, inputs, outputs).
        dtype: of the packed weights.

    Returns:
        (sets, panels, `HEAD` + inputs filled up to a multiple of `FILL`, `PANEL`), one set for a kernel alone, and
        zeros at the head of a panel; bfloat16 as bits, uint16, because they are in no order that another program would
        guess.
    """
    sets = kernel if kernel.ndim == 3 else kernel[None]
    packed = _panels(sets.astype(dtype), GROUPS[jnp.dtype(dtype).name])
    packed = jnp.pad(packed, ((0, 0), (0, 0), (HEAD, 0), (0, 0)))
    return jax.lax.bitcast_convert_type(packed, jnp.uint16) if packed.dtype == jnp.bfloat16 else packed


def pack_int16(kernel: Array) -> Array:
    """Round weights, (inputs, outputs), to whole numbers up to `TOP`, and lay them out likewise.

    Products in bfloat16 read them, where processors add up pairs of int16 quicker (`whole_bfloat16`). Each column has a
    scale, and so has each frame, whose largest number becomes 4095 as it comes. Rounding changes no weight by more than
    1/4094 of its column's largest, where bfloat16 changes that one by up to 1/512. Products have three quarters of
    bfloat16's error, as long as no number of a frame is more than some twenty times the root of its numbers' mean
    square; twice its error at forty times.

    Returns:
        (1, panels, `HEAD` + inputs filled up, `PANEL`) int16; its columns' scales are at the head of a panel.
    """
    kernel = kernel.astype(jnp.float32)
    step = jnp.abs(kernel).max(0) / TOP
    scale = jnp.where(step < jnp.finfo(jnp.float32).tiny, 1, step)
    return _headed(jnp.round(kernel / scale[None]).astype(jnp.int16), scale, GROUPS["bfloat16"])


def pack_int8(kernel: Array) -> Array:
    """Lay out int8 weights, (inputs, outputs), likewise, with -128 times the sum of each column at the head.

    Frames are multiplied as whole numbers from 1 to 255, 128 too much; what that adds is taken away so. The sums are
    32-bit.
    """
    return _headed(kernel, -128 * kernel.astype(jnp.int32).sum(0), GROUPS["int8"])


def windows(
    x: Array,
    packed: Array,
    bias: Array,
    *,
    rows: int,
    stride: int,
    activation: Activation = "linear",
    prefix: str = "jaxssl",
) -> Array:
    """Multiply windows of numbers that lie beside each other by packed weights: a convolution is one, without copies.

    Args:
        x: (batch, numbers), float32 or bfloat16; windows are as long as the weights have inputs.
        packed: weights for that dtype, as `pack` lays them out; row b is multiplied by set b modulo their number. For
            bfloat16 they may be one set of `pack_int16`.
        bias: (sets, outputs) float32.
        rows: how many windows, the first one at the beginning.
        stride: numbers from one to the next.
        activation: what comes last.
        prefix: of the library's kernels.

    Returns:
        (batch, rows, outputs) in the dtype of `x`.
    """
    needed = (rows - 1) * stride + _depth(packed)
    if needed > x.shape[1]:  # where a window is no whole number of groups, the last one reads on
        x = jnp.pad(x, ((0, 0), (0, needed - x.shape[1])))
    kernel, sizes = f"product_{x.dtype}", {"stride": np.int64(stride)}
    if packed.dtype == jnp.int16:
        kernel, sizes = f"int16_{x.dtype}", sizes | {"inputs": np.int64(_depth(packed))}
    call = _call(f"{prefix}_{kernel}", (x.shape[0], rows, bias.shape[-1]), x.dtype)
    return call(x, packed, bias.astype(jnp.float32), **sizes, activation=_number(activation))


def dense(x: Array, *weights: Array, activation: Activation = "linear", prefix: str = "jaxssl") -> Array:
    """Return activation(x · kernel + bias), or activation(x · down · up + bias), in the dtype of `x`.

    What lies between two products never leaves the cache.

    Args:
        x: (batch, time, *inputs), float32 or bfloat16.
        *weights: one or two packed for that dtype (`pack`, or `pack_int16` for bfloat16), then the bias, (*outputs,),
            which tells how many columns count.
        activation: what comes last.
        prefix: of the library's kernels.

    Returns:
        (batch, time, *outputs).
    """
    first, *second, bias = weights
    shape, rows = (*x.shape[:2], *bias.shape), math.prod(x.shape[:2])
    depth, inputs = _depth(first), math.prod(x.shape[2:])
    x = x.reshape(rows, inputs)
    x = x if depth == inputs else jnp.pad(x, ((0, 0), (0, depth - inputs)))
    added = bias.astype(jnp.float32).reshape(1, -1)
    if second:
        kind = "factored_int16" if first.dtype == jnp.int16 else "factored"
        call = _call(f"{prefix}_{kind}_{x.dtype}", (rows, bias.size), x.dtype)
        return call(x, first, *second, added, activation=_number(activation)).reshape(shape)
    y = windows(x.reshape(1, rows * depth), first, added, rows=rows, stride=depth, activation=activation, prefix=prefix)
    return y.reshape(shape)


def dense_int8(x: Array, *weights: Array, activation: Activation = "linear", prefix: str = "jaxssl") -> Array:
    """Return activation(x · kernel + bias), or activation(x · down · up + bias), of int8 weights.

    Each frame is quantised as it comes (`models.int8_product`), and so is what lies between two products, which never
    leaves the cache.

    Args:
        x: (batch, time, *inputs), float32 or bfloat16.
        *weights: one or two as `pack_int8` lays them out, each with its columns' scales, (*outputs,) float32, behind
            it; then the bias, (*outputs,).
        activation: what comes last.
        prefix: of the library's kernels.

    Returns:
        (batch, time, *outputs) in the dtype of `x`.
    """
    packed, scale, *second, bias = weights
    shape, rows, inputs = (*x.shape[:2], *bias.shape), math.prod(x.shape[:2]), math.prod(x.shape[2:])
    if second:
        call = _call(f"{prefix}_factored_int8_{x.dtype}", (rows, bias.size), x.dtype)
        up, gain = second
        added = bias.astype(jnp.float32).reshape(-1)
        y = call(x.reshape(rows, inputs), packed, scale, up, gain.reshape(-1), added, activation=_number(activation))
        return y.reshape(shape)
    sizes = {"inputs": inputs, "rows": rows, "stride": inputs}
    y = windows_int8(x.reshape(1, rows * inputs), packed, scale, bias, **sizes, activation=activation, prefix=prefix)
    return y.reshape(shape)


def windows_int8(
    x: Array,
    packed: Array,
    scale: Array,
    bias: Array,
    *,
    inputs: int,
    rows: int,
    stride: int,
    activation: Activation = "linear",
    prefix: str = "jaxssl",
) -> Array:
    """Multiply windows of numbers that lie beside each other by an int8 kernel, each window quantised as it comes.

    Args:
        x: (batch, numbers), float32 or bfloat16.
        packed: as `pack_int8` lays it out.
        scale: (*outputs,) float32, of each column.
        bias: (*outputs,).
        inputs: numbers of a window.
        rows: how many windows, the first one at the beginning.
        stride: numbers from one to the next.
        activation: what comes last.
        prefix: of the library's kernels.

    Returns:
        (batch, rows, outputs) in the dtype of `x`.
    """
    call = _call(f"{prefix}_int8_{x.dtype}", (x.shape[0], rows, bias.size), x.dtype)
    sizes = {"inputs": np.int64(inputs), "stride": np.int64(stride), "activation": _number(activation)}
    return call(x, packed, scale.reshape(-1), bias.astype(jnp.float32).reshape(-1), **sizes)


def _depth(packed: Array) -> int:
    """Return how many inputs packed weights have."""
    return packed.shape[2] - HEAD


def _headed(kernel: Array, head: Array, group: int) -> Array:
    """Lay whole numbers, (inputs, outputs), out as panels, with a number of 32 bits for each column at their heads."""
    bits = jax.lax.bitcast_convert_type(jnp.pad(head, (0, -head.size % PANEL)), kernel.dtype)
    bits = bits.reshape(1, -1, bits.shape[-1], PANEL)
    bits = jnp.pad(bits, ((0, 0), (0, 0), (0, HEAD - bits.shape[2]), (0, 0)))
    return jnp.concatenate([bits, _panels(kernel[None], group)], 2)


def _panels(sets: Array, group: int) -> Array:
    """Lay (sets, inputs, outputs) out as panels, within which a group's numbers of a column lie beside each other."""
    whole = jnp.pad(sets, ((0, 0), (0, -sets.shape[1] % FILL), (0, -sets.shape[2] % PANEL)))
    count, inputs, outputs = whole.shape
    apart = whole.reshape(count, inputs // group, group, outputs // PANEL, PANEL).transpose(0, 3, 1, 4, 2)
    return apart.reshape(count, outputs // PANEL, inputs, PANEL)


def call(name: str, results: Any) -> Any:
    """Return what calls a kernel for results of these shapes and dtypes."""
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")


def _call(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    return call(name, jax.ShapeDtypeStruct(shape, dtype))


def _number(activation: Activation) -> np.int64:
    return np.int64(ACTIVATIONS.index(activation))
