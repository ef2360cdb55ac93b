"""Arrays on disk: .npy files mapped into memory, rows of unequal length in one of them, files written whole."""

import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
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


MAPPED = 1000  # files at once; Linux allows a process 65,530 pieces of mapped memory, and each file is one


@dataclass(frozen=True)
class Shards:
    """Rows that lie one after the other in several .npy files, which are opened when a row of theirs is asked for.

    Attributes:
        files: in the order of the rows.
        first: (files + 1,), the first row of each file, and the number of rows.
        offsets: (rows + 1,), where each row begins, were all files one array.
    """

    files: tuple[Path, ...]
    first: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int, /) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        shard = int(np.searchsorted(self.first, i, side="right")) - 1
        begin = self.offsets[self.first[shard]]
        return self.shard(shard)[self.offsets[i] - begin : self.offsets[i + 1] - begin]

    @cached_property
    def shard(self) -> Callable[[int], np.ndarray | Stretches]:
        """Open the rows of one file, given its number, as one array.

        Raises:
            InputError: it is missing or damaged, or holds another number of entries than its rows have.
        """
        return lru_cache(MAPPED)(self._open)

    def _open(self, number: int) -> np.ndarray | Stretches:
        path, array = self.files[number], open_rows(self.files[number])
        wanted = int(self.offsets[self.first[number + 1]] - self.offsets[self.first[number]])
        if len(array) != wanted:
            raise InputError(f"{path}: {len(array)} frames, its utterances have {wanted}; make it again")
        return array


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


def write_blocks(path: Path, shape: tuple[int, ...], dtype: str, blocks: Iterable[np.ndarray]) -> None:
    """Write a .npy file of `shape`, whose rows come in blocks, so that it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with whole(path) as part, part.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).tobytes())
        file.flush()
        os.fsync(file.fileno())  # before it gets its name, by which it counts


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all."""
    with whole(path) as part:
        part.write_bytes(content)
