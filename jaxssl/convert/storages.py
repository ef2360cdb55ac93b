"""Tensors that stay on disk until they are read."""

import pickle
import zlib
from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Never

import numpy as np

from compress.errors import InputError

SHARED = 16  # tensors may share a storage, as tied weights do; every one is read into an array of its own
SMALL = 10_000  # numbers of a storage that may be shown so often in any case


@dataclass(frozen=True)
class Extent:
    """Where a storage's bytes are in the file."""

    start: int
    size: int
    checksum: int | None = None


@dataclass
class Archive:
    """A file and its storages; keeps the bytes of the one read last, as neighbours often share it."""

    path: Path
    extents: dict[str, Extent] = field(default_factory=dict)
    last: tuple[str, bytes] = ("", b"")
    shown: Counter[str] = field(default_factory=Counter)  # numbers that tensors show of each storage

    def read(self, key: str) -> bytes:
        """Read a storage's bytes.

        Raises:
            InputError: they are not there or not what was written.
        """
        if self.last[0] != key:
            extent = self.extents[key]
            with self.path.open("rb") as file:
                file.seek(extent.start)
                data = file.read(extent.size)
            if len(data) < extent.size:
                raise InputError(f"{self.path}: storage {key} has {len(data)} of {extent.size} bytes; copy it again")
            if extent.checksum is not None and zlib.crc32(data) != extent.checksum:
                raise InputError(f"{self.path}: storage {key} fails its checksum; the file is damaged, copy it again")
            self.last = (key, data)
        return self.last[1]


class _Sealed:
    """What a pickle may refer to but not write into."""

    def __setstate__(self, state: object) -> Never:
        raise pickle.UnpicklingError(f"the pickle tries to change a {type(self).__name__.lower()}")


@dataclass(frozen=True)
class Storage(_Sealed):
    """A run of `numel` numbers in an archive."""

    archive: Archive
    key: str
    dtype: np.dtype
    numel: int

    def check(self) -> None:
        """Raise InputError unless the file has all the bytes that the storage claims."""
        there = self.archive.extents.get(self.key, Extent(0, 0)).size
        if (claimed := self.numel * self.dtype.itemsize) > there:
            raise InputError(
                f"{self.archive.path}: storage {self.key} claims {claimed} bytes and has {there}; copy the file again"
            )


@dataclass(frozen=True)
class Tensor(_Sealed):
    """A window on a storage; `offset` and `strides` count numbers.

    Raises:
        InputError: the window reaches outside its storage or shows parts of it twice.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        steps = zip(self.shape, self.strides, strict=True)
        reach = self.offset + sum((size - 1) * step for size, step in steps) + 1
        if 0 not in self.shape and max(reach, prod(self.shape)) > self.storage.numel:
            raise InputError(
                f"{self.storage.archive.path}: a tensor of shape {self.shape}, strides {self.strides} and offset "
                f"{self.offset} does not fit its storage of {self.storage.numel} numbers; do not trust the file"
            )
        shown = self.storage.archive.shown
        shown[self.storage.key] += prod(self.shape)
        if shown[self.storage.key] > SHARED * max(self.storage.numel, SMALL):
            raise InputError(
                f"{self.storage.archive.path}: tensors show the {self.storage.numel} numbers of storage "
                f"{self.storage.key} over {SHARED} times; do not trust the file"
            )

    @property
    def dtype(self) -> str:
        return self.storage.dtype.name

    def read(self) -> np.ndarray:
        """Read the tensor as a float32 array of its own."""
        if 0 in self.shape:
            return np.zeros(self.shape, np.float32)
        dtype = self.storage.dtype
        numbers = np.frombuffer(self.storage.archive.read(self.storage.key), dtype, self.storage.numel)
        strides = [stride * dtype.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite there, which `finite` tells
            return np.array(view, np.float32)
