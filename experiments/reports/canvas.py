"""What every picture of ours shares: the only door to matplotlib, colours, error bars, titles, one legend, saving."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves.measures import Span

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#8c564b")  # Okabe and Ito
MARKERS = "osD^vPX<"


def figure(width: float, height: float) -> Any:
    """Return an empty figure of that many inches, which needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    empty = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(empty)
    return empty


def finish(figure: Any, path: Path, title: str, caption: str) -> None:
    """Put title and caption above the panels and one legend below, and save."""
    from matplotlib.ticker import MaxNLocator

    names: dict[str, Any] = {}
    for panel in figure.axes:
        if isinstance(panel.xaxis.get_major_locator(), MaxNLocator):  # ticks that a panel has set itself stay
            panel.locator_params(axis="x", nbins=5)
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            names.setdefault(label, handle)
    width = int(figure.get_figwidth() * 13)
    lines = [part for line in f"{title}\n{caption}".splitlines() for part in textwrap.wrap(line, width)]
    figure.suptitle("\n".join(lines), fontsize=9)
    if names:
        room = int(figure.get_figwidth() / (0.6 + 0.075 * max(map(len, names))))  # inches; of a letter about 0.075
        style = {"loc": "outside lower center", "fontsize": 9, "frameon": False}
        figure.legend(names.values(), names.keys(), ncols=min(max(room, 1), 5), **style)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write the picture so that the file appears whole or not at all."""
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)


def bars(spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
    """Return values, and how far their intervals reach below and above, (2, values)."""
    values, low, high = np.array(spans).T
    return values, np.maximum([values - low, high - values], 0)
