"""The picture of models made in several ways: a line for each way, before and after the recovery."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from experiments.curves.measures import PARAMETERS, QUALITY, TIME, Cost, Row, Span, measured, number
from experiments.reports import canvas
from experiments.reports.canvas import COLOURS, MARKERS
from experiments.reports.direct_labels import Label

DENSE = "dense"
BEFORE = {"loss_difference": "difference_before", "valid_loss": "loss_before"}  # right after compressing
CAPTION = "time in turns with the dense model, bars are quartiles; of quality 95 % bootstrap"


def draw(
    path: Path,
    rows: Sequence[Row],
    *,
    level: str,
    title: str,
    caption: str,
    names: Mapping[str, str],
    costs: Sequence[Cost] = (TIME, PARAMETERS),
) -> None:
    """Draw the dense model and the points of each method, against measured time first.

    Hollow markers are of before the recovery, filled ones of after it, or of the only state there is.

    Args:
        path: of the picture.
        rows: points, the dense model first; each other one has its `method`.
        level: what other runs number their points by; here their names say it.
        title: above it.
        caption: below the title; may be empty.
        names: what the methods are called.
        costs: a panel each.
    """
    del level
    key = _measure(rows[1:] or rows)
    figure, [panels] = canvas.blocks(1, len(costs), height=3.6)
    direct: list[Label] = []
    for panel, cost in zip(panels, costs, strict=True):
        direct += _draw_panel(panel, cost, key, rows, names)
        canvas.name_axes(panel, cost.label, QUALITY[key] if panel is panels[0] else None)
    canvas.finish(figure, path, title, f"{CAPTION}\n{caption}", direct)


def _measure(rows: Sequence[Row]) -> str:
    """Choose what is drawn: what the points lost, or their loss; without labels the error of the output."""
    return next((key for key in BEFORE if any(number(row, key) is not None for row in rows)), "output_error")


def _draw_panel(panel: Any, cost: Cost, key: str, rows: Sequence[Row], names: Mapping[str, str]) -> list[Label]:
    """Draw a line for each method, and the dense model; return the labels of its points."""
    labels = []
    shapes = {DENSE: ("D", "0.35"), **dict(zip(names, cycle(zip(MARKERS, COLOURS, strict=True)), strict=False))}
    for method in dict.fromkeys(map(_method, rows)):
        marker, colour = shapes[method]
        mine = sorted((row for row in rows if _method(row) == method and cost.read(row)), key=lambda r: _at(cost, r))
        before = [(cost.read(row), _before(row, rows, key)) for row in mine]
        after = [(cost.read(row), _after(row, rows, key)) for row in mine]
        _line(panel, before, f"{marker}:", "before the recovery", color=colour, markerfacecolor="w")
        name = "after it" if any(y for _, y in before) else None  # the only state needs no name
        _line(panel, after, f"{marker}-", name, color=colour)
        for row, (x, y), (_, first) in zip(mine, after, before, strict=True):
            if x and (shown := y or first):
                labels.append(Label(panel, _said(row, names), colour, (x[0], shown[0])))
    panel.margins(0.12)
    return labels


def _line(
    panel: Any, points: Sequence[tuple[Span | None, Span | None]], fmt: str, label: str | None, **style: Any
) -> None:
    known = [(x, y) for x, y in points if x is not None and y is not None]
    if not known:
        return
    (xs, xerr), (ys, yerr) = (canvas.bars(spans) for spans in zip(*known, strict=True))
    style = {"label": label, "markersize": 6, "linewidth": 1.2, "elinewidth": 0.8, **style}
    for bar in panel.errorbar(xs, ys, fmt=fmt, xerr=xerr, yerr=yerr, **style)[2]:
        bar.set_alpha(0.45)


def _after(row: Row, rows: Sequence[Row], key: str) -> Span | None:
    """Read a point's quality; of the dense model that of the control, where there is one."""
    control = next((found for each in rows if (found := number(each, "control_loss")) is not None), None)
    if _method(row) == DENSE and key == "valid_loss" and control is not None:
        return control, control, control
    return measured(key)(row)


def _before(row: Row, rows: Sequence[Row], key: str) -> Span | None:
    """Read a point's quality before the recovery; None where nothing was trained."""
    if _method(row) != DENSE or not any(key in BEFORE and number(each, BEFORE[key]) is not None for each in rows):
        return measured(BEFORE.get(key, ""))(row)
    control = next((found for each in rows if (found := number(each, "control_loss")) is not None), None)
    loss = number(row, "valid_loss")
    if control is None or loss is None:
        return None
    found = loss if key == "valid_loss" else loss - control
    return found, found, found


def _said(row: Row, names: Mapping[str, str]) -> str:
    """Name a point: `dense`, `rank 64, plain SVD`, or by its method where that is all there is."""
    if (method := _method(row)) == DENSE:
        return DENSE
    if row["name"] == method:
        return names[method]
    target = str(row["name"]).removesuffix(f"-{method}").replace("-", " ", 1)
    return f"{target}, {names[method]}"


def _method(row: Row) -> str:
    return str(row.get("method") or DENSE)


def _at(cost: Cost, row: Row) -> float:
    found = cost.read(row)
    return found[0] if found else 0.0
