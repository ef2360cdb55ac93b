"""The trade-off as one page that opens from disk: page.html, page.css, plot.js and page.js, filled with the runs.

Nothing in it comes from a network; its own policy forbids that. What it shows is in the URL's fragment: #metric and
#cost of the large plot, #hide of runs, #sort-TABLE=COLUMN.ascending. Labels reach the page as JSON and are put there as
text, so that markup in them is inert.
"""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from experiments.curves.measures import (
    DIFFERENCES,
    QUALITY,
    Reading,
    Row,
    controls,
    known_costs,
    lower_is_better,
    measured,
    number,
    saves,
)
from experiments.curves.runs import Curve
from experiments.reports import published

COLUMNS = {
    "level": "level",
    "step": "updates",
    **QUALITY,
    "control_loss": "loss, dense as long",
    "control_accuracy": "accuracy, dense as long",
    "loss_before": "loss before training",
    "parameters": "parameters",
    "nonzero": "not zero",
    "bytes": "bytes",
    "memory_bytes": "memory (bytes)",
    "macs_g_per_s": "MACs (G/s)",
    "nominal_macs_g_per_s": "MACs, nominal (G/s)",
    "real_time_factor": "real-time factor",
    "speedup": "speed-up",
    "promised_speedup": "promised by MACs",
    "packed_maps": "packed maps",
}
PUBLISHED = {
    "curve": "curve",
    "name": "point",
    "parameters_m": "parameters (million)",
    "macs_g_per_s": "MACs (G/s)",
    "per": "PER (%)",
}


def write(
    curves: Sequence[Curve],
    equal_time: Sequence[Row],
    *,
    measures: Sequence[str],
    title: str,
    notes: Sequence[str] = (),
    command: str = "",
) -> str:
    """Return the page's HTML.

    Args:
        curves: the runs, no two of one label.
        equal_time: quality of each run at shares of the dense time, as `tradeoff.at_equal_time` gives it.
        measures: of quality, keys of `QUALITY`, in the order of the plots; the first is shown large.
        title: of the page.
        notes: what keeps the runs from being compared.
        command: that made it.
    """
    rows = [row for curve in curves for row in curve.points]
    costs = known_costs(rows)
    values = {
        "metrics": [_metric(key) for key in measures],
        "costs": [{"key": cost.key, "label": cost.label} for cost in costs],
        "columns": list(COLUMNS.values()),
        "runs": [_run(curve, measures) for curve in curves],
        "tables": [_points(curves), _equal_time(curves, equal_time), _runs(curves), _published()],
        "paper": {
            "label": published.LABEL,
            "source": published.SOURCE,
            "curves": [_curve(curve) for curve in published.CURVES],
        },
        "notes": list(notes),
        "told": [f"{curve.label}: {note}" for curve in curves for note in curve.notes],
        "commands": [text for text in (command, *dict.fromkeys(curve.command for curve in curves)) if text],
    }
    parts = {"title": html.escape(title), "data": embed(values)}
    parts |= {"style": _file("page.css"), "script": _file("plot.js") + _file("page.js")}
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html"))


