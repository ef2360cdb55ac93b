"""Bringing what lies at URLs to this machine, so that paths do.

Small objects come whole before the work begins. Audio and features stand as empty files in their places until they are
read (`reading`, `jaxssl.storage.stretches`), so that a corpus may be larger than the disk. Checkpoints are left to
`jaxssl.storage.checkpoints`.
"""

import dataclasses
import fcntl
import glob
import hashlib
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from compress.errors import InputError
from jaxssl.runtime import locks
from jaxssl.storage import asking, kept, places
from jaxssl.storage.asking import Bucket
from jaxssl.storage.ledger import LEDGER, NAME, WHOLE, Ledger
from jaxssl.storage.objects import Entry

AUDIO = re.compile(r".*\.(wav|flac|ogg|opus|mp3|aiff?|au)", re.IGNORECASE | re.DOTALL)
FEATURES = re.compile(r"(.*/)?(features[^/]*|features/[^/]*)\.npy", re.DOTALL)
CHECKPOINTS = re.compile(r"(.*/)?checkpoints/\d+/.*", re.DOTALL)
LAYER = re.compile(r"(.*):(\d+|own|head)", re.DOTALL)  # as settings name a layer of a model
TABLES = (".tsv", ".csv")  # which name files beside them
PORTION = 32 << 20  # bytes of a request
THREADS = 16  # that fetch
TRIES = 3  # of an object that does not come as its store says it is


