"""Arrays on disk: .npy files mapped into memory, rows of unequal length in one of them, files written whole."""

from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Protocol

import numpy as np

from compress.errors import InputError
from jaxssl.runtime.files import whole


class Rows(Protocol):
    """Arrays of unequal length, one an utterance."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Slices:
    """Rows that lie one after the other in one (memory-mapped) array: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int, /) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.values[self.offsets[i] : self.offsets[i + 1]]


# What NumPy answers to files that are no arrays, or whose headers promise more than there is.
UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    TypeError,
    OverflowError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TokenError,
)


def read_array(path: Path) -> np.ndarray:
    """Map a .npy file into memory.

    Raises:
        InputError: it is missing or is not an array.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable .npy array ({error}); make it again") from error


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file so that it appears whole or not at all."""
    with whole(path) as part, part.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    with whole(path) as part:
        part.write_bytes(content)
