"""The search behind `experiments.plan`: which option every block takes, by measured loss and measured time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from compress.descent import Choice, better, descend, total
from compress.errors import InputError
from compress.plan import LowRank
from experiments.curves.job import Job
from experiments.curves.options import (
    Group,
    Known,
    groups_of,
    know,
    latency,
    realise,
    simulate,
    uniform_plans,
    with_option,
)
from experiments.curves.points import Bench, Subject
from experiments.reports import tables
from jaxssl.inference.latency import race
from jaxssl.models import cost
from jaxssl.models.arch import Arch
from jaxssl.runtime import files
from jaxssl.runtime.cli import console, updates
from jaxssl.training.corpus import loader, pretraining_loss
from jaxssl.training.step import make_evaluation

Measure = Literal["rtf", "macs", "params"]
TIGHTER = 4  # attempts to meet a measured budget
OFTEN = 25  # losses heard from one saving to the next
ENOUGH = 1.02  # of a measured budget: noise of a timing


@dataclass(frozen=True)
class Budget:
    """What a model may take: `value` in the unit of `measure`, seconds of an utterance for rtf."""

    text: str
    measure: Measure
    value: float
    share: float


class Judge:
    """Tells the loss of whole plans on training speech; what was told once is read from disk ever after.

    So a search that was broken off goes the same way again, at once.
    """

    def __init__(self, job: Job, groups: tuple[Group, ...], known: Known, *, batches: int, path: Path):
        self.groups, self.known, self.path = groups, known, path
        self.arch, self.params = job.subject.arch, job.subject.seen
        self.run = make_evaluation(job.subject.arch, pretraining_loss(job.subject.arch, job.data))
        with loader(job.data, job.training) as feed:
            drawn = [feed.batch(0, i % feed.steps) for i in range(min(batches, feed.steps))]
        names = ("inputs", "lengths", "labels", "mask")
        self.batches = [{name: jnp.asarray(getattr(batch, name)) for name in names} for batch in drawn]
        told = files.read_json(path) if path.is_file() else []
        try:
            self.heard: dict[Choice, float] = {tuple(map(int, choice)): float(loss) for choice, loss in told}
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: damaged ({error}); remove it, and the losses are measured again") from error

    def loss(self, choice: Choice) -> float:
        """Return the masked loss (nats) with every block as chosen, in the dense model's shapes: one program."""
        if choice not in self.heard:
            changed = [g.options[option] for g, option in zip(self.groups, choice, strict=True) if option]
            params = simulate(self.params, self.arch, changed, self.known) if changed else self.params
            sums = [self.run(params, (), batch)["masked_loss"] for batch in self.batches]
            self.heard[choice] = sum(float(part) for part, _ in sums) / sum(float(count) for _, count in sums)
            if len(self.heard) % OFTEN == 0:
                self.save()
        return self.heard[choice]

    def told(self, choice: Choice) -> str:
        """Say where the search is."""
        return f"loss {self.loss(choice):.3f}, {len(self.heard)} plans heard"

    def save(self) -> None:
        """Keep what was told."""
        files.write_json(self.path, [[list(choice), loss] for choice, loss in self.heard.items()])


