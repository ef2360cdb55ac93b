"""Going back to a checkpoint when updates spike in a row, such that a run that is broken off goes back alike.

Where to go back to follows from numbers alone: the last update before the row after which saving was due. What was
saved besides, because somebody asked or the machine was taken away, is not gone back to. The data does not go back, so
that what may be wrong with some of it is left behind.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax

from compress.errors import InputError
from jaxssl.training.losses import Sums
from jaxssl.training.optimizer import skipped
from jaxssl.training.resume import Checkpoints
from jaxssl.training.settings import Training
from jaxssl.training.spikes import begun_anew
from jaxssl.training.step import State
from jaxssl.training.telemetry import Journal
from jaxssl.training.told import Tell

LOOK_EVERY = 10  # updates between two looks at what the device counted: each waits for the device
PART = "rollback"  # of a line of the journal
MOST = 10  # times that a run goes back before it gives up


def anchor(training: Training, state: State) -> int | None:
    """Return the update whose checkpoint a run in that state may go back to; 0 where none is saved yet, None: never."""
    if training.spikes != "rollback":
        return None
    before = int(state.spikes.first) - 1 if int(state.spikes.row) else int(state.step)
    return before // training.save_every * training.save_every


@dataclass
class Rollback:
    """How a run goes back.

    Attributes:
        training: its settings.
        saves: its checkpoints.
        journal: see `Run`.
        tell: shows a line to whoever watches.
        due: whether the spikes seen last ask to go back.
    """

    training: Training
    saves: Checkpoints
    journal: Journal | None
    tell: Tell
    due: bool = False

    def look(self, number: int, state: State, sums: Sums) -> None:
        """See whether spikes ask to go back after this update; the other arguments are a hook's."""
        if self.training.spikes == "rollback" and (number % LOOK_EVERY == 0 or number == self.training.steps):
            self.due = int(state.spikes.row) >= self.training.spike_row

    def settled(self, state: State) -> State:
        """Return the state to go on with: that of a checkpoint of before the spikes, with a smaller step, if it is due.

        Without a checkpoint of before them the parameters stay, which no spike has changed. The given state's memory
        is freed.

        Raises:
            InputError: the run went back too often.
        """
        if not self.due:
            return state
        self.due = False
        number, row, returns = int(state.step), int(state.spikes.row), int(state.spikes.returns) + 1
        if returns > MOST:
            raise InputError(
                f"update {number}: the run went back {MOST} times, and {row} updates in a row are spikes again; lower "
                "--learning-rate, or go on with --spikes skip"
            )
        goal, notes = self.saves.last_until(anchor(self.training, state) or 0)
        for note in notes:
            self.tell(number, f"note: {note}")
        state = self._restored(state, goal) if goal else replace(state, spikes=begun_anew(state.spikes))
        state = replace(state, spikes=replace(state.spikes, returns=state.spikes.returns + 1))
        size, where = self.training.spike_shrink**returns, f"update {goal}" if goal else "there: nothing is saved yet"
        self.tell(number, f"{row} spikes in a row; goes on from {where}, with {size:.3g} of the step")
        if self.journal:
            self.journal.rewind(goal or number)
            self.journal.write((goal or number) + 1, PART, {"after": number, "returns": returns, "step_size": size})
        return state

    def _restored(self, state: State, goal: int) -> State:
        """Read a checkpoint; what was counted in all stays."""
        like, counted, passed = jax.tree.map(_described, state), state.spikes, skipped(state.optimizer)[0].copy()
        self.saves.forget_after(goal)
        for leaf in jax.tree.leaves((state.params, state.optimizer)):
            leaf.delete()  # there may be no memory for two
        found = self.saves.restore(goal, like)
        known = {"total": counted.total, "returns": counted.returns, "row": jnp.zeros_like(counted.row)}
        optimizer = optax.tree.set(found.optimizer, total_notfinite=passed)
        return replace(found, optimizer=optimizer, spikes=replace(found.spikes, **known))


def _described(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
