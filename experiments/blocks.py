"""Does leaving out empty blocks of weights pay on this device? Times a feed-forward block dense and block-sparse.

    python -m experiments.blocks
    python -m experiments.blocks --sparsity 0.5 0.75 0.9 --size 64 --seconds 15

By default the feed-forward block of HuBERT Base and MelHuBERT (768 → 3072 → 768, exact GELU between) on 5 s of speech,
250 frames, with random weights. In each column of blocks the same number is kept, at random. All programs run in turns,
and the speed-up over the dense block is taken run by run. No time is told unless the block-sparse outputs are, in
float32, within 1e-5 of those of the dense block with the same zeros.

The default takes about 15 seconds on two CPU cores (AVX2). Measured there, while other work ran: with three quarters of
the blocks gone 1.7 times as fast as dense in blocks of 32, 2.1 in blocks of 64 and 2.2 in blocks of 128 (which leave
71 % out, for few are there to choose from); with nine tenths gone 4.3, 5.9 and 5.3. What a whole model gains is another
question, and `jaxssl.inference.specialise` asks it map by map.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.address import Matrix, Tree, get
from compress.blocks import pack
from compress.errors import InputError
from experiments.reports import tables
from jaxssl.inference.latency import Load, Program, Timing, machine, race, speedup
from jaxssl.inference.specialise import SIZES, compiled
from jaxssl.models.block_product import block_product
from jaxssl.models.layers import gelu
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, follow, main, progress
from jaxssl.runtime.ranges import Count, Less, Seconds, Seed

TOLERANCE = 1e-5  # relative, of float32 outputs
FRAME_S = 0.02
Product = Callable[[Array, Tree], Array]


@dataclass(frozen=True)
class Config:
    """Time a feed-forward block dense against block-sparse."""

    sparsity: Less[tuple[float, ...]] = (0.75, 0.9)
    """shares of the blocks that are empty"""
    size: Count[tuple[int, ...]] = SIZES
    """sides of the square blocks"""
    width: Count[int] = 768
    """inputs and outputs of the feed-forward block"""
    hidden: Count[int] = 3072
    """its hidden units"""
    seconds: Seconds[float] = 5.0
    """length of the utterance, in seconds; a frame is 20 ms"""
    batch: Count[int] = 1
    """utterances in one run"""
    rounds: Count[int] = 31
    """timed runs of each program"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation that is timed; outputs are compared in float32"""
    out: Path = Path("runs/blocks")
    """folder for blocks.csv and report.json"""
    seed: Seed[int] = 0
    """of weights, of the blocks that stay and of the inputs"""

    @property
    def load(self) -> Load:
        """What one run processes."""
        return Load(self.seconds, self.batch)

    @property
    def maps(self) -> tuple[Matrix, Matrix]:
        """The block's two dense maps."""
        return Matrix("fc1", 1, (self.width, self.hidden)), Matrix("fc2", 1, (self.hidden, self.width))


@dataclass(frozen=True)
class Variant:
    """A block-sparse feed-forward block.

    Attributes:
        size: side of its blocks.
        kept: blocks that a column of fc1 and of fc2 keeps.
        sparsity: share of both maps' blocks that is empty.
        masked: the weights with zeros.
        packed: the same, packed.
    """

    size: int
    kept: tuple[int, int]
    sparsity: float
    masked: Tree
    packed: Tree


COLUMNS = {
    "name": "blocks",
    "kept": "kept per column",
    "sparsity:.1%": "sparsity",
    "median_ms:.3f": "ms",
    "speedup:.2f": "speed-up",
    "speedup_low:.2f": "quartile 1",
    "speedup_high:.2f": "quartile 3",
    "error:.1e": "error",
}


def run(config: Config) -> None:
    """Carry out the measurement and write its report."""
    _check(config)
    files.claim(config.out)
    x = jax.random.normal(jax.random.key(config.seed), (config.batch, round(config.seconds / FRAME_S), config.width))
    dense = weights(config)
    wanted = [(sparsity, size) for sparsity in config.sparsity for size in config.size]
    variants = [variant(dense, config, *each) for each in wanted]
    errors = [error(each, x) for each in follow(variants, "comparing outputs", total=len(variants))]
    programs = _compile(dense, variants, x.astype(config.dtype), config.load)
    with progress("timing side by side", config.rounds + 2) as tick:
        timings = race(programs, rounds=config.rounds, tick=tick)
    rows = [_row("dense", None, timings["dense"], timings["dense"], None)]
    for i, each in enumerate(variants):
        rows.append(_row(f"{each.size} × {each.size}", each, timings[str(i)], timings["dense"], errors[i]))
    tables.show(f"{config.width} → {config.hidden} → {config.width}, {config.dtype}, {config.load}", rows, COLUMNS)
    files.own(config.out, config)
    files.write_csv(config.out / "blocks.csv", rows)
    files.write_json(config.out / "report.json", {"machine": machine(jnp.dtype(config.dtype)), "points": rows})
    console.print(f"wrote {config.out}: blocks.csv, report.json", markup=False)


