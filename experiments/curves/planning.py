"""A run that plans models for budgets: settings, the searched plans beside their uniform rivals, and the verdict.

`experiments.plan` is its command, and `experiments.tradeoff --plan auto` carries one out for the model of another run.
The search itself is in `experiments.curves.search`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from compress.errors import InputError
from experiments.curves.curve import Curve, Recovery, check_heeded
from experiments.curves.job import Job, conclude, control_of, draw, open_job, open_model, recovering, trained
from experiments.curves.options import FAMILIES
from experiments.curves.points import Bench, Subject
from experiments.curves.schedule import Schedule
from experiments.curves.search import Budget, Search
from jaxssl.models import cost
from jaxssl.models.arch import Arch
from jaxssl.runtime import ranges
from jaxssl.runtime.cli import On, console
from jaxssl.runtime.files import read_json
from jaxssl.runtime.ranges import AMOUNT, Count, Written
from jaxssl.training.calendar import Calendar
from jaxssl.training.lesson import Lesson

T = TypeVar("T")
Build = Callable[[], Subject | None]


def _check_budget(text: str) -> None:
    measure, _, number = text.partition("=")
    if measure not in ("rtf", "macs", "params") or float(number.removesuffix("%")) not in AMOUNT:
        raise ValueError(text)


Budgets = Annotated[T, Written(_check_budget, "rtf=50%, rtf=0.004, macs=3e9, params=40e6 or a share")]


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Plan models for budgets."""

    budget: Budgets[tuple[str, ...]] = ("rtf=50%",)
    """what each planned model may take: rtf, macs (per second of speech) or params, a number or a share as rtf=50%"""
    uniform: On = True
    """recover the uniform plans of each budget as well, to compare with"""
    batches: Count[int] = 4
    """training batches on which the loss of each plan that is looked at is measured"""
    steps: Count[int] = 105
    """updates of the recovery"""
    recover: Recovery = "predict"
    """how models recover: by masked prediction, by what the dense model says, or (ctc) by transcripts as well"""
    masked: bool = False
    """of distillation: both hear masked speech and masked frames count; default: all of it, and every frame"""
    out: Path = Path("runs/plan")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    check_heeded(config, [config.recover], flag="--recover")
    model, subject = open_model(config)
    if subject.masks:
        raise InputError(f"{model.name}: weights that are zero stay zero, and no plan here keeps masks; plan first")
    budgets = budgets_of(config.budget, subject.arch)
    schedule = Schedule(Calendar((), config.steps), tuple(budget.share for budget in budgets))
    training = config.settings(config.steps, paper=False, log_every=max(config.steps // 5, 1))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    lesson = recovering(job, config.recover, config.out, masked=config.masked)
    job = replace(job, control=control_of(lesson))
    budgets, notes = budgets_of(config.budget, job.subject.arch), list[str]()  # of the model with its output layer

    def points(bench: Bench) -> None:
        search = Search.begin(job, bench, batches=config.batches)
        rivals = replace(bench, out=bench.out / "uniform", label="uniform plans")
        for budget in budgets:
            search.check(budget)
        for budget in budgets:
            name = f"auto-{budget.text}"
            _point(job, bench, name, lesson, budget, partial(search.plan, budget))
            if not bench.has(name):
                notes.append(f"{name}: no plan is timed as that fast on this machine; raise the budget")
                console.print(notes[-1], markup=False)
                continue
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
        told = {"clusters": None, **read_json(path)}  # runs of before have no such setting
        shared = {field.name: told[field.name] for field in fields(Curve)}
        shared |= {key: tuple(shared[key]) for key in ("audio", "held_out")}
        shared |= {key: Path(shared[key]) for key in ("corpus", "valid", "speakers") if shared[key]}
        found = Config(**shared, budget=tuple(budget), out=folder.parent / name)
        ranges.check(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: does not say model and speech ({error}); plan with experiments.plan") from None
    return found


def budgets_of(asked: Sequence[str], arch: Arch) -> list[Budget]:
    """Read the budgets; an rtf as a share of the dense model's time, or absolute.

    Raises:
        InputError: a budget above what the model takes.
    """
    dense = {"macs": cost.macs_per_second(arch).total, "params": float(cost.parameters(arch))}
    found = []
    for text in asked:
        measure, _, number = text.partition("=")
        value, kind = float(number.removesuffix("%")), cast(Any, measure)
        if number.endswith("%"):
            share = value / 100
            found.append(Budget(text, kind, share * dense.get(measure, math.nan), share))
        else:
            found.append(Budget(text, kind, value, value / dense[measure] if measure in dense else math.nan))
        if found[-1].share >= 1:
            raise InputError(f"--budget {text}: the model takes no more than that already; give less")
    return found


def verdict(bench: Bench, rivals: Bench, budget: Budget) -> str:
    """Say whether the automatic plan beats the best uniform one, and by how much, paired by utterance."""
    name = f"auto-{budget.text}"
    fits = [row for row in rivals.rows() if row.get("budget") == budget.text]
    if not fits:
        return f"{name}: no uniform plan fits this budget"
    best = min(fits, key=lambda row: row["valid_loss"])
    mine, theirs = bench.heard(name), rivals.heard(best["name"])
    above = theirs.above(mine)
    more, low, high = (above[f"loss_difference{end}"] for end in ("", "_low", "_high"))
    how = "beats" if low > 0 else "is beaten by" if high < 0 else "cannot be told from"
    found = f"{name}: {how} the best uniform plan, {best['name']}: {more:+.3f} nats of held-out loss "
    found += f"({low:+.3f} to {high:+.3f})"
    row = next(row for row in bench.rows() if row["name"] == name)
    lead = best["loss_before"] - row["loss_before"]
    found += f"; before recovery {row['loss_before']:.3f} and {best['loss_before']:.3f}"
    if low > 0:
        return found
    told = f"{len(mine.losses)} utterances tell differences from {(high - low) / 2:.3f} on"
    return f"{found}: {row['step']} updates leave {more / lead:.0%} of the lead, and {told}"


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
