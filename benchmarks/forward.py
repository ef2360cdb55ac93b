"""Time forward passes of ours beside PyTorch, torch.compile and ONNX Runtime, on the same weights, in turns.

    make bench
    python -m benchmarks.forward --arch hubert-base --seconds 1 5 --batch 1
    python -m benchmarks.forward --arch hubert-base --dtype bfloat16 --seconds 15 --batch 16 --no-compressed

Three tables, each with the median of the paired ratios and their quartiles: every length × batch, by ours, by our
export for ONNX Runtime ("exported") and by the others; compressed forms at 5 s × 1, int8 maps among them (ours, and
our export's), with what their MACs promise; and where the time goes, part by part (from the times of models without
it). The share of peak is the rate of multiplications over that of a large plain matrix product in the same run, JAX's
or PyTorch's, whichever is faster.
Random weights: times do not depend on them. Needs `make torch`; on two cores three quarters of an hour.
On a GPU leave out what runs on CPUs only: --system pytorch compiled. Writes forward.json, forward.csv and forward.png.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rivals, timed_forms
from compress.errors import InputError
from experiments.reports import canvas, tables
from jaxssl.inference.latency import Load, Timing, compile_forward, grid, machine, matmul_peak, race, speedup
from jaxssl.inference.specialise import quantized
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.model import init
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import On, console, follow, main
from jaxssl.runtime.ranges import Count, Stretch
from jaxssl.training.estimate import named

System = Literal["ours", "exported", "pytorch", "compiled", "onnxruntime"]
OURS = ("ours", "exported")
RIVALS: tuple[System, ...] = ("pytorch", "compiled", "onnxruntime")
INT8, INT8_JAX = "int8, exported", "int8"
SHORT = Load(5.0)  # of compressed forms and of parts
LEADS = {
    "model": "model",
    "load": "load",
    "fastest": "fastest of the others",
    "milliseconds:.1f": "ms",
    "ours:.2f": "ours is faster by",
    "exported:.2f": "our export by",
}
POINTS = {
    "model": "model",
    "form": "form",
    "load": "load",
    "system": "system",
    "milliseconds:.1f": "ms",
    "gmacs_per_s:.0f": "GMAC/s",
    "of_peak:.0%": "of peak",
    "ratio:.2f": "ours is faster by",
    "ratio_low:.2f": "quartile 1",
    "ratio_high:.2f": "quartile 3",
}
FORMS = {
    "model": "model",
    "form": "form",
    "milliseconds:.1f": "ms",
    "speedup:.2f": "speed-up",
    "speedup_low:.2f": "quartile 1",
    "speedup_high:.2f": "quartile 3",
    "promised:.2f": "promised by MACs",
    "kept:.0%": "of it",
}


@dataclass(frozen=True)
class Config:
    """Time forward passes beside other programs."""

    arch: tuple[str, ...] = ("hubert-base", "melhubert-20ms")
    """presets"""
    seconds: Stretch[tuple[float, ...]] = (1.0, 5.0, 15.0, 30.0)
    """lengths of an utterance, in seconds"""
    batch: Count[tuple[int, ...]] = (1, 4)
    """utterances in one run"""
    system: tuple[System, ...] = ("ours", "exported", *RIVALS)
    """programs; ours is always among them"""
    compressed: On = True
    """also compressed forms, and the parts, at 5 s × 1"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation; ONNX Runtime knows float32 only"""
    rounds: Count[int] = 7
    """timed runs of each program, in turns"""
    out: Path = Path("runs/bench")
    """folder of the report"""


def run(config: Config) -> None:
    """Carry out the benchmark."""
    ranges.check(config)
    if not (config.seconds and config.batch and config.arch):
        raise InputError("--seconds, --batch and --arch: name one or more of each")
    archs = {name: named(name, PRESETS, "model")() for name in config.arch}
    files.claim(config.out)
    files.own(config.out, config)
    peak = _peak(config.dtype)
    console.print(f"a plain matrix product in {config.dtype}: {peak / 1e9:.0f} GMAC/s", markup=False)
    points: list[dict[str, Any]] = []
    forms: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for name, arch in archs.items():
        points += _grid(name, arch, config, peak)
        tables.show("forward passes", points, POINTS)
        if config.compressed:
            forms += _forms(name, arch, config)
            parts += _parts(name, arch, config)
        values = {
            "machine": machine(jnp.dtype(config.dtype)),
            "peak": peak,
            "points": points,
            "leads": lead(points),
            "forms": forms,
            "parts": parts,
        }
        files.write_json(config.out / "forward.json", values)
        files.write_csv(config.out / "forward.csv", points)
    if leads := lead(points):
        tables.show("against the fastest of the others", leads, LEADS)
    if forms:
        tables.show(f"compressed forms, {SHORT}, against our own dense model", forms, FORMS)
        columns = {
            "model": "model",
            "system": "system",
            **{f"{key}:.1f": f"{key}, ms" for key in parts[0] if key not in ("model", "system")},
        }
        tables.show(f"where the time goes, {SHORT}", parts, columns)
    draw(
        config.out / "forward.png", points, title=f"forward passes, {config.dtype}, {machine(jnp.float32)['processor']}"
    )
    console.print(f"wrote {config.out}: forward.json, forward.csv, forward.png", markup=False)


def _grid(name: str, arch: Arch, config: Config, peak: float) -> list[dict[str, Any]]:
    systems = _start(arch, config)
    loads = grid(config.seconds, config.batch)
    rows = []
    for load in follow(loads, name, total=len(loads)):
        timings = race({system: start(load) for system, start in systems.items()}, rounds=config.rounds, settle=True)
        rows += [_point(name, arch, load, system, timings, peak) for system in timings]
    return rows


