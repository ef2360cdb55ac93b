"""Put runs side by side: quality against size, MACs, measured time, bytes and memory, and who wins at equal time.

    python -m experiments.tradeoff runs/weights runs/heads runs/rows
    python -m experiments.tradeoff runs/weights runs/blocks --share 0.9 0.8 --out runs/tradeoff-weights
    python -m experiments.tradeoff runs/heads runs/lowrank --retime
    python -m experiments.tradeoff runs/heads runs/rows --budget rtf=50% --plan auto
    python -m experiments.tradeoff --zoo --rounds 5

Reads the folders that `experiments.weights`, `heads`, `rows`, `lowrank` and others of their form fill: report.json of a
finished run, curve.csv of one that still goes on. Writes

    tradeoff.html            one page that opens without a network: plots, tables that sort, links to a view
    tradeoff.png             quality against relative time, MACs and parameters of weights not zero, and bytes
    tradeoff-MEASURE.png     one measure of quality against every cost; beside MACs and parameters what zeros would save
    paper.png                the study's published points, in grey, on axes of their own
    tradeoff.csv points.csv  quality at equal time; all points
    report.json              all of it, for programs
    zoo.csv                  with --zoo: the published systems and our points, counted and timed by one program

Each point was timed in turns with its own run's dense model, so times of different runs, even machines, compare as
shares of the dense time and no other way; --retime loads every point's model and times all of them in turns, here and
now, and then real-time factors compare too. Points that were trained longer have less loss, however small they are; so
quality is the difference to the dense model trained as long, paired by utterance, with its 95 % bootstrap interval.
--quality absolute shows loss and accuracy themselves, as do all tables and pictures when a run had no control, which is
noted; the page, the CSV files and the pictures of single measures have both. For each share asked for, the table has
the quality of each run there, on the straight line between its points, the interval likewise, and the best run; a dash
where it never gets that fast. The line of an absolute value begins at the dense model, trained as long as the first
point where the run had a control. Losses compare only where model and held-out speech are the same; what differs is
noted.

Takes about ten seconds on two CPU cores; with --retime, five more for each model shape. Expected: weights have dashes
at 0.9 and below, for XLA multiplies by zeros all the same; heads and rows have values down to the time of what they
leave alone.

With --plan auto the first run's model is first compressed to each --budget as `experiments.plan` does, on the same
speech, and compared with the uniform plans of the same budget; the plan's folder lies beside that run's. On the default
model and real speech that is a quarter of an hour.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import tyro

from compress.errors import InputError
from experiments.curves import planning
from experiments.curves.measures import (
    CONTROL,
    DIFFERENCES,
    QUALITY,
    UNKNOWN,
    Row,
    by_default,
    known_costs,
    lacks_difference,
    lower_is_better,
    measured,
    number,
    pareto,
    relative_time,
)
from experiments.curves.retime import retime
from experiments.curves.runs import Curve, distinct, read_curves, spoken
from experiments.reports import compared, page, pictures, published, tables
from jaxssl.inference.latency import Load
from jaxssl.models import checkpoint
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Count, Positive, Seconds, There

SAME = 0.01  # nats; losses of one dense model that differ by more are of other speech
SHOWN = ("device", "processor", "cores", "dtype", "jax", "XLA_FLAGS")  # what makes two machines different


@dataclass(frozen=True)
class Config:
    """Compare runs at equal measured time, and against every cost."""

    runs: tyro.conf.Positional[There[tuple[Path, ...]]]
    """folders of runs, finished or not"""
    budget: planning.Budgets[tuple[str, ...]] = ()
    """of --plan auto: what each planned model may take, as rtf=50%, macs=0.15e9 or params=3e6"""
    plan: Literal["none", "auto"] = "none"
    """auto: search the first run's model for the best ranks, heads, rows and depth under each --budget, and add it"""
    share: Positive[tuple[float, ...]] = (0.9, 0.8, 0.7, 0.6, 0.5)
    """shares of the dense model's time to compare at"""
    quality: Literal["difference", "absolute"] = "difference"
    """of losses and accuracies: what they are above the dense model trained as long, or their own values"""
    retime: bool = False
    """time every point of every run again, all in turns"""
    seconds: Seconds[float] = 5.0
    """of --retime: length of the utterance that is timed, in seconds"""
    rounds: Count[int] = 15
    """of --retime: timed runs of each model shape"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of --retime: of the computation"""
    zoo: bool = False
    """print parameters, MACs and measured time of the published systems and of the runs' points, in one table"""
    out: Path = Path("runs/tradeoff")
    """folder for tradeoff.html, pictures, tables and report.json"""


