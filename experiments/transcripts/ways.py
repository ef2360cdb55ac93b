"""How a Whisper encoder is compressed, in words of a command line: KIND=VALUE, several joined by +, then @UPDATES.

outputs=0.99           low rank by the outputs' principal components that hold so much of their variance
activation=128@60      rank 128 of every map, by what it hears; then 60 updates of recovery
rows=768+input=10      half of the feed-forward units, and windows of 10 s
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar, get_args

import numpy as np

from compress import plan
from compress.errors import InputError
from compress.lowrank import (
    PLAIN,
    Decomposition,
    check_rank,
    decompose_maps,
    factorise_maps,
)
from compress.plan import Heads, Rows
from compress.ranks import allocate, rank_for_energy
from experiments.curves.evidence import evidence, sites_below
from experiments.transcripts import by_outputs, short_heads
from jaxssl.analysis.calibration import averages, moments
from jaxssl.data.padding import Padded
from jaxssl.inference.source import Speech
from jaxssl.inference.specialise import quantized
from jaxssl.models.arch import Arch
from jaxssl.models.describe import describe
from jaxssl.models.model import Params
from jaxssl.models.sites import matrices
from jaxssl.runtime.ranges import Written

Kind = Literal["svd", "activation", "outputs", "shared", "heads", "short", "rows", "int8", "input", "plan"]
NUMBERS = {"heads": "heads", "rows": "rows", "short": "dimensions a head"}  # what a whole number is of
LOW_RANK = ("svd", "activation", "outputs")
LABELS: dict[Kind, str] = {
    "svd": "low rank, plain SVD",
    "activation": "low rank, activation-aware",
    "outputs": "low rank, by outputs (LiteASR)",
    "shared": "low rank, ranks shared out",
    "heads": "heads",
    "short": "shorter heads",
    "rows": "rows",
    "int8": "int8",
    "input": "shorter input",
    "plan": "automatic plan",
}
FORM = (
    "KIND=VALUE as svd=128, activation=0.99 (a rank, or a share of the squared singular values), outputs=0.99, "
    "shared=0.5 (of the maps' weights), heads=4, short=48 (dimensions of a head), rows=768 (of each layer), int8, or "
    "input=10 (seconds), several joined by +, or plan=0.5 (of the dense time); then @UPDATES of recovery if wanted"
)
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One technique and how far."""

    kind: Kind
    value: float

    def __str__(self) -> str:
        return self.kind if self.kind == "int8" else f"{self.kind}-{self.value:g}"


@dataclass(frozen=True)
class Way:
    """What is done to a model.

    Attributes:
        steps: one after the other.
        updates: of recovery afterwards.
    """

    steps: tuple[Step, ...]
    updates: int = 0

    @property
    def name(self) -> str:
        """Of the point, as `rows-768+input-10@60`."""
        return "+".join(map(str, self.steps)) + (f"@{self.updates}" if self.updates else "")

    @property
    def label(self) -> str:
        """Of the curve that the point is on: its technique, and the window where that is shorter too."""
        others = [step for step in self.steps if step.kind != "input"] or list(self.steps)
        if len(others) > 1:
            return "several together"
        return LABELS[others[0].kind] + (f", {self.seconds:g} s" if others[0].kind != "input" and self.seconds else "")

    @property
    def level(self) -> float:
        """How far its first step goes."""
        return self.steps[0].value

    @property
    def seconds(self) -> float | None:
        """Of the window; None: the whole one."""
        return next((step.value for step in self.steps if step.kind == "input"), None)

    @property
    def budget(self) -> float | None:
        """Share of the dense time that an automatic plan may take; None: it is no such plan."""
        return self.steps[0].value if self.steps[0].kind == "plan" else None

    @property
    def trainable(self) -> bool:
        """Whether recovery has anything to do: something is done to the floats, which it trains before int8."""
        return any(step.kind != "int8" for step in self.steps)

    @property
    def floats(self) -> "Way":
        """Everything but int8, which comes last and cannot be trained."""
        return replace(self, steps=tuple(step for step in self.steps if step.kind != "int8"))


def parse(word: str) -> Way:
    """Read a way; ValueError where it is written as none."""
    head, at, updates = word.partition("@")
    steps = tuple(map(_step, head.split("+")))
    way = Way(steps, _count(updates) if at else 0)
    if len({step.kind for step in steps}) < len(steps) or (way.updates and not way.trainable):
        raise ValueError(word)
    if sum(step.kind in (*LOW_RANK, "shared") for step in steps) > 1:
        raise ValueError(word)
    if len(steps) > 1 and any(step.kind == "plan" for step in steps):
        raise ValueError(word)
    thin = [number for number, step in enumerate(steps) if step.kind in (*LOW_RANK, "shared")]
    if any(step.kind == "short" for step in steps[min(thin, default=len(steps)) :]):
        raise ValueError(word)  # it takes maps in one piece
    if any(step.kind == "int8" for step in [each for each in steps if each.kind != "input"][:-1]):
        raise ValueError(word)  # what is int8 takes no further step
    return way


