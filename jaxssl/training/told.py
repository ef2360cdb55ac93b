"""What a run is told from outside while it runs: to save and leave (SIGTERM, notices of GCE), SIGUSR1 to save now.

The processes of a run ask each other, so that all of them save, or leave, after the same update.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from types import FrameType
from typing import Any

import jax

from jaxssl.runtime.cli import messages
from jaxssl.training import distributed, notices

Tell = Callable[[int, str], None]  # shows a line of an update to whoever watches
AGREE_EVERY = 5  # updates between two questions among processes
SIGNALS = {signal.SIGTERM: "leave", signal.SIGUSR1: "save"}


@dataclass
class Told:
    """What this process was told, and what all processes of the run have agreed on after the last update.

    Attributes:
        leave: set by SIGTERM, which a preempted machine gets, or by a notice of it (`notices`).
        save: set by SIGUSR1; gone once the processes have agreed.
        leaving: all save and leave after this update.
        saving: all save after this update.
    """

    leave: Event = field(default_factory=Event)
    save: Event = field(default_factory=Event)
    leaving: bool = False
    saving: bool = False

    def agree(self, number: int) -> None:
        """Find out, after update `number`, what any process was told; all call it."""
        if jax.process_count() > 1 and number % AGREE_EVERY:
            self.leaving = self.saving = False
            return
        self.leaving = distributed.anywhere(self.leave.is_set())
        self.saving = distributed.anywhere(self.save.is_set())
        if self.saving:
            self.save.clear()


@contextmanager
def listening() -> Iterator[Told]:
    """Hear signals and notices as long as the body of `with` runs; the handlers from before come back.

    Signals are Python's only in the main thread; elsewhere none is ever heard.
    """
    told = Told()
    with notices.heard(told.leave, partial(messages.print, markup=False)), _signals(told):
        yield told


@contextmanager
def _signals(told: Told) -> Iterator[None]:
    def remember(number: int, frame: FrameType | None) -> None:
        getattr(told, SIGNALS[signal.Signals(number)]).set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {each: signal.signal(each, remember) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
