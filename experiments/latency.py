"""Time a model over lengths and batch sizes, or its pre-training: speed, spread, memory, compilation.

    python -m experiments.latency
    python -m experiments.latency --model runs/lowrank/models/rank-128-svd --against MODEL
    python -m experiments.latency --dtype auto
    python -m experiments.latency --train
    python -m experiments.latency --train --arch melhubert-mini --seconds 7.5 --batch 8 --rounds 3

Each program is compiled ahead of time; compilation, the first run and the steady state are told apart. With
`--against`, both models are run in turns and the speed-up is taken run by run. The default grid takes about four
minutes for a full-size MelHuBERT on two CPU cores.

With `--train`, whole pre-training updates are timed (forward, backward, Adam, dropout on) for each way to run the
Transformer stack and, where PyTorch is installed, for the same update written in PyTorch, in turns with ours. MFU is
three times the forward pass's multiplications over the time and over the rate of a plain matrix product on this device.
The last command takes about three minutes on two CPU cores, mostly compiling; with the machine busy beside it, an
update took 3.7 to 4.4 s at an MFU of 24 to 28 %, and 2.4 s in PyTorch (44 %). The default, two full-size models, is
meant for a GPU or TPU (where it has not been timed yet); on two CPU cores it is work for an hour or more.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from experiments.reports import tables
from jaxssl.inference.latency import Load, Program, Timing, compile_forward, grid, machine, matmul_peak, race, speedup
from jaxssl.models import choice, cost
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.model import init
from jaxssl.models.stack import Stack
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, follow, main, progress
from jaxssl.runtime.ranges import Count, Seconds, Seed
from jaxssl.training import speed
from jaxssl.training.estimate import named

if TYPE_CHECKING:
    from jaxssl.inference.source import Model

TORCH = "pytorch"


@dataclass(frozen=True)
class Config:
    """Time a model over a grid of lengths and batch sizes, or its pre-training."""

    model: str | None = None
    """model folder, run folder or checkpoint; default: the package's trained MelHuBERT"""
    against: str | None = None
    """a second model, timed in turns with the first; speed-ups are of --model over this one"""
    train: bool = False
    """time pre-training updates of --arch instead"""
    arch: tuple[str, ...] = ("melhubert-20ms", "hubert-base")
    """of --train: presets"""
    stack: tuple[Stack, ...] = ("unroll", "scan", "remat")
    """of --train: how the Transformer layers run: written out, scanned, scanned with rematerialisation"""
    seconds: Seconds[tuple[float, ...] | None] = None
    """lengths of an utterance, in seconds; default: 1 5 15 30, with --train 15"""
    batch: Count[tuple[int, ...] | None] = None
    """utterances in one run; default: 1 4, with --train 4"""
    rounds: Count[int] = 9
    """timed runs of each point"""
    dtype: Literal["float32", "bfloat16", "auto"] | None = None
    """of the computation; default: float32, with --train bfloat16 where there is a GPU or TPU; auto: of forward passes
    the quicker one here, with what it costs in accuracy"""
    out: Path | None = None
    """folder for latency.csv and report.json; default: runs/latency, with --train runs/latency-train"""
    seed: Seed[int] = 0
    """of random weights, noise and dropout"""

    @property
    def loads(self) -> tuple[Load, ...]:
        """What is run at once, every length with every batch size."""
        seconds, batch = ((15.0,), (4,)) if self.train else ((1.0, 5.0, 15.0, 30.0), (1, 4))
        return grid(self.seconds or seconds, self.batch or batch)

    @property
    def precision(self) -> Any:
        """The dtype of the computation."""
        usual = "bfloat16" if self.train and jax.default_backend() != "cpu" else "float32"
        return choice.resolved(usual if self.dtype is None or (self.train and self.dtype == "auto") else self.dtype)


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

TRAINED = {
    "model": "model",
    "stack": "stack",
    "load": "load",
    "compile_s:.1f": "compile s",
    "step_s:.4f": "step s",
    "steps_per_s:.2f": "steps/s",
    "audio_s_per_s:.0f": "audio s/s",
    "mfu:.1%": "MFU",
    "memory_mib:.0f": "MiB",
    "speedup:.2f": "over PyTorch",
    "speedup_low:.2f": "quartile 1",
    "speedup_high:.2f": "quartile 3",
}


def run(config: Config) -> None:
    """Carry out the measurement and write its report."""
    _check(config)
    out = config.out or Path("runs/latency-train" if config.train else "runs/latency")
    archs = {name: named(name, PRESETS, "model")() for name in config.arch} if config.train else {}
    files.claim(out)
    rows, values = _updates(archs, config) if config.train else _forward(config)
    tables.show("pre-training updates" if config.train else "latency", rows, TRAINED if config.train else COLUMNS)
    files.own(out, config)
    files.write_csv(out / "latency.csv", rows)
    files.write_json(out / "report.json", {"machine": machine(config.precision), **values, "points": rows})
    console.print(f"wrote {out}: latency.csv, report.json", markup=False)


