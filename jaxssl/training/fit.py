"""Training as every experiment does it: checkpoints, telemetry and data around the one loop.

A run folder is trained in by `open_run`; one run may train models of several shapes one after the other, as pruning
does, while data, checkpoints and telemetry go on. `fit` is the run of one model.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxssl.data.batches import Loader
from jaxssl.data.buckets import Watch
from jaxssl.inference.latency import matmul_peak
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.arch_json import to_json
from jaxssl.models.model import Params
from jaxssl.models.stack import Stack
from jaxssl.runtime import room
from jaxssl.runtime.cli import Preempted, console, updates
from jaxssl.training import distributed, images, rollback
from jaxssl.training.corpus import Data, arrays, evaluate, hearing, held_out, loader, pretraining_loss, total
from jaxssl.training.distillation import distilling, student
from jaxssl.training.lesson import Give, Lesson
from jaxssl.training.loop import Hook, every, train
from jaxssl.training.losses import Sums, means
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.resume import Checkpoints
from jaxssl.training.settings import Training, optimizer, policy
from jaxssl.training.sharding import check_rows, fetch, make_mesh, place, shardings
from jaxssl.training.spikes import Policy
from jaxssl.training.step import Loss, State, Step, View, as_seen, compile_step, make_evaluation, make_step, start
from jaxssl.training.telemetry import Journal, Meter, read_journal
from jaxssl.training.told import Tell, Told, listening
from jaxssl.training.watching import log


@dataclass(frozen=True)
class Fitted:
    """A trained model: parameters as the loss saw them, on the host, and the last validation's numbers."""

    params: Params
    valid: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Programs:
    """What is compiled for one shape of model.

    Attributes:
        arch: what the view gives.
        view: how the loss sees the parameters.
        step: one update.
        check: what the loss reports on held-out speech.
        lesson: how the model learns from a teacher; None: it has none.
        give: makes a batch what the model hears, and adds what the teacher says of it; knows the batch by its position
            in the data.
    """

    arch: Arch
    view: View
    step: Step
    check: Callable[[Any, Any, Any], Sums]
    lesson: Lesson | None
    give: Give


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint of a run: its update and what was recorded beside the state."""

    number: int
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run folder that is being trained in; `open_run` opens one.

    Attributes:
        data: to learn from and to validate on.
        training: how.
        mesh: the devices.
        saves: the checkpoints.
        feed: the training batches.
        found: where to go on, None at the beginning.
        journal: `metrics.jsonl` and TensorBoard's file; None but in the main process.
        told: what signals say: to save, to leave.
        tell: shows a line to whoever watches.
        meter: rates.
    """

    data: Data
    training: Training
    mesh: Any
    saves: Checkpoints
    feed: Loader
    found: Found | None
    journal: Journal | None
    told: Told
    tell: Tell
    meter: Meter

    def begin(self, state: State) -> State:
        """Put a state on the devices: the given one, or the found checkpoint's, which must have its shapes."""
        placed = place(state, shardings(state, self.mesh))
        return placed if self.found is None else self.saves.restore(self.found.number, placed)

    def programs(
        self,
        arch: Arch,
        state: State,
        *,
        loss: Loss | None = None,
        view: View = as_seen,
        lesson: Lesson | None = None,
    ) -> Programs:
        """Build what trains and validates models of that shape.

        Args:
            arch: what `view(params)` is.
            state: which the programs are for.
            loss: what to minimise; None is the family's pre-training loss. It validates in any case.
            view: how the loss sees the parameters.
            lesson: train on what a teacher says instead.
        """
        loss, dtype = loss or pretraining_loss(arch, self.data), jnp.dtype(self.training.dtype)
        goal: Any = loss if lesson is None else lesson.loss(arch)
        leaves, form = jax.tree.flatten(shardings(state, self.mesh))
        how = optimizer(self.training), policy(self.training), dtype, self.training.stack
        step = _step(arch, goal, lesson is not None, view, *how, tuple(leaves), form)
        check = _check(arch, loss, view, dtype)
        if lesson is None:
            heard = hearing(arch, self.data)
            return Programs(arch, view, step, check, None, lambda batch, position: heard(batch))
        return Programs(arch, student(view), step, check, lesson, lesson.give(arch, self.data))

    def train(
        self,
        programs: Programs,
        state: State,
        *,
        last: int,
        note: Callable[[int, Sums], None] = lambda number, sums: None,
        pause: Callable[[], bool] = lambda: False,
        record: Callable[[], Mapping[str, Any]] = dict,
    ) -> State:
        """Update until update `last`, or until `pause` says so after one; the state is saved then.

        Args:
            programs: for models of the state's shape.
            state: where to go on; its memory is reused.
            last: the last update's number.
            note: called after each update, before anything is saved.
            pause: asked after each update.
            record: JSON values that a checkpoint keeps beside the state.

        Raises:
            Preempted: SIGTERM came; all is saved.
            InputError: no gradient has been finite for long, or spikes do not end.
        """
        back = rollback.Rollback(self.training, self.saves, self.journal, self.tell)

        def save(number: int, state: State, sums: Sums) -> None:
            beside = {"position": self.feed.state(), "arch": to_json(programs.arch), **record()}
            self.saves.save(number, state, beside, anchor=rollback.anchor(self.training, state))

        def heed(number: int, state: State, sums: Sums) -> None:
            self.told.agree(number)
            if self.told.saving:
                save(number, state, sums)
                self.tell(number, "saved, as SIGUSR1 asks")

        def halted() -> bool:
            return pause() or self.told.leaving

        hooks: list[Hook] = [
            lambda number, state, sums: note(number, sums),
            every(self.training.log_every, log(self.training, self.meter, self.tell, self.journal), last=last),
            every(self.training.valid_every, _validate(self, programs), last=last),
            every(self.training.save_every, save, last=last),
            heed,
            back.look,
        ]
        back.look(int(state.step), state, {})  # a checkpoint may be of an update after which it is due
        while True:
            begin, stream = back.settled(state), _stream(self, programs)
            state = train(
                programs.step, begin, stream, steps=last, hooks=hooks, stop=lambda number: halted() or back.due
            )
            if halted() or not back.due:
                break
        if (number := int(state.step)) < last:
            save(number, state, {})
            if not pause():
                self.saves.close()
                raise Preempted(f"after update {number} of {last}, saved; the same command goes on")
        return state