def run(config: Config) -> None:
    """Read the runs, compare them, and write page, pictures and tables."""
    _check(config)
    folders = [*dict.fromkeys(config.runs), *_planned(config)]
    curves = distinct([curve for folder in folders for curve in read_curves(folder)])
    files.claim(config.out)
    timed, notes = _timed_again(config, curves) if config.retime and curves else (curves, [])
    files.own(config.out, config)
    if config.zoo:
        _show_zoo(config, curves)
    if not curves:
        return
    curves = timed
    notes += differences(curves)
    shown, measures, more = measures_of(curves, absolute=config.quality == "absolute")
    notes += more
    for note in notes:
        console.print(f"note: {note}", markup=False)

    table = [row for key in measures for row in at_equal_time(curves, config.share, key)]
    _show(curves, [row for row in table if row["measure"] in shown])
    points = marked(curves, "loss_difference" if "loss_difference" in shown else "valid_loss")
    files.write_csv(config.out / "tradeoff.csv", table)
    files.write_csv(config.out / "points.csv", points)
    title = f"trade-off of {', '.join(dict.fromkeys(curve.model for curve in curves))}"
    _draw(config.out, curves, shown, measures, title=title, caption="; ".join(notes))
    command = spoken(shlex.join(sys.argv))
    html = page.write(curves, table, measures=measures, title=title, notes=notes, command=command)
    files.write_text(config.out / "tradeoff.html", html)
    values = {"notes": notes, "runs": [_told(c) for c in curves], "equal_time": table, "points": points}
    files.write_json(config.out / "report.json", values)
    console.print(f"wrote {config.out}: tradeoff.html, *.png, tradeoff.csv, points.csv, report.json", markup=False)


def _check(config: Config) -> None:
    ranges.check(config)
    if (config.plan == "auto") != bool(config.budget):
        raise InputError(
            f"--plan {config.plan} with {len(config.budget)} budgets; --plan auto and --budget go together"
        )
    if not (config.runs or config.zoo or config.budget) or not config.share:
        raise InputError(
            f"{len(config.runs)} runs and {len(config.share)} shares; name one run or more (or --zoo), and one --share"
        )
    if config.out in config.runs:
        raise InputError(f"{config.out}: is one of the runs; choose another --out")


def _planned(config: Config) -> list[Path]:
    """Carry out the automatic plan, where one is asked for; return its folder and its uniform rivals'."""
    if config.plan != "auto":
        return []
    first = config.runs[0] if config.runs else None
    planned = planning.like(first, config.budget, config.out.parent)
    planning.run(planned)
    rivals = planned.out / "uniform"
    return [planned.out, *([rivals] if (rivals / "report.json").is_file() else [])]


def _show_zoo(config: Config, curves: Sequence[Curve]) -> None:
    """Put the published systems and the models of the runs into one table, all timed in turns."""
    ours = {
        f"{curve.label}: {row['name']}": checkpoint.load(folder)[0]
        for curve in curves
        for row in curve.points
        if checkpoint.is_model(folder := curve.folder / "models" / str(row["name"]))
    }
    load = Load(config.seconds)
    found = compared.rows({**compared.zoo(), **ours}, load=load, dtype=jnp.dtype(config.dtype), rounds=config.rounds)
    compared.show(found)
    files.write_csv(config.out / "zoo.csv", found)
    console.print(f"wrote {config.out}: compared.csv", markup=False)


def _timed_again(config: Config, curves: Sequence[Curve]) -> tuple[list[Curve], list[str]]:
    """Time all points in turns; return the runs with the new times, and what a reader must know of these."""
    load = Load(config.seconds)
    timed = retime(curves, load, dtype=config.dtype, rounds=config.rounds)
    where = timed[0].machine
    note = (
        f"all points were timed again in turns in one process, {load}, {config.dtype}, {config.rounds} rounds, on "
        f"{where['device']} ({where['processor']}, {where['cores']} cores): real-time factors of different runs compare"
    )
    return timed, [note]


