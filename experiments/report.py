"""Reports: tables on the terminal, CSV and JSON on disk, the trade-off as a picture."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from compress.errors import InputError
from experiments.cli import console

Row = Mapping[str, Any]


def claim(out: Path) -> None:
    """Make the output folder, and make sure before hours of work that it can be written.

    Raises:
        InputError: it holds something that is no run of ours.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file())):
        raise InputError(f"{out}: not a run folder of ours; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").unlink(missing_ok=True)  # a report that is there is of a finished run


def show(title: str, rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """Print rows as a table.

    Args:
        title: above it.
        rows: values by key.
        columns: key → heading; a key may carry a format, as `macs:.3f`.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(columns.values()):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row, column) for column in columns))
    console.print(table)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows under the union of their keys; what is a list or a dict stays in report.json only."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, (list, dict)))
    with _whole(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(keys), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(_whole(path), path)


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that the file appears whole or not at all."""
    _whole(path).write_text(json.dumps(values, indent=1) + "\n")
    os.replace(_whole(path), path)


def draw_tradeoff(path: Path, rows: Sequence[Row], *, title: str, caption: str) -> None:
    """Draw output error against parameters, MACs and measured real-time factor, one line a method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = {"parameters": "parameters (million)", "macs_g_per_s": "MACs (G per second of speech)"}
    axes["real_time_factor"] = "measured real-time factor"
    for panel, (key, label) in zip(figure.subplots(1, 3, sharey=True), axes.items(), strict=True):
        _draw_panel(panel, key, label, rows)
    figure.axes[0].set_ylabel("relative error of the output")
    figure.axes[0].legend()
    figure.suptitle(f"{title}\n{caption}", fontsize=10)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)


def draw_training(path: Path, rows: Sequence[Row], *, entropy: float, title: str) -> None:
    """Draw a run's losses, with the entropy of the labels as what knowing only their frequencies gives, and accuracy.

    Args:
        path: of the picture.
        rows: lines of `metrics.jsonl`.
        entropy: of the labels, in nats.
        title: above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
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
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)


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


def _cell(row: Row, column: str) -> str:
    key, _, form = column.partition(":")
    value = row.get(key)
    return "–" if value is None else format(value, form)


def _whole(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