@dataclass(frozen=True)
class Search:
    """What is known before any plan is made, and the way down from the dense model as far as it was gone.

    Attributes:
        subject: the dense model.
        groups: blocks and their options.
        judge: tells losses of choices.
        seconds: that each option takes above its block's fastest, by group.
        rest: seconds that the model with every block at its fastest takes.
        dense: seconds of the dense model.
        known: scores and decompositions.
        bench: that times models.
        ways: by measure, the choices of the descent so far and the generator of those to come.
    """

    subject: Subject
    groups: tuple[Group, ...]
    judge: Judge
    seconds: tuple[np.ndarray, ...]
    rest: float
    dense: float
    known: Known
    bench: Bench
    ways: dict[Measure, tuple[list[Choice], Iterator[Choice]]] = field(default_factory=dict)

    @staticmethod
    def begin(job: Job, bench: Bench, *, batches: int) -> "Search":
        """Measure what options cost, or read what a run that was broken off had measured."""
        known, groups = know(job), groups_of(job.subject.arch)
        path = bench.out / "options.json"
        if not path.is_file():
            seconds, rest, dense = latency(job.subject.arch, groups, bench)
            files.write_json(path, {"seconds": [x.tolist() for x in seconds], "rest": rest, "dense": dense})
        told = files.read_object(path)
        try:
            times = tuple(np.array(row, float) for row in told["seconds"])
            rest, dense = float(told["rest"]), float(told["dense"])
            if [row.shape for row in times] != [(len(group.options),) for group in groups]:
                raise ValueError("times of other options")
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise InputError(f"{path}: damaged ({error!r}); remove it, and options are timed again") from error
        judge = Judge(job, groups, known, batches=batches, path=bench.out / "losses.json")
        return Search(job.subject, groups, judge, times, rest, dense, known, bench)

    def check(self, budget: Budget) -> None:
        """Refuse a budget that what no option takes away exceeds alone."""
        rest, allowed = self._costs(budget.measure)[1], self.allowed(budget)
        if allowed <= rest:
            unit = {"rtf": "seconds", "macs": "MACs a second", "params": "parameters"}[budget.measure]
            raise InputError(
                f"--budget {budget.text}: without any head or unit the model takes {rest:g} {unit}, the budget is "
                f"{allowed:g}; raise it"
            )

    def plan(self, budget: Budget) -> Subject | None:
        """Choose, build and, for a measured budget, time and tighten until it fits; None where no plan is so fast."""
        target = allowed = self.allowed(budget)
        for left in reversed(range(TIGHTER)):
            choice = self._choose(budget.measure, allowed)
            if choice is None:
                break
            picked = [group.options[i] for group, i in zip(self.groups, choice, strict=True)]
            found = realise(self.subject, picked, self.known)
            if budget.measure != "rtf" or (took := self._time(found)) <= ENOUGH * target or not left:
                _show(self.groups, choice)
                return found
            console.print(f"{took / self.dense:.1%} of the dense time, {target / self.dense:.1%} wanted; tightening")
            allowed *= target / took
        return None

    def uniform(self, family: str, budget: Budget) -> Subject | None:
        """Return the largest uniform plan of a kind that fits; None where none does."""
        for found in uniform_plans(self.subject, family, self.known):
            takes = self._time(found) if budget.measure == "rtf" else _counted(found.arch, budget.measure)
            if takes <= ENOUGH ** (budget.measure == "rtf") * self.allowed(budget):
                return found
        return None

    def allowed(self, budget: Budget) -> float:
        """Return what a model may take, in seconds of the timed utterance, MACs a second or parameters."""
        if budget.measure != "rtf":
            return budget.value
        if math.isfinite(budget.share):
            return budget.share * self.dense
        return budget.value * self.bench.load.seconds

    def _choose(self, measure: Measure, allowed: float) -> Choice | None:
        """Go down until the budget is met, from where the search is, and better what is there; None: it never is."""
        costs, rest = self._costs(measure)
        dense = total(costs, (0,) * len(costs))
        way, ahead = self.ways.setdefault(measure, ([], descend(self.judge.loss, costs)))
        fits = [choice for choice in way if rest + total(costs, choice) <= allowed]
        with updates("searching", 100) as tell:
            while not fits:
                if (below := next(ahead, None)) is None:
                    return None
                way.append(below)
                over = max(rest + total(costs, way[-1]) - allowed, 0)
                tell(round(100 - 100 * over / (rest + dense - allowed)), self.judge.told(way[-1]))
                fits = [] if over else way[-1:]
            chosen = better(self.judge.loss, costs, fits[0], allowed - rest)
            tell(100, self.judge.told(chosen))
        self.judge.save()
        return chosen

    def _costs(self, measure: Measure) -> tuple[tuple[np.ndarray, ...], float]:
        """Return what each option takes above its block's emptiest, and what is taken in any case."""
        if measure == "rtf":
            return self.seconds, self.rest
        arch = self.subject.arch
        counted = [
            np.array([_counted(with_option(arch, group.block, o, (group.layer,)), measure) for o in group.options])
            for group in self.groups
        ]
        dense = _counted(arch, measure)
        rest = dense - sum(float(dense - row.min()) for row in counted)
        return tuple(row - row.min() for row in counted), rest

    def _time(self, subject: Subject) -> float:
        """Time a model in turns with the dense one, in seconds as the dense one took when the search began."""
        programs = {"dense": self.bench.program(self.subject.arch, self.subject.params)}
        programs["this"] = self.bench.program(subject.arch, subject.params)
        timings = race(programs, rounds=self.bench.rounds)
        return self.dense * float(np.median(np.divide(timings["this"].seconds, timings["dense"].seconds)))


def _counted(arch: Arch, measure: Measure) -> float:
    return float(cost.parameters(arch)) if measure == "params" else cost.macs_per_second(arch).total


def _show(groups: tuple[Group, ...], choice: Choice) -> None:
    rows: dict[int, dict[str, Any]] = {}
    for group, i in zip(groups, choice, strict=True):
        option = group.options[i]
        text = f"rank {option.rank}" if isinstance(option, LowRank) else f"{option.keep:g}"
        rows.setdefault(group.layer, {"layer": group.layer})[group.block] = text
    columns = {"layer": "layer", "attention": "heads", "ffn": "units"}
    tables.show("the plan", list(rows.values()), columns)
