"""Read PyTorch's files without PyTorch, and without running anything that they ask for.

A pickle is a program: it names callables and applies them. `jaxssl.convert.stand_ins` lists the names it may use; each
stands for an inert class, so that there is nothing to call. Tensors stay on disk until they are read.
"""

import pickle
import struct
import zipfile
import zlib
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from compress.errors import InputError
from jaxssl.convert import opcodes
from jaxssl.convert.stand_ins import StorageType, count, find
from jaxssl.convert.storages import Archive, Extent, Storage

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first thing in a file of torch.save before PyTorch 1.6
LOCAL_HEADER = struct.Struct("<26xHH")  # a zip entry's own header; it ends with the lengths of name and extra field
MALFORMED = (  # all that CPython's unpickler raises on bytes that are no pickle
    pickle.UnpicklingError,
    *(EOFError, AttributeError, TypeError, ValueError, IndexError, KeyError, OverflowError, MemoryError),
)
# All that zipfile raises on a damaged directory: flags of encryption, methods and versions it does not know, names.
# Offsets that no file has are a ValueError or an OverflowError.
DAMAGED = (zipfile.BadZipFile, EOFError, OSError, ValueError, OverflowError, RuntimeError, zlib.error, struct.error)


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows a short list of names and runs none of them."""

    def __init__(self, file: IO[bytes], archive: Archive, storages: dict[str, Storage]):
        super().__init__(file, encoding="utf-8")
        self.archive, self.storages = archive, storages

    def find_class(self, module: str, name: str) -> type:
        """Return the stand-in for a name, or refuse it."""
        if stand_in := find(module, name):
            return stand_in
        raise InputError(
            f"{self.archive.path}: refused, it asks for {module}.{name}, which no checkpoint of this family needs; "
            "nothing was run"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """Return the storage that a reference names, still on disk."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[2], str):
            raise pickle.UnpicklingError("a reference that names no storage")
        if not isinstance(pid[1], type) or not issubclass(pid[1], StorageType) or pid[1] is StorageType:
            raise pickle.UnpicklingError("a storage of unknown type")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("storage views, which PyTorch wrote before 0.4")
        storage = Storage(self.archive, pid[2], pid[1].dtype, count(pid[4]))
        return self.storages.setdefault(storage.key, storage)


def load(path: Path) -> Any:
    """Read what `torch.save` wrote, zipped (since 1.6) or not; tensors come as `storages.Tensor`, unread.

    Raises:
        InputError: the file is no such file, is damaged or cut short, or asks for anything but data.
    """
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if not start:
            raise InputError(f"{path}: the file is empty")
        if start[:2] == b"PK":
            return _load_zip(Archive(path), file)
        if start[:1] == b"\x80":
            return _load_legacy(Archive(path), file)
    raise InputError(f"{path}: not a PyTorch file, it begins with {start!r}; give a .pt, .ckpt or .bin file")


def _load_zip(archive: Archive, file: IO[bytes]) -> Any:
    path = archive.path
    try:
        with zipfile.ZipFile(file) as zipped:
            entries = {entry.filename: entry for entry in zipped.infolist()}
            root = _root(path, entries)
            if f"{root}byteorder" in entries and zipped.read(f"{root}byteorder") != b"little":
                raise InputError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
            program = zipped.read(f"{root}data.pkl")
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"{path}: damaged or cut short ({error}); copy it again") from error
    prefix = f"{root}data/"
    for name, entry in entries.items():
        if name.startswith(prefix):
            archive.extents[name.removeprefix(prefix)] = _extent(path, file, entry)
    _check_apart(archive)
    return _unpickle_checked(BytesIO(program), archive)


def _check_apart(archive: Archive) -> None:
    """Refuse storages that lie in one another: each would be read into memory of its own."""
    places = sorted(archive.extents.values(), key=lambda extent: extent.start)
    for one, other in pairwise(places):
        if one.start + one.size > other.start:
            raise InputError(
                f"{archive.path}: storages overlap at byte {other.start}, which PyTorch never writes; do not trust the "
                "file"
            )


def _root(path: Path, entries: dict[str, zipfile.ZipInfo]) -> str:
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise InputError(f"{path}: a zip file, but not PyTorch's: it has {len(roots)} entries */data.pkl, not 1")
    if packed := [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]:
        raise InputError(f"{path}: {len(packed)} entries are compressed, PyTorch compresses none; save it again")
    return roots[0]


def _extent(path: Path, file: IO[bytes], entry: zipfile.ZipInfo) -> Extent:
    try:
        file.seek(entry.header_offset)
        header = file.read(LOCAL_HEADER.size)
    except DAMAGED:
        header = b""
    if len(header) < LOCAL_HEADER.size:
        raise InputError(f"{path}: damaged or cut short at {entry.filename}; copy it again")
    start = entry.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(header))
    return Extent(start, entry.file_size, entry.CRC)


def _load_legacy(archive: Archive, file: IO[bytes]) -> Any:
    if _unpickle(file, archive, {}) != LEGACY_MAGIC:
        raise InputError(f"{archive.path}: a pickle, but not one of torch.save")
    _unpickle(file, archive, {})  # the format's version, 1001 ever since
    system = _unpickle(file, archive, {})
    if not isinstance(system, dict) or not system.get("little_endian", True):
        raise InputError(f"{archive.path}: written on a big-endian machine; save it again on a little-endian one")
    storages: dict[str, Storage] = {}
    state = _unpickle(file, archive, storages)
    keys = _unpickle(file, archive, {})
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise InputError(f"{archive.path}: damaged, its list of storages is not that of its tensors; copy it again")
    _locate(archive, file, [storages[str(key)] for key in keys])
    return state


def _locate(archive: Archive, file: IO[bytes], storages: list[Storage]) -> None:
    """Find the storages behind the pickles: each is its length, 8 bytes, then its numbers."""
    end = archive.path.stat().st_size
    for storage in storages:
        length = int.from_bytes(file.read(8), "little", signed=True)
        start, size = file.tell(), length * storage.dtype.itemsize
        if size < 0 or start + size > end:
            raise InputError(
                f"{archive.path}: cut short, storage {storage.key} ends at byte {start + size} of {end}; copy it again"
            )
        archive.extents[storage.key] = Extent(start, size)
        storage.check()
        file.seek(start + size)


def _unpickle_checked(file: IO[bytes], archive: Archive) -> Any:
    storages: dict[str, Storage] = {}
    state = _unpickle(file, archive, storages)
    for storage in storages.values():
        storage.check()
    return state


def _unpickle(file: IO[bytes], archive: Archive, storages: dict[str, Storage]) -> Any:
    try:
        opcodes.check(file)
        return _Unpickler(file, archive, storages).load()
    except InputError:
        raise
    except MALFORMED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{archive.path}: damaged, cut short or no PyTorch file ({reason}); copy it again") from error
