"""Time pre-training updates of ours beside PyTorch's, each in a process of its own, and tell what memory each needs.

    make bench
    python -m benchmarks.training --arch melhubert-20ms --seconds 15 --batch 4
    python -m benchmarks.training --arch hubert-base --dtype bfloat16
    python -m benchmarks.training --arch melhubert-mini --seconds 7.5 --batch 8
    python -m benchmarks.training --dtype bfloat16 --batch 16          # on a GPU

Forward, backward and Adam, dropout on, in turns. Ours with the Transformer stack scanned, and scanned with everything
computed again (`--stack` of the experiments); PyTorch's is `tools.pytorch.torch_step`: eager, fused attention where
PyTorch has it, fused Adam. Peak memory is on a CPU what the process held at most while it made updates, libraries
included, and on a GPU what its allocator handed out at most. MFU is three times the forward pass's multiplications
over the time, as a share of a plain matrix product's rate. Random weights: times do not depend on them. Needs
`make torch`; 7 minutes on two cores. Writes training.json.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from compress.errors import InputError
from experiments.reports import tables
from jaxssl.inference.latency import Load, Timing, machine, matmul_peak, speedup
from jaxssl.models.arch import Arch
from jaxssl.models.arch_json import to_json
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, follow, main
from jaxssl.runtime.ranges import Count, Stretch
from jaxssl.training import speed
from jaxssl.training.estimate import named

System = Literal["pytorch", "unroll", "scan", "remat"]
COLUMNS = {
    "system": "system",
    "seconds_median:.3f": "s an update",
    "mfu:.0%": "MFU",
    "gib:.2f": "peak GiB",
    "ratio:.2f": "times PyTorch's speed",
    "ratio_low:.2f": "quartile 1",
    "ratio_high:.2f": "quartile 3",
    "memory:.2f": "of PyTorch's memory",
}


@dataclass(frozen=True)
class Config:
    """Time pre-training updates beside PyTorch's."""

    arch: str = "melhubert-20ms"
    """preset"""
    seconds: Stretch[float] = 15.0
    """length of an utterance, in seconds"""
    batch: Count[int] = 4
    """utterances in one update"""
    system: tuple[System, ...] = ("scan", "remat")
    """beside PyTorch: ours by how the stack runs"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation (in PyTorch by autocast)"""
    rounds: Count[int] = 5
    """timed updates of each, in turns"""
    out: Path = Path("runs/bench-training")
    """folder of the report"""


def run(config: Config) -> None:
    """Carry out the benchmark."""
    ranges.check(config)
    arch = named(config.arch, PRESETS, "model")()
    load = Load(config.seconds, config.batch)
    files.claim(config.out)
    files.own(config.out, config)
    systems = tuple(dict.fromkeys(("pytorch", *config.system)))
    told = _race(systems, arch, config)
    peak = matmul_peak(jnp.dtype(config.dtype))  # only now: no process of ours may hold the device meanwhile
    rows = [_row(system, told, load, speed.macs(arch, load) / peak) for system in systems]
    tables.show(f"pre-training updates, {config.arch}, {load}, {config.dtype}", rows, COLUMNS)
    values = {"machine": machine(jnp.dtype(config.dtype)), "peak": peak, "model": config.arch, "load": str(load)}
    files.write_json(config.out / "training.json", {**values, "rows": rows})
    console.print(f"wrote {config.out}: training.json", markup=False)


def _race(systems: Sequence[str], arch: Arch, config: Config) -> dict[str, list[dict[str, float]]]:
    """Have every system's process make an update in its turn; return what each says of its updates."""
    told: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
    with ExitStack() as stack:
        given = (json.dumps(to_json(arch)), str(config.seconds), str(config.batch), config.dtype)
        processes = {
            system: stack.enter_context(_process(system, *given))
            for system in follow(systems, "compiling", total=len(systems))
        }
        for turn in follow(range(-1, config.rounds), "updates", total=config.rounds + 1):
            for system, process in processes.items():
                row = _ask(process)
                if turn >= 0:
                    told[system].append(row)
    return told


@contextmanager
def _process(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Start `benchmarks.updates`, ready for its first update."""
    command = [sys.executable, "-m", "benchmarks.updates", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            _hear(process, words[0])
            yield process
        finally:
            process.kill()


def _ask(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return json.loads(_hear(process, "an update"))


def _hear(process: subprocess.Popen[str], what: str) -> str:
    assert process.stdout is not None
    if line := process.stdout.readline():
        return line
    raise InputError(f"{what}: ended with exit code {process.wait()}; what it said is above")


def _row(system: str, told: dict[str, list[dict[str, float]]], load: Load, ideal: float) -> dict[str, Any]:
    timings = {name: Timing(load, tuple(row["seconds"] for row in rows)) for name, rows in told.items()}
    memory = {name: max(row["bytes"] for row in rows) for name, rows in told.items()}
    ratio, timing = speedup(timings["pytorch"], timings[system]), timings[system]
    return {
        "system": system,
        "seconds": list(timing.seconds),
        "seconds_median": timing.median,
        "mfu": ideal / timing.median,
        "gib": memory[system] / 2**30,
        "memory": memory[system] / memory["pytorch"],
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }


if __name__ == "__main__":
    main(run, Config, __doc__)
