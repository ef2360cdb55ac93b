"""The choice of a subnet under a budget: by the supernet's loss on training speech, and by measured time.

What a subnet takes is added up: for each width, of the whole depth, from measurements of subnets that have one size
less in all layers. For each width and depth the search goes down from the most heads and units, each step the one that
loses least for what it saves (`compress.descent`); the best within the budget is bettered by exchanges, timed, and the
budget tightened where the timing says so. Nothing is trained.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.address import get, put
from compress.descent import Choice, better, descend, total
from compress.errors import InputError
from compress.score import contributions
from experiments.curves.job import Job
from experiments.curves.points import Bench, Subject
from experiments.curves.search import ENOUGH, TIGHTER, Budget
from jaxssl.analysis.calibration import moments
from jaxssl.inference.latency import compile_forward, race
from jaxssl.models import cost
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params, shapes
from jaxssl.models.sites import axes, matrices
from jaxssl.models.subnets import Space
from jaxssl.models.supernet import Subnet, sizes, sliced, units_kept
from jaxssl.runtime import files
from jaxssl.runtime.cli import console, follow, progress
from jaxssl.training.corpus import loader, pretraining_loss
from jaxssl.training.sandwich import subnet_evaluation

NAMES = ("inputs", "lengths", "labels", "mask")


def ordered(job: Job, space: Space) -> Subject:
    """Bring the heads and units that add most on speech to where most subnets have theirs; the function stays.

    Channels of the width stay where they are: the groups of the positional convolution hold them.
    """
    subject = job.subject
    arch, params = subject.arch, subject.seen
    maps = matrices(arch)
    seen = moments(arch, params, job.speech.calibration, stats=job.model.stats)
    scores = contributions(params, axes(arch), maps, seen)
    for axis in axes(arch):
        most_first = np.argsort(-scores[axis.name], kind="stable")
        order = np.empty(axis.size, np.int64)
        order[_places(axis.size, arch.width, space, heads=axis.name.endswith("heads"))] = most_first
        for path, at in axis.leaves:
            params = put(params, path, jax.device_put(np.take(np.asarray(get(params, path)), order, axis=at)))
    return Subject(arch, params, {})


def _places(size: int, widest: int, space: Space, *, heads: bool) -> np.ndarray:
    """List the places of units, those first that most subnets have."""
    if heads:
        return np.arange(size)
    counts = np.zeros(size, np.int64)
    for width, ratio in product(space.widths, space.ratios):
        counts[units_kept(round(ratio * width), width, size, widest)] += 1
    return np.argsort(-counts, kind="stable")


class Judge:
    """Tells a subnet's masked loss on training speech; what was told once is read from disk ever after."""

    def __init__(self, job: Job, params: Params, *, batches: int, path: Path):
        self.arch, self.params, self.path = job.subject.arch, params, path
        dtype = jnp.dtype(job.training.dtype)
        self.run = subnet_evaluation(self.arch, pretraining_loss(self.arch, job.data), dtype=dtype)
        with loader(job.data, job.training) as feed:
            drawn = [feed.batch(0, i % feed.steps) for i in range(min(batches, feed.steps))]
        self.batches = [{name: jnp.asarray(getattr(batch, name)) for name in NAMES} for batch in drawn]
        told = files.read_json(path) if path.is_file() else []
        try:
            self.heard = {Subnet(int(w), tuple(h), tuple(u)): float(loss) for w, h, u, loss in told}
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path}: damaged ({error}); remove it, and the losses are measured again") from error

    def loss(self, subnet: Subnet) -> float:
        """Return the loss (nats) of a subnet, in the supernet's shapes: one program."""
        if subnet not in self.heard:
            chosen = sizes(self.arch, subnet)
            sums = [self.run(self.params, chosen, batch)["masked_loss"] for batch in self.batches]
            self.heard[subnet] = sum(float(part) for part, _ in sums) / sum(float(count) for _, count in sums)
        return self.heard[subnet]

    def save(self) -> None:
        """Keep what was told."""
        files.write_json(self.path, [[s.width, s.heads, s.units, loss] for s, loss in self.heard.items()])


@dataclass(frozen=True)
class Taken:
    """What subnets of a width take, in the unit of a budget.

    Attributes:
        whole: with all layers, heads and units.
        layer: less for each layer that is left out.
        heads: less in each layer, for each choice of heads.
        ratios: likewise of units.
    """

    whole: float
    layer: float
    heads: np.ndarray
    ratios: np.ndarray

    def rows(self, depth: int) -> list[np.ndarray]:
        """Return what each choice takes above its cheapest: heads and units of a layer, then those of the next."""
        return [self.heads.max() - self.heads, self.ratios.max() - self.ratios] * depth

    def rest(self, space: Space, depth: int) -> float:
        """Return what the cheapest choices take."""
        layers = depth * float(self.heads.max() + self.ratios.max())
        return self.whole - (space.depths[0] - depth) * self.layer - layers


