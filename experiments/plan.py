"""Plan a model for a budget: how many heads, units and ranks each layer keeps so that it loses least.

    python -m experiments.plan --budget rtf=50%
    python -m experiments.plan --budget rtf=80% rtf=65% rtf=50% rtf=40% rtf=30%
    python -m experiments.plan --budget macs=0.15e9 params=3e6 --model MODEL

A budget is rtf (real-time factor, measured on this device), macs (per second of speech) or params, as a number or as a
share of the dense model's. For every layer and every option (fewer heads, fewer feed-forward units, none at all, maps
of low rank) the loss on training speech is measured with that change alone; what the option saves is measured in turns
with the dense model, or counted. Then one option for each block is chosen, least total loss under the budget, exactly
(dynamic programming; that losses add up is the assumption), built, timed, and tightened where the timing says so. One
recovery run follows.

Beside it stand the uniform plans of the same budget, the largest of each kind that fits by the same measure: fewer
layers, fewer heads, fewer units, both, low rank; each recovers as long. The report says by how much the automatic plan
beats the best of them on held-out speech, with a paired bootstrap interval over utterances, or that it does not.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compress.errors import InputError
from compress.knapsack import knapsack
from experiments import report
from experiments.cli import console, main
from experiments.curve import Curve
from experiments.lesson import Lesson
from experiments.options import (
    FAMILIES,
    Group,
    Known,
    Option,
    groups_of,
    know,
    latency,
    realise,
    sensitivity,
    uniform_plans,
    with_option,
)
from experiments.points import Bench, Subject
from experiments.pruning import Job, conclude, dense_teaches, draw, open_job, open_model, trained
from experiments.schedule import Schedule
from jaxssl.latency import race
from jaxssl.models import cost
from jaxssl.models.arch import Arch
from jaxssl.training.calendar import Calendar
from jaxssl.training.probe import interval

Measure = Literal["rtf", "macs", "params"]
Build = Callable[[], Subject | None]
TIGHTER = 4  # attempts to meet a measured budget
ENOUGH = 1.02  # of a measured budget: noise of a timing


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Plan models for budgets."""

    budget: tuple[str, ...] = ("rtf=50%",)
    """what each planned model may take: rtf, macs (per second of speech) or params, a number or a share as rtf=50%"""
    uniform: bool = True
    """recover the uniform plans of each budget as well, to compare with"""
    batches: int = 2
    """training batches on which each option's loss is measured"""
    steps: int = 105
    """updates of the recovery"""
    recover: Literal["predict", "distil"] = "predict"
    """how models recover: by masked prediction, or by what the dense model says"""
    out: Path = Path("runs/plan")
    """folder of the run"""


@dataclass(frozen=True)
class Budget:
    """What a model may take: `value` in the unit of `measure`, seconds of an utterance for rtf."""

    text: str
    measure: Measure
    value: float
    share: float


