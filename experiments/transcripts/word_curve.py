"""The picture: word error rates against measured time, a curve for each technique, before and after recovery."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.curves.measures import Row, measured, number, relative_time
from experiments.reports import canvas
from experiments.reports.canvas import COLOURS, MARKERS
from experiments.reports.direct_labels import Label

MEASURES = {
    "agreement": "agreement WER: words unlike the dense model's (%)",
    "wer": "true WER: words unlike what is said (%)",
}
CAPTION = (
    "time: 1 / speed-up over the dense encoder in its whole window, timed in turns, bars are quartiles; of WER 95 % "
    "bootstrap over utterances; above 100 % the axis ends"
)
PALE = "; pale: the same points before recovery"
MOST = 100.0  # %; what is worse is nothing that could be read
TICKS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)  # of time, whose axis is logarithmic


def draw(path: Path, rows: Sequence[Row], *, title: str) -> None:
    """Draw the points, a panel for each measure and, where some were trained, one more beside it for those.

    Points without a measure are left out of its panel.
    """
    shown = [key for key in MEASURES if any(row.get(key) is not None for row in rows)]
    if not shown:
        return
    trained = any(row.get("updates") for row in rows)
    if trained:
        figure, panels = canvas.blocks(len(shown), 2, height=4.2)
    else:
        figure, (line,) = canvas.blocks(1, len(shown), height=4.6)
        panels = [[panel] for panel in line]
    direct: list[Label] = []
    for (left, *right), key in zip(panels, shown, strict=True):
        direct += _panel(left, rows, key, recovered=False)
        canvas.name_axes(left, _across("before recovery" if trained else ""), MEASURES[key])
        for panel in right:
            direct += _panel(panel, rows, key, recovered=True)
            canvas.name_axes(panel, _across("after recovery"), None)
            panel.set_xlim(left.get_xlim())
    canvas.finish(figure, path, title, CAPTION + PALE * trained, direct)


def _across(when: str) -> str:
    return f"measured time of the encoder relative to dense{', ' if when else ''}{when}"


def _panel(panel: Any, rows: Sequence[Row], key: str, *, recovered: bool) -> list[Label]:
    panel.set_xscale("log")
    panel.margins(x=0.1)
    labels = list(dict.fromkeys(row["label"] for row in rows if row["name"] != "dense"))
    direct: list[Label] = []
    for i, label in enumerate(labels):
        turn, place = divmod(i, len(COLOURS))  # a colour that comes again has another marker
        colour, marker = COLOURS[place], MARKERS[(place + turn) % len(MARKERS)]
        mine = [row for row in rows if row.get("label") == label]
        after = [row for row in mine if row.get("updates")]
        before = [row for row in mine if not row.get("updates")]
        if recovered and after:
            _line(panel, before, key, colour, marker, pale=True)
        points = _line(panel, after if recovered else before, key, colour, marker)
        if points:
            direct.append(Label(panel, label, colour, points[-1], others=points[:-1]))
    dense = next((row for row in rows if row["name"] == "dense"), None)
    if dense is not None and dense.get(key) is not None:
        level = 100 * dense[key]
        panel.plot([1], [level], "*", color="0.2", markersize=11)
        panel.axhline(level, color="0.5", linestyle="--", linewidth=1, zorder=0)
        direct.append(Label(panel, "dense", "0.2", (1.0, level)))
    top = min(panel.get_ylim()[1], MOST)
    panel.set_ylim(-0.05 * top, top)
    panel.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    panel.set_xticks([], minor=True)
    times = [time for row in rows if (time := relative_time(row))]
    panel.set_xlim(0.9 * min(time[0] for time in times), 1.15 * max(time[0] for time in times))
    return direct


def _line(
    panel: Any, rows: Sequence[Row], key: str, colour: str, marker: str, *, pale: bool = False
) -> list[tuple[float, float]]:
    """Draw the points of a curve in the order of their MACs; return those that the panel shows."""
    read = measured(key)
    largest = sorted(rows, key=lambda row: -(number(row, "macs_g") or 0.0))
    both = [(x, y) for row in largest if (x := relative_time(row)) and (y := read(row))]
    if not both:
        return []
    xs, xerr = canvas.bars([x for x, _ in both])
    ys, yerr = canvas.bars([y for _, y in both])
    if pale:
        panel.plot(xs, 100 * ys, f"{marker}:", color=colour, markersize=3, linewidth=0.9, alpha=0.35)
        return []
    style = {"color": colour, "markersize": 5, "linewidth": 1.2, "elinewidth": 0.7}
    drawn = panel.errorbar(xs, 100 * ys, xerr=xerr, yerr=100 * yerr, fmt=f"{marker}-", **style)
    for bar in drawn[2]:
        bar.set_alpha(0.35)
    return [(x, 100 * y) for x, y in zip(xs.tolist(), ys.tolist(), strict=True) if 100 * y <= MOST]