@dataclass(frozen=True)
class Chooser:
    """What is known before any subnet is chosen.

    Attributes:
        arch: of the supernet.
        params: as trained.
        space: its subnets.
        judge: tells losses.
        bench: that times models.
    """

    arch: Arch
    params: Params
    space: Space
    judge: Judge
    bench: Bench

    def choose(self, budget: Budget) -> Subnet | None:
        """Choose a subnet and, for a measured budget, time and tighten until it fits; None where none is so fast.

        Raises:
            InputError: the smallest subnet takes more by arithmetic or by what was measured.
        """
        taken = self._taken(budget)
        target = allowed = self._allowed(budget, taken[self.space.widths[0]].whole)
        for left in reversed(range(TIGHTER)):
            found = self._within(taken, allowed)
            if found is None:
                least = min(each.rest(self.space, self.space.depths[-1]) for each in taken.values())
                if allowed == target:
                    told = f"the smallest subnet takes {least:g}, the budget is {target:g}"
                    raise InputError(f"--budget {budget.text}: {told}; raise it")
                return None
            if budget.measure != "rtf":
                return found
            share = self._share(found) * taken[self.space.widths[0]].whole
            if share <= ENOUGH * target or not left:
                return found
            console.print(f"takes {share / target:.2f} of the budget; tightening", markup=False)
            allowed *= target / share
        return None

    def _within(self, taken: Mapping[int, Taken], allowed: float) -> Subnet | None:
        """Return the best subnet of all widths and depths that takes no more."""
        best: tuple[float, int, int, Choice] | None = None
        pairs = list(product(self.space.widths, self.space.depths))
        for width, depth in follow(pairs, "searching", total=len(pairs)):
            rows, room = taken[width].rows(depth), allowed - taken[width].rest(self.space, depth)
            if room < 0:
                continue
            way = descend(lambda choice, w=width, d=depth: self._loss(w, d, choice), rows)  # type: ignore[misc]
            choice = next(choice for choice in way if total(rows, choice) <= room)
            loss = self._loss(width, depth, choice)
            if best is None or loss < best[0]:
                best = loss, width, depth, choice
            self.judge.save()
        if best is None:
            return None
        _, width, depth, choice = best
        rows, room = taken[width].rows(depth), allowed - taken[width].rest(self.space, depth)
        choice = better(lambda choice: self._loss(width, depth, choice), rows, choice, room, sweeps=1)
        self.judge.save()
        return self._subnet(width, depth, choice)

    def _loss(self, width: int, depth: int, choice: Choice) -> float:
        return self.judge.loss(self._subnet(width, depth, choice))

    def _subnet(self, width: int, depth: int, choice: Choice) -> Subnet:
        heads, ratios = choice[::2], choice[1::2]
        units = tuple(round(self.space.ratios[i] * width) for i in ratios)
        return Subnet(width, tuple(self.space.heads[i] for i in heads), units)

    def _taken(self, budget: Budget) -> dict[int, Taken]:
        """Measure or count what the subnets of each width take."""
        space, depth = self.space, self.space.depths[0]
        asked: dict[tuple[int, str, int], Subnet] = {}
        for width in space.widths:
            asked |= {
                (width, "heads", i): space.uniform(width, n, space.ratios[0], depth) for i, n in _each(space.heads)
            }
            asked |= {
                (width, "ratio", i): space.uniform(width, space.heads[0], r, depth) for i, r in _each(space.ratios)
            }
            asked[width, "depth", 0] = space.uniform(width, space.heads[0], space.ratios[0], space.depths[-1])
        found = self._measured(sorted(set(asked.values()), key=str), budget.measure)
        every = {key: found[subnet] for key, subnet in asked.items()}
        gone = max(depth - space.depths[-1], 1)

        def taken(width: int) -> Taken:
            whole = every[width, "heads", 0]
            heads = [(whole - every[width, "heads", i]) / depth for i, _ in _each(space.heads)]
            ratios = [(whole - every[width, "ratio", i]) / depth for i, _ in _each(space.ratios)]
            return Taken(whole, (whole - every[width, "depth", 0]) / gone, np.array(heads), np.array(ratios))

        return {width: taken(width) for width in space.widths}

    def _measured(self, subnets: Sequence[Subnet], measure: str) -> dict[Subnet, float]:
        archs = {subnet: sliced_arch(self.arch, subnet) for subnet in subnets}
        if measure != "rtf":
            count = {"params": lambda arch: float(cost.parameters(arch))}.get(
                measure, lambda arch: cost.macs_per_second(arch).total
            )
            return {subnet: count(arch) for subnet, arch in archs.items()}
        programs = {
            str(subnet): compile_forward(arch, _zeros(arch), self.bench.load, dtype=self.bench.dtype)
            for subnet, arch in follow(archs.items(), "compiling subnets", total=len(archs))
        }
        with progress("timing subnets", self.bench.rounds + 2) as tick:
            timings = race(programs, rounds=self.bench.rounds, tick=tick)
        return {subnet: timings[str(subnet)].median for subnet in archs}

    def _allowed(self, budget: Budget, whole: float) -> float:
        if budget.measure != "rtf":
            return budget.value
        return budget.share * whole if math.isfinite(budget.share) else budget.value * self.bench.load.seconds

    def _share(self, subnet: Subnet) -> float:
        """Return a subnet's time over the supernet's, timed in turns."""
        programs = {
            "whole": self.bench.program(self.arch, self.params),
            "this": self.bench.program(*sliced(self.arch, self.params, subnet)),
        }
        timings = race(programs, rounds=self.bench.rounds)
        return float(np.median(np.divide(timings["this"].seconds, timings["whole"].seconds)))


def sliced_arch(arch: Arch, subnet: Subnet) -> Arch:
    """Return the arch of a subnet, without its arrays."""
    return sliced(arch, jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes(arch)), subnet)[0]


def _each(values: Sequence[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(values))


def _zeros(arch: Arch) -> Params:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(arch))
