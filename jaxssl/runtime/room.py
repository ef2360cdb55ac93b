"""One place in the heap for the temporaries of large programs, run after run.

XLA takes a program's temporaries as one piece, gigabytes for an update of a full-size model, and frees it when the run
is over. What is allocated before the next run may come to lie in what the piece left; that run finds the place too
small and takes another, and the process holds both. Here the place is taken between runs, so that nothing can.
"""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from jaxssl.runtime import memory

LARGE = 1 << 30  # bytes of temporaries from which a place is held: runs that wait for nobody are not made to wait
ALIGNED = 4096  # bytes beside the temporaries, enough for their alignment and too few for much else
PATIENCE = 0.02  # seconds within which XLA frees temporaries once the result is there: it took 2 ms


class Room:
    """A place of the heap that is held between runs, where a process keeps its heap and runs on one CPU device.

    Args:
        large: bytes of temporaries from which a place is held.
    """

    def __init__(self, large: int = LARGE) -> None:
        self._large = large
        self._place, self._size = 0, 0
        self._wanted = dict[Any, int]()

    def run(self, program: Callable[..., Any], *args: Any) -> Any:
        """Run a jitted program with its temporaries in this place, which is changed for a larger one if need be.

        Where a place is held it returns when the result is there.
        """
        if jax.default_backend() != "cpu" or jax.device_count() > 1 or not memory.keep():
            return program(*args)
        shapes = program, tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(args) if hasattr(leaf, "dtype"))
        if shapes not in self._wanted:
            self._wanted[shapes] = _temporaries(program, *args) + ALIGNED  # takes a tenth of a second
        wanted = self._wanted[shapes]
        if max(wanted, self._size) < self._large:
            return program(*args)
        if wanted > self._size:
            _free(self._place)
            self._place, self._size = _taken(wanted), wanted
        with self.lent(wanted):
            return jax.block_until_ready(program(*args))

    @contextmanager
    def lent(self, wanted: int | None = None) -> Iterator[None]:
        """Let anything have the place, if one is held, until the block ends; then it is taken again.

        If something lies in it then, a new place is held, and what is left of the old one goes back to the system.

        Args:
            wanted: bytes of it that are lent, its last ones; None: all.
        """
        if not self._size:
            yield
            return
        _free(self._place)
        rest = 0 if wanted is None or wanted >= self._size else _taken(self._size - wanted)
        try:
            yield
        finally:
            _free(rest)
            before, until = self._place, time.monotonic() + PATIENCE
            while (place := _taken(self._size)) != before and time.monotonic() < until:
                _free(place)
                time.sleep(PATIENCE / 20)
            self._place = place
            if place != before:
                ctypes.CDLL(None).malloc_trim(0)

    def leave(self) -> None:
        """Hold nothing any more, and forget programs."""
        if self._place:
            _free(self._place)
        self._place = self._size = 0
        self._wanted.clear()


def _temporaries(program: Any, *args: Any) -> int:
    """Return the bytes of temporaries of a jitted program; jax compiles it no second time for a call."""
    plan = program.lower(*args).compile().memory_analysis()
    return 0 if plan is None else plan.temp_size_in_bytes


def _taken(size: int) -> int:
    malloc = ctypes.CDLL(None).malloc
    malloc.restype = ctypes.c_void_p
    return malloc(ctypes.c_size_t(size)) or 0


def _free(place: int) -> None:
    ctypes.CDLL(None).free(ctypes.c_void_p(place))


updates = Room()  # of the updates of a training, of which a process has one at a time
