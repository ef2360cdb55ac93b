"""What settings may be: a setting's type says it, the help shows it, and one check holds every command to it.

    rounds: Count[int] = 15
    crop: Seconds[float | None] = None
    audio: There[tuple[str, ...]] = ()

Of a tuple every member is meant; None is a setting that was not given.
"""

import dataclasses
import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, get_type_hints, runtime_checkable

import tyro

from compress.errors import InputError

T = TypeVar("T")
POSITIONAL = tyro.conf.Positional[int].__metadata__[0]  # type: ignore[attr-defined]  # of settings without a flag
MOST = 10**9  # of what is counted; what is more is a slip of the finger, and would not fit 32 bits


@runtime_checkable
class Rule(Protocol):
    """What one value may be; `form` says it."""

    @property
    def form(self) -> str:
        """Say what may be given."""
        ...

    def wrong(self, value: Any) -> str | None:
        """Say what to do about a value that it may not be; None where it may."""
        ...


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, these two among them unless they are open; never NaN."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    @property
    def form(self) -> str:
        """Write it as messages and helps do."""
        low = f"above {_number(self.low)}," if self.open_low else _number(self.low)
        return f"{low} {'to below' if self.open_high else 'to'} {_number(self.high)}"

    def __contains__(self, value: float) -> bool:
        """Tell whether a number is in it."""
        under = self.low < value if self.open_low else self.low <= value
        return under and (value < self.high if self.open_high else value <= self.high)

    def wrong(self, value: float) -> str | None:
        """Say which numbers may be given, of one that may not."""
        return None if value in self else f"give {self.form}"

    def __call__(self, default: str) -> str:
        """Say what stands behind a setting in a help."""
        return f"(default: {default}; {self.form})"


@dataclasses.dataclass(frozen=True)
class Present:
    """Files and folders that are there, and patterns that some match."""

    form: str = "what is there"

    def wrong(self, value: object) -> str | None:
        """Say that nothing is there."""
        text = str(value)
        if "\0" in text:  # which no name has, and glob raises at
            return "no such file or folder"
        matched = glob.has_magic(text) and next(glob.iglob(text, recursive=True), None) is not None
        return None if os.path.exists(text) or matched else "no such file or folder"


@dataclasses.dataclass(frozen=True)
class Written:
    """Texts that a function reads; of others it raises ValueError. `form` says how they are written."""

    read: Callable[[str], object]
    form: str

    def wrong(self, value: str) -> str | None:
        """Say how to write a text that cannot be read."""
        try:
            self.read(value)
        except ValueError:
            return f"write {self.form}"
        return None


COUNT, NATURAL = Range(1, MOST), Range(0, MOST)
SEED = Range(0, 2**32 - 1)
POSITIVE = Range(0, MOST, open_low=True)
AMOUNT = Range(0, 1e18, open_low=True)  # of parameters or multiplications
SECONDS = Range(0.025, 3600)  # the shortest is one frame
STRETCH = Range(0.1, 3600)  # where programs of others are timed, which take less for nothing
LENGTH = Range(0, 86_400)
CROP = Range(0.025, 86_400)
SHARE, PART = Range(0, 1), Range(0, 1, open_low=True)
LESS, INNER = Range(0, 1, open_high=True), Range(0, 1, open_low=True, open_high=True)
SEVERAL = Range(2, MOST)

Count = Annotated[T, COUNT, tyro.conf.arg(help_behavior_hint=COUNT)]
Natural = Annotated[T, NATURAL, tyro.conf.arg(help_behavior_hint=NATURAL)]
Seed = Annotated[T, SEED, tyro.conf.arg(help_behavior_hint=SEED)]
Positive = Annotated[T, POSITIVE, tyro.conf.arg(help_behavior_hint=POSITIVE)]
Seconds = Annotated[T, SECONDS, tyro.conf.arg(help_behavior_hint=SECONDS)]
Stretch = Annotated[T, STRETCH, tyro.conf.arg(help_behavior_hint=STRETCH)]
Length = Annotated[T, LENGTH, tyro.conf.arg(help_behavior_hint=LENGTH)]
Crop = Annotated[T, CROP, tyro.conf.arg(help_behavior_hint=CROP)]
Share = Annotated[T, SHARE, tyro.conf.arg(help_behavior_hint=SHARE)]
Part = Annotated[T, PART, tyro.conf.arg(help_behavior_hint=PART)]  # a share that is something
Less = Annotated[T, LESS, tyro.conf.arg(help_behavior_hint=LESS)]  # a share that leaves something
Inner = Annotated[T, INNER, tyro.conf.arg(help_behavior_hint=INNER)]  # both
Several = Annotated[T, SEVERAL, tyro.conf.arg(help_behavior_hint=SEVERAL)]
There = Annotated[T, Present()]


def check(config: Any) -> None:
    """Hold a command's settings, a dataclass, to what their types say.

    Raises:
        InputError: the first setting that may not be what it is, with what it may be.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for name, rule in rules(type(config)):
        value, plain = getattr(config, name), POSITIONAL in hints[name].__metadata__
        for each in value if isinstance(value, tuple) else () if value is None else (value,):
            if reason := rule.wrong(each):
                raise InputError(f"{each if plain else f'{flag(name)} {each}'}: {reason}")


def written(config: Any) -> list[Path]:
    """List the paths among a command's settings, a dataclass, that need not be there: what it writes to."""
    there = {name for name, rule in rules(type(config)) if isinstance(rule, Present)}
    values = [getattr(config, each.name) for each in dataclasses.fields(config) if each.name not in there]
    return [value for value in values if isinstance(value, Path)]


def rules(kind: type) -> Iterator[tuple[str, Rule]]:
    """List the settings of a command that have a rule, with it."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        yield from ((name, mark) for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Rule))


def flag(name: str) -> str:
    """Write a setting as command lines do."""
    return f"--{name.replace('_', '-')}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