def weights(config: Config) -> Tree:
    """Draw the dense block's weights, of deviation 1 / √inputs so that they outweigh the biases, of 0.02."""
    rng = np.random.default_rng(config.seed)

    def draw(deviation: float, *shape: int) -> np.ndarray:
        return rng.normal(0, deviation, shape).astype(np.float32)

    return {m.path: {"kernel": draw(m.fan_in**-0.5, *m.shape), "bias": draw(0.02, m.fan_out)} for m in config.maps}


def variant(dense: Tree, config: Config, sparsity: float, size: int) -> Variant:
    """Empty the share `sparsity` of each column's blocks, as nearly as whole blocks do and never all, and pack."""
    rng, masked, kept = np.random.default_rng(config.seed), dense, []
    for matrix in config.maps:
        rows, columns = matrix.fan_in // size, matrix.fan_out // size
        kept.append(max(1, round((1 - sparsity) * rows)))
        stays = rng.permuted(np.tile(np.arange(rows) < kept[-1], (columns, 1)), axis=1).T
        kernel = get(dense, f"{matrix.path}/kernel") * np.kron(stays, np.ones((size, size), np.float32))
        masked = {**masked, matrix.path: {**dense[matrix.path], "kernel": kernel}}
    packed = masked
    for matrix in config.maps:
        packed = pack(packed, matrix, size)
    left = sum(replace(m, blocks=(size, count)).size for m, count in zip(config.maps, kept, strict=True))
    return Variant(size, (kept[0], kept[1]), 1 - left / sum(m.size for m in config.maps), masked, packed)


def feed_forward(x: Array, params: Tree, product: Product) -> Array:
    """Run the block on `x: (batch, time, width)`, its two maps multiplied by `product`."""
    for name in ("fc1", "fc2"):
        y = product(x, params[name]) + jnp.expand_dims(params[name]["bias"].astype(x.dtype), (0, 1))
        x = gelu(y) if name == "fc1" else y
    return x


def dense_product(x: Array, params: Tree) -> Array:
    """Multiply by the whole kernel."""
    return x @ params["kernel"].astype(x.dtype)


def sparse_product(x: Array, params: Tree) -> Array:
    """Multiply by the blocks that are kept."""
    return block_product(x, params["blocks"], params["index"])


def error(each: Variant, x: Array, *, product: Product = sparse_product) -> float:
    """Return how far the block-sparse output is from that of the dense block with the same zeros, ‖y − y′‖ / ‖y′‖.

    Raises:
        ArithmeticError: they differ by more than 1e-5, so the product is wrong and its time would mean nothing.
    """
    with jax.default_matmul_precision("highest"):  # GPUs and TPUs round the operands otherwise
        found = jax.jit(feed_forward, static_argnums=2)(x, each.packed, product)
        expected = jax.jit(feed_forward, static_argnums=2)(x, each.masked, dense_product)
    far = float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
    if not far <= TOLERANCE:  # so that NaN is refused
        raise ArithmeticError(f"blocks of {each.size}: the output is off by {far:.1e}, more than {TOLERANCE:.0e}")
    return far


def _compile(dense: Tree, variants: Sequence[Variant], x: Array, load: Load) -> dict[str, Program]:
    """Compile the dense block and every variant, named by its number."""

    def program(product: Product, params: Tree) -> Program:
        return compiled(lambda x, params: feed_forward(x, params, product), load, x, params)

    bar = follow(enumerate(variants), "compiling", total=len(variants))
    return {"dense": program(dense_product, dense)} | {str(i): program(sparse_product, v.packed) for i, v in bar}


def _row(name: str, each: Variant | None, timing: Timing, baseline: Timing, far: float | None) -> dict[str, Any]:
    ratio, (low, high) = speedup(baseline, timing), timing.quartiles
    return {
        "name": name,
        "size": each and each.size,
        "kept": each and " + ".join(str(count) for count in each.kept),
        "sparsity": each.sparsity if each else 0.0,
        "median_ms": timing.median * 1e3,
        "quartile_1_ms": low * 1e3,
        "quartile_3_ms": high * 1e3,
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "error": far,
    }


def _check(config: Config) -> None:
    ranges.check(config)
    if not config.sparsity or not config.size:
        raise InputError("--sparsity and --size: name one or more of each")
    for size in config.size:
        if config.width % size or config.hidden % size:
            raise InputError(f"--size {size}: does not divide {config.width} and {config.hidden}; use one that does")


if __name__ == "__main__":
    main(run, Config, __doc__)
