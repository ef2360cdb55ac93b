"""Put pruning runs side by side: quality against measured time, MACs, parameters and bytes, and who wins at equal time.

    python -m experiments.tradeoff runs/weights runs/heads runs/rows
    python -m experiments.tradeoff runs/weights runs/blocks --share 0.9 0.8 --out runs/tradeoff-weights

Reads the folders that `experiments.weights`, `experiments.heads` and `experiments.rows` fill: report.json of a finished
run, curve.csv of one that still goes on. Each point was timed in turns with its own run's dense model, so times of
different runs, even machines, compare as shares of the dense time and no other way. For each share asked for, the table
has the quality of each run there, on the straight line between its points, and the best run; a dash where it never gets
that fast. The line begins at the dense model, trained as long as the first point where the run had a control. Losses
compare only where model and held-out speech are the same; what differs is noted.

Takes about five seconds. Expected: weights have dashes at 0.9 and below, for XLA multiplies by zeros all the same;
heads and rows have values down to the time of what they leave alone.
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from compress.errors import InputError
from experiments import report
from experiments.cli import console, main
from experiments.measures import CONTROL, QUALITY, Row, number, pareto, relative_time
from jaxssl import pretrained

NEEDED = ("speedup", "valid_loss")
SAME = 0.01  # nats; losses of one dense model that differ by more are of other speech
SHOWN = ("device", "processor", "cores", "dtype", "jax", "XLA_FLAGS")  # what makes two machines different


@dataclass(frozen=True)
class Config:
    """Compare pruning runs at equal measured time."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """folders of pruning runs, finished or not"""
    share: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5)
    """shares of the dense model's time to compare at"""
    out: Path = Path("runs/tradeoff")
    """folder for tradeoff.png, tradeoff.csv and report.json"""


@dataclass(frozen=True)
class Curve:
    """One pruning run.

    Attributes:
        folder: of the run.
        technique: weights, heads or rows.
        label: in tables and pictures.
        model: that was pruned.
        machine: that it was timed on; empty while the run goes on.
        notes: of its report.
        rows: points in the order of pruning, the dense model first.
        finished: whether the run has come to its end.
    """

    folder: Path
    technique: str
    label: str
    model: str
    machine: Mapping[str, Any]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    finished: bool

    @property
    def points(self) -> list[Row]:
        """The run's own points, without the dense model that was trained as long."""
        return [row for row in self.rows if row["name"] != "control"]


def run(config: Config) -> None:
    """Read the runs, compare them, and write picture and tables."""
    if not config.runs or not config.share or min(config.share) <= 0:
        given = f"{len(config.runs)} runs and --share {' '.join(map(str, config.share))}"
        raise InputError(f"{given}; name one run or more, and shares above 0")
    if config.out in config.runs:
        raise InputError(f"{config.out}: is one of the runs; choose another --out")
    curves = distinct([read_curve(folder) for folder in dict.fromkeys(config.runs)])
    report.claim(config.out)
    report.write_json(config.out / "config.json", {"runs": list(map(str, config.runs)), "share": config.share})
    notes = differences(curves)
    for note in notes:
        console.print(f"note: {note}", markup=False)

    measures = [key for key in QUALITY if any(number(row, key) is not None for c in curves for row in c.points)]
    table = [row for key in measures for row in at_equal_time(curves, config.share, key)]
    _show(curves, table)
    report.write_csv(config.out / "tradeoff.csv", table)
    caption = "; ".join(notes)
    runs = {curve.label: curve.rows for curve in curves}
    title = f"pruning {', '.join(dict.fromkeys(curve.model for curve in curves))}"
    report.draw_curves(config.out / "tradeoff.png", runs, quality=measures, title=title, caption=caption)
    values = {"notes": notes, "runs": [_told(c) for c in curves], "equal_time": table, "points": marked(curves)}
    report.write_json(config.out / "report.json", values)
    console.print(f"wrote {config.out}: tradeoff.png, tradeoff.csv, report.json", markup=False)


def read_curve(folder: Path) -> Curve:
    """Read a run's report.json, or curve.csv while it goes on.

    Raises:
        InputError: neither is there or can be read, or there are no points of a pruning run in it.
    """
    finished = (folder / "report.json").is_file()
    if not finished and not (folder / "curve.csv").is_file():
        raise InputError(f"{folder}: neither report.json nor curve.csv is here; name the folder of a pruning run")
    try:
        told, rows = _read_report(folder) if finished else _read_table(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}: report.json or curve.csv cannot be read ({error}); run the command again"
        ) from None
    missing = [key for key in NEEDED if all(number(row, key) is None for row in rows)]
    if missing:
        raise InputError(
            f"{folder}: no points of a pruning run ({len(rows)} rows, {missing[0]} in none); wait or rerun"
        )
    return Curve(
        folder=folder,
        technique=str(told.get("technique") or folder.name),
        label=str(told.get("label") or told.get("technique") or folder.name),
        model=str(told.get("model")),
        machine=told.get("machine") or {},
        notes=tuple(told.get("notes") or ()),
        rows=tuple(rows),
        finished=finished,
    )


def distinct(curves: Sequence[Curve]) -> list[Curve]:
    """Tell runs of one label apart by their folders."""
    counts = Counter(curve.label for curve in curves)
    return [replace(c, label=f"{c.label} ({c.folder})") if counts[c.label] > 1 else c for c in curves]