def _check(config: Config) -> None:
    ranges.check(config)
    if () in (config.seconds, config.batch):
        raise InputError("--seconds and --batch: name one or more of each")
    if config.train and (config.model or config.against):
        raise InputError("--train times presets: name them by --arch, without --model and --against")
    if config.train and not (config.arch and config.stack):
        raise InputError(f"--arch {config.arch} and --stack {config.stack}: name one or more of each")


def _forward(config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Time forward passes; return the report's points and what else it says."""
    from jaxssl.inference.source import load_model  # --train runs where what reads audio is not installed

    models = [load_model(config.model, seed=config.seed)]
    if config.against is not None:
        models.insert(0, load_model(config.against, seed=config.seed))
    notes = [note for model in models for note in model.notes]
    if config.dtype == "auto":
        notes += [_chosen(models[-1], config)]
        console.print(notes[-1], markup=False)
    points = follow(config.loads, "timing", total=len(config.loads))
    rows = [row for load in points for row in _point(models, load, config)]
    return rows, {"notes": notes}


def _chosen(model: "Model", config: Config) -> str:
    """Say which dtype is the quicker one here, why, and how far it takes the layers from float32, on noise."""
    from jaxssl.inference.rounding import errors

    dtype, why = choice.quickest()
    if dtype == "float32":
        return why
    noise = np.random.default_rng(config.seed).standard_normal((1, 5 * SAMPLE_RATE), np.float32)
    told = errors(model.arch, model.params, jnp.asarray(noise), dtype=dtype)
    return f"{why}; on 5 s of noise its layers are {min(told):.1%} to {max(told):.1%} from float32's"


def _updates(archs: Mapping[str, Arch], config: Config) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Time pre-training updates; return the report's points and what else it says."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs its share of the device's memory
    torch = _torch()
    version = f"PyTorch {torch.version()}" if torch else "PyTorch is not installed: nothing to compare with"
    console.print(f"{jax.devices()[0].device_kind}, {config.precision}; {version}", markup=False)
    peak = matmul_peak(config.precision)
    rows = []
    for name, arch in archs.items():
        for load in config.loads:
            with progress(f"{name}, {load}", len(config.stack) + bool(torch) + 1 + config.rounds) as tick:
                rows += _race_updates(name, arch, load, config, torch=torch, peak=peak, tick=tick)
    return rows, {"pytorch": f"PyTorch {torch.version()}" if torch else version, "matmul_gmacs_per_s": peak / 1e9}


def _race_updates(
    name: str, arch: Arch, load: Load, config: Config, *, torch: Any, peak: float, tick: Callable[[], Any]
) -> list[dict[str, Any]]:
    params, dtype = init(arch, jax.random.key(config.seed)), config.precision
    programs: dict[str, Program] = {}
    if torch:
        batch, loss = speed.example(arch, load, seed=config.seed), speed.objective(arch)
        programs[TORCH] = torch.prepare(arch, params, batch, load, loss=loss, dtype=dtype.name)
        tick()
    ours = speed.compile_steps(arch, params, load, stacks=config.stack, dtype=dtype, seed=config.seed, tick=tick)
    programs |= {str(stack): program for stack, program in ours.items()}
    timings = race(programs, rounds=config.rounds, warmup=1, tick=tick)
    done = speed.macs(arch, load) / peak
    return [
        {"model": name, "stack": stack, "load": str(load), "seconds": load.seconds, "batch": load.batch}
        | _speeds(programs[stack], timing, done, timings.get(TORCH), compiled=stack != TORCH)
        for stack, timing in timings.items()
    ]


def _speeds(
    program: Program, timing: Timing, done: float, baseline: Timing | None, *, compiled: bool
) -> dict[str, Any]:
    """Return a row's numbers; `done` is the seconds that the update's multiplications take at the device's peak."""
    ratio, (low, high), load = baseline and speedup(baseline, timing), timing.quartiles, timing.load
    return {
        "compile_s": program.compile_s if compiled else None,
        "first_s": program.first_s,
        "step_s": timing.median,
        "quartile_1_s": low,
        "quartile_3_s": high,
        "steps_per_s": 1 / timing.median,
        "audio_s_per_s": load.seconds * load.batch / timing.median,
        "mfu": done / timing.median,
        "memory_mib": None if program.memory_bytes is None else program.memory_bytes / 2**20,
        "speedup": ratio and ratio.median,
        "speedup_low": ratio and ratio.low,
        "speedup_high": ratio and ratio.high,
    }


def _torch() -> Any:
    """Return the PyTorch formulation, None where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    from tools.pytorch import torch_step

    return torch_step


def _point(models: list["Model"], load: Load, config: Config) -> list[dict[str, Any]]:
    programs = {
        str(i): compile_forward(model.arch, model.params, load, dtype=config.precision)
        for i, model in enumerate(models)
    }
    timings = race(programs, rounds=config.rounds)
    return [_row(m, programs[str(i)], timings[str(i)], timings["0"]) for i, m in enumerate(models)]


def _row(model: "Model", program: Program, timing: Timing, baseline: Timing) -> dict[str, Any]:
    ratio, (low, high), load = speedup(baseline, timing), timing.quartiles, timing.load
    work = load.batch * cost.macs(model.arch, round(load.seconds * SAMPLE_RATE)).total
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
    main(run, Config, __doc__, remember=False)  # it times compiling
