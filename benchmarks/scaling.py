"""Time our forward passes on more and on fewer threads, as far as this machine has cores, and tell the rest on paper.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --arch hubert-base --dtype bfloat16 --threads 1 2 4 8 16 32 --seconds 15

Each number of threads has a process of its own, with as many cores to itself, in turns. Beyond the machine's cores the
threads share them: that tells what being shared out in smaller parts costs, not what more cores would give. "On paper"
is the share of the threads that our kernels keep busy, by the number of equal tasks that they cut each product and
attention into, as a mean over their multiplications; what memory, other programs and the parts that XLA's own code runs
cost is not in it. Linux only. Random weights: times do not depend on them. Two minutes on two cores. Writes
scaling.json.
"""

import ctypes
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import turns
from compress.errors import InputError
from experiments.reports import tables
from jaxssl.inference.latency import Load, Timing, machine, speedup
from jaxssl.models.arch import SAMPLE_RATE, Arch, Waveform
from jaxssl.models.arch_json import to_json
from jaxssl.models.sites import matrices
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files, native, ranges
from jaxssl.runtime.cli import console, follow, main, progress
from jaxssl.runtime.native import build
from jaxssl.runtime.ranges import Count, Stretch
from jaxssl.training.estimate import named

COLUMNS = {
    "threads": "threads",
    "cores": "cores",
    "milliseconds:.1f": "ms",
    "speedup:.2f": "as fast as the first",
    "speedup_low:.2f": "quartile 1",
    "speedup_high:.2f": "quartile 3",
    "busy:.0%": "busy on paper",
}


@dataclass(frozen=True)
class Config:
    """Time forward passes on more and on fewer threads."""

    arch: str = "hubert-base"
    """preset"""
    seconds: Stretch[float] = 5.0
    """length of an utterance, in seconds"""
    batch: Count[int] = 1
    """utterances in one run"""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """of the computation; int8 is of the dense maps, the rest in what is quickest here"""
    threads: Count[tuple[int, ...]] = (1, 2, 4, 8, 16)
    """how many share the work; all are compared with the first"""
    rounds: Count[int] = 5
    """timed turns of each"""
    out: Path = Path("runs/scaling")
    """folder of the report"""


def run(config: Config) -> None:
    """Carry out the benchmark."""
    ranges.check(config)
    if not config.threads:
        raise InputError("--threads: name one or more numbers")
    if not hasattr(os, "sched_setaffinity"):
        raise InputError("this system gives a process no cores of its own; run it on Linux")
    arch, load = named(config.arch, PRESETS, "model")(), Load(config.seconds, config.batch)
    files.claim(config.out)
    files.own(config.out, config)
    notes: list[str] = []
    timings = _timed(config, arch, load, notes)
    for note in notes:
        console.print(note, markup=False)
    rows = [_row(threads, timings, arch, load) for threads in timings]
    tables.show(f"{config.arch}, {load}, {config.dtype}", rows, COLUMNS)
    values = {"about": machine(config.dtype if config.dtype != "int8" else "float32"), "notes": notes}
    files.write_json(config.out / "scaling.json", {**values, "model": config.arch, "load": str(load), "rows": rows})
    console.print(f"wrote {config.out}: scaling.json", markup=False)


def _timed(config: Config, arch: Arch, load: Load, notes: list[str]) -> dict[int, Timing]:
    """Have the processes of all numbers of threads run in turns."""
    children: dict[str, turns.Child] = {}

    def lost(who: str, why: str) -> None:
        notes.append(f"{who} threads are left out: {why}")

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "arch.json").write_text(json.dumps(to_json(arch)))
        try:
            for threads in follow(dict.fromkeys(config.threads), "compiling", total=len(config.threads)):
                started = {
                    str(threads): turns.Child("benchmarks.passes", "ours", config.dtype, folder, threads=threads)
                }
                turns.ready(started, lost, do="prepare", seconds=load.seconds, batch=load.batch)
                children |= started
            with progress("timing in turns", config.rounds + 1) as tick:
                told = turns.race(children, lost, rounds=config.rounds, tick=tick)
        finally:
            for child in children.values():
                child.close()
    return {int(name): Timing(load, tuple(row["seconds"] for row in rows)) for name, rows in told.items()}


def _row(threads: int, timings: dict[int, Timing], arch: Arch, load: Load) -> dict[str, Any]:
    first, mine = next(iter(timings.values())), timings[threads]
    ratio = speedup(first, mine)
    return {
        "threads": threads,
        "cores": min(threads, len(os.sched_getaffinity(0))),
        "milliseconds": 1e3 * mine.median,
        "seconds": list(mine.seconds),
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "busy": busy(arch, load, threads),
    }


def busy(arch: Arch, load: Load, threads: int) -> float | None:
    """Return the share of threads that our kernels keep busy, by the tasks that they cut their work into.

    A mean over the multiplications of dense maps, convolutions and attention, tasks of one call being equal: of n tasks
    on t threads n / (t ⌈n / t⌉) of them are busy. Pieces are those of float32; with AMX others' are larger. None
    where there are no kernels.
    """
    path = build.shared_object()
    if path is None:
        return None
    library, work, waited = ctypes.CDLL(str(path)), 0.0, 0.0
    library.tasks_of_product.restype = library.tasks_of_attention.restype = ctypes.c_int64
    for macs, name, sizes in _calls(arch, load):
        tasks = getattr(library, name)(*(ctypes.c_int64(size) for size in (*sizes, threads)))
        work, waited = work + macs, waited + macs * math.ceil(tasks / threads) * threads / tasks
    return work / waited


def _calls(arch: Arch, load: Load) -> Iterator[tuple[float, str, tuple[int, ...]]]:
    """List the products and attentions of a forward pass: multiplications, which function tells the tasks, of what."""
    samples = round(load.seconds * SAMPLE_RATE)
    frames = arch.front.frames(samples)
    for matrix in matrices(arch):
        number = int(matrix.path.split("/")[1]) if matrix.path.startswith("layers/") else None
        rows = load.batch * (frames if number is None else arch.reduced(frames, layer=number))
        yield rows * matrix.size, "tasks_of_product", (rows, -(-matrix.fan_out // native.PANEL))
    if isinstance(arch.front, Waveform):
        shapes = {matrix.path: matrix for matrix in arch.front.convolutions()}
        for i, conv in enumerate(arch.front.convs):
            samples = (samples - conv.kernel) // conv.stride + 1
            if matrix := shapes.get(f"front/convs/{i}/conv"):  # type: ignore[assignment]
                panels = load.batch * -(-matrix.fan_out // native.PANEL)
                yield load.batch * samples * matrix.size, "tasks_of_product", (samples, panels)
    for i, layer in enumerate(arch.layers):
        if layer.heads:
            macs = load.batch * layer.mixer.core_macs(arch.reduced(frames, layer=i), arch.width)
            yield macs, "tasks_of_attention", (load.batch * layer.heads,)


if __name__ == "__main__":
    main(run, Config, __doc__)
