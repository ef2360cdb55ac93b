"""What was read of buckets stays on this machine's disk for the next time, up to a size; the longest unused goes first.

The environment variable JAXSSL_BUCKET_CACHE says the size; 0 keeps nothing.
"""

import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compress.errors import InputError
from jaxssl.storage import places

LIMIT = "JAXSSL_BUCKET_CACHE"  # environment variable
USUAL = "20GB"
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
FOLDER = ".read"  # beside the folders of the schemes
SHARE = 0.9  # of the size that is left after something had to go, so that not every reading looks for what goes

_lock = threading.Lock()
_used: Counter[Path] = Counter()  # by this process, now
_size: dict[Path, int] = {}  # of a cache, as far as this process knows; another one may read into it, too


def limit() -> int:
    """Return how many bytes may be kept.

    Raises:
        InputError: the environment says what is no size.
    """
    text = os.environ.get(LIMIT) or USUAL
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) ?([KMGT]?B?)", text.strip().upper())
    unit = None if found is None else UNITS.get(found[2].removesuffix("B") + "B" if found[2] not in ("", "B") else "")
    if found is None or unit is None:
        raise InputError(f"{LIMIT}={text}: not a size; write it as {USUAL}")
    return int(float(found[1]) * unit)


def content(name: str, read: Callable[[], bytes]) -> bytes:
    """Return bytes by a name that no other content has; `read` gives them where they are not kept."""
    path = _path(name, "")
    try:
        found = path.read_bytes()
        os.utime(path)
        return found
    except FileNotFoundError:
        found = read()
    with suppress(FileNotFoundError), _part(path) as part:
        part.write_bytes(found)
    _make_room(len(found))
    return found


@contextmanager
def file(name: str, suffix: str, write: Callable[[Path], None]) -> Iterator[Path]:
    """Give a file by a name that no other content has, which stays as long as the body of `with` runs.

    Args:
        name: of the content.
        suffix: of the file's name.
        write: writes it where it is not kept.
    """
    path = _path(name, suffix)
    with _lock:
        _used[path] += 1
    try:
        try:
            os.utime(path)
        except FileNotFoundError:
            with _part(path) as part:
                write(part)
            _make_room(path.stat().st_size)
        yield path
    finally:
        with _lock:
            _used[path] -= 1
            if not _used[path]:
                del _used[path]


def _path(name: str, suffix: str) -> Path:
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    return places.root() / FOLDER / digest[:2] / f"{digest[2:]}{suffix}"


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """Give a place to write a file at, of this thread alone, which gets its name when it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _make_room(added: int) -> None:
    """Count what was added, and remove what was not used for longest where that is too much."""
    most, folder = limit(), places.root() / FOLDER
    with _lock:
        if folder in _size and _size[folder] + added <= most:
            _size[folder] += added
            return
        found = sorted(_files(folder))
        total = sum(size for _, size, _ in found)
        goal = total if total <= most else SHARE * most
        for _, size, path in found:
            if total <= goal:
                break
            if path not in _used:
                path.unlink(missing_ok=True)
                total -= size
        _size[folder] = total


def _files(folder: Path) -> Iterator[tuple[int, int, Path]]:
    for below, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another process needed room, too
                found = os.stat(os.path.join(below, name))
                yield found.st_mtime_ns, found.st_size, Path(below, name)
