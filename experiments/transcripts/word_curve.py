"""The picture: word error rates against measured time, a curve for each technique, before and after recovery."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.curves.measures import Row, measured, relative_time
from experiments.reports import canvas
from experiments.reports.canvas import COLOURS, MARKERS
from experiments.reports.direct_labels import Label

MEASURES = {
    "agreement": "agreement WER: words unlike the dense model's (%)",
    "wer": "true WER: words unlike what is said (%)",
}
CAPTION = (
    "time: 1 / speed-up over the dense encoder in its whole window, timed in turns, bars are quartiles; of WER 95 % "
    "bootstrap over utterances; hollow and dotted: after recovery; above 100 % the axis ends"
)
MOST = 100.0  # %; what is worse is nothing that could be read


def draw(path: Path, rows: Sequence[Row], *, title: str) -> None:
    """Draw the points; those without a measure are left out of its panel."""
    shown = [key for key in MEASURES if any(row.get(key) is not None for row in rows)]
    if not shown:
        return
    figure, (panels,) = canvas.blocks(1, len(shown), height=4.6)
    direct: list[Label] = []
    for panel, key in zip(panels, shown, strict=True):
        direct += _panel(panel, rows, key)
        canvas.name_axes(panel, "measured time of the encoder relative to dense", MEASURES[key])
    canvas.finish(figure, path, title, CAPTION, direct)


def _panel(panel: Any, rows: Sequence[Row], key: str) -> list[Label]:
    panel.margins(x=0.1)
    labels = list(dict.fromkeys(row["label"] for row in rows if row["name"] != "dense"))
    direct: list[Label] = []
    for number, label in enumerate(labels):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        for recovered in (False, True):
            mine = [row for row in rows if row.get("label") == label and bool(row.get("updates")) == recovered]
            points = _line(panel, mine, key, colour, marker, recovered=recovered)
            if points and not recovered:
                direct.append(Label(panel, label, colour, points[-1], others=points[:-1]))
            elif points:
                direct.append(Label(panel, f"{label}, recovered", colour, points[-1], others=points[:-1]))
    dense = next((row for row in rows if row["name"] == "dense"), None)
    if dense is not None and dense.get(key) is not None:
        level = 100 * dense[key]
        panel.plot([1], [level], "*", color="0.2", markersize=11)
        panel.axhline(level, color="0.5", linestyle="--", linewidth=1, zorder=0)
        direct.append(Label(panel, "dense", "0.2", (1.0, level)))
    top = min(panel.get_ylim()[1], MOST)
    panel.set_ylim(-0.05 * top, top)
    return direct


def _line(
    panel: Any, rows: Sequence[Row], key: str, colour: str, marker: str, *, recovered: bool
) -> list[tuple[float, float]]:
    """Draw the points of a curve in the order of their time; return those that the panel shows."""
    read = measured(key)
    both = [(x, y) for row in rows if (x := relative_time(row)) and (y := read(row))]
    if not both:
        return []
    both.sort(key=lambda pair: -pair[0][0])
    xs, xerr = canvas.bars([x for x, _ in both])
    ys, yerr = canvas.bars([y for _, y in both])
    style = {"color": colour, "markersize": 5, "linewidth": 1.2, "elinewidth": 0.7}
    if recovered:
        style["markerfacecolor"] = "w"
    drawn = panel.errorbar(
        xs, 100 * ys, xerr=xerr, yerr=100 * yerr, fmt=f"{marker}{':' if recovered else '-'}", **style
    )
    for bar in drawn[2]:
        bar.set_alpha(0.35)
    return [(x, 100 * y) for x, y in zip(xs.tolist(), ys.tolist(), strict=True) if 100 * y <= MOST]