Ways = Annotated[T, Written(parse, FORM)]


def _step(word: str) -> Step:
    kind, equals, text = word.partition("=")
    known = next((each for each in get_args(Kind) if each == kind), None)
    if known is None or bool(equals) == (known == "int8"):
        raise ValueError(word)
    value = float(text) if equals else 8.0
    whole = known in NUMBERS or (known in LOW_RANK and value >= 1)
    least = {"heads": 0, "rows": 0, "short": 1}.get(known, math.ulp(0))
    if not least <= value < 1e6 or (whole and value != int(value)) or (known in ("shared", "plan") and value >= 1):
        raise ValueError(word)
    return Step(known, value)


def _count(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 10**9:
        raise ValueError(text)
    return int(text)


@dataclass(frozen=True)
class Fitting:
    """The speech that compression listens to, and what it found out about the dense model.

    Attributes:
        arch: of the dense model.
        params: its parameters.
        batches: windows of speech.
    """

    arch: Arch
    params: Params
    batches: tuple[Padded, ...]

    @cached_property
    def moments(self) -> dict[str, np.ndarray]:
        """E[x xᵀ] of each map's input."""
        return moments(self.arch, self.params, self.batches)

    @cached_property
    def means(self) -> dict[str, np.ndarray]:
        """E[x] of each map's input."""
        return averages(self.arch, self.params, self.batches)

    @cached_property
    def found(self) -> dict[str, dict[str, Decomposition]]:
        """Decompositions of the layers' maps, by kind and path."""
        maps = [each for each in matrices(self.arch) if each.path in self.moments and each.path.startswith("layers/")]
        return {
            "svd": decompose_maps(self.params, maps, PLAIN),
            "activation": decompose_maps(self.params, maps, self.moments),
            "outputs": by_outputs.decompose(self.params, maps, self.moments, self.means),
        }


def compressed(dense: Fitting, way: Way) -> tuple[Arch, Params]:
    """Compress a model, without training; what an automatic plan does, `planner` says.

    Raises:
        InputError: more is to stay than there is, or a budget is too small.
    """
    now = dense
    for step in way.steps:
        arch, params = _apply(now, step)
        now = now if params is now.params else replace(now, arch=arch, params=params)
    return now.arch, now.params


def check(way: Way, arch: Arch) -> None:
    """Refuse what cannot be done before any work.

    Raises:
        InputError: more is to stay than any layer has.
    """
    for step in way.steps:
        if step.kind in NUMBERS and step.value > (most := _most(step.kind, arch)):
            least = "1" if step.kind == "short" else "0"
            raise InputError(f"{way.name}: a layer has {most} {NUMBERS[step.kind]}; keep {least} to {most}")
        for matrix in matrices(arch):
            if step.kind in LOW_RANK and step.value >= 1 and matrix.path.startswith("layers/") and matrix.max_rank:
                check_rank(replace(matrix, rank=None), int(step.value))


def _most(kind: Kind, arch: Arch) -> int:
    """Return how many heads, dimensions of a head or units the largest layer has."""
    sizes = {"heads": lambda one: one.heads, "short": lambda one: one.mixer.head_dim, "rows": lambda one: one.ffn.size}
    return max(map(sizes[kind], arch.layers))


def _apply(now: Fitting, step: Step) -> tuple[Arch, Params]:
    params: Any = now.params
    match step.kind:
        case "svd" | "activation":
            found = now.found[step.kind]
            params = factorise_maps(now.params, found, _ranks(found, step.value))
        case "outputs":
            found = now.found["outputs"]
            params = by_outputs.factorise_outputs(now.params, found, _ranks(found, step.value), now.means)
        case "shared":
            found = now.found["activation"]
            budget = step.value * sum(each.matrix.size for each in found.values())
            params = factorise_maps(now.params, found, allocate(list(found.values()), budget))
        case "short":
            places = [f"layers/{i}/attention" for i, layer in enumerate(now.arch.layers) if layer.heads]
            params = short_heads.shorten(now.params, places, now.moments, now.means, int(step.value))
        case "heads" | "rows":
            make: Callable[..., Heads | Rows] = Heads if step.kind == "heads" else Rows
            told = evidence(now.arch, Speech(now.batches, now.batches, ()), None)
            steps: Sequence[plan.Step] = (make(int(step.value), score="activation"),)
            params = plan.run(steps, now.params, sites=sites_below(now.arch), evidence=told)
        case "int8":
            return quantized(now.arch, now.params)
    return describe(now.arch, params), params


def _ranks(found: dict[str, Decomposition], value: float) -> dict[str, int | None]:
    """Return a rank for each map: the same, or the least that holds a share of its squared singular values."""
    if value >= 1:
        return {path: min(int(value), each.matrix.max_rank) for path, each in found.items()}
    return {path: rank_for_energy(each.spectrum, value) for path, each in found.items()}
