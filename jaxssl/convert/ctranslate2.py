"""The weights file of CTranslate2's model folders, `model.bin`, without CTranslate2.

Little-endian: version (u32), name of the specification, its revision (u32); then a count (u32) of variables, each a
name, the number of its axes (u8), their sizes (u32 each), a type (u8), its bytes (u32) and they themselves; then a
count (u32) of pairs of names, of which the first is an alias of the second. A name is its length (u16) and as many
bytes, the last of which is 0.
"""

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16)
import numpy as np

from compress.errors import InputError
from jaxssl.convert.storages import SHARED, SMALL
from jaxssl.models.names import Shape

VERSION = 6
AXES = 8  # of an array at most; convolutions have 3
DTYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")  # by their numbers in the file


@dataclass(frozen=True)
class Variable:
    """An array of the file, unread."""

    path: Path
    start: int
    shape: Shape
    dtype: str

    def raw(self) -> np.ndarray:
        """Read it as it is stored."""
        count = math.prod(self.shape)
        found = np.fromfile(self.path, np.dtype(self.dtype), count, offset=self.start)
        if found.size != count:
            raise InputError(f"{self.path}: {found.size} of {count} numbers are there; copy it again")
        return found.reshape(self.shape)

    def read(self) -> np.ndarray:
        """Read it as float32."""
        return self.raw().astype(np.float32)


@dataclass(frozen=True)
class Quantised:
    """Weights stored as integers, unread: each is the weight times its row's scale, or the array's, rounded."""

    stored: Variable
    scale: Variable

    @property
    def shape(self) -> Shape:
        """Of the weights."""
        return self.stored.shape

    @property
    def dtype(self) -> str:
        """What they stand for."""
        return "float32"

    def read(self) -> np.ndarray:
        """Read them as float32; a scale of zero makes what is no number."""
        scale = self.scale.read()
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.stored.read() / scale.reshape(-1, *[1] * (len(self.shape) - 1))


def dequantised(path: Path, found: Mapping[str, Variable]) -> dict[str, Variable | Quantised]:
    """Join integer weights with their scales, which stand beside them.

    Raises:
        InputError: integers have no scale, or one of another shape; the first is named.
    """
    ints = {name: each for name, each in found.items() if each.dtype.startswith("int")}
    scales = {name: found.get(f"{name}_scale") for name in ints}
    for name, scale in scales.items():
        rows = ints[name].shape[:1]
        if scale is None or scale.dtype.startswith("int") or scale.shape not in ((), (1,), rows):
            what = "no scale" if scale is None else f"a scale of {scale.dtype} {scale.shape}"
            kind = f"{ints[name].dtype} {ints[name].shape}"
            raise InputError(f"{path}: {name} is {kind} with {what}; copy the file again")
    joined = {name: Quantised(ints[name], scale) for name, scale in scales.items() if scale is not None}
    used = {f"{name}_scale" for name in joined}
    return {name: joined.get(name, each) for name, each in found.items() if name not in used}


def load(path: Path) -> tuple[str, Mapping[str, Variable]]:
    """List a file's variables by name, aliases too, and return the specification's name with them.

    Raises:
        InputError: the file is damaged, cut short, or of another version.
    """
    try:
        with path.open("rb") as file:
            (version,) = _numbers(file, "I")
            if version != VERSION:
                raise InputError(
                    f"{path}: version {version} of CTranslate2's format, this program reads {VERSION}; convert the "
                    "model again with a current CTranslate2"
                )
            spec, _revision, (count,) = _name(file), _numbers(file, "I"), _numbers(file, "I")
            found = dict(_variable(path, file) for _ in range(count))
            (count,) = _numbers(file, "I")
            pairs = [(_name(file), _name(file)) for _ in range(count)]
            _check_aliases(path, found, Counter(name for _, name in pairs))
            return spec, found | {alias: found[name] for alias, name in pairs}
    except (EOFError, UnicodeDecodeError, KeyError, IndexError) as error:
        raise InputError(f"{path}: damaged or cut short ({error!r}); copy it again") from error


def _check_aliases(path: Path, found: Mapping[str, Variable], aliases: Mapping[str, int]) -> None:
    """Refuse arrays of so many names that the model would be many times the file's size."""
    for name, count in aliases.items():
        if count > SHARED and count * math.prod(found[name].shape) > SHARED * SMALL:
            raise InputError(f"{path}: {name} has {count} other names, {SHARED} at most may be; do not trust the file")


def _variable(path: Path, file: IO[bytes]) -> tuple[str, Variable]:
    name = _name(file)
    (axes,) = _numbers(file, "B")
    shape = _numbers(file, f"{axes}I")
    kind, size = _numbers(file, "BI")
    dtype = DTYPES[kind]
    if axes > AXES:
        raise EOFError(f"{name} has {axes} axes")
    if size != math.prod(shape) * np.dtype(dtype).itemsize:
        raise EOFError(f"{name} of {dtype} {shape} in {size} bytes")
    start = file.tell()
    if file.seek(0, 2) < start + size:
        raise EOFError(name)
    file.seek(start + size)
    return name, Variable(path, start, shape, dtype)


def _name(file: IO[bytes]) -> str:
    (length,) = _numbers(file, "H")
    return _bytes(file, length).removesuffix(b"\0").decode()


def _numbers(file: IO[bytes], kinds: str) -> tuple[int, ...]:
    layout = struct.Struct(f"<{kinds}")
    return layout.unpack(_bytes(file, layout.size))


def _bytes(file: IO[bytes], count: int) -> bytes:
    found = file.read(count)
    if len(found) < count:
        raise EOFError("the file ends")
    return found