def measures_of(curves: Sequence[Curve], *, absolute: bool) -> tuple[list[str], list[str], list[str]]:
    """Return the measures that tables and pictures show, these and all others, and what a reader must know of them."""
    rows = [row for curve in curves for row in curve.points]
    lacking = [curve.label for curve in curves if lacks_difference(curve.points)]
    wide = [curve.label for curve in curves if any(map(_without_interval, curve.points))]
    notes = []
    if lacking and not absolute:
        notes.append(f"{UNKNOWN} of {', '.join(lacking)}: made without a control")
    if wide and not lacking and not absolute:
        notes.append(
            f"differences to the dense model trained as long have no interval in {', '.join(wide)}: an older version "
            "did not keep what that model made of each utterance"
        )
    shown = by_default(rows, absolute=absolute or bool(lacking))
    others = [key for key in QUALITY if key not in shown and any(number(row, key) is not None for row in rows)]
    return shown, [*shown, *others], notes


def _without_interval(row: Row) -> bool:
    known = number(row, "loss_difference") is not None and row["name"] != "dense"
    return known and number(row, "loss_difference_low") is None


def _draw(
    out: Path, curves: Sequence[Curve], shown: Sequence[str], measures: Sequence[str], *, title: str, caption: str
) -> None:
    """Draw the overview, a picture for each measure, and the paper's points."""
    runs = {curve.label: curve.rows for curve in curves}
    pictures.draw_curves(out / "tradeoff.png", runs, quality=shown, title=title, caption=caption)
    costs = known_costs([row for curve in curves for row in curve.points])
    for key in measures:
        path = out / f"tradeoff-{key}.png"
        pictures.draw_curves(path, runs, quality=[key], costs=costs, title=title, caption=caption)
    pictures.draw_published(out / "paper.png", published.CURVES, title=published.LABEL, caption=published.SOURCE)


def at_equal_time(curves: Sequence[Curve], shares: Sequence[float], key: str) -> list[dict[str, Any]]:
    """Interpolate each run's quality at shares of the dense time.

    Args:
        curves: the runs.
        shares: of the dense model's time.
        key: measure of quality.

    Returns:
        A row each share: `measure`, `share`, a value for each label (None where the run never gets that fast), in
        `wins` the label and in `technique` the technique of the best, and the ends of the values' intervals, `…_low`
        and `…_high` of each label.
    """
    sign = 1 if lower_is_better(key) else -1
    rows = []
    for share in shares:
        points = {curve.label: _as_trained(curve.points) for curve in curves}
        found = {label: interpolate(each, share, key) for label, each in points.items()}
        ends = {
            f"{label}_{end}": interpolate(each, share, key, part=part)
            for label, each in points.items()
            for part, end in enumerate(("low", "high"), start=1)
        }
        reached = [(sign * value, c) for c in curves if (value := found[c.label]) is not None]
        best = min(reached, key=lambda pair: pair[0])[1] if reached else None
        winner = {"wins": best and best.label, "technique": best and best.technique}
        rows.append({"measure": key, "share": share, **found, **winner, **ends})
    return rows


def interpolate(rows: Sequence[Row], share: float, key: str, *, part: int = 0) -> float | None:
    """Return the quality at a share of the dense time, linear between the two points around it in time.

    `part` is 0 for the value itself, 1 and 2 for the lower and the upper end of its interval.

    Returns:
        None where no point is that fast; the slowest point's quality where all are faster.
    """
    read = measured(key)
    points = sorted((time, span[part]) for row in rows if (time := _time(row)) and (span := read(row)) is not None)
    if not points or share < points[0][0]:
        return None
    times, values = np.array(points).T
    return float(np.interp(share, times, values))


