"""Pictures of runs: quality against what it costs, losses over a run, the paper's points, every head's map."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves.measures import (
    CONTROL,
    DIFFERENCES,
    OVERVIEW,
    QUALITY,
    UNKNOWN,
    Cost,
    Reading,
    Row,
    before_training,
    by_default,
    controls,
    lacks_difference,
    lower_is_better,
    measured,
    number,
    pareto,
    plain,
    saves,
)
from experiments.reports import canvas
from experiments.reports.canvas import COLOURS, MARKERS
from experiments.reports.direct_labels import Label
from experiments.reports.published import Published

LEVELS = {
    "weights": "share of the prunable weights that are zero",
    "heads": "heads kept in a layer (on average), or the budget",
    "rows": "units kept in a layer (on average), or the budget",
    "distil": "layers of the student",
    "combine": "stage of the plan",
    "plan": "budget as a share of the dense model",
    "int8": "bits of a weight",
    "joint": "share of the parameters that was to go",
    "sequence": "frames that become one",
    "exits": "layer behind which utterances leave, or entropy below which they do",
    "mixers": "mixers, in the order in which they were named",
    "contexts": "frames of the future that attention sees in each layer",
    "elastic": "MACs as a share of the dense model's",
}
CAPTION = "time: 1 / speed-up over the dense model, timed in turns, bars are quartiles; of quality 95 % bootstrap"
AS_LONG = "dense, trained as long"
STAR = "dense, trained as long as the run's last point"
LIGHTER = "counting only what is not zero"
BEFORE = "before training"
HOLLOW = {"markerfacecolor": "w"}
MANY = 8  # levels that are written beside the points of a curve


def draw_training(path: Path, rows: Sequence[Row], *, entropy: float, title: str) -> None:
    """Draw a run's losses, with the entropy of the labels as what knowing only their frequencies gives, and accuracy.

    Args:
        path: of the picture.
        rows: lines of `metrics.jsonl`.
        entropy: of the labels, in nats.
        title: above it.
    """
    figure, (panels,) = canvas.blocks(1, 2)
    direct = []
    for panel, key in zip(panels, ("masked_loss", "masked_accuracy"), strict=True):
        for part, colour in (("train", COLOURS[0]), ("valid", COLOURS[1])):
            points = [(row["step"], row[key]) for row in rows if row["part"] == part and key in row]
            panel.plot([x for x, _ in points], [y for _, y in points], "o-", color=colour, markersize=3, label=part)
            direct += [Label(panel, part, colour, points[-1])] if points else []
        canvas.name_axes(panel, "updates", key.replace("_", " ") + " (nats)" * key.endswith("loss"))
        panel.margins(0.1)
    line = panels[0].axhline(entropy, color="0.5", linestyle="--", linewidth=1, label="entropy of the labels")
    if direct:
        direct.append(_level(panels[0], entropy, line.get_label()))
    canvas.finish(figure, path, title, "", direct)


def draw_curve(path: Path, rows: Sequence[Row], *, level: str, title: str, caption: str) -> None:
    """Draw what is there of one run: its quality against measured time, MACs, parameters and bytes.

    Losses and accuracies are what they are above the dense model trained as long; their own values where no such model
    is known, which the caption says then.

    Args:
        path: of the picture.
        rows: points in the order of compression, the dense model first.
        level: what the points are numbered by.
        title: above it.
        caption: below the title; may be empty.
    """
    absolute = lacks_difference(rows)
    present, costs = by_default(rows, absolute=absolute), plain(rows[0])
    figure, blocks = canvas.blocks(len(present), len(costs))
    direct: list[Label] = []
    for panels, key in zip(blocks, present, strict=True):
        for panel, cost in zip(panels, costs, strict=True):
            direct += _draw_run(panel, rows, key, cost)
        direct += _numbers(panels[0], rows, key, costs[0])
        _name(panels, key, costs)
        if (dense := number(rows[0], "real_time_factor")) is not None:
            _show_around(panels[0], dense)
    told = f"{UNKNOWN}\n" * absolute + caption
    canvas.finish(figure, path, f"{title}\nnumbers at points: {LEVELS.get(level, level)}", told, direct)


def draw_curves(
    path: Path,
    runs: Mapping[str, Sequence[Row]],
    *,
    quality: Sequence[str],
    costs: Sequence[Cost] = OVERVIEW,
    before: bool = False,
    title: str,
    caption: str,
) -> None:
    """Draw several runs: a block of panels for each measure of quality, two a row, a panel for each cost.

    Points that no other point beats in both are on the Pareto front and have a ring.

    Args:
        path: of the picture.
        runs: points of each run in the order of compression, by label.
        quality: the measures, keys of `QUALITY`.
        costs: of the panels.
        before: show losses before training, too, as hollow points.
        title: above it.
        caption: below the title; may be empty.
    """
    figure, blocks = canvas.blocks(len(quality), len(costs))
    direct: list[Label] = []
    for panels, key in zip(blocks, quality, strict=True):
        for panel, cost in zip(panels, costs, strict=True):
            direct += _draw_runs(panel, runs, key, cost, before=before)
            if cost.key == "time":
                _show_around(panel, 1)
        _name(panels, key, costs)
    canvas.finish(figure, path, title, f"{CAPTION}\n{caption}", direct)


def draw_published(path: Path, curves: Sequence[Published], *, title: str, caption: str) -> None:
    """Draw the paper's points, PER against parameters and MACs, in grey: no axis of theirs is one of ours."""
    figure, (panels,) = canvas.blocks(1, 2, height=4.6)
    direct = []
    for i, curve in enumerate(curves):
        shade = str(0.15 + 0.1 * (i % 5))
        style = {"marker": MARKERS[i % len(MARKERS)], "linestyle": "-" if curve.joined else "", "label": curve.label}
        for panel, xs in zip(panels, ("parameters_m", "macs_g_per_s"), strict=True):
            points = [(getattr(point, xs), point.per) for point in curve.points]
            panel.plot(*zip(*points, strict=True), color=shade, markersize=5, linewidth=1, **style)
            direct.append(Label(panel, curve.label, shade, points[-1], others=() if curve.joined else points))
    for panel, label in zip(panels, ("parameters (million)", "MACs (G / s of speech)"), strict=True):
        panel.set_yscale("log")
        panel.set_yticks((7, 8, 10, 15, 20, 40), (7, 8, 10, 15, 20, 40))
        panel.minorticks_off()
        panel.margins(x=0.12)
        canvas.name_axes(panel, label, "phone error rate (%), SUPERB" if panel is panels[0] else None)
    canvas.finish(figure, path, title, caption, direct)


