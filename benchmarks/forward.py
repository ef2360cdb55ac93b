"""Time forward passes of ours beside PyTorch, torch.compile, ONNX Runtime and OpenVINO, on the same weights, in turns.

    make bench
    python -m benchmarks.forward --arch hubert-base --dtype float32 --seconds 1 5 15 30 --batch 1 4
    python -m benchmarks.forward --arch hubert-base --dtype bfloat16 --seconds 15 --batch 16 --no-compressed

At the head stands what it ran on: processor, instruction sets, how fast memory is read, the peak of each dtype. Then,
each with the median of the paired ratios and their quartiles: every length × batch in every dtype, ours, ours with int8
convolutions ("convolutions"), our export for ONNX Runtime ("exported") and the others (`benchmarks.rivals` has what
each does); compressed forms at 5 s × 1 in every dtype with what their MACs promise; and where the time goes, part by
part (from the times of models without it).

Every program runs in a process of its own. What cannot run (a library that is not there, a dtype that it has not, a
process that is killed) is left out with a line, and the others go on. torch.compile's max-autotune is "autotuned",
which has to be named, for it compiles for minutes, as has "transformers", whose models are few. Random weights: times
do not depend on them. Needs `make torch`, and OpenVINO `pip install '.[bench]'`; what is not measured within --minutes
is left out. For GPUs there is `benchmarks.accelerator`. Writes forward.json, .csv, .png and .md, whose tables are those
of docs/results.md.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks import about, leads, rivals, timed_forms, turns
from compress.errors import InputError
from experiments.reports import tables
from jaxssl.inference.latency import Load, Timing, grid, speedup
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.arch_json import to_json
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import On, console, main, progress
from jaxssl.runtime.ranges import Count, Positive, Stretch
from jaxssl.training.estimate import named

System = Literal[
    "ours",
    "convolutions",
    "exported",
    "pytorch",
    "autocast",
    "compiled",
    "autotuned",
    "transformers",
    "onnxruntime",
    "openvino",
]
Dtype = Literal["float32", "bfloat16", "int8"]
USUAL: tuple[System, ...] = tuple(each for each in get_args(System) if each not in ("autotuned", "transformers"))
SHORT = Load(5.0)  # of compressed forms and of parts
# Files that one process writes; the last two share a graph.
GROUPS = (("torch",), ("huggingface",), ("plain",), ("tuned", "int8"))
POINTS = {
    "model": "model",
    "dtype": "dtype",
    "load": "load",
    "system": "system",
    "milliseconds:.1f": "ms",
    "gmacs_per_s:.0f": "GMAC/s",
    "of_peak:.0%": "of peak",
    "ratio:.2f": "ours is faster by",
    "ratio_low:.2f": "quartile 1",
    "ratio_high:.2f": "quartile 3",
}


@dataclass(frozen=True)
class Config:
    """Time forward passes beside other programs."""

    arch: tuple[str, ...] = ("hubert-base", "melhubert-20ms")
    """presets"""
    seconds: Stretch[tuple[float, ...]] = (1.0, 5.0, 15.0)
    """lengths of an utterance, in seconds"""
    batch: Count[tuple[int, ...]] = (1,)
    """utterances in one run"""
    system: tuple[System, ...] = USUAL
    """programs; ours is always among them"""
    compressed: On = True
    """also compressed forms, and the parts, at 5 s × 1"""
    dtype: tuple[Dtype, ...] = ("float32", "bfloat16", "int8")
    """of the computation; int8 is of the dense maps, the rest in what is quickest here. A program that has none is left
    out there"""
    rounds: Count[int] = 5
    """timed turns of each program"""
    minutes: Positive[float] = 25.0
    """within which everything is measured; what takes longer is left out"""
    out: Path = Path("runs/bench")
    """folder of the report"""


@dataclass
class Bench:
    """What is measured, and by when.

    Attributes:
        config: of the command.
        about: what it runs on (`benchmarks.about`).
        until: seconds of `time.monotonic` at which nothing more begins.
        points: rows of forward passes.
        forms: rows of compressed forms.
        parts: rows of where the time goes.
        notes: what was left out, and why.
    """

    config: Config
    about: dict[str, Any]
    until: float
    points: list[dict[str, Any]] = field(default_factory=list)
    forms: list[dict[str, Any]] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Say what is left out, once."""
        if line not in self.notes:
            self.notes.append(line)
            console.print(line, markup=False)

    def late(self, what: str) -> bool:
        """Tell whether the time is over, and say what is left out for it."""
        over = time.monotonic() > self.until
        if over:
            self.note(f"{what}: left out, {self.config.minutes:g} minutes are over (--minutes)")
        return over

    def save(self) -> None:
        """Write all that is known so far."""
        values = {"about": self.about, "notes": self.notes, "points": self.points, "leads": leads.lead(self.points)}
        values |= {"forms": self.forms, "parts": self.parts}
        files.write_json(self.config.out / "forward.json", values)
        files.write_csv(self.config.out / "forward.csv", self.points)
        files.write_text(self.config.out / "forward.md", leads.page(values))