@contextmanager
def open_run(folder: Path, data: Data, training: Training, *, passes: float = 3.0) -> Iterator[Run]:
    """Open a run folder to train in, at its newest whole checkpoint if there is one.

    Args:
        folder: of checkpoints, `metrics.jsonl`, TensorBoard's file.
        data: to learn from and to validate on.
        training: how.
        passes: see `Meter`.

    Raises:
        InputError: the settings do not fit.
    """
    mesh = make_mesh(fsdp=training.fsdp)
    check_rows(training.batch, mesh.size)
    with ExitStack() as stack:
        saves = stack.enter_context(Checkpoints(folder / "checkpoints", keep=training.keep))
        feed = stack.enter_context(loader(data, training))
        found = _find(saves, feed)
        after = found.number if found else 0
        journal = stack.enter_context(Journal(folder, after=after)) if distributed.is_main() else None
        told = stack.enter_context(listening())
        tell = stack.enter_context(updates("training", training.steps))
        meter = Meter(peak=matmul_peak(jnp.dtype(training.dtype)) * mesh.size, passes=passes)
        console.print(f"batches: {feed.summary()}", markup=False)
        yield Run(data, training, mesh, saves, feed, found, journal, told, tell, meter)


def fit(
    folder: Path,
    arch: Arch,
    params: Params,
    data: Data,
    training: Training,
    *,
    loss: Loss | None = None,
    view: View = as_seen,
    held: Any = (),
    passes: float = 3.0,
) -> Fitted:
    """Train, or go on training, in a run folder.

    Args:
        folder: of the run: checkpoints, `metrics.jsonl`, TensorBoard's file.
        arch: what `view(params)` is.
        params: to start from, when the folder has no checkpoint.
        data: to learn from and to validate on.
        training: how.
        loss: what to minimise; None: the family's pre-training loss.
        view: how the loss sees the parameters.
        held: what the view needs besides.
        passes: see `Meter`.

    Raises:
        Preempted: SIGTERM came; all is saved.
        InputError: the settings do not fit, or no gradient has been finite for long.
    """
    with open_run(folder, data, training, passes=passes) as run:
        state = run.begin(start(params, optimizer(training).build(), seed=training.seed, held=held))
        programs = run.programs(arch, state, loss=loss, view=view)
        state = run.train(programs, state, last=training.steps)
        final = fetch(view(state.params, state.held))
    return Fitted(final, evaluate(arch, final, data, training), read_journal(folder))


