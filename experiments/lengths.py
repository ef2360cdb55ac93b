"""Time models over the length of what they hear: attention, pooled attention, SummaryMixing and Mamba.

    python -m experiments.lengths
    python -m experiments.lengths --arch melhubert-20ms --seconds 5 20 80 --rounds 5
    python -m experiments.lengths --dtype bfloat16

Attention looks at every pair of frames, so a second of speech costs more the longer the utterance is; where frames are
joined first (pooled attention, four to one behind the front end) it does so later. SummaryMixing and Mamba cost the
same for every second. All four are --arch with another mixer of as many parameters, weights random: this is about time
and memory, not about quality.

Each length is compiled for each model ahead of time, and the models of a length are run in turns. The real-time factor
is the time over the seconds heard, median and quartiles. Memory is what XLA plans to hold at once, weights included:
arguments, outputs and temporaries.

The default takes some minutes on two CPU cores, most of them the 320 s of attention.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from compress.errors import InputError
from experiments.reports import over_lengths, tables
from jaxssl.inference.latency import Load, Timing, compile_forward, machine, race
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch, AveragePooling, Repeat
from jaxssl.models.exchange import exchanged
from jaxssl.models.model import init
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, main, progress
from jaxssl.runtime.ranges import Count, Seconds, Seed
from jaxssl.training.estimate import named

Name = Literal["attention", "pooled", "summary_mixing", "mamba"]
POOLED = 4  # frames that become one


@dataclass(frozen=True)
class Config:
    """Time models of several mixers over lengths of speech."""

    arch: str = "melhubert-mini"
    """preset whose attention is exchanged"""
    mixers: tuple[Name, ...] = ("attention", "pooled", "summary_mixing", "mamba")
    """what is timed: attention; pooled, the same on a quarter of the frames; summary_mixing; mamba, both ways"""
    seconds: Seconds[tuple[float, ...]] = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
    """lengths of an utterance, in seconds"""
    rounds: Count[int] = 7
    """timed runs of each model and length"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation"""
    out: Path = Path("runs/lengths")
    """folder for lengths.csv, lengths.png and report.json"""
    seed: Seed[int] = 0
    """of random weights and noise"""


COLUMNS = {
    "name": "mixer",
    "seconds:g": "seconds",
    "parameters:,": "parameters",
    "gmacs_per_s:.3f": "MACs G/s",
    "real_time_factor:.4f": "real-time factor",
    "quartile_1:.4f": "quartile 1",
    "quartile_3:.4f": "quartile 3",
    "memory_mib:.0f": "memory MiB",
    "memory_mib_per_s:.2f": "MiB a second",
}


def run(config: Config) -> None:
    """Time every model at every length, in turns, and draw the curves."""
    ranges.check(config)
    if not config.mixers or not config.seconds:
        raise InputError("--mixers and --seconds: name one or more of each")
    archs = models(named(config.arch, PRESETS, "model")(), config.mixers)
    files.claim(config.out)
    rows: list[dict[str, Any]] = []
    with progress("timing", len(config.seconds) * len(archs)) as tick:
        for seconds in sorted(config.seconds):
            rows += points(archs, Load(seconds), config, tick=tick)
    tables.show(f"{config.arch}, by the length of what it hears", rows, COLUMNS)
    files.own(config.out, config)
    files.write_csv(config.out / "lengths.csv", rows)
    about = machine(jnp.dtype(config.dtype))
    files.write_json(config.out / "report.json", {"machine": about, "points": rows})
    over_lengths.draw(config.out / "lengths.png", rows, title=f"{config.arch} with other mixers, {config.dtype}")
    console.print(f"wrote {config.out}: lengths.csv, lengths.png, report.json", markup=False)


def models(arch: Arch, names: tuple[Name, ...]) -> dict[Name, Arch]:
    """Return the model with each mixer.

    Raises:
        InputError: `arch` has another mixer than attention already.
    """
    pooled = replace(arch, shortening=AveragePooling(POOLED), upsampling=Repeat())
    return {name: pooled if name == "pooled" else exchanged(arch, name) for name in dict.fromkeys(names)}


def points(
    archs: Mapping[Name, Arch], load: Load, config: Config, *, tick: Callable[[], Any] = bool
) -> list[dict[str, Any]]:
    """Time the models in turns at one length; return a row for each."""
    programs = {}
    for name, arch in archs.items():
        params = init(arch, jax.random.key(config.seed))
        programs[str(name)] = compile_forward(arch, params, load, dtype=jnp.dtype(config.dtype), seed=config.seed)
        tick()
    timings = race(programs, rounds=config.rounds, warmup=1)
    return [
        _row(name, arch, timings[name]) | _memory(programs[name].memory_bytes, load) for name, arch in archs.items()
    ]


def _row(name: Name, arch: Arch, timing: Timing) -> dict[str, Any]:
    samples = round(timing.load.seconds * SAMPLE_RATE)
    low, high = (quartile / timing.load.seconds for quartile in timing.quartiles)
    return {
        "name": name,
        "seconds": timing.load.seconds,
        "frames": int(arch.frames(samples, layer=len(arch.layers) - 1)),
        "parameters": cost.parameters(arch),
        "gmacs_per_s": cost.macs(arch, samples).total / timing.load.seconds / 1e9,
        "real_time_factor": timing.real_time_factor,
        "quartile_1": low,
        "quartile_3": high,
    }


def _memory(planned: int | None, load: Load) -> dict[str, float | None]:
    mib = None if planned is None else planned / 2**20
    return {"memory_mib": mib, "memory_mib_per_s": mib and mib / load.seconds}


if __name__ == "__main__":
    main(run, Config, __doc__)
