"""The picture of what speech costs by its length: real-time factor, MACs and memory, a line for each model."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from experiments.curves.measures import Row
from experiments.reports import canvas
from experiments.reports.canvas import COLOURS, MARKERS
from experiments.reports.direct_labels import Label

RTF = "real_time_factor"
PANELS = {
    RTF: "real-time factor: time over the seconds heard",
    "gmacs_per_s": "MACs, G, of a second of speech",
    "memory_mib": "memory, MiB",
    "memory_mib_per_s": "memory, MiB, over the seconds heard",
}


def draw(path: Path, rows: Sequence[Row], *, title: str) -> None:
    """Draw each measure against the length of an utterance, all axes logarithmic; one that nothing has is left out.

    Args:
        path: of the picture.
        rows: one for each model and length: `name`, `seconds`, the measures, and quartiles of the first.
        title: above it.
    """
    measures = [key for key in PANELS if any(row.get(key) for row in rows)]
    lines = -(-len(measures) // canvas.COLUMNS)
    figure = canvas.figure(canvas.WIDTH, 1 + canvas.HEIGHT * lines)
    grid = figure.add_gridspec(lines, canvas.COLUMNS)
    direct: list[Label] = []
    for i, key in enumerate(measures):
        panel = figure.add_subplot(grid[i // canvas.COLUMNS, i % canvas.COLUMNS])
        direct += _draw_panel(panel, key, rows)
        canvas.name_axes(panel, "seconds of an utterance", PANELS[key])
    canvas.finish(figure, path, title, "median of runs in turns, bars are quartiles", direct)


def _draw_panel(panel: Any, key: str, rows: Sequence[Row]) -> list[Label]:
    """Draw a line for each model; return the label of its end."""
    labels = []
    shapes = cycle(zip(MARKERS, COLOURS, strict=True))
    for name, (marker, colour) in zip(dict.fromkeys(str(row["name"]) for row in rows), shapes, strict=False):
        mine = [row for row in rows if row["name"] == name and row.get(key)]
        xs, spans = [float(row["seconds"]) for row in mine], [_span(row, key) for row in mine]
        if not mine:
            continue
        ys, reach = canvas.bars(spans)
        panel.errorbar(xs, ys, yerr=reach, fmt=f"{marker}-", color=colour, markersize=5, linewidth=1.2, elinewidth=0.8)
        labels.append(Label(panel, name.replace("_", " "), colour, (xs[-1], float(ys[-1]))))
    panel.margins(0.12)
    panel.set_xscale("log")
    panel.set_yscale("log", subs=[2, 5])
    panel.set_xticks(lengths := sorted({float(row["seconds"]) for row in rows}), [f"{length:g}" for length in lengths])
    panel.set_xticks([], minor=True)
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("{x:g}")
    panel.tick_params(which="both", labelsize=canvas.SMALL)
    return labels


def _span(row: Row, key: str) -> tuple[float, float, float]:
    value = float(row[key])
    return (value, float(row["quartile_1"]), float(row["quartile_3"])) if key == RTF else (value, value, value)
