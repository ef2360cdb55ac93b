"""Arrays on disk: .npy files mapped into memory, rows of unequal length in one of them, files written whole."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from compress.errors import InputError
from jaxssl.runtime.files import whole
from jaxssl.storage import fetching
from jaxssl.storage.stretches import Stretches, open_stretches


class Rows(Protocol):
    """Arrays of unequal length, one an utterance."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Slices:
    """Rows one after the other in one array, of a file or a bucket: row i is `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray | Stretches
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int, /) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.values[self.offsets[i] : self.offsets[i + 1]]


def open_rows(path: Path) -> np.ndarray | Stretches:
    """Open a .npy file of numbers to read stretches of its rows: mapped into memory, or where its bucket has it.

    Raises:
        InputError: it is missing or is not such an array.
    """
    if not fetching.waits(path):
        return read_array(path)
    found = open_stretches(path)
    _check_numbers(found.dtype, path)
    return found


def read_array(path: Path, *, axes: int | None = None) -> np.ndarray:
    """Map a .npy file into memory: numbers, with as many axes as given; default: one at least.

    Raises:
        InputError: it is missing or is not such an array.
    """
    try:
        with fetching.reading(path) as file:
            array = np.lib.format.open_memmap(file, mode="r")  # a map is no longer than its file
    except Exception as error:  # NumPy evaluates headers, and raises whatever that meets: 14 kinds were counted
        raise InputError(f"{path}: not a readable .npy array ({error}); make it again") from error
    if array.ndim != axes if axes else not array.ndim:
        raise InputError(f"{path}: an array of shape {array.shape}, not of {axes or '1 or more'} axes; make it again")
    return _numbers(array, path)


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read arrays of numbers from a .npz file that `jaxssl.runtime.files.write_arrays` wrote.

    Args:
        path: the file.
        names: of the arrays; default: all that there are.

    Raises:
        InputError: it is missing or damaged, an array is not there or holds no numbers, or the file would be larger in
            memory than it is on disk.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as zipped:  # NumPy leaves a damaged one open
            for entry in zipped.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{entry.filename} is compressed")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found = {name: stored[name] for name in names or stored.files}
    except Exception as error:  # as above, and zipfile's own kinds
        raise InputError(f"{path}: damaged or no .npz file ({error}); remove it, and it is made again") from error
    return {name: _numbers(np.asarray(array), path) for name, array in found.items()}


def _numbers(array: np.ndarray, path: Path) -> np.ndarray:
    _check_numbers(array.dtype, path)
    return array


def _check_numbers(dtype: np.dtype, path: Path) -> None:
    if dtype.kind not in "biuf":
        raise InputError(f"{path}: an array of {str(dtype)[:40]}, which are no numbers; make it again")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file so that it appears whole or not at all."""
    with whole(path) as part, part.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    with whole(path) as part:
        part.write_bytes(content)
