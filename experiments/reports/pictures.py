"""Pictures of runs: quality against what it costs, losses over a run, the paper's points, every head's map."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves.measures import (
    BEFORE,
    CONTROL,
    NONZERO,
    OVERVIEW,
    QUALITY,
    Cost,
    Reading,
    Row,
    controls,
    lower_is_better,
    measured,
    number,
    pareto,
    plain,
    saves,
)
from experiments.reports import canvas
from experiments.reports.canvas import COLOURS, MARKERS
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
}
CAPTION = "time: 1 / speed-up over the dense model, timed in turns, bars are quartiles; of quality 95 % bootstrap"
STAR = "dense, trained as long as the run's last point"
LIGHTER = "lighter: counting only what is not zero"
HOLLOW = {"markerfacecolor": "w"}


def draw_tradeoff(path: Path, rows: Sequence[Row], *, title: str, caption: str) -> None:
    """Draw output error against parameters, MACs and measured real-time factor, one line a method."""
    figure = canvas.figure(11, 4)
    axes = {"parameters": "parameters (million)", "macs_g_per_s": "MACs (G per second of speech)"}
    axes["real_time_factor"] = "measured real-time factor"
    for panel, (key, label) in zip(figure.subplots(1, 3, sharey=True), axes.items(), strict=True):
        _draw_panel(panel, key, label, rows)
    figure.axes[0].set_ylabel("relative error of the output")
    figure.axes[0].legend()
    figure.suptitle(f"{title}\n{caption}", fontsize=10)
    canvas.save(figure, path)


def draw_training(path: Path, rows: Sequence[Row], *, entropy: float, title: str) -> None:
    """Draw a run's losses, with the entropy of the labels as what knowing only their frequencies gives, and accuracy.

    Args:
        path: of the picture.
        rows: lines of `metrics.jsonl`.
        entropy: of the labels, in nats.
        title: above it.
    """
    figure = canvas.figure(9, 3.6)
    panels = figure.subplots(1, 2)
    panels[0].axhline(entropy, color="0.6", linestyle="--", label="entropy of the labels")
    for panel, key in zip(panels, ("masked_loss", "masked_accuracy"), strict=True):
        for part in ("train", "valid"):
            points = [(row["step"], row[key]) for row in rows if row["part"] == part and key in row]
            panel.plot([x for x, _ in points], [y for _, y in points], "o-", markersize=3, label=part)
        panel.set(xlabel="updates", ylabel=key.replace("_", " ") + " (nats)" * key.endswith("loss"))
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(title, fontsize=10)
    canvas.save(figure, path)


def draw_curve(path: Path, rows: Sequence[Row], *, level: str, title: str, caption: str) -> None:
    """Draw what is there of one pruning run: each measure of quality against parameters, MACs and measured time.

    Args:
        path: of the picture.
        rows: points in the order of pruning, the dense model first.
        level: what the points are numbered by.
        title: above it.
        caption: below the title; may be empty.
    """
    present = [key for key in QUALITY if any(number(row, key) is not None for row in rows)]
    costs = plain(rows[0])
    figure = canvas.figure(11, 1.4 + 2.5 * len(present))
    panels = figure.subplots(max(len(present), 1), len(costs), sharex="col", sharey="row", squeeze=False)
    for line, key in zip(panels, present, strict=False):
        for panel, cost in zip(line, costs, strict=True):
            _draw_run(panel, rows, key, cost)
        line[0].set_ylabel(QUALITY[key])
        _number_points(line[0], rows, key)
    for panel, cost in zip(panels[-1], costs, strict=True):
        panel.set_xlabel(cost.label)
    if (dense := number(rows[0], "real_time_factor")) is not None:
        _show_around(panels[0, -1], dense)
    canvas.finish(figure, path, f"{title}\nnumbers at points: {LEVELS.get(level, level)}", caption)


def draw_curves(
    path: Path,
    runs: Mapping[str, Sequence[Row]],
    *,
    quality: Sequence[str],
    costs: Sequence[Cost] = OVERVIEW,
    title: str,
    caption: str,
) -> None:
    """Draw several runs: a row of panels for each measure of quality, a column for each cost.

    Points that no other point beats in both are on the Pareto front and have a ring.

    Args:
        path: of the picture.
        runs: points of each run in the order of compression, by label.
        quality: the measures, keys of `QUALITY`.
        costs: of the columns.
        title: above it.
        caption: below the title; may be empty.
    """
    figure = canvas.figure(3.6 * len(costs), 1.6 + 2.6 * len(quality))
    panels = figure.subplots(len(quality), len(costs), sharex="col", sharey="row", squeeze=False)
    for line, key in zip(panels, quality, strict=True):
        for panel, cost in zip(line, costs, strict=True):
            _draw_runs(panel, runs, key, cost)
        line[0].set_ylabel(QUALITY[key])
    for column, cost in zip(panels.T, costs, strict=True):
        column[-1].set_xlabel(cost.label)
        if cost.key == "time":
            _show_around(column[0], 1)
    canvas.finish(figure, path, title, f"{CAPTION}\n{caption}")


def draw_published(path: Path, curves: Sequence[Published], *, title: str, caption: str) -> None:
    """Draw the paper's points, PER against parameters and MACs, in grey: no axis of theirs is one of ours."""
    figure = canvas.figure(11, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    for i, curve in enumerate(curves):
        style = {"marker": MARKERS[i % len(MARKERS)], "linestyle": "-" if curve.joined else "", "label": curve.label}
        for panel, xs in ((left, "parameters_m"), (right, "macs_g_per_s")):
            x = [getattr(point, xs) for point in curve.points]
            shade = str(0.3 + 0.08 * (i % 5))
            panel.plot(x, [p.per for p in curve.points], color=shade, markersize=5, linewidth=1, **style)
    left.set(xlabel="parameters (million)", ylabel="phone error rate (%), SUPERB", yscale="log")
    right.set(xlabel="MACs (G / s of speech)", yscale="log")
    for panel in (left, right):
        panel.set_yticks((7, 8, 10, 15, 20, 40), (7, 8, 10, 15, 20, 40))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    canvas.finish(figure, path, title, caption)


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
            panel.set_xlabel(f"kept at {kept} of {points}", fontsize=7, labelpad=4)
        for side in panel.spines.values():
            side.set(linewidth=4 * kept / points if kept else 0.5, edgecolor=COLOURS[2] if kept else "0.7")
    canvas.finish(figure, path, title, caption)


def _draw_panel(panel: Any, key: str, label: str, rows: Sequence[Row]) -> None:
    scale = 1e-6 if key == "parameters" else 1.0
    dense = next(row for row in rows if row["method"] == "dense")
    panel.axvline(dense[key] * scale, color="0.6", linestyle="--", label="dense")
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "dense"):
        points = sorted((row[key] * scale, row["output_error"], row["name"]) for row in rows if row["method"] == method)
        panel.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", label=method)
        for x, y, name in points:
            panel.annotate(name.split(",")[0], (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
    panel.set_xlabel(label)
    panel.set_ylim(bottom=0)
    panel.margins(x=0.15, y=0.15)
    panel.grid(alpha=0.3)


def _draw_run(panel: Any, rows: Sequence[Row], key: str, cost: Cost) -> None:
    """Draw a run's quality against one cost, and against what the cost would be if zeros were free, if that differs."""
    control, before, after = (measured(keys.get(key, "")) for keys in (CONTROL, BEFORE, {key: key}))
    if cost.nominal and saves(rows, cost):
        _line(panel, rows, cost.nominal, after, "o--", COLOURS[0], "counting only what is not zero", **HOLLOW)
    _line(panel, rows, cost.read, control, "x:", "0.5", "dense, trained as long as the point", bars=False)
    _line(panel, rows, cost.read, before, "^:", "C1", "before training", bars=False)
    _line(panel, rows, cost.read, after, "o-", COLOURS[0], "model")
    panel.grid(alpha=0.3)
    panel.margins(0.1)


def _number_points(panel: Any, rows: Sequence[Row], key: str) -> None:
    """Write levels beside points, about eight of them, on the side where the curve leaves room."""
    read = measured(key)
    shown = [(x[0], y[0], row["level"]) for row in rows if (x := NONZERO(row)) and (y := read(row)) and "level" in row]
    side = 5 if lower_is_better(key) else -10
    for left, height, level in shown[:: -(-len(shown) // 8) or 1]:
        panel.annotate(f"{level:g}", (left, height), textcoords="offset points", xytext=(4, side), fontsize=7)


def _show_around(panel: Any, dense: float) -> None:
    """Widen a panel of times so that a cloud of points around the dense model's looks like one."""
    low, high = panel.get_xlim()
    panel.set_xlim(min(low, 0.8 * dense), max(high, 1.1 * dense))


def _draw_runs(panel: Any, runs: Mapping[str, Sequence[Row]], key: str, cost: Cost) -> None:
    """Draw several runs' quality against one cost, and the Pareto front of their points."""
    found = []
    for i, (label, rows) in enumerate(runs.items()):
        colour, fmt = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)] + ("-", "--")[i // len(COLOURS) % 2]
        points = [row for row in rows if row["name"] != "control"]
        if cost.nominal and saves(points, cost):
            _line(panel, points, cost.nominal, measured(key), fmt, colour, LIGHTER, alpha=0.4, bars=False, **HOLLOW)
        found += _line(panel, points, cost.read, measured(key), fmt, colour, label)
        for x, y in controls(rows, key, cost.read):
            panel.plot(x, y, "*", color=colour, markersize=10, alpha=0.7, label=STAR)
    front = [point for point, best in zip(found, pareto(found, lower=lower_is_better(key)), strict=True) if best]
    ring = {"marker": "o", "linestyle": "", "color": "0.2", "markerfacecolor": "none", "markersize": 10}
    panel.plot([x for x, _ in front], [y for _, y in front], **ring, markeredgewidth=0.8, label="Pareto front")
    if cost.key == "time":
        panel.axvline(1, color="0.6", linestyle="--", linewidth=1, zorder=0)
    panel.grid(alpha=0.3)
    panel.margins(0.08)


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
