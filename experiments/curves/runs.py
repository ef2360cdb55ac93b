"""Finished and growing runs of compression, read back as curves of points, whichever experiment wrote them.

report.json with `points`   of weights, heads, rows and whatever writes the same form: one curve; of lowrank and
                            sequence, whose points have a `method`, a curve for each
report.json with `models`   of lowrank as it was before it wrote points: a curve for each method
curve.csv                   of a run that still goes on
"""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.errors import InputError
from experiments.curves.measures import CONTROL, DIFFERENCES, QUALITY, Row, number
from jaxssl.runtime.files import named, read_json

UNNAMED = "melhubert-mini"  # the package's model when settings did not name it yet
METHODS = {"svd": "low rank, plain SVD", "activation": "low rank, activation-aware"}


@dataclass(frozen=True)
class Curve:
    """One run, or one method of a run that has several.

    Attributes:
        folder: of the run.
        technique: weights, heads, rows, lowrank, …
        label: in tables and pictures.
        model: that was compressed, as the report names it.
        machine: that it was timed on; empty while the run goes on.
        notes: of its report.
        rows: points in the order of compression, the dense model first.
        finished: whether the run has come to its end.
        source: the model as the command named it.
        command: that made its models; empty where it is not known.
    """

    folder: Path
    technique: str
    label: str
    model: str
    machine: Mapping[str, Any]
    notes: tuple[str, ...]
    rows: tuple[Row, ...]
    finished: bool
    source: str = UNNAMED
    command: str = ""

    @property
    def points(self) -> list[Row]:
        """The run's own points, without the dense model that was trained as long."""
        return [row for row in self.rows if row["name"] != "control"]

    @property
    def dense(self) -> Row | None:
        """The dense model's point, where the run has one."""
        return next((row for row in self.rows if row["name"] == "dense"), None)


def read_curves(folder: Path) -> list[Curve]:
    """Read a run's report.json, or curve.csv while it goes on.

    Raises:
        InputError: neither is there or can be read, or there are no points with a time and a quality in it.
    """
    finished = (folder / "report.json").is_file()
    if not finished and not (folder / "curve.csv").is_file():
        raise InputError(f"{folder}: neither report.json nor curve.csv is here; name the folder of a run")
    try:
        told, parts = _read_report(folder) if finished else _read_table(folder)
        shared = _told(folder, told, finished)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{folder}: report.json or curve.csv cannot be read ({error}); run the command again"
        ) from None
    for rows in parts.values():
        _check(folder, rows)
    return [
        Curve(**{**shared, "label": label or shared["label"]}, rows=tuple(map(_compared, rows)))
        for label, rows in parts.items()
    ]


def distinct(curves: Sequence[Curve]) -> list[Curve]:
    """Tell runs of one label apart by their folders."""
    counts = Counter(curve.label for curve in curves)
    return [replace(c, label=f"{c.label} ({c.folder})") if counts[c.label] > 1 else c for c in curves]


def spoken(command: str) -> str:
    """Write a command as a user types it: `python -m experiments.heads …` for …/experiments/heads.py.

    >>> spoken("/home/me/jaxssl/experiments/heads.py --keep 4")
    'python -m experiments.heads --keep 4'
    """
    return re.sub(r"^(?:'[^']*|\S*)\bexperiments/(\w+)\.py'?", r"python -m experiments.\1", command)


def _compared(row: Row) -> Row:
    """Fill in how far a point of an older version is from its control, whose quality it has: without an interval."""
    found = dict(row)
    for difference, measure in DIFFERENCES.items():
        dense = number(row, measure if row["name"] == "dense" else CONTROL[measure])
        value = number(row, measure)
        if number(row, difference) is None and value is not None and dense is not None:
            found[difference] = value - dense
    return found


def _check(folder: Path, rows: Sequence[Row]) -> None:
    """Refuse points without a time or without any quality: there is nothing to compare."""
    timed = any(number(row, "speedup") is not None for row in rows)
    missing = f"one of {', '.join(QUALITY)}" if timed else "speedup"
    if not timed or all(number(row, *QUALITY) is None for row in rows):
        raise InputError(f"{folder}: no points to compare ({len(rows)} rows, {missing} in none); wait or rerun")


def _told(folder: Path, told: Mapping[str, Any], finished: bool) -> dict[str, Any]:
    """Return what a run says of itself, besides its points."""
    settings = _json(folder / "config.json")
    source = str(settings.get("model", told.get("model")) or UNNAMED)
    return {
        "folder": folder,
        "technique": str(told.get("technique") or folder.name),
        "label": str(told.get("label") or told.get("technique") or folder.name),
        "model": str(told.get("model") or source),
        "machine": named(told.get("machine") or {}, "its machine"),
        "notes": tuple(map(str, told.get("notes") or ())),
        "finished": finished,
        "source": source,
        "command": _command(folder),
    }


def _command(folder: Path) -> str:
    """Return the command that made a run's models, as these remember it."""
    found = (_json(path).get("command") for path in sorted(folder.glob("models/*/provenance.json")))
    return next((spoken(str(command)) for command in found if command), "")


def _read_report(folder: Path) -> tuple[Mapping[str, Any], dict[str, list[Row]]]:
    """Return what a finished run's report says, and its points by label; "" where the report itself has the label."""
    told = read_json(folder / "report.json")
    if told.get("models"):
        return {"technique": "lowrank", **told}, _parts(told["models"])
    return told, _parts(told.get("points") or (), str(told.get("label") or "low rank"))


def _parts(rows: Sequence[Row], label: str = "low rank") -> dict[str, list[Row]]:
    """Return the points as one curve, or one for each method, which `label` says where the method's name does not."""
    rows = [row for row in rows if "name" in row]
    return _by_method(rows, label) if any(row.get("method") for row in rows) else {"": rows}


def _by_method(rows: Sequence[Row], label: str) -> dict[str, list[Row]]:
    """Split models into a curve for each method, the dense model first, the one with the fewest MACs last."""
    rows = [{**row, "method": row.get("method") or "dense"} for row in rows]
    dense = [row for row in rows if row["method"] == "dense"]
    if dense and number(dense[0], "loss_before") is not None:  # it was trained as long as all others
        rows = [{**row, **{name: dense[0].get(key) for key, name in CONTROL.items()}} for row in rows]
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != "dense")
    parts = {m: [row for row in rows if row["method"] == m] for m in methods}
    found = {METHODS.get(m, f"{label}, {m}"): [*dense, *sorted(parts[m], key=_size)] for m in methods}
    return found or {"": dense}


def _size(row: Row) -> tuple[float, float]:
    return -(number(row, "macs_g_per_s") or 0), -(number(row, "parameters") or 0)


def _read_table(folder: Path) -> tuple[Mapping[str, Any], dict[str, list[Row]]]:
    """Return what a run that has no report yet says about itself by settings and points, and its points."""
    with (folder / "curve.csv").open(newline="") as file:
        table = [row for row in csv.DictReader(file) if row.get("name")]
    rows: list[Row] = [{**{key: _plain(value) for key, value in row.items()}, "name": row["name"]} for row in table]
    kinds = [row["name"].split("-")[0] for row in rows if row["name"] not in ("dense", "control")]
    kinds = ["lowrank"] if any(row.get("method") in METHODS for row in rows) else kinds
    label = "low rank" if kinds == ["lowrank"] else folder.name
    return {"technique": kinds[0] if kinds else None, "label": folder.name}, _parts(rows, label)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _plain(text: Any) -> Any:
    """Turn a CSV cell into a number where it is one."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text or None