def run(config: Config) -> None:
    """Carry out the benchmark."""
    ranges.check(config)
    if () in (config.seconds, config.batch, config.arch, config.dtype):
        raise InputError("--seconds, --batch, --arch and --dtype: name one or more of each")
    archs = {name: named(name, PRESETS, "model")() for name in config.arch}
    files.claim(config.out)
    files.own(config.out, config)
    until = time.monotonic() + 60 * config.minutes
    bench = Bench(config, {}, until)
    bench.about = about.measure(tuple(dict.fromkeys((*config.dtype, "float32"))), bench.note)
    for line in about.lines(bench.about):
        console.print(line, markup=False)
    with tempfile.TemporaryDirectory() as base:
        folders = {name: Path(base, str(i)) for i, name in enumerate(archs)}
        for name, arch in archs.items():
            _write(name, arch, folders[name], bench)
            for dtype in config.dtype:
                _grid(name, arch, dtype, folders[name], bench)
                bench.save()
            tables.show("forward passes", [row for row in bench.points if row["model"] == name], POINTS)
        kinds = [(name, dtype) for dtype in config.dtype for name in archs] if config.compressed else []
        for name, dtype in kinds:
            _forms(name, archs[name], dtype, folders[name], bench)
            bench.save()
        for name, dtype in kinds:
            _parts(name, dtype, folders[name], bench)
            bench.save()
    _show(bench)


def _show(bench: Bench) -> None:
    out = bench.config.out
    tables.show("against the fastest of the others", leads.lead(bench.points), leads.LEADS)
    if bench.forms:
        tables.show(f"compressed forms, {SHORT}, against our own dense model", bench.forms, leads.FORMS)
    if bench.parts:
        columns = {key: key for key in ("model", "dtype", "system")}
        columns |= {f"{key}:.1f": f"{key}, ms" for key in bench.parts[0] if key not in columns}
        tables.show(f"where the time goes, {SHORT}", bench.parts, columns)
    console.print((out / "forward.md").read_text(), markup=False)
    leads.draw(out / "forward.png", bench.points, title=f"forward passes, {bench.about['processor']}")
    console.print(f"wrote {out}: forward.json, forward.csv, forward.png, forward.md", markup=False)


def systems(config: Config, dtype: str) -> list[str]:
    """Return the systems that know a dtype, ours first."""
    named = dict.fromkeys(("ours", *config.system))
    return [system for system in named if dtype in rivals.FILES[system]]


def _write(name: str, arch: Arch, folder: Path, bench: Bench) -> None:
    """Write what the others read, in a process that ends before anything is timed; who lacks it says so later."""
    folder.mkdir()
    (folder / "arch.json").write_text(json.dumps(to_json(arch)))
    read = {form for d in bench.config.dtype for s in systems(bench.config, d) for form in rivals.FILES[s][d]}
    groups = [forms for each in GROUPS if (forms := [form for form in each if form in read])]
    with progress(f"{name}: writing", len(groups)) as tick:
        for forms in groups:
            what = " and ".join(forms)
            if bench.late(f"{name}: files of {what}"):
                return
            with turns.child("benchmarks.passes", "ours", "float32", str(folder), until=bench.until) as process:
                turns.ready({f"what reads {what}": process}, _lost(bench, name), do="write", forms=forms)
            tick()


