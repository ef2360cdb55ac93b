"""Fit a pruned model to the device at hand: a map leaves out its empty blocks only where a timing shows that it pays.

unpacked(*specialise(arch, params, …)[:2]) == (arch, params), zeros of either sign alike. A whole model is made int8 and
float again here too: dequantized(*quantized(arch, params)) has the same arch, and its weights rounded.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from compress.address import Matrix, get
from compress.blocks import kept_blocks, pack, unpack
from compress.errors import InputError
from compress.quantize import dequantize, float32, quantize
from jaxssl.inference.latency import Load, Program, Timing, race, speedup
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.block_product import block_product
from jaxssl.models.describe import describe
from jaxssl.models.model import Params
from jaxssl.models.sites import matrices

Race = Callable[..., dict[str, Timing]]  # as `jaxssl.inference.latency.race`
SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Group:
    """Dense maps of one kind, shape and occupancy, which one timing stands for.

    Attributes:
        maps: the maps.
        kept: by each block size at which a column can do without some block, how many it keeps.
    """

    maps: tuple[Matrix, ...]
    kept: tuple[tuple[int, int], ...]

    @property
    def first(self) -> Matrix:
        """The map that is timed."""
        return self.maps[0]


def specialise(
    arch: Arch,
    params: Params,
    load: Load,
    *,
    sizes: Sequence[int] = SIZES,
    rounds: int = 15,
    gain: float = 1.05,
    dtype: Any = jnp.float32,
    tick: Callable[[], Any] = lambda: None,
    race: Race = race,
) -> tuple[Arch, Params, list[dict[str, Any]]]:
    """Pack the maps that are faster without their empty blocks, here and on this load; leave the others dense.

    Each group of maps (`groups`) is timed dense and packed in every size, in turns, on as many frames as the load
    gives. The size of the greatest median speed-up is taken where this is `gain` or more.

    Args:
        arch: of the model.
        params: its parameters, pruned in blocks; the function they compute stays the same.
        load: what is run at once.
        sizes: of blocks to try; those that do not divide a map's inputs and outputs are passed over.
        rounds: timed runs of each form.
        gain: least speed-up of a map that is worth packing it.
        dtype: of the computation.
        tick: called after each group.
        race: times programs, by name.

    Returns:
        The arch, the parameters, and for each group a row: `path` (of the map timed), `maps` (how many), `shape`,
        `size`, `kept`, `occupancy`, `dense_ms`, `packed_ms`, `speedup` with its quartiles, and `packed`.

    Raises:
        InputError: there is nothing to try or to time, or the load is shorter than one frame.
    """
    if rounds < 1 or not gain > 0:
        raise InputError(f"{rounds} rounds and a gain of {gain}: use 1 round or more and a gain above 0")
    samples = round(load.seconds * SAMPLE_RATE)
    if (frames := load.batch * arch.frames(samples)) < 1:
        raise InputError(f"{load} gives {frames} frames; give 0.025 s or more and 1 utterance or more")
    rows = []
    for group in groups(arch, params, sizes):
        frames = load.batch * arch.frames(samples, layer=_layer_of(group.first))
        programs = _programs(params, group, load, frames, dtype)
        row = _row(group, race(programs, rounds=rounds))
        row["packed"] = row["speedup"] >= gain
        for matrix in group.maps if row["packed"] else ():
            params = pack(params, matrix, row["size"])
        rows.append(row)
        tick()
    return describe(arch, params), params, rows


def groups(arch: Arch, params: Params, sizes: Sequence[int] = SIZES) -> tuple[Group, ...]:
    """List the layers' dense maps with empty blocks, those of one kind, shape, occupancy and frame rate together.

    `project` is left out: it is less than 1 % of the work, and an arch has no packed form of it.

    Raises:
        InputError: no size is given, or one is less than 1.
    """
    if not sizes or min(sizes) < 1:
        raise InputError(f"block sizes {tuple(sizes)}: name one or more, each 1 or more")
    found: dict[Any, list[Matrix]] = {}
    for matrix in matrices(arch):
        dense = matrix.rank is None and matrix.blocks is None and not matrix.int8 and matrix.max_rank > 0
        if dense and matrix.path.startswith("layers/") and (kept := _kept(params, matrix, sizes)):
            kind = matrix.path.rsplit("/", 1)[-1], arch.reduced(1000 * arch.grouped, layer=_layer_of(matrix))
            found.setdefault((kind, matrix.shape, kept), []).append(matrix)
    return tuple(Group(tuple(maps), kept) for (_, _, kept), maps in found.items())


def unpacked(arch: Arch, params: Params) -> tuple[Arch, Params]:
    """Make all packed maps of a model dense again, so that it can be pruned, factorised or trained."""
    for matrix in matrices(arch):
        if matrix.blocks is not None:
            params = unpack(params, matrix)
    return describe(arch, params), params


def quantized(arch: Arch, params: Params, *, convolutions: bool = False) -> tuple[Arch, Params]:
    """Make all dense maps of all layers int8; front end, projection, positions and output layer stay as they are.

    Args:
        arch: what `params` is.
        params: the model.
        convolutions: whether those of a front end that takes samples become int8 too, all but the first.

    Raises:
        InputError: a map is packed or int8 already, or a weight is not finite.
    """
    dense = [matrix for matrix in matrices(arch) if matrix.path.startswith("layers/")]
    for matrix in (*dense, *(arch.front.convolutions() if convolutions else ())):
        params = quantize(params, matrix)
    return describe(arch, params), params


def dequantized(arch: Arch, params: Params) -> tuple[Arch, Params]:
    """Make all weights of a model float32, those that are int8 or bfloat16 as they were rounded.

    It can be pruned, factorised or trained then; one that is float32 already comes back as it is.
    """
    for matrix in (*matrices(arch), *arch.front.convolutions()):
        if matrix.int8:
            params = dequantize(params, matrix)
    params = float32(params)
    return describe(arch, params), params


def compiled(function: Callable[..., Any], load: Load, *arguments: Any) -> Program:
    """Compile a function for its arguments and run it once; `load` is what one run stands for."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    compile_s = time.perf_counter() - begin
    arguments = jax.device_put(arguments)

    def run() -> None:
        jax.block_until_ready(program(*arguments))

    begin = time.perf_counter()
    run()
    return Program(run, load, compile_s, time.perf_counter() - begin, None)