def embed(values: Any) -> str:
    r"""Write JSON that no HTML parser takes for markup, whatever its strings hold.

    >>> print(embed({"label": "</script>"}))
    {"label":"\u003c/script\u003e"}
    """
    text = json.dumps(_finite(values), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return files("experiments.reports").joinpath(name).read_text(encoding="utf-8")


def _metric(key: str) -> dict[str, Any]:
    return {"key": key, "label": QUALITY[key], "lower": lower_is_better(key), "difference": key in DIFFERENCES}


def _run(curve: Curve, measures: Sequence[str]) -> dict[str, Any]:
    """Return a run's points: their columns, and for the plots the spans (value, low, high) by measure and cost."""
    costs = known_costs(curve.points)
    hollow = [cost for cost in costs if saves(curve.points, cost)]
    stars = {(key, cost.key): controls(curve.rows, key, cost.read) for key in measures for cost in costs}
    return {
        "label": curve.label,
        "points": [
            {
                "name": str(row["name"]),
                "values": [_cell(row, key) for key in COLUMNS],
                "quality": _spans(row, {key: measured(key) for key in measures}),
                "cost": _spans(row, {cost.key: cost.read for cost in costs}),
                "nominal": _spans(row, {cost.key: cost.nominal for cost in hollow if cost.nominal}),
            }
            for row in curve.points
        ],
        "stars": {f"{key} {cost}": found[0] for (key, cost), found in stars.items() if found},
    }


def _spans(row: Row, readings: Mapping[str, Reading]) -> dict[str, Any]:
    return {key: span for key, read in readings.items() if (span := read(row)) is not None}


def _cell(row: Row, key: str) -> Any:
    """Return a value for a table: a number, a number with its interval, or None."""
    if (found := number(row, key)) is None:
        return None
    value, low, high = measured(key)(row) or (found, found, found)
    return value if low == high else [value, low, high]


def _points(curves: Sequence[Curve]) -> dict[str, Any]:
    """Lay out all points; columns that no point has are left out."""
    rows = [[c.label, str(row["name"]), *(_cell(row, key) for key in COLUMNS)] for c in curves for row in c.points]
    keys = ["run", "point", *COLUMNS]
    known = [i for i, _ in enumerate(keys) if any(row[i] is not None for row in rows)]
    headings = ["run", "point", *COLUMNS.values()]
    return {
        "key": "points",
        "title": "All points",
        "keys": [keys[i] for i in known],
        "headings": [headings[i] for i in known],
        "rows": [[row[i] for i in known] for row in rows],
    }


def _equal_time(curves: Sequence[Curve], table: Sequence[Row]) -> dict[str, Any]:
    labels = [curve.label for curve in curves]
    return {
        "key": "equal",
        "title": "Quality at equal measured time",
        "keys": ["measure", "share", *(f"run{i}" for i, _ in enumerate(labels)), "best"],
        "headings": ["measure", "share of dense time", *labels, "best"],
        "rows": [
            [QUALITY[r["measure"]], r["share"], *(_interpolated(r, label) for label in labels), r["wins"]]
            for r in table
        ],
    }


def _interpolated(row: Row, label: str) -> Any:
    value, low, high = row[label], row[f"{label}_low"], row[f"{label}_high"]
    return value if low == high else [value, low, high]


def _runs(curves: Sequence[Curve]) -> dict[str, Any]:
    """Lay out what each run is, and the machine that it was timed on."""
    machine = list(dict.fromkeys(key for curve in curves for key in curve.machine))
    told = ["label", "technique", "model", "points", "finished", "folder"]
    return {
        "key": "runs",
        "title": "Runs, and the machines that they were timed on",
        "keys": [*told, *machine],
        "headings": ["run", *told[1:], *machine],
        "rows": [
            [c.label, c.technique, c.model, len(c.points), "yes" if c.finished else "no", str(c.folder)]
            + [c.machine.get(key) for key in machine]
            for c in curves
        ],
    }


def _published() -> dict[str, Any]:
    return {
        "key": "paper",
        "title": f"PER (%): {published.LABEL}",
        "keys": list(PUBLISHED),
        "headings": list(PUBLISHED.values()),
        "rows": [
            [curve.label, point.name, point.parameters_m, point.macs_g_per_s, point.per]
            for curve in published.CURVES
            for point in curve.points
        ],
    }


def _curve(curve: published.Published) -> dict[str, Any]:
    return {"label": curve.label, "joined": curve.joined, "points": [list(vars(p).values()) for p in curve.points]}


def _finite(values: Any) -> Any:
    """Turn what JSON has no number for into null."""
    if isinstance(values, Mapping):
        return {str(key): _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values
