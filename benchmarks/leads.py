"""What the times of `benchmarks.forward` say of ours beside the others: as rows, as a page, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import about
from experiments.reports import canvas

Rows = Sequence[Mapping[str, Any]]
OURS = ("ours", "exported", "convolutions")
REFERENCE = "ours, float32"  # in turns with those of another dtype
NAMES = {  # in tables
    "pytorch": "PyTorch",
    "autocast": "PyTorch under autocast",
    "compiled": "torch.compile",
    "autotuned": "torch.compile, max-autotune",
    "onnxruntime": "ONNX Runtime",
    "transformers": "transformers",
    "openvino": "OpenVINO",
    "exported": "our export in ONNX Runtime",
    "convolutions": "ours with int8 convolutions",
    REFERENCE: "our float32",
}
RIVALS = tuple(name for name in NAMES if name not in (*OURS, REFERENCE))
LEADS = {
    "model": "model",
    "dtype": "dtype",
    "load": "load",
    "fastest": "fastest of the others",
    "milliseconds:.1f": "ms",
    "ours:.2f": "ours is faster by",
    "exported:.2f": "our export by",
    "convolutions:.2f": "ours with int8 convolutions by",
}
FORMS = {
    "model": "model",
    "dtype": "dtype",
    "form": "form",
    "milliseconds:.1f": "ms",
    "speedup:.2f": "speed-up",
    "speedup_low:.2f": "quartile 1",
    "speedup_high:.2f": "quartile 3",
    "promised:.2f": "promised by MACs",
    "kept:.0%": "of it",
}


def lead(points: Rows) -> list[dict[str, Any]]:
    """Return for every point of the grid how ours and our export stand to the fastest of the others."""
    places = dict.fromkeys((point["model"], point["dtype"], point["load"]) for point in points)
    rows = []
    for place in places:
        times = {p["system"]: p["milliseconds"] for p in points if (p["model"], p["dtype"], p["load"]) == place}
        if others := [system for system in times if system in RIVALS]:
            fastest = min(others, key=lambda system: times[system])
            row = dict(zip(("model", "dtype", "load"), place, strict=True))
            row |= {"fastest": fastest, "milliseconds": times[fastest]}
            rows.append(row | {ours: times[fastest] / times[ours] for ours in OURS if ours in times})
    return rows


def page(values: Mapping[str, Any]) -> str:
    """Write a run as docs/results.md has them: what it ran on, what was left out, a table a dtype, compressed forms."""
    parts = ["\n".join(f"- {line}" for line in (*about.lines(values["about"]), *values["notes"]))]
    for dtype in dict.fromkeys(point["dtype"] for point in values["points"]):
        mine = [point for point in values["points"] if point["dtype"] == dtype]
        parts.append(f"**{dtype}**\n\n{_grid(mine, about.peak(values['about'], dtype))}")
    if values["forms"]:
        parts.append(f"**Compressed forms**, share of what MACs promise (speed-up)\n\n{_forms(values['forms'])}")
    return "\n\n".join(parts) + "\n"


def _grid(points: Rows, peak: float) -> str:
    """Write a row for each other program, and columns for models and loads."""
    places = list(dict.fromkeys((point["model"], point["load"]) for point in points))
    found = {(point["system"], point["model"], point["load"]): point for point in points}
    rows = [["ours is faster by", *(f"{model}, {load}" for model, load in places)]]
    for system, name in NAMES.items():
        cells = [_ratio(found.get((system, *place))) for place in places]
        rows += [[f"over {name}", *cells]] if set(cells) != {"–"} else []
    ours = [found.get(("ours", *place)) for place in places]
    rows.append(["ours, ms", *("–" if each is None else f"{each['milliseconds']:.4g}" for each in ours)])
    shares = ("–" if each is None else f"{100 * each['of_peak']:.0f} %" for each in ours)
    return _table([*rows, [f"share of the peak ({peak / 1e9:.0f} GMAC/s)", *shares]])


def _ratio(point: Mapping[str, Any] | None) -> str:
    if point is None or point["ratio"] is None:
        return "–"
    return f"{point['ratio']:.2f} ({point['ratio_low']:.2f}–{point['ratio_high']:.2f})"


def _forms(forms: Rows) -> str:
    kinds = list(dict.fromkeys(row["form"] for row in forms if row["form"] != "dense"))
    found = {(row["model"], row["dtype"], row["form"]): row for row in forms}
    rows = [["share of the promise kept", *kinds]]
    for model, dtype in dict.fromkeys((row["model"], row["dtype"]) for row in forms):
        each = [found.get((model, dtype, kind)) for kind in kinds]
        cells = ("–" if row is None else f"{row['kept']:.2f} ({row['speedup']:.2f})" for row in each)
        rows.append([f"{model}, {dtype}", *cells])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def draw(path: Path, points: Rows, *, title: str) -> None:
    """Draw how much faster ours is than each other program, by load, a panel for each model and dtype."""
    whole = [point for point in points if point["system"] in RIVALS and point["ratio"] is not None]
    panels_of = list(dict.fromkeys((point["model"], point["dtype"]) for point in whole))
    others = list(dict.fromkeys(point["system"] for point in whole))
    if not others:
        return
    figure, (panels,) = canvas.blocks(1, len(panels_of), height=3.4)
    for panel, place in zip(panels, panels_of, strict=True):
        mine = [point for point in points if (point["model"], point["dtype"]) == place]
        loads = list(dict.fromkeys(point["load"] for point in mine))
        for i, other in enumerate(others):
            if not (rows := [p for p in whole if p in mine and p["system"] == other]):
                continue
            values, reach = canvas.bars([(row["ratio"], row["ratio_low"], row["ratio_high"]) for row in rows])
            style = {"color": canvas.COLOURS[i], "marker": canvas.MARKERS[i], "linestyle": "", "capsize": 3}
            places = np.array([loads.index(row["load"]) for row in rows]) + 0.1 * (i - (len(others) - 1) / 2)
            panel.errorbar(places, values, yerr=reach, label=f"over {NAMES[other]}", **style)
        panel.axhline(1, color="0.6", linestyle="--", linewidth=1)
        panel.set_xticks(range(len(loads)), loads, rotation=30, fontsize=8)
        panel.set(title=", ".join(place))
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="ours is faster by", ylim=(0, None))  # shared, so set when all are drawn
    canvas.finish(figure, path, title, "")
