"""Sparse arrays in the fewest bytes, and back: what pruning really saves on disk, indices included.

    magic    8 bytes
    check    CRC-32 of all that follows, 4 bytes
    length   of the header, 4 bytes
    header   JSON: path, shape, dtype, form, nonzero and rows of every array
    data     the arrays' sections, one after the other, little-endian

Each array has the smallest of three forms:

    dense    all entries
    bits     one bit an entry, then the entries whose bit is set
    csr      row pointers, column numbers, entries; integers in the narrowest unsigned type

An entry is left out only if all of its bits are 0, so that −0.0 and NaN come back as they were.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from compress.address import Tree, flatten, unflatten
from compress.errors import InputError

MAGIC = b"sparse-1"
PREFIX = struct.Struct("<8sII")
# How entries are written; NumPy has no bfloat16 of its own, so its bits are. Indices, int32, are hardly ever zero.
DTYPES = {"float32": "<f4", "bfloat16": "<u2", "int8": "i1", "int32": "<i4"}
EXPANSION = 1024  # a decoded tree is at most so many times its encoding, or a short file could ask for all memory
DEPTH = 32  # of paths and of shapes


@dataclass(frozen=True)
class Entry:
    """How one array lies in the data.

    Attributes:
        path: where it is in the tree.
        shape: its shape.
        dtype: "float32", "bfloat16", "int8" or "int32".
        form: "dense", "bits" or "csr".
        nonzero: entries that are written.
        rows: of "csr", whose matrix is (rows, size / rows); otherwise 1.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    form: str
    nonzero: int
    rows: int = 1

    @property
    def size(self) -> int:
        """Entries of the array."""
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """Columns of the matrix of "csr"."""
        return self.size // self.rows

    @property
    def sections(self) -> tuple[tuple[np.dtype, int], ...]:
        """Dtype and length of each of its sections in the data."""
        values = np.dtype(DTYPES[self.dtype])
        match self.form:
            case "bits":
                return (np.dtype("u1"), -(-self.size // 8)), (values, self.nonzero)
            case "csr":
                pointers, columns = _narrowest(self.nonzero), _narrowest(max(self.columns - 1, 0))
                return (pointers, self.rows + 1), (columns, self.nonzero), (values, self.nonzero)
            case _:
                return ((values, self.size),)

    @property
    def bytes(self) -> int:
        """Length in the data."""
        return sum(dtype.itemsize * length for dtype, length in self.sections)


def smallest(path: str, array: np.ndarray, *, csr: bool = True) -> Entry:
    """Choose the form of fewest bytes for an array; `bytes` of the result says how many.

    The matrix of "csr" may break the shape at any axis: narrow rows give narrow column numbers and more pointers.

    Raises:
        InputError: the array is of another dtype.
    """
    if array.dtype.name not in DTYPES:
        raise InputError(f"{path}: {array.dtype} is not encoded; give {', '.join(DTYPES)}")
    name, shape, nonzero = array.dtype.name, array.shape, int(np.count_nonzero(_words(array)))
    forms = [Entry(path, shape, name, "dense", array.size)]
    if name != "int32" and array.size:
        forms.append(Entry(path, shape, name, "bits", nonzero))
        splits = [prod(shape[:axis]) for axis in range(len(shape))] if csr else []
        forms += [Entry(path, shape, name, "csr", nonzero, rows) for rows in splits]
    return min(forms, key=lambda entry: entry.bytes)


def encode(tree: Mapping[str, Any]) -> bytes:
    """Write a tree of arrays, each in its smallest form; decode(encode(t)) == t, bit for bit.

    A tree that is all but empty is written without "csr", for `decode` refuses what grows more than EXPANSION times.

    Raises:
        InputError: an array is of another dtype, or a path is deeper than DEPTH or not printable.
    """
    arrays, entries = _planned(tree)
    header = _header(entries)
    sections = [s.data for e, array in zip(entries, arrays.values(), strict=True) for s in _pack(e, array)]
    check = zlib.crc32(header, len(header))  # begins with the length, so that it is of all that follows
    for section in sections:
        check = zlib.crc32(section, check)
    return b"".join([PREFIX.pack(MAGIC, check, len(header)), header, *sections])


def encoded_bytes(tree: Mapping[str, Any]) -> int:
    """Return len(encode(tree)), and raise what it raises, without writing anything."""
    return _length(_planned(tree)[1])


def decode(data: bytes) -> Tree:
    """Read what `encode` wrote; nothing is allocated before the header and the data's length agree.

    Raises:
        InputError: the bytes are of another kind, truncated or damaged.
    """
    entries, start = _read_header(data)
    flat: dict[str, np.ndarray] = {}
    for entry in entries:
        sections = []
        for dtype, length in entry.sections:
            sections.append(np.frombuffer(data, dtype, length, start))
            start += dtype.itemsize * length
        flat[entry.path] = _unpack(entry, *sections)
    return unflatten(flat)


def _planned(tree: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[Entry]]:
    """Return a tree's arrays and how each is written."""
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}
    _check_paths(list(arrays))
    entries = [smallest(path, array) for path, array in arrays.items()]
    if sum(array.nbytes for array in arrays.values()) > EXPANSION * _length(entries):
        entries = [smallest(path, array, csr=False) for path, array in arrays.items()]
    return arrays, entries


def _header(entries: Sequence[Entry]) -> bytes:
    return json.dumps([asdict(entry) for entry in entries], separators=(",", ":")).encode()


def _length(entries: Sequence[Entry]) -> int:
    return PREFIX.size + len(_header(entries)) + sum(entry.bytes for entry in entries)


def _pack(entry: Entry, array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield an array's sections, in the order and the dtypes of `Entry.sections`."""
    words = _words(array)
    values = words if entry.dtype == "bfloat16" else np.ascontiguousarray(array).reshape(-1)
    parts: tuple[np.ndarray, ...] = (values,)
    if entry.form == "bits":
        bits = words != 0
        parts = np.packbits(bits), values[bits]
    if entry.form == "csr":
        at = np.flatnonzero(words)
        pointers = np.searchsorted(at, np.arange(entry.rows + 1) * entry.columns)
        parts = pointers, at % entry.columns, values[at]
    return (part.astype(dtype, copy=False) for part, (dtype, _) in zip(parts, entry.sections, strict=True))


def _unpack(entry: Entry, *sections: np.ndarray) -> np.ndarray:
    """Invert `_pack`."""
    values = sections[-1].astype(sections[-1].dtype.newbyteorder("=")).view(jnp.dtype(entry.dtype))
    if entry.form == "dense":
        return values.reshape(entry.shape)
    array = np.zeros(entry.size, values.dtype)
    array[_bits(entry, sections[0]) if entry.form == "bits" else _places(entry, *sections[:2])] = values
    return array.reshape(entry.shape)


def _bits(entry: Entry, packed: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(packed, count=entry.size).view(bool)
    if (found := int(np.count_nonzero(bits))) != entry.nonzero:
        raise InputError(f"{entry.path}: {found} bits are set, {entry.nonzero} entries are there; the file is damaged")
    return bits


def _places(entry: Entry, pointers: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Turn rows' pointers and column numbers into positions in the flat array."""
    lengths = pointers[1:].astype(np.int64) - pointers[:-1].astype(np.int64)
    ends = int(pointers[0]), int(pointers[-1])
    if ends != (0, entry.nonzero) or (lengths < 0).any() or (columns >= entry.columns).any():
        raise InputError(f"{entry.path}: its row pointers or columns lead out of its {entry.nonzero} entries; damaged")
    return np.repeat(np.arange(entry.rows) * entry.columns, lengths) + columns


def _read_header(data: bytes) -> tuple[list[Entry], int]:
    """Return the entries, all checked, and where the data begin."""
    if len(data) < PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise InputError(f"these {len(data)} bytes are no encoded arrays, which begin with {MAGIC.decode()!r}")
    _, check, length = PREFIX.unpack_from(data)
    start = PREFIX.size + length
    if start > len(data) or zlib.crc32(memoryview(data)[PREFIX.size :], length) != check:
        raise InputError(f"these {len(data)} bytes are truncated or damaged encoded arrays; copy the file again")
    try:
        entries = [_entry(values) for values in json.loads(data[PREFIX.size : start])]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"encoded arrays: their list cannot be read ({_line(error)}); copy the file again") from error
    _check_paths([entry.path for entry in entries])
    promised = sum(entry.bytes for entry in entries)
    if promised != len(data) - start:
        raise InputError(f"encoded arrays: {len(data) - start} bytes of data, {promised} are listed; damaged")
    if sum(entry.size * entry.sections[-1][0].itemsize for entry in entries) > EXPANSION * len(data):
        raise InputError(f"encoded arrays: they would grow more than {EXPANSION} times; none of ours do")
    return entries, start


def _entry(values: Mapping[str, Any]) -> Entry:
    """Check one entry of the header by itself."""
    entry = Entry(**{**values, "shape": tuple(values["shape"])})
    numbers = (*entry.shape, entry.nonzero, entry.rows)
    if not isinstance(entry.path, str) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a path that is no text or a number that is no count")
    if entry.dtype not in DTYPES or entry.form not in ("dense", "bits", "csr"):
        raise ValueError("a dtype or form that we do not write")
    if len(entry.shape) > DEPTH or prod(max(n, 1) for n in entry.shape) >= 1 << 60:  # more than NumPy can name
        raise ValueError("a shape that no array has")
    if entry.nonzero > entry.size or not 1 <= entry.rows <= max(entry.size, 1) or entry.size % entry.rows:
        raise ValueError("more entries or rows than the shape has")
    return entry


def _check_paths(paths: list[str]) -> None:
    """Refuse paths that are no tree: one named twice, an array below another, or what no message can show."""
    leaves = set(paths)
    for path in paths:
        parts = path.split("/", DEPTH)
        above = {"/".join(parts[:i]) for i in range(1, len(parts))}
        if len(parts) > DEPTH or above & leaves or not path.isprintable():
            raise InputError(f"encoded arrays: the path {path[:80]!r} is too deep, below another, or not printable")
    if len(leaves) < len(paths):
        raise InputError(f"encoded arrays: {len(paths)} arrays have {len(leaves)} paths; damaged")


def _words(array: np.ndarray) -> np.ndarray:
    """Return the bits of an array's entries, flat."""
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def _narrowest(largest: int) -> np.dtype:
    return np.min_scalar_type(largest).newbyteorder("<")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
