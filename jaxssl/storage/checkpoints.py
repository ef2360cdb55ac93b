"""Checkpoints of a run in a bucket: a checkpoint is there when its `files.json` is, which is sent last, removed first.

The folder's hidden list (`jaxssl.storage.ledger`) tells those that were sent or fetched: one that is there no more was
removed by somebody, and goes here too, while one that was never sent stays.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from jaxssl.storage import asking, places
from jaxssl.storage.asking import Bucket
from jaxssl.storage.fetching import THREADS, alone, fetch
from jaxssl.storage.ledger import LEDGER, WHOLE
from jaxssl.storage.objects import Entry


class Sent:
    """Which checkpoints of a folder its bucket has."""

    def __init__(self, folder: Path):
        self._folder, self._ledger = folder, LEDGER
        self._bucket, self._prefix = asking.of(places.url(folder) or "")
        self._made = {each: when for each, when in here(folder).items() if self._ledger.tag(folder / str(each))}

    def due(self) -> bool:
        """Tell whether there is one to send or to remove."""
        return here(self._folder) != self._made

    def send(self, threads: int) -> None:
        """Send what the bucket does not have, then remove what is gone here.

        Raises:
            InputError: the bucket did not take it.
        """
        bucket, prefix = self._bucket, self._prefix
        there = {number: set(entries) for number, entries in _there(bucket, prefix).items()}
        whole = {number for number, names in there.items() if WHOLE in names}
        made = here(self._folder)
        for number in sorted(made):
            if number not in whole or self._made.get(number) != made[number]:
                folder = self._folder / str(number)
                self._ledger.forget(folder)
                self._one(bucket, f"{prefix}/{number}", folder, there.get(number, set()), threads)
        kept = here(self._folder)
        for number in set(there) - set(kept):
            _remove(bucket, f"{prefix}/{number}", there[number])
        self._made = {number: when for number, when in made.items() if number in kept}
        self._ledger.save()

    def _one(self, bucket: Bucket, prefix: str, folder: Path, there: Collection[str], threads: int) -> None:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        _remove(bucket, prefix, [name for name in there if name not in names or name == WHOLE])
        try:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda name: bucket.write(f"{prefix}/{name}", folder / name), set(names) - {WHOLE}))
            self._ledger.note(folder, bucket.write(f"{prefix}/{WHOLE}", folder / WHOLE).tag)
        except FileNotFoundError:  # newer ones made it superfluous meanwhile; what was sent of it goes with it
            if folder.is_dir():
                raise


def here(folder: Path) -> dict[int, int]:
    """List the checkpoints in a folder that are finished, and when each was, in ns."""
    try:
        numbers = [name for name in os.listdir(folder) if name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = {}
    for name in numbers:
        with suppress(FileNotFoundError):
            found[int(name)] = os.stat(folder / name / WHOLE).st_mtime_ns
    return found


def bring(folder: Path, *, only: int | None = None, anew: bool = False) -> None:
    """Bring the checkpoints that the bucket of a folder has, and remove those that somebody removed there.

    Args:
        folder: of checkpoints, for which a URL stands.
        only: bring that one alone.
        anew: bring it whatever is here.

    Raises:
        InputError: the bucket refuses, or what comes is damaged.
    """
    (bucket, prefix), ledger = asking.of(places.url(folder) or ""), LEDGER
    with alone(folder):
        there = {number: entries for number, entries in _there(bucket, prefix).items() if WHOLE in entries}
        for name in ledger.names(folder):
            if int(name) not in there:
                shutil.rmtree(folder / name, ignore_errors=True)
                ledger.forget(folder / name)
        for number, entries in there.items():
            if only not in (None, number):
                continue
            if anew or not _same(bucket, folder / str(number), entries[WHOLE]):
                _fetch(bucket, folder / str(number), entries)
            ledger.note(folder / str(number), entries[WHOLE].tag)
        ledger.save()


def _there(bucket: Bucket, prefix: str) -> dict[int, dict[str, Entry]]:
    """List what the bucket has of each checkpoint, whole or not: names and objects."""
    found = defaultdict[int, dict[str, Entry]](dict)
    for page in bucket.pages(f"{prefix}/"):
        for entry in page:
            number, _, name = entry.key.removeprefix(f"{prefix}/").partition("/")
            if number.isdecimal() and name:
                found[int(number)][name] = entry
    return found


def _same(bucket: Bucket, folder: Path, whole: Entry) -> bool:
    """Tell whether a checkpoint here has the files, to the bit, that one there has."""
    path = folder / WHOLE
    if not path.is_file() or path.stat().st_size != whole.bytes:
        return False
    return path.read_bytes() == bucket.exactly(whole.key, 0, whole.bytes, tag=whole.tag)


def _fetch(bucket: Bucket, folder: Path, entries: dict[str, Entry]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)

    def one(name: str) -> None:
        path = part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch(bucket, entries[name], path)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, entries))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def _remove(bucket: Bucket, prefix: str, names: Collection[str]) -> None:
    for name in sorted(names, key=lambda name: name != WHOLE):
        bucket.remove(f"{prefix}/{name}")