def _grid(name: str, arch: Arch, dtype: str, folder: Path, bench: Bench) -> None:
    """Time every load in a dtype: all systems that know it, and ours in float32, in turns."""
    config = bench.config
    words = {system: (system, dtype) for system in systems(config, dtype)}
    words |= {} if dtype == "float32" else {leads.REFERENCE: ("ours", "float32")}
    loads, lost = grid(config.seconds, config.batch), _lost(bench, f"{name}, {dtype}")
    left = [load for load in loads if not bench.late(f"{name}, {dtype}, {load}")]
    if not left:
        return
    started = partial(turns.Child, "benchmarks.passes", until=bench.until)
    children = {key: started(*each, str(folder)) for key, each in words.items()}
    try:
        with progress(f"{name}, {dtype}", len(loads) * (config.rounds + 2)) as tick:
            for load in loads:
                if bench.late(f"{name}, {dtype}, {load}"):
                    break
                turns.ready(children, lost, do="prepare", seconds=load.seconds, batch=load.batch)
                tick()
                told = turns.race(children, lost, rounds=config.rounds, until=bench.until, tick=tick)
                timings = {key: Timing(load, tuple(row["seconds"] for row in rows)) for key, rows in told.items()}
                if 0 < (taken := max(map(len, told.values()), default=0)) < config.rounds:
                    bench.note(f"{name}, {dtype}, {load}: {taken} of {config.rounds} rounds, for --minutes are over")
                bench.points += [_point(name, arch, dtype, load, key, timings, bench) for key in timings]
    finally:
        for process in children.values():
            process.close()


def _forms(name: str, arch: Arch, dtype: str, folder: Path, bench: Bench) -> None:
    """Time ours in every compressed form, in turns with the dense one, all in one process."""
    archs = timed_forms.compressed(arch)
    timings = _own("ours", "forms", name, dtype, folder, bench)
    for form, timing in timings.items():
        ratio, promised = speedup(timings["dense"], timing), _macs(arch, SHORT) / _macs(archs[form], SHORT)
        row = {"model": name, "dtype": dtype, "form": form, "milliseconds": 1e3 * timing.median, "promised": promised}
        row |= {"speedup": ratio.median, "speedup_low": ratio.low, "speedup_high": ratio.high}
        bench.forms.append(row | {"kept": ratio.median / promised})


def _parts(name: str, dtype: str, folder: Path, bench: Bench) -> None:
    """Time the parts of the model, in ours and in PyTorch."""
    for system in [each for each in systems(bench.config, dtype) if each in ("ours", "pytorch") and dtype != "int8"]:
        if timings := _own(system, "parts", name, dtype, folder, bench):
            medians = {form: 1e3 * timing.median for form, timing in timings.items()}
            row = {"model": name, "dtype": dtype, "system": system, "whole": medians["whole"]}
            bench.parts.append(row | timed_forms.parts(medians))


def _own(system: str, what: str, name: str, dtype: str, folder: Path, bench: Bench) -> dict[str, Timing]:
    """Let one system time all its `forms` or `parts` at once; nothing, where it cannot."""
    if bench.late(f"{name}, {dtype}, {what}"):
        return {}
    with turns.child("benchmarks.passes", system, dtype, str(folder), until=bench.until) as process:
        question = {"do": what, "seconds": SHORT.seconds, "batch": SHORT.batch, "rounds": bench.config.rounds + 2}
        told = turns.ready({system: process}, _lost(bench, f"{name}, {dtype}, {what}"), **question)
    return {form: Timing(SHORT, tuple(seconds)) for form, seconds in told.get(system, {}).items()}


def _lost(bench: Bench, where: str) -> Callable[[str, str], None]:
    return lambda who, why: bench.note(f"{where}: {who} is left out: {why}")


def _point(
    name: str, arch: Arch, dtype: str, load: Load, system: str, timings: Mapping[str, Timing], bench: Bench
) -> dict[str, Any]:
    timing, rate = timings[system], _macs(arch, load) / timings[system].median
    ratio = speedup(timing, timings["ours"]) if "ours" in timings else None
    peak = about.peak(bench.about, "float32" if system == leads.REFERENCE else dtype)
    return {
        "model": name,
        "dtype": dtype,
        "form": "dense",
        "load": str(load),
        "seconds": load.seconds,
        "batch": load.batch,
        "system": system,
        "milliseconds": 1e3 * timing.median,
        "real_time_factor": timing.real_time_factor,
        "gmacs_per_s": rate / 1e9,
        "of_peak": rate / peak,
        "ratio": ratio and ratio.median,
        "ratio_low": ratio and ratio.low,
        "ratio_high": ratio and ratio.high,
    }


def _macs(arch: Arch, load: Load) -> float:
    return load.batch * cost.macs(arch, round(load.seconds * SAMPLE_RATE)).total


if __name__ == "__main__":
    main(run, Config, __doc__)
