"""What every picture of ours shares: the only door to matplotlib, its size, colours, error bars, titles, one legend.

A page shows a picture 900 px wide. At that width letters are as large as they are here, so none is below 8 pt; panels
stand two a row, no more, or nobody could read them.
"""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves.measures import Span
from experiments.reports import direct_labels
from experiments.reports.direct_labels import Label

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#8c564b")  # Okabe and Ito
MARKERS = "osD^vPX<"
WIDTH = 9.375  # inches; 900 px of a page, which has 96 an inch
COLUMNS = 2
HEIGHT = 2.9  # inches, of a row of panels
DPI = 120
SMALL = 8.5  # pt


def figure(width: float, height: float) -> Any:
    """Return an empty figure of that many inches, which needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    empty = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(empty)
    return empty


def blocks(number: int, panels: int, *, height: float = HEIGHT) -> tuple[Any, list[list[Any]]]:
    """Return a figure of blocks of panels, two a row; the panels of a block share the axis of quality."""
    lines = -(-panels // COLUMNS)
    found = figure(WIDTH, 1.1 + height * lines * number)
    grid = found.add_gridspec(max(lines * number, 1), min(COLUMNS, max(panels, 1)))
    made: list[list[Any]] = []
    for block in range(number):
        made.append([])
        for i in range(panels):
            place = grid[block * lines + i // COLUMNS, i % COLUMNS]
            made[-1].append(found.add_subplot(place, sharey=made[-1][0] if i else None))
    return found, made


def name_axes(panel: Any, across: str, up: str | None) -> None:
    """Write what the axes are, in lines that fit beside them; `up` None: the same as of the panel beside it."""
    panel.set_xlabel(across, fontsize=9)
    if up is not None:
        panel.set_ylabel("\n".join(textwrap.wrap(up, 34)), fontsize=9)
    panel.tick_params(labelsize=SMALL)
    panel.grid(alpha=0.3)


def finish(figure: Any, path: Path, title: str, caption: str, direct: Sequence[Label] = ()) -> None:
    """Put title and caption above the panels and labels beside their curves, and save.

    What has no label of its own is in one legend below.
    """
    from matplotlib.ticker import MaxNLocator

    names: dict[str, Any] = {}
    for panel in figure.axes:
        if isinstance(panel.xaxis.get_major_locator(), MaxNLocator):  # ticks that a panel has set itself stay
            panel.locator_params(axis="x", nbins=5)
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            names.setdefault(label, handle)
    said = {label.text for label in direct}
    names = {name: handle for name, handle in names.items() if name not in said}
    width = int(figure.get_figwidth() * 13)
    lines = [part for line in f"{title}\n{caption}".splitlines() for part in textwrap.wrap(line, width)]
    figure.suptitle("\n".join(lines), fontsize=9)
    if names:
        room = int(figure.get_figwidth() / (0.6 + 0.075 * max(map(len, names))))  # inches; of a letter about 0.075
        style = {"loc": "outside lower center", "fontsize": 9, "frameon": False}
        figure.legend(names.values(), names.keys(), ncols=min(max(room, 1), 5), **style)
    direct_labels.write(figure, direct, size=SMALL)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write the picture so that the file appears whole or not at all."""
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=DPI)
    os.replace(temporary, path)


def bars(spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
    """Return values, and how far their intervals reach below and above, (2, values)."""
    values, low, high = np.array(spans).T
    return values, np.maximum([values - low, high - values], 0)
