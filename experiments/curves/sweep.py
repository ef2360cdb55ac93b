"""The loop of iterative pruning: train, prune, train on, and resume wherever it was broken off.

Between two events the model trains, compiled for its present shape. At an event the model that was trained until then
is measured; then parameters and the optimiser's moments are cut, or masks grow. A checkpoint at an event's update is of
before the event, so that a resumed run does the event again, to the bit.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.address import Tree, get
from compress.errors import InputError
from compress.sparse import Masks, apply_masks
from experiments.curves.points import Subject
from experiments.curves.schedule import Schedule
from jaxssl.models.arch import Arch
from jaxssl.models.arch_json import from_json
from jaxssl.models.describe import describe
from jaxssl.models.model import shapes
from jaxssl.training.calendar import Progress, end, update
from jaxssl.training.distillation import joined, split
from jaxssl.training.fit import Programs, Run
from jaxssl.training.lesson import Lesson
from jaxssl.training.losses import Sums, means
from jaxssl.training.settings import optimizer
from jaxssl.training.sharding import fetch, place, shardings
from jaxssl.training.step import State, as_seen, change, start


@dataclass(frozen=True)
class Event:
    """What pruning does to a model.

    Attributes:
        masks: entries that stay afterwards.
        edit: applied to parameters and moments alike: a cut; the identity where shapes stay.
        told: columns that the next point's row gets.
        arch: what the edited parameters are; None: the arch of before, but for what their shapes tell.
    """

    masks: Masks
    edit: Callable[[Tree], Tree] = lambda tree: tree
    told: Mapping[str, Any] = field(default_factory=dict)
    arch: Arch | None = None

    def after(self, subject: Subject) -> Subject:
        """Return the model as it is then."""
        params = self.edit(subject.params)
        return Subject(self.arch or describe(subject.arch, params), params, self.masks)


Act = Callable[[Subject, float, int], Event]  # the model, the level to prune to, the event's number from 0
Measure = Callable[[int, Subject, int, Mapping[str, Any]], None]  # the event's number, the model, update, columns


@dataclass
class Trail:
    """Where an iterative run is: what a checkpoint keeps besides the model and the optimiser.

    Attributes:
        progress: in the calendar.
        due: whether the last update has an event after it that has not happened yet.
        masked: paths of the arrays that have a mask.
        told: columns that the last event gave.
    """

    masked: list[str]
    progress: Progress = field(default_factory=Progress)
    due: bool = False
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Events that happened."""
        return self.progress.fired - self.due

    @staticmethod
    def read(values: Mapping[str, Any]) -> "Trail":
        """Read what `dataclasses.asdict` and JSON made of one.

        Raises:
            InputError: it is none.
        """
        try:
            found = Trail(**{**values, "progress": Progress(**values["progress"])})
            _check_kinds(found)
            return found
        except (TypeError, KeyError) as error:
            raise InputError(f"a checkpoint of another command or version ({error!r}); choose another --out") from error


def _check_kinds(trail: Trail) -> None:
    """Raise TypeError where a value is not of its kind."""
    number = (int, float)
    kinds: dict[str, tuple[type, ...]] = {"fired": (int,), "held": (int,), "seen": (int,), "total": number}
    kinds |= {"smooth": (*number, type(None)), "target": (*number, type(None))}
    odd = [name for name, kind in kinds.items() if type(getattr(trail.progress, name)) not in kind]
    if odd or type(trail.due) is not bool or not isinstance(trail.told, dict):
        raise TypeError(f"{odd[0] if odd else 'due or told'} is of another kind")
    if not isinstance(trail.masked, list) or not all(isinstance(path, str) for path in trail.masked):
        raise TypeError("masked is no list of paths")


def sweep(
    run: Run,
    subject: Subject,
    schedule: Schedule,
    act: Act,
    measure: Measure,
    *,
    reset: bool,
    lesson: Lesson | None = None,
) -> None:
    """Train and prune by the calendar, from wherever the run stands; each event's model is measured before the next.

    Args:
        run: opened in a folder of its own.
        subject: the model to start with.
        schedule: events and levels.
        act: what an event does.
        measure: called with the event's number, the model that was trained since, the update, and what the event told.
        reset: start the optimiser anew at each event.
        lesson: how the model learns from a teacher; None: masked prediction.
    """
    calendar, trail = schedule.calendar, Trail(list(subject.masks))
    if run.found is not None:
        trail = Trail.read(run.found.record.get("trail", {}))
        subject = _blank(from_json(run.found.record.get("arch", {})), trail.masked)
    state, programs = begin(run, subject, lesson)

    def note(number: int, sums: Sums) -> None:
        loss = means(sums)["loss"] if calendar.gate else None
        trail.progress, trail.due = update(calendar, trail.progress, number, loss)

    while True:
        step, ended = int(state.step), int(state.step) >= end(calendar, trail.progress)
        if trail.done and (trail.due or ended):
            measure(trail.done - 1, subject_of(programs.arch, state), step, trail.told)
        if trail.due:
            state, programs = _fire(run, programs, state, schedule, act, trail, reset=reset)
            if ended:
                measure(trail.done - 1, subject_of(programs.arch, state), step, trail.told)
        if ended:
            return
        state = run.train(
            programs,
            state,
            last=end(calendar, trail.progress),
            note=note,
            pause=lambda: trail.due,
            record=lambda: {"trail": dataclasses.asdict(trail)},
        )


def _fire(
    run: Run, programs: Programs, state: State, schedule: Schedule, act: Act, trail: Trail, *, reset: bool
) -> tuple[State, Programs]:
    """Let the event happen that is due."""
    masked = bool(state.held)
    event = act(subject_of(programs.arch, state), schedule.levels[trail.done], trail.done)
    state = change(
        state, event.edit, held=_arrays(event.masks), reset=optimizer(run.training).build() if reset else None
    )
    arch = event.arch or describe(programs.arch, split(state.params)[0])
    state = place(state, shardings(state, run.mesh))
    trail.due, trail.masked, trail.told = False, list(event.masks), dict(event.told)
    if arch != programs.arch or bool(event.masks) != masked:
        programs = _programs(run, arch, state, programs.lesson)
    return state, programs


def begin(run: Run, subject: Subject, lesson: Lesson | None = None) -> tuple[State, Programs]:
    """Put a model on the devices to be trained, or the run's newest checkpoint of such a model; compile for it."""
    build, params = optimizer(run.training).build(), subject.params
    if lesson is not None:
        params = joined(params, lesson.heads(subject.arch, seed=run.training.seed))
    state = run.begin(start(params, build, seed=run.training.seed, held=_arrays(subject.masks)))
    return state, _programs(run, subject.arch, state, lesson)


def _programs(run: Run, arch: Arch, state: State, lesson: Lesson | None) -> Programs:
    return run.programs(arch, state, view=apply_masks if state.held else as_seen, lesson=lesson)


def subject_of(arch: Arch, state: State) -> Subject:
    """Bring a state's model to the host: the state's own memory is reused by the next update."""
    return Subject(arch, fetch(split(state.params)[0]), fetch(state.held))


def _blank(arch: Arch, masked: Sequence[str]) -> Subject:
    """Return a model of the right shapes, for a checkpoint to be read into."""
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes(arch))
    return Subject(arch, params, {path: np.ones(get(params, path).shape, bool) for path in masked})


def _arrays(masks: Masks) -> dict[str, jax.Array]:
    return {path: jnp.asarray(mask) for path, mask in masks.items()}
