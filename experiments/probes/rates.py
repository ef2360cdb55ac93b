"""What `experiments.probe` tells: tables and a picture of rates, and how much each layer has in the learned sum."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.curves.measures import Row
from experiments.reports import canvas, tables
from jaxssl.runtime.cli import console
from jaxssl.training.error_rates import Rate, paired
from jaxssl.training.probe import Difference, Score, difference, interval

COLUMNS = {
    "task": "task",
    "measure": "measure, %",
    "model": "model",
    "shown": "value",
    "span": "95 % interval",
    "more": "minus first",
    "more_span": "95 % interval, paired",
    "classes": "classes",
    "train": "train",
    "test": "test",
}
LEGEND = (
    "classes: symbols or classes; train: utterances (of frame accuracy, frames); test: symbols, utterances or frames"
)
MEASURES = {
    "cka": "CKA to the teacher's layer of equal depth",
    "pnmi": "PNMI of clusters and phones",
    "pnmi_chance": "PNMI of clusters and shuffled phones: chance",
}
KINDS = ("substitutions", "deletions", "insertions")
PREDICTION = {
    "model": "model",
    "loss:.3f": "loss",
    "entropy:.3f": "entropy of targets",
    "masked_accuracy:.1%": "accuracy",
}


@dataclass(frozen=True)
class Answer:
    """One measure of one task for one model.

    Attributes:
        measure: as reports call it.
        found: an accuracy or an error rate, with counts for each unit.
        layers: share of each layer in the sum.
        train: what trained: utterances, or frames.
        test: what was tested: symbols, utterances or frames.
        classes: that are told apart.
        by_seed: the value of each seed of the probe, where there are several and `found` is their mean.
    """

    measure: str
    found: Score | Rate
    layers: np.ndarray
    train: int
    test: int
    classes: int
    by_seed: tuple[float, ...] = ()


def averaged(seeds: Sequence[Sequence[Answer]], *, seed: int) -> list[Answer]:
    """Average what probes of several seeds answered on the same tests, measure by measure.

    Args:
        seeds: the answers of each seed.
        seed: of the bootstrap, which resamples units whose counts are means over the seeds.
    """
    return [_mean(answers, seed) if len(answers) > 1 else answers[0] for answers in zip(*seeds, strict=True)]


def _mean(answers: Sequence[Answer], seed: int) -> Answer:
    first, layers = answers[0], np.mean([answer.layers for answer in answers], axis=0)
    each = [answer.found for answer in answers]
    total = first.found.total
    found: Score | Rate
    if isinstance(each[0], Rate):
        counts = np.mean([one.errors for one in each if isinstance(one, Rate)], axis=0)
        kinds = {kind: round(np.mean([getattr(one, kind) for one in each])) for kind in KINDS}
        value, (low, high) = float(counts.sum() / total.sum()), interval(counts, total, seed=seed)
        found = replace(each[0], value=value, low=low, high=high, errors=counts, **kinds)
        by_seed = tuple(one.value for one in each if isinstance(one, Rate))
    else:
        scores = [one for one in each if isinstance(one, Score)]
        counts = np.mean([one.correct for one in scores], axis=0)
        value, (low, high) = float(counts.sum() / total.sum()), interval(counts, total, seed=seed)
        found = replace(scores[0], accuracy=value, low=low, high=high, correct=counts, weights=layers)
        by_seed = tuple(one.accuracy for one in scores)
    return replace(first, found=found, layers=layers, by_seed=by_seed)


def compare(
    task: str, model: str, answers: Sequence[Answer], first: Sequence[Answer], *, seed: int
) -> list[dict[str, Any]]:
    """Return a model's rows of one task, each with its paired difference to the first model's same measure.

    There is no difference where the two met different tests, as frames at other rates are.
    """
    others = {answer.measure: answer for answer in first}
    return [_row(task, model, answer, others.get(answer.measure, answer), seed) for answer in answers]


def short(names: Sequence[str]) -> list[str]:
    """Call models by the last part of their places where that tells them apart.

    >>> short(["melhubert-mini", "runs/heads/models/heads-4"])
    ['melhubert-mini', 'heads-4']
    """
    last = [Path(name).name or name for name in names]
    return last if len(set(last)) == len(set(names)) else list(names)


def show(rows: Sequence[Row], extra: Sequence[Row]) -> None:
    """Print the rates, the layers' shares, and what needed no training."""
    tables.show("probes of frozen layers", [_shown(row) for row in rows], COLUMNS)
    console.print(LEGEND, markup=False)
    shares = [{**row, "what": f"{row['task']}, {row['measure']}"} for row in rows if row["measure"] != "CER"]
    _by_layer("share of each layer in the sum (0: input of the first)", shares, "layers", "what")
    for key, title in MEASURES.items():
        if told := [row for row in extra if row.get(key)]:
            _by_layer(f"{title}, by layer", told, key, *(["teacher"] if key == "cka" else []))
    if told := [row for row in extra if "masked_accuracy" in row]:
        tables.show("masked prediction of its own targets", told, PREDICTION)