def run(config: Config) -> None:
    """Carry out the experiment."""
    model, subject = open_model(config)
    if subject.masks:
        raise InputError(f"{model.name}: weights that are zero stay zero, and no plan here keeps masks; plan first")
    budgets = budgets_of(config, subject.arch)
    if config.steps < 1 or config.batches < 1:
        raise InputError(f"--steps {config.steps} and --batches {config.batches}: give 1 or more of each")
    schedule = Schedule(Calendar((), config.steps), tuple(budget.share for budget in budgets))
    training = config.settings(config.steps, paper=False, log_every=max(config.steps // 5, 1))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    lesson = dense_teaches(job, config.out) if config.recover == "distil" else None
    notes: list[str] = []

    def points(bench: Bench) -> None:
        search = Search.begin(job, bench, config)
        rivals = replace(bench, out=bench.out / "uniform", label="uniform plans")
        for budget in budgets:
            search.check(budget)
        for budget in budgets:
            _point(job, bench, f"auto-{budget.text}", lesson, budget, partial(search.plan, budget))
            if not config.uniform:
                continue
            for family in FAMILIES:
                name = f"{family}-{budget.text}".replace(" ", "-")
                _point(job, rivals, name, lesson, budget, partial(search.uniform, family, budget))
            notes.append(verdict(bench, rivals, budget))
            console.print(notes[-1], markup=False)
        if rivals.rows():
            conclude(job, rivals)

    draw(
        job,
        points,
        ends=(config.steps,),
        out=config.out,
        technique="plan",
        label="automatic plan",
        now=1.0,
        notes=notes,
    )


def like(folder: Path | None, budget: Sequence[str], out: Path) -> Config:
    """Return settings that plan for budgets the model of a run on the speech of that run, trained and timed as there.

    Args:
        folder: of the run; None: the defaults.
        budget: the budgets.
        out: where the plan goes: the folder beside it that it gets its name from the budgets in.

    Raises:
        InputError: the run's config.json cannot be read, or is of a run that draws no such curve.
    """
    name = "plan-" + "_".join(text.replace("=", "-").replace("%", "") for text in budget)
    if folder is None:
        return Config(budget=tuple(budget), out=out / name)
    path = folder / "config.json"
    try:
        told = json.loads(path.read_text())
        shared = {field.name: told[field.name] for field in fields(Curve)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: does not say model and speech ({error}); plan with experiments.plan") from None
    shared |= {key: tuple(shared[key]) for key in ("audio", "held_out")}
    shared |= {key: Path(shared[key]) for key in ("corpus", "valid", "speakers") if shared[key]}
    return Config(**shared, budget=tuple(budget), out=folder.parent / name)


def budgets_of(config: Config, arch: Arch) -> list[Budget]:
    """Read the budgets; an rtf as a share of the dense model's time, or absolute.

    Raises:
        InputError: a budget that is not written as one, or above what the model takes.
    """
    dense = {"macs": cost.macs_per_second(arch).total, "params": float(cost.parameters(arch))}
    found = []
    for text in config.budget:
        measure, _, number = text.partition("=")
        try:
            value = float(number.removesuffix("%"))
            if measure not in ("rtf", "macs", "params") or not math.isfinite(value) or value <= 0:
                raise ValueError
        except ValueError:
            raise InputError(f"--budget {text}: write rtf=50%, rtf=0.004, macs=3e9, params=40e6 or a share") from None
        kind: Any = measure
        if number.endswith("%"):
            share = value / 100
            found.append(Budget(text, kind, share * dense.get(measure, math.nan), share))
        else:
            found.append(Budget(text, kind, value, value / dense[measure] if measure in dense else math.nan))
        if found[-1].share >= 1:
            raise InputError(f"--budget {text}: the model takes no more than that already; give less")
    return found


@dataclass(frozen=True)
class Search:
    """What was measured before any plan is made.

    Attributes:
        subject: the dense model.
        groups: blocks and their options.
        losses: of each option, above the dense model's, by group.
        seconds: that each option takes more than the emptiest, by group, and what the rest takes.
        known: scores and decompositions.
        bench: that times models.
    """

    subject: Subject
    groups: tuple[Group, ...]
    losses: tuple[np.ndarray, ...]
    seconds: tuple[np.ndarray, ...]
    rest: float
    dense: float
    known: Known
    bench: Bench

    @staticmethod
    def begin(job: Job, bench: Bench, config: Config) -> "Search":
        """Measure, or read what a run that was broken off had measured."""
        known, groups = know(job), groups_of(job.subject.arch)
        path = bench.out / "sensitivity.json"
        if not path.is_file():
            losses = sensitivity(job, groups, known, batches=config.batches)
            seconds, rest, dense = latency(job.subject.arch, groups, bench)
            told = {"losses": [x.tolist() for x in losses], "seconds": [x.tolist() for x in seconds]}
            report.write_json(path, {**told, "rest": rest, "dense": dense})
        told = json.loads(path.read_text())
        losses, seconds = ([np.array(row) for row in told[key]] for key in ("losses", "seconds"))
        return Search(job.subject, groups, tuple(losses), tuple(seconds), told["rest"], told["dense"], known, bench)

    def check(self, budget: Budget) -> None:
        """Refuse a budget that what no option takes away exceeds alone."""
        rest, allowed = self._costs(budget.measure)[1], self._allowed(budget)
        if allowed <= rest:
            unit = {"rtf": "seconds", "macs": "MACs a second", "params": "parameters"}[budget.measure]
            raise InputError(
                f"--budget {budget.text}: without any head or unit the model takes {rest:g} {unit}, the budget is "
                f"{allowed:g}; raise it"
            )

    def plan(self, budget: Budget) -> Subject:
        """Choose, build and, for a measured budget, time and tighten until it fits."""
        target = allowed = self._allowed(budget)
        for _ in range(TIGHTER):
            costs, rest = self._costs(budget.measure)
            chosen = knapsack(self.losses, costs, allowed - rest)
            picked = [(g, g.options[i]) for g, i in zip(self.groups, chosen, strict=True)]
            found = realise(self.subject, picked, self.known)
            if budget.measure != "rtf" or (took := self._time(found)) <= ENOUGH * target:
                break
            console.print(f"{took / self.dense:.1%} of the dense time, {target / self.dense:.1%} wanted; tightening")
            allowed *= target / took
        _show(picked)
        return found

    def uniform(self, family: str, budget: Budget) -> Subject | None:
        """Return the largest uniform plan of a kind that fits; None where none does."""
        for found in uniform_plans(self.subject, family, self.known):
            if self._takes(found, budget.measure) <= ENOUGH ** (budget.measure == "rtf") * self._allowed(budget):
                return found
        return None

    def _allowed(self, budget: Budget) -> float:
        if budget.measure != "rtf":
            return budget.value
        if math.isfinite(budget.share):
            return budget.share * self.dense
        return budget.value * self.bench.load.seconds

    def _costs(self, measure: Measure) -> tuple[tuple[np.ndarray, ...], float]:
        """Return what each option takes above its block's emptiest, and what is taken in any case."""
        if measure == "rtf":
            return self.seconds, self.rest
        arch = self.subject.arch
        counted = [
            np.array([_counted(with_option(arch, group.layer, group.block, o), measure) for o in group.options])
            for group in self.groups
        ]
        dense = _counted(arch, measure)
        rest = dense - sum(float(dense - row.min()) for row in counted)
        return tuple(row - row.min() for row in counted), rest

    def _takes(self, subject: Subject, measure: Measure) -> float:
        return self._time(subject) if measure == "rtf" else _counted(subject.arch, measure)

    def _time(self, subject: Subject) -> float:
        """Time a model in turns with the dense one, in seconds as the dense one took when the search began."""
        programs = {"dense": self.bench.program(self.subject.arch, self.subject.params)}
        programs["this"] = self.bench.program(subject.arch, subject.params)
        timings = race(programs, rounds=self.bench.rounds)
        return self.dense * float(np.median(np.divide(timings["this"].seconds, timings["dense"].seconds)))


def verdict(bench: Bench, rivals: Bench, budget: Budget) -> str:
    """Say whether the automatic plan beats the best uniform one, and by how much, paired by utterance."""
    name = f"auto-{budget.text}"
    fits = [row for row in rivals.rows() if row.get("budget") == budget.text]
    if not fits:
        return f"{name}: no uniform plan fits this budget"
    best = min(fits, key=lambda row: row["valid_loss"])
    mine, theirs = bench.heard(name), rivals.heard(best["name"])
    low, high = interval(theirs.losses - mine.losses, mine.frames, seed=0)
    more = float((theirs.losses - mine.losses).sum() / mine.frames.sum())
    how = "beats" if low > 0 else "is beaten by" if high < 0 else "cannot be told from"
    found = f"{more:+.3f} nats of held-out loss ({low:+.3f} to {high:+.3f})"
    return f"{name}: {how} the best uniform plan, {best['name']}: {found}"


def _point(job: Job, bench: Bench, name: str, lesson: Lesson | None, budget: Budget, build: Build) -> None:
    """Build, recover and measure a plan, unless that was done."""
    if bench.has(name) or (subject := build()) is None:
        return
    before = bench.quality(subject)["valid_loss"]
    steps = job.schedule.calendar.last
    after = trained(job, bench.out / "recovery" / name, subject, lesson, steps)
    bench.point(
        name,
        after,
        level=budget.share if math.isfinite(budget.share) else budget.value,
        step=steps,
        told={"loss_before": before, "budget": budget.text},
    )


def _counted(arch: Arch, measure: Measure) -> float:
    return float(cost.parameters(arch)) if measure == "params" else cost.macs_per_second(arch).total


def _show(picked: Sequence[tuple[Group, Option]]) -> None:
    rows: dict[int, dict[str, Any]] = {}
    for group, option in picked:
        text = f"{option.value}" if option.kind == "units" else f"rank {option.value}"
        rows.setdefault(group.layer, {"layer": group.layer})[group.block] = text
    columns = {"layer": "layer", "attention": "heads", "ffn": "units"}
    report.show("the plan", list(rows.values()), columns)


if __name__ == "__main__":
    main(run, Config, __doc__)