def _layer_of(matrix: Matrix) -> int:
    return int(matrix.path.split("/")[1])


def _kept(params: Params, matrix: Matrix, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Pair the sizes that leave blocks out with the blocks a column keeps."""
    fits = [s for s in dict.fromkeys(sizes) if not (matrix.fan_in % s or matrix.fan_out % s)]
    kept = [(size, kept_blocks(params, matrix, size)) for size in fits]
    return tuple((size, count) for size, count in kept if count * size < matrix.fan_in)


def _programs(params: Params, group: Group, load: Load, frames: int, dtype: Any) -> Mapping[str, Program]:
    matrix = group.first
    x = jax.random.normal(jax.random.key(0), (1, frames, matrix.fan_in), dtype)
    kernel = jnp.asarray(get(params, matrix.path)["kernel"]).reshape(matrix.fan_in, matrix.fan_out)
    programs = {"dense": compiled(_dense, load, x, kernel)}
    for size, _ in group.kept:
        packed = get(pack(params, matrix, size), matrix.path)
        programs[str(size)] = compiled(block_product, load, x, packed["blocks"], packed["index"])
    return programs


def _dense(x: Array, kernel: Array) -> Array:
    return x @ kernel.astype(x.dtype)


def _row(group: Group, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Describe a group with the size that was fastest."""
    against = partial(speedup, timings["dense"])
    size, kept = max(group.kept, key=lambda pair: against(timings[str(pair[0])]).median)
    matrix, timing = group.first, timings[str(size)]
    ratio = against(timing)
    return {
        "path": matrix.path,
        "maps": len(group.maps),
        "shape": f"{matrix.fan_in} × {matrix.fan_out}",
        "size": size,
        "kept": kept,
        "occupancy": kept * size / matrix.fan_in,
        "dense_ms": timings["dense"].median * 1e3,
        "packed_ms": timing.median * 1e3,
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
    }
