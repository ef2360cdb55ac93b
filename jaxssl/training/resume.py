"""Training states on disk: written in the background, a few kept, each whole or not there at all.

    checkpoints/300/state/     arrays (Orbax; every process writes its share)
    checkpoints/300/record/    JSON: the arch, the position in the data, whatever the run remembers besides
    checkpoints/damaged-300/   one that could not be trusted, set aside when the run resumed

At a URL each process may have a disk of its own: process 0 gathers and writes the state, the bucket has it for all, and
each reads it there when the run goes on.

Each carries the list of its files (`jaxssl.runtime.seal`), so that damage is found before anything reads the arrays. A
new one is read back and compared before it gets its name, and only then an older one goes.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from compress.errors import InputError
from jaxssl.runtime import files, seal, steady
from jaxssl.storage import checkpoints, places, publishing
from jaxssl.training import distributed, read_back
from jaxssl.training.sharding import gather, place
from jaxssl.training.spikes import none_yet
from jaxssl.training.step import State

PARTS = ("state", "record")
SPIKES = "spikes|"  # how the names of arrays begin that states of before did not have


@dataclass
class Kept:
    """Which checkpoints stay, for Orbax: the newest `keep`, and that which the run may go back to."""

    keep: int
    anchor: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Tell of each checkpoint, from the oldest on, whether it stays."""
        newest = len(checkpoints) - self.keep
        return [i >= newest or each.step == self.anchor for i, each in enumerate(checkpoints)]


