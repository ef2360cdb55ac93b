"""When to compress: a pure state machine over the updates of a run.

After every update, `update(calendar, progress, step, loss) -> (progress, fire)`. Its state is five numbers, so a run
that goes on from a checkpoint goes on with its calendar. An event belongs after the update it is named by: that
update's gradient still saw the model from before.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from compress.errors import InputError


@dataclass(frozen=True)
class Gate:
    """Hold an event back while the loss is still falling (the study's convergence test; the defaults are its own).

    The smoothed loss s begins anew after each event: the mean of the `first` losses, then s ← a·s + (1 − a)·loss.
    The target s* is s as it was `lookback` updates before an event is due; the event is held while s* − tolerance > s.
    The first event is never held.

    Attributes:
        smoothing: a.
        lookback: updates between taking the target and the event.
        tolerance: how far s may have fallen since.
        first: losses whose mean s begins with.
        drop_next: leave the loss after those out, as the study's code does, so that s exists one update later.
    """

    smoothing: float = 0.9998
    lookback: int = 15_000
    tolerance: float = 0.001
    first: int = 3
    drop_next: bool = False

    @property
    def warmup(self) -> int:
        """Updates after an event until there is a smoothed loss."""
        return self.first + self.drop_next


@dataclass(frozen=True)
class Calendar:
    """Which updates have an event after them.

    Attributes:
        events: numbers of these updates, ascending, counted from 1, when nothing is held.
        last: number of the last update, when nothing is held.
        gate: what may hold an event back; None for nothing.
        delay: updates by which a held event, all later ones and the end are put off.
    """

    events: tuple[int, ...]
    last: int
    gate: Gate | None = None
    delay: int = 0


@dataclass(frozen=True)
class Progress:
    """How far a run is in its calendar; JSON values only: `Progress(**json.loads(json.dumps(asdict(p)))) == p`.

    Attributes:
        fired: events that took place; the next one's level is `levels[fired]`.
        held: times an event was held.
        seen: losses the gate has seen since the last event.
        total: sum of the first of them.
        smooth: the smoothed loss; after an event the one that it was decided on, until the next loss.
        target: what the smoothed loss is held against; None until it is taken.
    """

    fired: int = 0
    held: int = 0
    seen: int = 0
    total: float = 0.0
    smooth: float | None = None
    target: float | None = None


def update(calendar: Calendar, progress: Progress, step: int, loss: float | None = None) -> tuple[Progress, bool]:
    """Take in that an update is done; return the new state, and whether an event takes place now.

    Call it after every update, in order.

    Args:
        calendar: of the run; `check` it first.
        progress: before this update.
        step: number of the update, counted from 1.
        loss: of the update; read only by a gate, so that without one nobody waits for the device. One that is not
            finite is left out: the optimiser skips such an update too.

    Raises:
        InputError: the next event was due before this update; the state is of another run.
    """
    at = due(calendar, progress)
    if at is not None and step > at:
        raise InputError(f"update {step}: the next event was due after update {at}; start anew, or keep the old events")
    if calendar.gate is not None and at is not None:
        progress = _listen(calendar.gate, progress, step, at, loss)
    if step != at:
        return progress, False
    if calendar.gate is not None and _falling(calendar.gate, progress):
        return replace(progress, held=progress.held + 1), False
    return replace(progress, fired=progress.fired + 1, seen=0, total=0.0), True


def due(calendar: Calendar, progress: Progress) -> int | None:
    """Return the update after which the next event is due; None when all took place."""
    if progress.fired == len(calendar.events):
        return None
    return calendar.events[progress.fired] + progress.held * calendar.delay


def end(calendar: Calendar, progress: Progress) -> int:
    """Return the number of the last update, with all that was put off until now."""
    return calendar.last + progress.held * calendar.delay


def periodic(first: int, period: int, count: int) -> tuple[int, ...]:
    """List `count` updates, `period` apart.

    >>> periodic(1000, 25_000, 3)
    (1000, 26000, 51000)
    """
    return tuple(first + period * i for i in range(count))


def cubic(initial: float, final: float, count: int) -> tuple[float, ...]:
    """List the levels of `count` evenly spaced events: fast at first, slow where it hurts.

    Level k of 1 … n is final + (initial − final) · (1 − k/n)³ (Zhu & Gupta 2017, eq. 1); the last one is `final`.
    `initial` is where the model stands before the first event.

    >>> cubic(0.0, 0.5, 2)
    (0.4375, 0.5)
    """
    return tuple(final + (initial - final) * (1 - k / count) ** 3 for k in range(1, count + 1))


def check(calendar: Calendar, levels: Sequence[float] | None = None, *, rising: bool = True) -> None:
    """Find out before any training what would go wrong in it.

    Args:
        calendar: of the run.
        levels: what each event goes to; None where events have none.
        rising: levels are sparsities, in [0, 1] and rising; otherwise counts of what is kept, falling, none below 0.

    Raises:
        InputError: events do not ascend or lie beyond the last update, the gate can never judge one, there is not one
            level for each, or the levels turn back.
    """
    _check_events(calendar)
    if calendar.gate is not None:
        _check_gate(calendar, calendar.gate)
    if levels is not None:
        _check_levels(levels, len(calendar.events), rising)


def _listen(gate: Gate, progress: Progress, step: int, at: int, loss: float | None) -> Progress:
    """Take in a loss, and the target when this is its update."""
    if loss is None:
        raise ValueError("a calendar with a gate needs the loss of every update")
    loss = float(loss)  # NumPy's and JAX's scalars are no JSON values
    if math.isfinite(loss):
        progress = _smoothed(gate, progress, loss)
    if progress.fired and step == at - gate.lookback:
        return replace(progress, target=progress.smooth)
    return progress


def _smoothed(gate: Gate, progress: Progress, loss: float) -> Progress:
    if not progress.seen:  # the first one since an event: what was known of the model before it is void
        progress = replace(progress, smooth=None, target=None)
    seen, total = progress.seen + 1, progress.total + (loss if progress.seen < gate.first else 0.0)
    smooth = progress.smooth
    if smooth is not None:
        smooth = gate.smoothing * smooth + (1 - gate.smoothing) * loss
    elif seen == gate.warmup:
        smooth = total / gate.first
    return replace(progress, seen=seen, total=total, smooth=smooth)


def _falling(gate: Gate, progress: Progress) -> bool:
    if progress.smooth is None or progress.target is None:
        return False
    return progress.target - gate.tolerance > progress.smooth


def _check_events(calendar: Calendar) -> None:
    for before, after in pairwise((0, *calendar.events)):
        if after <= before:
            raise InputError(f"events: {after} comes after {before}; updates count from 1, and events must ascend")
    if calendar.events and calendar.events[-1] > calendar.last:
        last = calendar.events[-1]
        raise InputError(f"events: the last is due after update {last}, training ends at {calendar.last}; train longer")


def _check_gate(calendar: Calendar, gate: Gate) -> None:
    """See that every target is taken, after the event (or the retry) before it and from a smoothed loss."""
    if not 0 <= gate.smoothing < 1:
        raise InputError(f"gate: smoothing {gate.smoothing:g} is not from 0 to below 1; the study's is 0.9998")
    if gate.first < 1 or gate.lookback < 1 or not math.isfinite(gate.tolerance):
        given = f"first {gate.first}, lookback {gate.lookback}, tolerance {gate.tolerance:g}"
        raise InputError(f"gate: {given}; the first two must be 1 or more, the tolerance a number")
    if calendar.delay <= gate.lookback:
        remedy = "put a held event off by more, or look back less"
        raise InputError(f"gate: looks back {gate.lookback} updates, but delay is {calendar.delay}; {remedy}")
    for before, after in pairwise(calendar.events):
        if (longest := after - before - gate.warmup) < gate.lookback:
            remedy = f"look back {longest} or less" if longest > 0 else "put the events further apart"
            near = f"events at {before} and {after}"
            raise InputError(f"gate: looks back {gate.lookback} updates, which {near} leave no room for; {remedy}")


def _check_levels(levels: Sequence[float], events: int, rising: bool) -> None:
    name, way = ("sparsities", "rise") if rising else ("kept counts", "fall")
    if len(levels) != events:
        raise InputError(f"levels: {len(levels)} {name} for {events} events; give one for each")
    for level in levels:
        if not 0 <= level <= (1 if rising else math.inf):
            raise InputError(f"levels: {level} is no {'sparsity from 0 to 1' if rising else 'count to keep'}")
    for before, after in pairwise(levels):
        if not (before < after if rising else before > after):
            raise InputError(f"levels: {after} follows {before}; {name} must {way} from event to event")