def marked(curves: Sequence[Curve], key: str) -> list[dict[str, Any]]:
    """Return all points with their run's label, relative time, and whether no other has less of `key` in less time."""
    rows = [{"run": c.label, "technique": c.technique, **row, "time": _time(row)} for c in curves for row in c.points]
    known = [i for i, row in enumerate(rows) if row["time"] and number(row, key) is not None]
    front = pareto([(rows[i]["time"], rows[i][key]) for i in known], lower=True)
    best = {i for i, on_front in zip(known, front, strict=True) if on_front}
    return [{**row, "on_front": i in best} for i, row in enumerate(rows)]


def differences(curves: Sequence[Curve]) -> list[str]:
    """Say what keeps the runs from being compared point by point."""
    notes = [f"{c.label}: not finished, {len(c.points)} points so far" for c in curves if not c.finished]
    models = dict.fromkeys(curve.model for curve in curves)
    dense = [curve.dense for curve in curves if curve.dense]
    sizes = {number(row, "parameters") for row in dense}
    differ = len(sizes) > 1 or len({curve.model for curve in curves if curve.finished}) > 1
    if differ:
        notes.append(
            f"the runs compress different models ({', '.join(models)}): shares of their times compare, losses do not"
        )
    known = [curve.machine for curve in curves if curve.machine]
    for key in SHOWN:
        if len(values := dict.fromkeys(str(machine.get(key)) for machine in known)) > 1:
            notes.append(f"the runs were timed with different {key}: {', '.join(values)}")
    losses = [loss for row in dense if (loss := number(row, "loss_before", "valid_loss")) is not None]
    if not differ and losses and max(losses) - min(losses) > SAME:
        notes.append(
            f"the dense model's loss is {min(losses):.3f} to {max(losses):.3f}: measured on different speech, or by "
            "another output layer"
        )
    steps = dict.fromkeys(f"{last:g}" for c in curves if (last := number(c.rows[-1], "step", "steps")) is not None)
    if len(steps) > 1:
        notes.append(f"the runs' last points were trained for different numbers of updates: {', '.join(steps)}")
    folders = [c.label for c in curves if c.technique == "lowrank" and number(c.rows[0], "step") is None]  # of before
    if 0 < len(folders) < len(curves):
        notes.append(f"bytes of {' and '.join(folders)} are of the model's folder, else of the smallest encoding")
    return notes


def _show(curves: Sequence[Curve], table: Sequence[Row]) -> None:
    """Print for each measure a line a run, a column a share of the dense time; the best of a column has a star."""
    for key, label in QUALITY.items():
        found = [row for row in table if row["measure"] == key]
        columns = {"run": "run"} | {str(i): f"{row['share']:.2f} of dense time" for i, row in enumerate(found)}
        rows = [
            {
                "run": c.label,
                **{str(i): _starred(row, c.label, key) for i, row in enumerate(found) if row[c.label] is not None},
            }
            for c in curves
        ]
        if found:
            tables.show(f"{label} at equal measured time, the best with a star", rows, columns)


def _starred(row: Row, label: str, key: str) -> str:
    """Write a value with a star where it is the best; a difference with its interval below."""
    star = "*" if row["wins"] == label else " "
    if key not in DIFFERENCES:
        return f"{row[label]:.3f}{star}"
    low, high = row[f"{label}_low"], row[f"{label}_high"]
    return f"{row[label]:+.3f}{star}" + (f"\n({low:+.3f} to {high:+.3f})" if low < high else "")


def _as_trained(rows: Sequence[Row]) -> list[Row]:
    """Give the dense model the quality it has after as much training as the first point had, where that is known.

    Else what training alone changes would count for the run whose first point is the faster one.
    """
    if rows[0]["name"] != "dense":  # a run of students only
        return list(rows)
    known = {
        key: found for row in rows[1:2] for key, name in CONTROL.items() if (found := number(row, name)) is not None
    }
    of_another = {f"{key}_{end}" for key in known for end in ("low", "high")}
    kept = {key: value for key, value in rows[0].items() if key not in of_another}
    return [{**kept, **known}, *rows[1:]]


def _told(curve: Curve) -> dict[str, Any]:
    plain = {key: value for key, value in vars(curve).items() if key not in ("rows", "source", "command")}
    return {**plain, "folder": str(curve.folder), "points": len(curve.points)}


def _time(row: Row) -> float | None:
    span = relative_time(row)
    return span and span[0]


if __name__ == "__main__":
    main(run, Config, __doc__)