class Checkpoints:
    """A run's checkpoints; a context manager, which waits for the last one to be on disk."""

    def __init__(self, folder: Path, *, keep: int = 3):
        """Open or begin `folder`; the newest `keep` checkpoints stay.

        Raises:
            InputError: what Orbax says of a checkpoint there is damaged.
        """
        steady.by_monotonic_clock()
        self.folder = folder.absolute()
        self._remote = places.url(self.folder) is not None
        self._apart = self._remote and jax.process_count() > 1
        if self._remote and distributed.is_main():
            publishing.watch(self.folder)
        later = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        self._kept = Kept(keep)
        self.folder.mkdir(parents=True, exist_ok=True)
        alone = _alone() if self._apart else ocp.options.MultiprocessingOptions()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept, create=False, async_options=later, multiprocessing_options=alone
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except ValueError as error:  # of a list that is JSON, but none of Orbax's
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{self.folder}: _CHECKPOINT_METADATA of a checkpoint there is damaged ({reason}); remove that one"
            ) from error
        self._given: Mapping[str, read_back.Sums] = {}  # of the state that is being written

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait until all that was saved is on disk."""
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        finally:
            self._sweep()

    def save(self, number: int, state: State, record: Mapping[str, Any], *, anchor: int | None = None) -> None:
        """Write the state after update `number` and the record beside it; all processes call it.

        The checkpoint of update `anchor` stays besides the newest.

        Returns once the arrays are copied; writing goes on in the background, and so does reading back. A checkpoint
        that is there stays.

        Raises:
            OSError: an earlier one could not be written (the disk is full), or is not what was given.
        """
        if number in self._steps():
            return
        self._manager.wait_until_finished()
        self._check()
        publishing.check()
        self._kept.anchor = anchor
        named = gather(_named(state)) if self._apart else _named(state)
        if self._apart and not distributed.is_main():
            return
        self._given = read_back.sums(named) if jax.process_index() == 0 else {}
        arrays, text = ocp.args.StandardSave(named), ocp.args.JsonSave(dict(record))
        self._manager.save(number, args=ocp.args.Composite(state=arrays, record=text))

    def last_until(self, number: int) -> tuple[int, list[str]]:
        """Find the last whole checkpoint of update `number` or before; damaged ones are set aside.

        Returns:
            Its number, 0 where there is none, and a line for each damaged one.
        """
        self._manager.wait_until_finished()
        self._check()
        found, notes = self._newest(step for step in self._shared() if step <= number)
        return found[0] if found else 0, notes

    def forget_after(self, number: int) -> None:
        """Remove the checkpoints of updates beyond `number`, from which nothing goes on any more."""
        for each in self._manager.all_steps():
            if each > number and (distributed.is_main() or not self._apart):
                self._manager.delete(each)

    def newest(self) -> tuple[int, dict[str, Any], list[str]] | None:
        """Find the newest whole checkpoint.

        Damaged ones are set aside, under a name that says so.

        Returns:
            Its number, its record, and a line for each damaged one; None when there is none.
        """
        found, notes = self._newest(self._shared())
        if found:
            return *found, notes
        if notes:
            raise InputError(f"{self.folder}: no checkpoint is whole; {notes[0]}; remove the folder to start anew")
        return None

    def _steps(self) -> list[int]:
        """List the checkpoints, alike in all processes."""
        return distributed.said(list(self._manager.all_steps())) if self._apart else list(self._manager.all_steps())

    def _shared(self) -> list[int]:
        """List the checkpoints, when the bucket has them all for processes that have another disk."""
        if self._apart and distributed.is_main():
            publishing.now(self.folder)
        return self._steps()

    def _newest(self, numbers: Iterable[int]) -> tuple[tuple[int, dict[str, Any]] | None, list[str]]:
        notes: list[str] = []
        for number in sorted(numbers, reverse=True):
            record, reason = self._read(number)
            if self._apart:
                distributed.meet()  # some may have had more to fetch
                record = None if distributed.anywhere(record is None) else record
            if record is not None:
                return (number, record), notes
            why = reason or "as another process found"
            notes.append(f"checkpoint {number} is damaged, the one before it is used: {why}")
            self._set_aside(number)
        return None, notes

    def _read(self, number: int) -> tuple[dict[str, Any] | None, Exception | None]:
        """Read a checkpoint's record, if all of it is whole here or in the bucket; else None, and why."""
        reason: Exception | None = None
        for anew in (False, True) if self._remote else (False,):
            try:
                if anew or (self._apart and not distributed.is_main()):
                    checkpoints.bring(self.folder, only=number, anew=anew)
                    self._manager.reload()
                seal.check(self.folder / str(number), parts=PARTS)
                record = self._manager.restore(number, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
                return files.named(record, self.folder / str(number)), None
            except MemoryError:  # says nothing of the checkpoint
                raise
            except Exception as error:  # Orbax raises whatever it meets
                reason = reason or error
        return None, reason

    def restore(self, number: int, like: State) -> State:
        """Read a state into arrays of the shapes and at the places of `like`.

        Args:
            number: of the checkpoint.
            like: arrays, or `jax.ShapeDtypeStruct`s with shardings.

        Raises:
            InputError: the arrays are not those of such a state.
        """
        targets = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for name, leaf in _named(like).items()
        }
        try:
            fresh = self._lacking(number, targets)
            wanted = {name: target for name, target in targets.items() if name not in fresh}
            found = self._manager.restore(number, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))
        except MemoryError:
            raise
        except Exception as error:  # Orbax and TensorStore raise whatever they meet, down to Exception itself
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{self.folder / str(number)}: not a state of this run ({reason})") from error
        return _unnamed({**found["state"], **fresh}, like)

    def _lacking(self, number: int, targets: Mapping[str, Any]) -> dict[str, Any]:
        """Begin what a checkpoint of before spikes were watched does not have."""
        with closing(ocp.StandardCheckpointHandler()) as handler:
            there = handler.metadata(self.folder / str(number) / "state").tree
        fresh = {f"{SPIKES}{name}": value for name, value in vars(none_yet()).items()}
        return {
            name: place(value, targets[name].sharding)
            for name, value in fresh.items()
            if name in targets and name not in there
        }

    def _seal(self) -> None:
        """Read a checkpoint back when all of it is written, and list its files, before it gets its name.

        Raises:
            OSError: it is not what was given.
        """
        if jax.process_index() == 0:
            for folder in self.folder.glob("*tmp*"):
                if reason := read_back.differing(folder / "state", self._given):
                    raise OSError(
                        None, f"read back, it is not what was written ({reason}); is the disk sound?", str(folder)
                    )
                seal.seal(folder, parts=PARTS)

    def _sweep(self) -> None:
        """Remove what a save that failed has left; none is running any more."""
        if jax.process_index() == 0:
            for folder in self.folder.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(folder, ignore_errors=True)

    def _set_aside(self, number: int) -> None:
        if jax.process_index() == 0:
            (self.folder / str(number)).rename(self.folder / f"damaged-{number}")
        if self._apart and distributed.said(True) and not distributed.is_main():
            shutil.rmtree(self.folder / str(number), ignore_errors=True)  # of this process's own disk, if it has one
        self._manager.reload()

    def _check(self) -> None:
        try:
            self._manager.check_for_errors()
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OSError(getattr(error, "errno", None), reason, str(self.folder)) from error


def _alone() -> Any:
    """Return what lets Orbax work in this process alone."""
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(here, {here}, barrier_sync_key_prefix=f"alone-{here}")


def _named(state: State) -> dict[str, Any]:
    """List the arrays by path; those without entries are left out, for Orbax does not store them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {_name(path): leaf for path, leaf in leaves if np.prod(leaf.shape)}


def _unnamed(found: Mapping[str, Any], like: State) -> State:
    def leaf(path: Any, place: Any) -> Any:
        return found[_name(path)] if np.prod(place.shape) else jnp.zeros(place.shape, place.dtype)

    return jax.tree_util.tree_map_with_path(leaf, like)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="|")  # Orbax parts names at dots and slashes
