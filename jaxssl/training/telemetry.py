"""What a run tells while it runs: a line for people, `metrics.jsonl` for programs, TensorBoard for both."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from compress.errors import one_line
from jaxssl.runtime import files
from jaxssl.runtime.cli import messages
from jaxssl.training.board import Board


class Meter:
    """Rates over the time since the last reading.

    Args:
        peak: MACs per second that the device reaches in a plain matrix product, all devices together.
        passes: multiplications of an update in forward passes: 3 where every map learns, 1 where only the last does.
    """

    def __init__(self, *, peak: float, passes: float = 3.0):
        self._peak = peak / passes
        self._began = time.perf_counter()
        self._updates, self._audio, self._macs = 0, 0.0, 0.0

    def count(self, *, audio: float, macs: float) -> None:
        """Count one update over `audio` seconds of speech whose forward passes take `macs`."""
        self._updates, self._audio, self._macs = self._updates + 1, self._audio + audio, self._macs + macs

    def read(self) -> dict[str, float]:
        """Return rates and start anew.

        `mfu` is model FLOPs utilisation (PaLM, appendix B): the multiplications that the updates need over those that
        the device does in a plain matrix product in that time.
        """
        now = time.perf_counter()
        took = max(now - self._began, 1e-9)
        rates = {
            "updates_per_s": self._updates / took,
            "audio_s_per_s": self._audio / took,
            "mfu": self._macs / took / self._peak,
        }
        self._began, self._updates, self._audio, self._macs = now, 0, 0.0, 0.0
        return rates


class Journal:
    """`metrics.jsonl` and TensorBoard's event file of a run folder; a context manager.

    Args:
        folder: of the run.
        after: last update that counts; what a run that was broken off wrote beyond it is dropped, as the resumed run
            writes it again.
    """

    def __init__(self, folder: Path, *, after: int = 0):
        self._path = folder / "metrics.jsonl"
        self._board: Board | None = None
        self._open(after)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        with files.naming(self._path), self._file, self._or_without():
            if self._board is not None:
                self._board.close()

    def rewind(self, after: int) -> None:
        """Drop what is of updates beyond `after`: the run went back there, and does them again."""
        self.__exit__()
        self._open(after)

    def _open(self, after: int) -> None:
        _keep_until(self._path, after)
        self._file = self._path.open("a")
        with self._or_without():
            self._board = Board(self._path.parent / "tensorboard", first=after + 1)

    def write(self, number: int, part: str, values: Mapping[str, float]) -> None:
        """Write the numbers of update `number`; `part` says of what: train, valid.

        Raises:
            OSError: `metrics.jsonl` cannot be written; without TensorBoard a run goes on.
        """
        with files.naming(self._path):
            self._file.write(json.dumps({"step": number, "part": part, **values}) + "\n")
            self._file.flush()
        with self._or_without():
            if self._board is not None:
                for name, value in values.items():
                    self._board.scalar(f"{part}/{name}", value, number)
                self._board.flush()

    def picture(self, number: int, name: str, pixels: np.ndarray) -> None:
        """Show a picture, (height, width) in [0, 1], bright is high."""
        with self._or_without():
            if self._board is not None:
                self._board.image(name, (255 * np.clip(pixels, 0, 1)).astype(np.uint8), number)

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        """Say once that TensorBoard's disk takes no more, and write nothing there from then on."""
        try:
            yield
        except OSError as error:
            board, self._board = self._board, None
            with suppress(OSError, ValueError):  # what could not be closed may be closed all the same
                if board is not None:
                    board.close()
            reason = f"note: TensorBoard's file cannot be written ({error.strerror or error}); the run goes on without"
            messages.print(one_line(reason), markup=False)


def read_journal(folder: Path) -> list[dict[str, float | str]]:
    """Return the lines of a run's `metrics.jsonl`, but for a last one that was broken off."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        try:
            row = files.named(files.parsed(line, path), f"{path}, line {number}")
            rows.append({**row, "step": int(row["step"])})
        except (ValueError, TypeError, KeyError, OverflowError):  # the process died while it wrote
            break
    return rows


def _keep_until(path: Path, after: int) -> None:
    if not path.is_file():
        return
    kept = [row for row in read_journal(path.parent) if int(row["step"]) <= after]
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
