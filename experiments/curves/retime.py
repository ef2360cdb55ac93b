"""The models of several runs timed again, all in turns in one process, so that their real-time factors compare.

A run's own times compare with its own dense model only: another run was timed at another hour, on another machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp

from compress.errors import InputError
from experiments.curves.measures import Row
from experiments.curves.runs import Curve
from jaxssl.inference.latency import Load, Program, Timing, compile_forward, machine, race, speedup
from jaxssl.inference.source import load_model
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.runtime.cli import progress
from jaxssl.runtime.files import read_object
from jaxssl.runtime.ranges import SEED

DENSE = ("dense", "control")  # rows that are the dense model's


@dataclass(frozen=True)
class Bench:
    """Compiled forward passes by shape; models of one shape take the same time and share one.

    Attributes:
        load: what is timed.
        dtype: of the computation.
        programs: by arch.
        archs: by the folder or name that the model was loaded from, and the seed of random weights.
    """

    load: Load
    dtype: Any
    programs: dict[Arch, Program] = field(default_factory=dict)
    archs: dict[tuple[str, int], Arch] = field(default_factory=dict)

    def add(self, place: str, seed: int = 0) -> Arch:
        """Load a model and compile it, unless one of its shape is compiled."""
        if (place, seed) not in self.archs:
            model = load_model(place, seed=seed)
            self.archs[place, seed] = model.arch
            if model.arch not in self.programs:
                self.programs[model.arch] = compile_forward(model.arch, model.params, self.load, dtype=self.dtype)
        return self.archs[place, seed]

    def race(self, rounds: int) -> dict[Arch, Timing]:
        """Time all programs in turns."""
        names = {arch: str(i) for i, arch in enumerate(self.programs)}
        with progress(f"timing {len(names)} shapes in turns", rounds + 2) as tick:
            found = race({names[a]: p for a, p in self.programs.items()}, rounds=rounds, tick=tick)
        return {arch: found[name] for arch, name in names.items()}


def retime(curves: Sequence[Curve], load: Load, *, dtype: str, rounds: int) -> list[Curve]:
    """Time every point of every run beside its dense model and all others, in turns.

    A point that was packed for its device is timed packed, as in its own run. One whose utterances leave early is no
    one program, and keeps the share of the dense time that its own run measured.

    Args:
        curves: the runs; every point's model must be in its folder.
        load: what is run at once.
        dtype: of the computation.
        rounds: timed runs of each shape.

    Returns:
        The runs, with new times in their rows, `real_time_factor_low` and `_high` (quartiles) among them, and with
        this machine as theirs.

    Raises:
        InputError: a point's model is not there.
    """
    places = {
        (c.label, str(row["name"])): _place(c, str(row["name"])) for c in curves for row in c.points if not _leaves(row)
    }
    bench = Bench(load, jnp.dtype(dtype))
    with progress("loading and compiling", len(places) + len(curves)) as tick:
        dense = {c.label: _added(bench, _dense(c), tick) for c in curves}
        archs = {key: _added(bench, place, tick) for key, place in places.items()}
    timings = bench.race(rounds)

    def timed(curve: Curve, row: Row) -> Row:
        if _leaves(row):
            return row
        baseline = dense[curve.label]
        arch = archs.get((curve.label, str(row["name"])), baseline)
        kept = {key: value for key, value in row.items() if key != "bare_ms"}
        return {**kept, **_times(bench, timings, arch, baseline)}

    now = machine(bench.dtype)
    return [replace(c, rows=tuple(timed(c, row) for row in c.rows), machine=now) for c in curves]


def _leaves(row: Row) -> bool:
    """Tell whether a point's utterances leave behind several layers (`experiments.exits`)."""
    return "exits" in row


def _added(bench: Bench, place: tuple[str, int], tick: Callable[[], None]) -> Arch:
    arch = bench.add(*place)
    tick()
    return arch


def _times(bench: Bench, timings: Mapping[Arch, Timing], arch: Arch, baseline: Arch) -> dict[str, Any]:
    """Return the columns of a row that a timing changes."""
    timing, ratio = timings[arch], speedup(timings[baseline], timings[arch])
    audio, samples = bench.load.seconds * bench.load.batch, round(bench.load.seconds * SAMPLE_RATE)
    low, high = timing.quartiles
    return {
        "real_time_factor": timing.real_time_factor,
        "real_time_factor_low": low / audio,
        "real_time_factor_high": high / audio,
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "promised_speedup": cost.macs(baseline, samples).total / cost.macs(arch, samples).total,
        "dense_ms": timings[baseline].median * 1e3,
        "point_ms": timing.median * 1e3,
        "memory_bytes": bench.programs[arch].memory_bytes,
    }


def _place(curve: Curve, name: str) -> tuple[str, int]:
    """Say where a point's model is: packed for the device, or as it is; the dense one may be only named."""
    plain = name.replace(", ", "-").replace(" ", "-")  # as lowrank names its folders
    folders = [curve.folder / kind / each for kind in ("packed", "models") for each in (name, plain)]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is not None:
        return str(found), 0
    if name in DENSE:
        return _dense(curve)
    raise InputError(f"{curve.folder}: point {name} has no model in packed/ or models/; --retime needs all, rerun it")


def _dense(curve: Curve) -> tuple[str, int]:
    """Say where the dense model is: with the points, or where the run's settings name it."""
    folder = curve.folder / "models" / "dense"
    if folder.is_dir():
        return str(folder), 0
    path = curve.folder / "config.json"
    seed = (read_object(path) if path.is_file() else {}).get("seed") or 0
    if type(seed) is not int or seed not in SEED:
        raise InputError(f"{path}: the seed is {seed!r}; give {SEED.form}")
    return curve.source, seed