def _forms(name: str, arch: Arch, config: Config) -> list[dict[str, Any]]:
    """Time ours in every compressed form, in turns with the dense one."""
    archs = timed_forms.compressed(arch)
    programs = {form: _ours(each, config) for form, each in archs.items()}
    if "exported" in config.system:
        programs |= {INT8: rivals.starts(_model(arch, config), ("int8",))["int8"](SHORT)}
    model, dtype = _model(arch, config), jnp.dtype(config.dtype)
    programs[INT8_JAX] = compile_forward(*quantized(arch, model.params), SHORT, dtype=dtype)
    timings = race(programs, rounds=2 * config.rounds, settle=True)
    rows = []
    for form, timing in timings.items():
        ratio = speedup(timings["dense"], timing)
        promised = _macs(arch, SHORT) / _macs(archs[form], SHORT) if form in archs else None
        row = {"model": name, "form": form, "milliseconds": 1e3 * timing.median, "promised": promised}
        row |= {"speedup": ratio.median, "speedup_low": ratio.low, "speedup_high": ratio.high}
        rows.append(row | {"kept": promised and ratio.median / promised})
    return rows


def _parts(name: str, arch: Arch, config: Config) -> list[dict[str, Any]]:
    """Time the parts of the model, in ours and in PyTorch."""
    rows = []
    for system in [s for s in dict.fromkeys(("ours", *config.system)) if s in ("ours", "pytorch")]:
        only = Config(**{**vars(config), "system": (system,)})
        programs = {form: _start(each, only)[system](SHORT) for form, each in timed_forms.without(arch).items()}
        timings = race(programs, rounds=2 * config.rounds, settle=True)
        medians = {form: 1e3 * timing.median for form, timing in timings.items()}
        rows.append({"model": name, "system": system, "whole": medians["whole"], **timed_forms.parts(medians)})
    return rows


def lead(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for every point of the grid how ours and our export stand to the fastest of the others."""
    loads = dict.fromkeys((point["model"], point["load"]) for point in points)
    rows = []
    for model, load in loads:
        times = {p["system"]: p["milliseconds"] for p in points if (p["model"], p["load"]) == (model, load)}
        if others := [system for system in times if system in RIVALS]:
            fastest = min(others, key=lambda system: times[system])
            row = {"model": model, "load": load, "fastest": fastest, "milliseconds": times[fastest]}
            rows.append(row | {ours: times[fastest] / times[ours] for ours in OURS if ours in times})
    return rows


def _point(
    name: str, arch: Arch, load: Load, system: str, timings: Mapping[str, Timing], peak: float
) -> dict[str, Any]:
    timing, ratio = timings[system], speedup(timings[system], timings["ours"])
    rate = _macs(arch, load) / timing.median
    return {
        "model": name,
        "form": "dense",
        "load": str(load),
        "seconds": load.seconds,
        "batch": load.batch,
        "system": system,
        "milliseconds": 1e3 * timing.median,
        "real_time_factor": timing.real_time_factor,
        "gmacs_per_s": rate / 1e9,
        "of_peak": rate / peak,
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }


def _start(arch: Arch, config: Config) -> dict[str, rivals.Start]:
    return rivals.starts(_model(arch, config), tuple(dict.fromkeys(("ours", *config.system))))


def _model(arch: Arch, config: Config) -> rivals.Model:
    return rivals.Model(arch, init(arch, jax.random.key(0, impl="rbg")), config.dtype)


def _ours(arch: Arch, config: Config) -> Any:
    return _start(arch, Config(**{**vars(config), "system": ("ours",)}))["ours"](SHORT)


def _macs(arch: Arch, load: Load) -> float:
    return load.batch * cost.macs(arch, round(load.seconds * SAMPLE_RATE)).total


def _peak(dtype: str) -> float:
    """Return the rate of a large matrix product in MACs per second, the better of JAX's and PyTorch's."""
    import torch

    size = 8192 if torch.cuda.is_available() else 2048
    matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device="cuda" if torch.cuda.is_available() else "cpu")
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        matrix @ matrix
        if matrix.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return max(size**3 / min(times), matmul_peak(jnp.dtype(dtype)))


def draw(path: Path, points: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Draw how much faster ours is than each other program, by load, a panel for each model."""
    models = list(dict.fromkeys(point["model"] for point in points))
    others = list(dict.fromkeys(point["system"] for point in points if point["system"] in RIVALS))
    if not others:
        return
    figure = canvas.figure(5 * len(models), 4)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        loads = list(dict.fromkeys(point["load"] for point in points if point["model"] == model))
        for i, other in enumerate(others):
            rows = [p for p in points if (p["model"], p["system"]) == (model, other)]
            spans = [(row["ratio"], row["ratio_low"], row["ratio_high"]) for row in rows]
            values, reach = canvas.bars(spans)
            style = {"color": canvas.COLOURS[i], "marker": canvas.MARKERS[i], "linestyle": "", "capsize": 3}
            places = np.array([loads.index(row["load"]) for row in rows]) + 0.12 * (i - 1)
            panel.errorbar(places, values, yerr=reach, label=f"over {other}", **style)
        panel.axhline(1, color="0.6", linestyle="--", linewidth=1)
        panel.set_xticks(range(len(loads)), loads, rotation=30, fontsize=8)
        panel.set(title=model)
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="ours is faster by", ylim=(0, None))  # shared, so set when all are drawn
    canvas.finish(figure, path, title, "")


if __name__ == "__main__":
    main(run, Config, __doc__)