def draw_probes(path: Path, rows: Sequence[Row], *, title: str, caption: str) -> None:
    """Draw each measure of probes: its value with the interval, a line a model, and the share of each layer below.

    Args:
        path: of the picture.
        rows: `task`, `measure`, `model`, `value`, `low`, `high`, and `layers`, the shares.
        title: above it.
        caption: below the title; may be empty.
    """
    asked = list(dict.fromkeys((row["task"], row["measure"]) for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = canvas.figure(max(3.4 * len(asked), 7), 2.6 + 2.6 + 0.3 * len(models))
    panels = figure.subplots(2, len(asked), squeeze=False, height_ratios=(0.8 + 0.3 * len(models), 2.6))
    for (above, below), key in zip(panels.T, asked, strict=True):
        for row in (row for row in rows if (row["task"], row["measure"]) == key):
            place = models.index(row["model"])
            colour, marker = (kinds[place % len(kinds)] for kinds in (canvas.COLOURS, canvas.MARKERS))
            style = {"color": colour, "marker": marker, "markersize": 5}
            value, reach = canvas.bars([(100 * row["value"], 100 * row["low"], 100 * row["high"])])
            above.errorbar(value, [-place], xerr=reach, capsize=3, **style)
            below.plot(range(len(row["layers"])), row["layers"], label=row["model"], **style)
        above.set(title=f"{key[0]}: {key[1]}", xlabel="%", yticks=[], ylim=(0.6 - len(models), 0.6))
        below.set(xlabel="layer (0: input of the first)", ylim=(0, None))
        above.grid(axis="x", alpha=0.3)
        below.grid(alpha=0.3)
    panels[1, 0].set_ylabel("share in the sum")
    canvas.finish(figure, path, title, caption)


def _row(task: str, model: str, answer: Answer, first: Answer, seed: int) -> dict[str, Any]:
    found, other = answer.found, first.found
    row: dict[str, Any] = {"task": task, "measure": answer.measure, "model": model}
    if isinstance(found, Rate):
        row |= {"value": found.value, "low": found.low, "high": found.high}
        counts = {"errors_by_unit": found.errors.tolist()}
        counts |= {key: getattr(found, key) for key in KINDS}
    else:
        row |= {"value": found.accuracy, "low": found.low, "high": found.high}
        counts = {"correct_by_unit": found.correct.tolist(), "l2": found.l2}
    if answer is not first and np.array_equal(found.total, other.total):
        more = _difference(found, other, seed)
        row |= {"difference": more.mean, "difference_low": more.low, "difference_high": more.high}
    if answer.by_seed:
        row["by_seed"] = list(answer.by_seed)
    sizes = {"classes": answer.classes, "train": answer.train, "test": answer.test, "units": len(found.total)}
    return row | sizes | counts | {"total_by_unit": found.total.tolist(), "layers": answer.layers.tolist()}


def _difference(found: Score | Rate, other: Score | Rate, seed: int) -> Difference:
    if isinstance(found, Rate) and isinstance(other, Rate):
        return paired(found, other, seed=seed)
    if isinstance(found, Score) and isinstance(other, Score):
        return difference(found, other, seed=seed)
    raise TypeError("an accuracy and an error rate under one name")


def _shown(row: Row) -> dict[str, Any]:
    """Write a row's rates in percent, and its intervals as spans."""
    told = {"shown": f"{100 * row['value']:.1f}", "span": f"{100 * row['low']:.1f} – {100 * row['high']:.1f}"}
    if "difference" in row:
        told["more"] = f"{100 * row['difference']:+.1f}"
        told["more_span"] = f"{100 * row['difference_low']:+.1f} – {100 * row['difference_high']:+.1f}"
    return {**row, **told}


def _by_layer(title: str, rows: Sequence[Row], key: str, *names: str) -> None:
    """Print a table with a column for each layer."""
    deep = [{**row, **{str(i): x for i, x in enumerate(row[key])}} for row in rows]
    columns = {"model": "model", **{name: name for name in names}}
    tables.show(title, deep, {**columns, **{f"{i}:.2f": str(i) for i in range(max(len(row[key]) for row in rows))}})
