"""The processes that prepare a corpus together, as its steps see them: who makes what, and what all then know."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from compress.errors import InputError

LATE_S = 120.0  # a shared file system may show so late what another host wrote: NFS up to 60 s
T = TypeVar("T")


def _alone(array: np.ndarray) -> np.ndarray:
    return array[None]


@dataclass(frozen=True)
class Team:
    """Processes with one folder. What they make together does not depend on how many they are.

    Attributes:
        process: which of them this is, from 0.
        processes: how many there are.
        wait: returns when all have called it.
        gather: an array, in all processes of one shape and dtype → those of all, (processes, …).
    """

    process: int = 0
    processes: int = 1
    wait: Callable[[], object] = bool
    gather: Callable[[np.ndarray], np.ndarray] = _alone

    @property
    def main(self) -> bool:
        """Whether this is the process that writes what there is once."""
        return self.process == 0

    def mine(self, work: Sequence[T]) -> Sequence[T]:
        """Choose this process's part of work that all know."""
        return work[self.process :: self.processes]

    def see(self, path: Path) -> None:
        """Wait until a file that another process has written shows here.

        Raises:
            InputError: it does not.
        """
        deadline = time.monotonic() + LATE_S
        while not path.is_file():
            if time.monotonic() > deadline:
                raise InputError(f"{path}: written by another process, but not seen here; give all one shared --out")
            time.sleep(1)

    def said(self, array: np.ndarray) -> np.ndarray:
        """Return what process 0 gives, of an array that has one shape and dtype in all."""
        return self.gather(array)[0]

    def shared(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Return all of `count` rows, (count, …), of which this process made `rows`: those of `mine(range(count))`."""
        most = -(-count // self.processes)
        filled = np.concatenate([rows, np.zeros((most - len(rows), *rows.shape[1:]), rows.dtype)])
        return self.gather(filled).swapaxes(0, 1).reshape(-1, *rows.shape[1:])[:count]


ALONE = Team()
