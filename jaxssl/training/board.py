"""TensorBoard's event file, written at once: where the disk is full, it is the writer who hears of it.

tensorboardX's own `SummaryWriter` writes in a thread, which a full disk ends, and whoever writes then waits for ever.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np


class Board:
    """An event file in a folder; of earlier ones there, what is from update `first` on is hidden."""

    def __init__(self, folder: Path, *, first: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._write(first, file_version="brain.Event:2")
        self._write(first, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, name: str, value: float, number: int) -> None:
        """Write a number of update `number`."""
        from tensorboardX import summary

        self._write(number, summary=summary.scalar(name, value))

    def image(self, name: str, pixels: np.ndarray, number: int) -> None:
        """Write a picture, (height, width) uint8."""
        from tensorboardX import summary

        self._write(number, summary=summary.image(name, pixels, dataformats="HW"))

    def flush(self) -> None:
        """Hand what was written to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Write the rest and close the file."""
        self._file.close()

    def _write(self, number: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(step=number, wall_time=time.time(), **what))
