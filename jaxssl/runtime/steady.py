"""Orbax's patience by a clock that nobody sets.

It counts how long a save may take by the time of day, so that a clock set forward by ten minutes fails the save that is
being written, and the run with it.
"""

import time
from types import SimpleNamespace
from typing import Any

from orbax.checkpoint._src.futures import future, signaling_client  # what waits; none of it is public

CLOCK = SimpleNamespace(**{**vars(time), "time": time.monotonic})  # both only take differences


def by_monotonic_clock() -> None:
    """Let Orbax wait by `time.monotonic` in this process."""
    modules: tuple[Any, ...] = (future, signaling_client)
    for module in modules:
        module.time = CLOCK
