"""Time a model over lengths and batch sizes: real-time factor, spread, memory, compilation.

    python -m experiments.latency
    python -m experiments.latency --model runs/lowrank/models/rank-128-svd --against MODEL

Each program is compiled ahead of time; compilation, the first run and the steady state are told apart. With
`--against`, both models are run in turns and the speed-up is taken run by run. The default grid takes about four
minutes for a full-size MelHuBERT on two CPU cores.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from compress.errors import InputError
from experiments import report
from experiments.cli import console, follow, main
from experiments.source import Model, load_model
from jaxssl.latency import Load, Program, Timing, compile_forward, grid, machine, race, speedup
from jaxssl.models import cost


@dataclass(frozen=True)
class Config:
    """Time a model over a grid of lengths and batch sizes."""

    model: str | None = None
    """model folder, run folder or checkpoint; default: MelHuBERT 20 ms with random weights"""
    against: str | None = None
    """a second model, timed in turns with the first; speed-ups are of --model over this one"""
    seconds: tuple[float, ...] = (1.0, 5.0, 15.0, 30.0)
    """lengths of an utterance, in seconds"""
    batch: tuple[int, ...] = (1, 4)
    """utterances in one run"""
    rounds: int = 9
    """timed runs of each point"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation"""
    out: Path = Path("runs/latency")
    """folder for latency.csv and report.json"""
    seed: int = 0
    """of the random default model"""


COLUMNS = {
    "model": "model",
    "load": "load",
    "median_ms:.1f": "median ms",
    "quartile_1_ms:.1f": "quartile 1",
    "quartile_3_ms:.1f": "quartile 3",
    "p90_ms:.1f": "p90",
    "real_time_factor:.4f": "real-time factor",
    "gmacs_per_s:.0f": "GMAC/s",
    "compile_s:.1f": "compile s",
    "first_ms:.0f": "first ms",
    "memory_mib:.0f": "memory MiB",
    "speedup:.2f": "speed-up",
}


def run(config: Config) -> None:
    """Carry out the measurement and write its report."""
    _check(config)
    report.claim(config.out)
    report.write_json(
        config.out / "config.json", {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}
    )
    models = [load_model(config.model, seed=config.seed)]
    if config.against is not None:
        models.insert(0, load_model(config.against, seed=config.seed))
    loads = grid(config.seconds, config.batch)
    rows = [row for load in follow(loads, "timing", total=len(loads)) for row in _point(models, load, config)]
    report.show("latency", rows, COLUMNS)
    report.write_csv(config.out / "latency.csv", rows)
    values = {"machine": machine(jnp.dtype(config.dtype)), "notes": [note for m in models for note in m.notes]}
    report.write_json(config.out / "report.json", {**values, "points": rows})
    console.print(f"wrote {config.out}: latency.csv, report.json", markup=False)


def _check(config: Config) -> None:
    if not config.seconds or min(config.seconds) < 0.025:
        raise InputError(f"--seconds {config.seconds}: one frame needs 0.025 s")
    if not config.batch or min(config.batch) < 1 or config.rounds < 1:
        raise InputError(f"--batch {config.batch} and --rounds {config.rounds} must be 1 or more")


def _point(models: list[Model], load: Load, config: Config) -> list[dict[str, Any]]:
    programs = {
        str(i): compile_forward(model.arch, model.params, load, dtype=jnp.dtype(config.dtype))
        for i, model in enumerate(models)
    }
    timings = race(programs, rounds=config.rounds)
    return [_row(m, programs[str(i)], timings[str(i)], timings["0"]) for i, m in enumerate(models)]


def _row(model: Model, program: Program, timing: Timing, baseline: Timing) -> dict[str, Any]:
    ratio, (low, high), load = speedup(baseline, timing), timing.quartiles, timing.load
    work = load.batch * cost.macs(model.arch, round(load.seconds * 16_000)).total
    return {
        "model": model.name,
        "load": str(load),
        "seconds": load.seconds,
        "batch": load.batch,
        "median_ms": timing.median * 1e3,
        "quartile_1_ms": low * 1e3,
        "quartile_3_ms": high * 1e3,
        "p90_ms": timing.p90 * 1e3,
        "real_time_factor": timing.real_time_factor,
        "gmacs_per_s": work / timing.median / 1e9,
        "compile_s": program.compile_s,
        "first_ms": program.first_s * 1e3,
        "memory_mib": None if program.memory_bytes is None else program.memory_bytes / 2**20,
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
    }


if __name__ == "__main__":
    main(run, Config, __doc__)
