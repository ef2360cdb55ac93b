"""How long a model really takes: compiled ahead of time, timed side by side, never estimated.

Programs that are compared are run in turns (A B C A B C …), so that whatever else the machine does falls on all of
them alike, and their ratio is taken turn by turn.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxssl.inference.encode import encode
from jaxssl.inference.peak import matmul_peak as matmul_peak
from jaxssl.inference.prepack import prepared
from jaxssl.models import choice
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.model import Params
from jaxssl.runtime import processor


@dataclass(frozen=True)
class Load:
    """What is run at once: `batch` utterances of `seconds` each, none padded."""

    seconds: float
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.seconds:g} s × {self.batch}"


@dataclass(frozen=True)
class Program:
    """A compiled forward pass and what it took to get it.

    Attributes:
        run: run once, to the end.
        load: what one run processes.
        compile_s: seconds to trace and compile.
        first_s: seconds of the first run.
        memory_bytes: arguments, outputs and temporaries together, as XLA plans them; None where it does not say.
    """

    run: Callable[[], None]
    load: Load
    compile_s: float
    first_s: float
    memory_bytes: int | None


@dataclass(frozen=True)
class Timing:
    """Seconds of each timed run of one program."""

    load: Load
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median seconds of a run."""
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile, in seconds; their distance is the inter-quartile range."""
        low, high = np.percentile(self.seconds, (25, 75))
        return float(low), float(high)

    @property
    def p90(self) -> float:
        """The 90th percentile, in seconds."""
        return float(np.percentile(self.seconds, 90))

    @property
    def real_time_factor(self) -> float:
        """Median processing time over the audio's duration."""
        return self.median / (self.load.seconds * self.load.batch)


@dataclass(frozen=True)
class Speedup:
    """Baseline time over another's, run by run: the median and the quartiles of the paired ratios."""

    median: float
    low: float
    high: float


def speedup(baseline: Timing, other: Timing) -> Speedup:
    """Compare two programs that `race` timed in turns."""
    ratios = np.asarray(baseline.seconds) / np.asarray(other.seconds)
    low, median, high = np.percentile(ratios, (25, 50, 75))
    return Speedup(float(median), float(low), float(high))


def compile_forward(arch: Arch, params: Params, load: Load, *, dtype: Any = jnp.float32, seed: int = 0) -> Program:
    """Compile waveform → output (`Output.end`) for one load, and run it once on noise.

    Log-Mel models are timed from the waveform too, so that their features are paid for as HuBERT's are. Weights are in
    the form that runs fastest here (`jaxssl.inference.prepack`), as whoever deploys a model would have them.
    """
    arch, params = prepared(arch, params, dtype=dtype)
    noise = np.random.default_rng(seed).standard_normal((load.batch, round(load.seconds * SAMPLE_RATE)), np.float32)
    samples = jnp.asarray(noise)

    def forward(params: Params, samples: jax.Array) -> jax.Array:
        return encode(arch, params, samples, dtype=dtype).end[0]

    begin = time.perf_counter()
    compiled = jax.jit(forward).lower(params, samples).compile()
    compile_s = time.perf_counter() - begin
    params = jax.device_put(params)

    def run() -> None:
        jax.block_until_ready(compiled(params, samples))

    begin = time.perf_counter()
    run()
    return Program(run, load, compile_s, time.perf_counter() - begin, _memory(compiled))


def race(
    programs: Mapping[str, Program],
    *,
    rounds: int = 15,
    warmup: int = 2,
    settle: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Run the programs in turns and time each run.

    Args:
        programs: what to time, by name.
        rounds: timed runs of each.
        warmup: untimed runs of each beforehand.
        settle: run each program once untimed before each timed run. For programs of several runtimes, whose threads
            spin on for a while after a run: they made others' next one of 45 ms take 64.
        tick: called after every round, for a progress bar.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(-warmup, rounds):
        for name, program in programs.items():
            if settle:
                program.run()
            begin = time.perf_counter()
            program.run()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - begin)
        tick()
    return {name: Timing(program.load, tuple(seconds[name])) for name, program in programs.items()}


def grid(seconds: Iterable[float], batches: Iterable[int]) -> tuple[Load, ...]:
    """List every length with every batch size."""
    batches = tuple(batches)
    return tuple(Load(length, batch) for length in seconds for batch in batches)


def machine(dtype: Any) -> dict[str, Any]:
    """Describe what the timings were taken on, as JSON values."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "processor": processor.name(),
        "instructions": " ".join(processor.sets()),
        "kernels": choice.kernels(),
        "cores": os.cpu_count(),
        "dtype": jnp.dtype(dtype).name,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _memory(compiled: Any) -> int | None:
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
