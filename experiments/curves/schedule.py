"""When a pruning run prunes, and how far: from the command line to a `jaxssl.training.calendar` and its levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compress.errors import InputError
from jaxssl.runtime.ranges import Count, Natural
from jaxssl.training.calendar import Calendar, Gate, check, cubic, periodic

Kind = Literal["quick", "cubic", "paper", "once"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """When to prune."""

    schedule: Kind = "quick"
    """quick: an event every --every updates; cubic: the same, levels along Zhu and Gupta's cubic to the last one;
    paper: the study's event table; once: each level straight from the model, then --every updates of training"""
    every: Natural[int] = 15
    """updates from one event to the next, and after the last"""
    events: Count[int] = 7
    """of --schedule cubic: how many"""
    at: Natural[tuple[int, ...]] = ()
    """updates after which to prune, instead of every --every"""
    last: Natural[int | None] = None
    """updates in all; default: --every after the last event"""


@dataclass(frozen=True)
class Schedule:
    """A run's events: after update `calendar.events[i]` the model is pruned to `levels[i]`.

    Attributes:
        calendar: when; without events, every level is a run of its own that starts at the model itself.
        levels: how far.
    """

    calendar: Calendar
    levels: tuple[float, ...]

    @property
    def once(self) -> bool:
        """Whether each level is a run of its own."""
        return not self.calendar.events

    @property
    def ends(self) -> tuple[int, ...]:
        """Updates at which points are measured, when nothing is held: before each further event, and at the end."""
        return (*self.calendar.events[1:], self.calendar.last)


def arrange(
    timing: Timing,
    asked: Sequence[float],
    *,
    now: float,
    quick: Sequence[float],
    paper: Schedule,
    rising: bool,
    gate: Gate | None = None,
) -> Schedule:
    """Turn what was asked for into a schedule, and refuse one that cannot be run.

    Args:
        timing: when.
        asked: levels from the command line; none: the schedule's own.
        now: the model's level before the first event, from which the cubic starts.
        quick: levels of the quick schedule.
        paper: the study's.
        rising: whether levels rise (sparsities) or fall (units kept).
        gate: test before each event, which puts it off by one distance between events; None: prune when it is due.

    Raises:
        InputError: levels that turn back, an event after the last update, a count that is negative.
    """
    if timing.every < 0 or (timing.every == 0 and timing.schedule != "once"):
        raise InputError(f"--every {timing.every}: give the updates between two events, 1 or more (0 only with once)")
    levels = _levels(timing, asked, now=now, quick=quick, paper=paper)
    if not levels:
        raise InputError("no level is left to prune to; name some, below what the model has")
    if timing.schedule == "once":
        if timing.at or timing.last is not None:
            raise InputError("--schedule once has no events; --at and --last are for the others")
        return Schedule(Calendar((), timing.every), levels)
    events, last = _events(timing, len(levels), paper)
    delay = paper.calendar.delay if timing.schedule == "paper" else timing.every
    calendar = Calendar(events, last if timing.last is None else timing.last, gate, delay if gate else 0)
    check(calendar, levels, rising=rising)
    return Schedule(calendar, levels)


def _levels(
    timing: Timing, asked: Sequence[float], *, now: float, quick: Sequence[float], paper: Schedule
) -> tuple[float, ...]:
    if timing.schedule == "cubic":
        return cubic(now, asked[-1] if asked else quick[-1], timing.events)
    if asked:
        return tuple(asked)
    return paper.levels if timing.schedule == "paper" else tuple(quick)


def _events(timing: Timing, count: int, paper: Schedule) -> tuple[tuple[int, ...], int]:
    if timing.at:
        return timing.at, timing.at[-1] + timing.every
    if timing.schedule == "paper":
        return paper.calendar.events, paper.calendar.last
    return periodic(timing.every, timing.every, count), timing.every * (count + 1)