def at_equal_time(curves: Sequence[Curve], shares: Sequence[float], key: str) -> list[dict[str, Any]]:
    """Interpolate each run's quality at shares of the dense time.

    Args:
        curves: the runs.
        shares: of the dense model's time.
        key: measure of quality.

    Returns:
        A row each share: `measure`, `share`, a value for each label (None where the run never gets that fast), and in
        `wins` the label and in `technique` the technique of the best.
    """
    sign = 1 if key.endswith("loss") else -1
    rows = []
    for share in shares:
        found = {curve.label: interpolate(_as_trained(curve.points), share, key) for curve in curves}
        reached = [(sign * value, c) for c in curves if (value := found[c.label]) is not None]
        best = min(reached, key=lambda pair: pair[0])[1] if reached else None
        winner = {"wins": best and best.label, "technique": best and best.technique}
        rows.append({"measure": key, "share": share, **found, **winner})
    return rows


def interpolate(rows: Sequence[Row], share: float, key: str) -> float | None:
    """Return the quality at a share of the dense time, linear between the two points around it in time.

    Returns:
        None where no point is that fast; the slowest point's quality where all are faster.
    """
    points = sorted((time, value) for row in rows if (time := _time(row)) and (value := number(row, key)) is not None)
    if not points or share < points[0][0]:
        return None
    times, values = np.array(points).T
    return float(np.interp(share, times, values))


def marked(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return all points with their run's label, relative time, and whether no other has less loss in less time."""
    rows = [{"run": c.label, "technique": c.technique, **row, "time": _time(row)} for c in curves for row in c.points]
    rows = [row for row in rows if row["time"] and number(row, "valid_loss") is not None]
    front = pareto([(row["time"], row["valid_loss"]) for row in rows], lower=True)
    return [{**row, "on_front": best} for row, best in zip(rows, front, strict=True)]


def differences(curves: Sequence[Curve]) -> list[str]:
    """Say what keeps the runs from being compared point by point."""
    notes = [f"{c.label}: not finished, {len(c.points)} points so far" for c in curves if not c.finished]
    models = dict.fromkeys(curve.model for curve in curves)
    sizes = {number(curve.rows[0], "parameters") for curve in curves}
    differ = len(sizes) > 1 or len({curve.model for curve in curves if curve.finished}) > 1
    if differ:
        notes.append(
            f"the runs prune different models ({', '.join(models)}): shares of their times compare, losses do not"
        )
    known = [curve.machine for curve in curves if curve.machine]
    for key in SHOWN:
        if len(values := dict.fromkeys(str(machine.get(key)) for machine in known)) > 1:
            notes.append(f"the runs were timed with different {key}: {', '.join(values)}")
    losses = [loss for c in curves if (loss := number(c.rows[0], "valid_loss")) is not None]
    if not differ and max(losses) - min(losses) > SAME:
        notes.append(f"the dense model's loss is {min(losses):.3f} to {max(losses):.3f}: measured on different speech")
    steps = dict.fromkeys(f"{last:g}" for c in curves if (last := number(c.rows[-1], "step", "steps")) is not None)
    if len(steps) > 1:
        notes.append(f"the runs' last points were trained for different numbers of updates: {', '.join(steps)}")
    return notes


def _show(curves: Sequence[Curve], table: Sequence[Row]) -> None:
    columns = {"share:.2f": "share of dense time"}
    columns |= {f"{i}:.3f": curve.label for i, curve in enumerate(curves)} | {"wins": "best"}
    for key, label in QUALITY.items():
        rows = [{**r, **{str(i): r[c.label] for i, c in enumerate(curves)}} for r in table if r["measure"] == key]
        if rows:
            report.show(f"{label} at equal measured time", rows, columns)


def _as_trained(rows: Sequence[Row]) -> list[Row]:
    """Give the dense model the quality it has after as much training as the first point had, where that is known.

    Else what training alone changes would count for the run whose first point is the faster one.
    """
    known = {key: number(row, name) for row in rows[1:2] for key, name in CONTROL.items()}
    return [{**rows[0], **{key: value for key, value in known.items() if value is not None}}, *rows[1:]]


def _told(curve: Curve) -> dict[str, Any]:
    plain = {key: value for key, value in vars(curve).items() if key != "rows"}
    return {**plain, "folder": str(curve.folder), "points": len(curve.points)}


def _time(row: Row) -> float | None:
    span = relative_time(row)
    return span and span[0]


def _read_report(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return what a finished run's report says, and its points."""
    told = json.loads((folder / "report.json").read_text())
    return told, [row for row in told.get("points") or () if "name" in row]


def _read_table(folder: Path) -> tuple[dict[str, Any], list[Row]]:
    """Return what a run that has no report yet says about itself by settings and points, and its points."""
    with (folder / "curve.csv").open(newline="") as file:
        table = [row for row in csv.DictReader(file) if row.get("name")]
    rows: list[Row] = [{key: _plain(value) for key, value in row.items()} for row in table]
    path = folder / "config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    kinds = [str(row["name"]).split("-")[0] for row in rows if row["name"] not in ("dense", "control")]
    model = settings.get("model") or pretrained.DEFAULT
    return {"model": model, "technique": kinds[0] if kinds else None, "label": folder.name}, rows


def _plain(text: Any) -> Any:
    """Turn a CSV cell into a number where it is one."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text or None


if __name__ == "__main__":
    main(run, Config, __doc__)