def bring_all(settings: Any) -> None:
    """Bring what a command's settings, a dataclass, name in buckets.

    Raises:
        InputError: a bucket is not there, or refuses.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, str | Path) and (url := places.url(each)):
                bring(_holder(url))


def _holder(url: str) -> str:
    """Return what has to come where a setting names a URL: what a pattern may match, the folder of a table."""
    if found := LAYER.fullmatch(url):
        url = found[1]
    if glob.has_magic(url):
        fixed = re.split(r"[*?[]", url, maxsplit=1)[0]
        return fixed.rpartition("/")[0]
    return url.rpartition("/")[0] if url.lower().endswith(TABLES) else url


def bring(url: str) -> None:
    """Bring what lies at a URL, an object or all that begin with it and a slash; nothing may be there.

    What the bucket has no longer goes here, too; what was made here and is not there yet stays. Where a command of this
    machine works, what it has is newer: nothing comes.

    Raises:
        InputError: the bucket is not there, or refuses, or an object's name can be none of a file.
    """
    bucket, key = asking.of(url)
    place, base, ledger = places.local(url), places.local(bucket.url), LEDGER
    if any(locks.taken(folder) for folder in (place, *place.parents) if folder.is_relative_to(places.root())):
        return
    with alone(place), ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[None]] = deque()
        seen = set[Path]()
        try:
            for entry in _entries(bucket, key):
                path = places.below(base, bucket.url, entry.key)
                seen.add(path)
                if CHECKPOINTS.fullmatch(entry.key.removeprefix(key)):
                    continue
                if not _settled(path, entry, ledger):
                    waiting.append(pool.submit(_bring, bucket, entry, path, ledger))
                if len(waiting) > 4 * THREADS:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
        _drop_old(place, seen, ledger)
        ledger.save()


def _entries(bucket: Bucket, key: str) -> Iterator[Entry]:
    if key and (found := bucket.about(key)):
        yield found
        return
    prefix = f"{key}/" if key else ""
    for page in bucket.pages(prefix):
        for entry in page:
            # Stores' own tools make objects that stand for folders.
            if not entry.key.endswith("/") and entry.key.rpartition("/")[2] != NAME:
                yield entry


def _settled(path: Path, entry: Entry, ledger: Ledger) -> bool:
    """Tell whether nothing has to be fetched: it is here, or is to wait. What differs in the bucket counts."""
    try:
        size = os.stat(path).st_size
        if ledger.noted(path) == entry.tag:
            return True
    except FileNotFoundError:
        size = -1
    if not later(path):
        return False
    if size > 0:
        path.unlink()
        ledger.forget(path)
    if size:
        try:
            path.touch()
        except FileNotFoundError:
            path.parent.mkdir(parents=True)
            path.touch()
    return True


def _bring(bucket: Bucket, entry: Entry, path: Path, ledger: Ledger) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    fetch(bucket, entry, part)
    os.replace(part, path)
    ledger.note(path, entry.tag)


def _drop_old(place: Path, seen: set[Path], ledger: Ledger) -> None:
    """Remove files, and checkpoints, whose objects are gone; and folders in which nothing is left."""
    for below, folders, names in os.walk(place):
        folder = Path(below)
        if folder.name == "checkpoints":
            for number in ledger.names(folder):
                if folder / number / WHOLE not in seen and (folder / number).is_dir():
                    shutil.rmtree(folder / number)
                    ledger.forget(folder / number)
            folders.clear()
        known = set(ledger.names(folder))
        for name in names:
            path = folder / name
            if path not in seen and name != NAME and (waits(path) or (name in known and ledger.tag(path))):
                path.unlink()
                ledger.forget(path)
    for below, _, _ in os.walk(place, topdown=False):
        if set(os.listdir(below)) <= {NAME} and not ledger.names(Path(below)):
            Path(below, NAME).unlink(missing_ok=True)
            os.rmdir(below)


def later(path: Path) -> bool:
    """Tell whether what lies at a path comes when it is read, not before the work: audio, features."""
    return bool(AUDIO.fullmatch(path.name) or FEATURES.fullmatch(path.as_posix()))


def waits(path: Path) -> bool:
    """Tell whether a file is an empty one that stands for an object."""
    if not later(path) or places.url(path) is None:
        return False
    return path.is_file() and not path.stat().st_size


def fetch(bucket: Bucket, entry: Entry, path: Path) -> None:
    """Write an object to a file, and compare it with what its store says of it.

    Raises:
        InputError: it is damaged each time.
    """
    for _ in range(TRIES):
        with path.open("wb") as file:
            for start in range(0, entry.bytes, PORTION):
                file.write(bucket.exactly(entry.key, start, min(start + PORTION, entry.bytes), tag=entry.tag))
        if _sound(bucket, entry, path):
            return
    path.unlink()
    raise InputError(f"{bucket.url}/{entry.key}: damaged: not the content that its store says it has; upload it again")


def _sound(bucket: Bucket, entry: Entry, path: Path) -> bool:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if md5 in (entry.md5, entry.tag.strip('"')):
        return True
    known = entry if entry.md5 or entry.crc32c else bucket.about(entry.key)
    if known is None or known.tag != entry.tag or known.md5 or not known.crc32c:
        return known is not None and known.tag == entry.tag and known.md5 is None  # or the store does not tell
    return _crc32c(path) == known.crc32c


def _crc32c(path: Path) -> str:
    import base64

    import google_crc32c  # comes with what speaks to the stores that give it

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while portion := file.read(PORTION):
            checksum.update(portion)
    return base64.b64encode(checksum.digest()).decode()


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Give a file to read for a path: the path, or, as long as the body of `with` runs, the object that it stands for.

    Errors that name the file name the path instead.

    Raises:
        InputError: the object is not there.
    """
    url = places.url(path)
    if url is None or (path.exists() and not waits(path)):
        yield path
        return
    entry, bucket = described(url), asking.of(url)[0]
    with kept.file(f"{url}\n{entry.tag}", path.suffix, lambda part: fetch(bucket, entry, part)) as file:
        try:
            yield file
        except InputError as error:
            raise InputError(str(error).replace(str(file), str(path))) from error


@lru_cache(maxsize=1 << 16)
def described(url: str) -> Entry:
    """Describe an object, asking once in a process: what it reads is of one content.

    Raises:
        InputError: it is not there.
    """
    bucket, key = asking.of(url)
    entry = bucket.about(key)
    if entry is None:
        raise InputError(f"{url}: no such object; correct the path, or upload it")
    return entry


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Let the processes of this machine bring what lies at one place one after the other."""
    folder = places.root() / ".locks"
    folder.mkdir(exist_ok=True)
    with (folder / hashlib.sha256(str(place).encode()).hexdigest()).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