def draw_atlas(path: Path, heads: Sequence[tuple[Row, np.ndarray]], *, title: str, caption: str) -> None:
    """Draw each head's map as bright as it gets, a line for each layer.

    Args:
        path: of the picture.
        heads: rows with `layer`, `head`, `diagonality` and `survived`, at how many of `points` of prunings the head was
            kept, which makes its frame; and maps (size, size).
        title: above it.
        caption: below the title; may be empty.
    """
    layers = list(dict.fromkeys(row["layer"] for row, _ in heads))
    columns = 1 + max(row["head"] for row, _ in heads)
    figure = canvas.figure(max(1.15 * columns + 0.6, 5), 1.5 * len(layers) + 0.8)
    panels = figure.subplots(len(layers), columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for row, pixels in heads:
        panel = panels[layers.index(row["layer"]), row["head"]]
        panel.set_axis_on()
        panel.imshow(np.sqrt(pixels / pixels.max()), cmap="magma", vmin=0, vmax=1)
        panel.set(xticks=(), yticks=())
        panel.set_title(f"head {row['head']}: {row['diagonality']:.3f}".replace("-", "−"), fontsize=8, pad=4)
        if row["head"] == 0:
            panel.set_ylabel(f"layer {row['layer']}", fontsize=9)
        kept, points = row["survived"], row["points"]
        if points:
            panel.set_xlabel(f"kept at {kept} of {points}", fontsize=8, labelpad=4)
        for side in panel.spines.values():
            side.set(linewidth=4 * kept / points if kept else 0.5, edgecolor=COLOURS[2] if kept else "0.7")
    canvas.finish(figure, path, title, caption)


def _name(panels: Sequence[Any], key: str, costs: Sequence[Cost]) -> None:
    """Name the axes of a measure's panels."""
    for i, (panel, cost) in enumerate(zip(panels, costs, strict=True)):
        canvas.name_axes(panel, cost.label, None if i % canvas.COLUMNS else QUALITY[key])


def _draw_run(panel: Any, rows: Sequence[Row], key: str, cost: Cost) -> list[Label]:
    """Draw a run's quality against one cost, and against what the cost would be if zeros were free, if that differs."""
    panel.margins(x=0.12, y=0.15)
    found = []
    if cost.nominal and saves(rows, cost):
        points = _line(panel, rows, cost.nominal, measured(key), "o--", COLOURS[0], LIGHTER, **HOLLOW)
        found += _ends(panel, points, LIGHTER, COLOURS[0])
    control, grey = measured(CONTROL.get(key, "")), "0.35"
    points = _line(panel, rows, cost.read, control, "x:", grey, AS_LONG, bars=False)
    found += _ends(panel, points, AS_LONG, grey)
    orange = COLOURS[1]
    points = _line(panel, rows, cost.read, before_training(key), "^:", orange, BEFORE, **HOLLOW)
    found += _ends(panel, points, BEFORE, orange)
    points = _line(panel, rows, cost.read, measured(key), "o-", COLOURS[0], "model")
    found += _ends(panel, points, "model", COLOURS[0]) if found else []
    return [*found, *_zero(panel, key, points)]


def _draw_runs(panel: Any, runs: Mapping[str, Sequence[Row]], key: str, cost: Cost, *, before: bool) -> list[Label]:
    """Draw several runs' quality against one cost, and the Pareto front of their points."""
    panel.margins(x=0.12, y=0.15)
    found, direct = [], []
    for i, (label, rows) in enumerate(runs.items()):
        colour, fmt = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)] + ("-", "--")[i // len(COLOURS) % 2]
        points = [row for row in rows if row["name"] != "control"]
        if cost.nominal and saves(points, cost):
            _line(panel, points, cost.nominal, measured(key), fmt, colour, LIGHTER, alpha=0.4, bars=False, **HOLLOW)
        if before:
            style = {"linewidth": 0.8, **HOLLOW}
            _line(panel, points, cost.read, before_training(key), f"{fmt[0]}:", colour, BEFORE, **style)
        drawn = _line(panel, points, cost.read, measured(key), fmt, colour, label)
        direct += _ends(panel, drawn, label, colour)
        found += drawn
        for x, y in controls(rows, key, cost.read):
            panel.plot(x, y, "*", color=colour, markersize=10, alpha=0.7, label=STAR)
    front = [point for point, best in zip(found, pareto(found, lower=lower_is_better(key)), strict=True) if best]
    ring = {"marker": "o", "linestyle": "", "color": "0.2", "markerfacecolor": "none", "markersize": 10}
    panel.plot([x for x, _ in front], [y for _, y in front], **ring, markeredgewidth=0.8, label="Pareto front")
    if cost.key == "time":
        panel.axvline(1, color="0.6", linestyle="--", linewidth=1, zorder=0)
    return [*direct, *_zero(panel, key, found)]


def _zero(panel: Any, key: str, points: Sequence[tuple[float, float]]) -> list[Label]:
    """Draw where the dense model trained as long is, in a panel of differences to it."""
    if key not in DIFFERENCES or not points:
        return []
    panel.axhline(0, color="0.5", linestyle="--", linewidth=1, zorder=0)
    return [_level(panel, 0.0, AS_LONG)]


def _level(panel: Any, height: float, text: str) -> Label:
    """Label a level line, wherever along it there is room."""
    low, high = panel.get_xlim()
    first, *others = ((float(x), height) for x in np.linspace(low, high, 12)[1:-1])
    return Label(panel, text, "0.35", first, leads=False, others=others)


def _ends(panel: Any, points: Sequence[tuple[float, float]], label: str, colour: str) -> list[Label]:
    return [Label(panel, label, colour, points[-1])] if points else []


def _numbers(panel: Any, rows: Sequence[Row], key: str, cost: Cost) -> list[Label]:
    """Write levels beside points, about eight of them."""
    read = measured(key)
    shown = [
        (x[0], y[0], row["level"]) for row in rows if (x := cost.read(row)) and (y := read(row)) and "level" in row
    ]
    few = shown[:: -(-len(shown) // MANY) or 1]
    return [Label(panel, f"{level:g}", "0.25", (across, height), leads=False) for across, height, level in few]


def _show_around(panel: Any, dense: float) -> None:
    """Widen a panel of times so that a cloud of points around the dense model's looks like one."""
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, 0.8 * dense), max(high, 1.1 * dense))


def _line(
    panel: Any, rows: Sequence[Row], cost: Reading, quality: Reading, fmt: str, colour: str, label: str, **style: Any
) -> list[tuple[float, float]]:
    """Draw the points that have both values, with their intervals; return them."""
    points = [(x, y) for row in rows if (x := cost(row)) is not None and (y := quality(row)) is not None]
    if not points:
        return []
    (xs, xerr), (ys, yerr) = (canvas.bars(spans) for spans in zip(*points, strict=True))
    style = {"color": colour, "label": label, "markersize": 4.5, "linewidth": 1.3, "elinewidth": 0.8, **style}
    if style.pop("bars", True):
        style |= {"xerr": xerr, "yerr": yerr}
    for bar in panel.errorbar(xs, ys, fmt=fmt, **style)[2]:
        bar.set_alpha(0.45)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))