@lru_cache(maxsize=4)  # models of one shape, such as two ways to factorise at one rank, share what was compiled
def _step(
    arch: Arch,
    goal: Any,
    taught: bool,
    view: View,
    optimizer: Optimizer,
    spikes: Policy | None,
    dtype: jnp.dtype,
    stack: Stack,
    leaves: tuple[Any, ...],
    form: Any,
) -> Step:
    """Build an update; `leaves` and `form` are the state's shardings, which a cache cannot compare as a tree."""
    build, places = optimizer.build(), jax.tree.unflatten(form, leaves)
    if not taught:
        return make_step(arch, goal, build, view=view, dtype=dtype, stack=stack, shardings=places, spikes=spikes)
    goal = distilling(arch, goal, view=view, dtype=dtype, stack=stack)
    return compile_step(goal, build, shardings=places, spikes=spikes)


@lru_cache(maxsize=4)
def _check(arch: Arch, loss: Loss, view: View, dtype: jnp.dtype) -> Callable[[Any, Any, Any], Sums]:
    return make_evaluation(arch, loss, view=student(view), dtype=dtype)


def _validate(run: Run, programs: Programs) -> Hook:
    """Tell the loss on held-out speech, and draw what the model sees and where it looks."""

    def validate(number: int, state: State, sums: Sums) -> None:
        heard = hearing(programs.arch, run.data)
        batches = (heard(arrays(batch, run.mesh)) for batch in held_out(run.data, run.training))
        with room.updates.lent():
            found = means(total(programs.check(state.params, state.held, batch) for batch in batches))
        run.tell(number, f"held out: loss {found['loss']:.3f}, masked accuracy {found['masked_accuracy']:.1%}")
        if run.journal:
            run.journal.write(number, "valid", found)
            if run.mesh.size == 1:
                _draw(run, number, programs.arch, programs.view(state.params, state.held))

    return validate


def _find(saves: Checkpoints, feed: Loader) -> Found | None:
    """Find the newest whole checkpoint, and send the data to its position."""
    newest = saves.newest()
    if newest is None:
        return None
    number, record, notes = newest
    for note in notes:
        console.print(f"note: {note}", markup=False)
    feed.restore(record.get("position", {}))
    console.print(f"resuming after update {number}", markup=False)
    return Found(number, record)


def _stream(run: Run, programs: Programs) -> Iterator[Sequence[dict[str, Any]]]:
    """Give each update's batches, on the devices; count speech and multiplications on the way."""
    watch, per_second = Watch(len(run.feed.shapes())), run.data.per_second
    for drawn in itertools.count():
        if drawn == 1:
            run.meter.read()  # the first update compiled; rates are of those after it
        places, batches = [], []
        for _ in range(run.training.accumulate):
            places.append(run.feed.state())
            batches.append(next(run.feed))
            if note := watch.see(batches[-1].inputs.shape):
                console.print(f"note: {note}", markup=False)
        lengths = np.concatenate([batch.lengths for batch in batches])
        macs = sum(_macs(programs, round(int(n) / per_second * SAMPLE_RATE)) for n in lengths)
        run.meter.count(audio=float(lengths.sum()) / per_second, macs=macs)  # before the update: a reading counts it
        yield [programs.give(arrays(b, run.mesh), at) for b, at in zip(batches, places, strict=True)]


def _macs(programs: Programs, samples: int) -> float:
    """Count a forward pass of the student, of which an update takes three, and a third of one of the teacher."""
    teacher = 0.0 if programs.lesson is None else _forward(programs.lesson.arch, samples) / 3
    return _forward(programs.arch, samples) + teacher


@lru_cache(maxsize=4096)
def _forward(arch: Arch, samples: int) -> float:
    return cost.macs(arch, samples).total


def _draw(run: Run, number: int, arch: Arch, params: Params) -> None:
    """Show one held-out utterance as the model sees it, and where each layer with heads looks."""
    assert run.journal is not None
    batch = hearing(arch, run.data)(arrays(held_out(run.data, replace(run.training, batch=1))[0], run.mesh))
    length = int(batch["lengths"][0])
    inputs = batch["inputs"][:, :length]
    if arch.front.features:
        shown = images.masked_features(np.asarray(inputs[0]), np.asarray(batch["mask"][0, :length]))
        run.journal.picture(number, "masked", shown)
    for i, layer in enumerate(arch.layers):
        if layer.heads:
            maps = images.attention(arch, params, inputs, i)
            run.journal.picture(number, f"attention/{i}", images.tile(maps))
