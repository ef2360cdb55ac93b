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
over the time, as a share of the fastest large product that was measured here, whoever's it is (`benchmarks.about`). A
process that ends badly is left out with a line. Random weights: times do not depend on them. Needs `make torch`; 7
minutes on two cores. Writes training.json.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import about, turns
from experiments.reports import tables
from jaxssl.inference.latency import Load, Timing, speedup
from jaxssl.models.arch import Arch
from jaxssl.models.arch_json import to_json
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, follow, main, progress
from jaxssl.runtime.ranges import Count, Positive, Stretch
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
    minutes: Positive[float] = 25.0
    """within which everything is measured; what takes longer is left out"""
    out: Path = Path("runs/bench-training")
    """folder of the report"""


def run(config: Config) -> None:
    """Carry out the benchmark."""
    ranges.check(config)
    arch, until = named(config.arch, PRESETS, "model")(), time.monotonic() + 60 * config.minutes
    load = Load(config.seconds, config.batch)
    files.claim(config.out)
    files.own(config.out, config)
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        console.print(line, markup=False)

    machine = about.measure((config.dtype,), note)
    for line in about.lines(machine):
        console.print(line, markup=False)
    peak = about.peak(machine, config.dtype)
    systems = tuple(dict.fromkeys(("pytorch", *config.system)))
    told = _race(systems, arch, config, until, lambda who, why: note(f"{who} is left out: {why}"))
    rows = [_row(system, told, load, speed.macs(arch, load) / peak) for system in told]
    tables.show(f"pre-training updates, {config.arch}, {load}, {config.dtype}", rows, COLUMNS)
    values = {"about": machine, "notes": notes, "peak": peak, "model": config.arch, "load": str(load)}
    files.write_json(config.out / "training.json", {**values, "rows": rows})
    console.print(f"wrote {config.out}: training.json", markup=False)


def _race(
    systems: Sequence[str], arch: Arch, config: Config, until: float, lost: Callable[[str, str], None]
) -> dict[str, list[dict[str, float]]]:
    """Have every system's process make an update in its turn; return what each says of its updates."""
    given = (json.dumps(to_json(arch)), str(config.seconds), str(config.batch), config.dtype)
    with ExitStack() as stack:
        children: dict[str, turns.Child] = {}
        for system in follow(systems, "compiling", total=len(systems)):
            started = {system: stack.enter_context(turns.child("benchmarks.updates", system, *given, until=until))}
            turns.ready(started, lost, do="compile")
            children |= started
        with progress("updates", config.rounds + 1) as tick:
            return turns.race(children, lost, rounds=config.rounds, until=until, tick=tick)


def _row(system: str, told: dict[str, list[dict[str, float]]], load: Load, ideal: float) -> dict[str, Any]:
    timings = {name: Timing(load, tuple(row["seconds"] for row in rows)) for name, rows in told.items()}
    memory = {name: max(row["bytes"] for row in rows) for name, rows in told.items()}
    beside, timing = "pytorch" in told, timings[system]
    ratio = speedup(timings["pytorch"], timing) if beside else None
    return {
        "system": system,
        "seconds": list(timing.seconds),
        "seconds_median": timing.median,
        "mfu": ideal / timing.median,
        "gib": memory[system] / 2**30,
        "memory": memory[system] / memory["pytorch"] if beside else None,
        "ratio": ratio and ratio.median,
        "ratio_low": ratio and ratio.low,
        "ratio_high": ratio and ratio.high,
    }


if __name__ == "__main__":
    main(run, Config, __doc__)
