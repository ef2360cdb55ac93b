"""What a command makes at a URL, sent there: it works in the URL's local path, and what is finished becomes objects.

Checkpoints, and the journal before them, are sent beside the work as soon as they have their names, everything else
when the command says so and at its end. An object appears whole or not at all; those that say that others are whole
(`files.json`, `arch.json`, a label set's .json, the statistics of a corpus) are removed before these are sent anew, and
sent last.
"""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from jaxssl.storage import asking, checkpoints, places
from jaxssl.storage.fetching import waits
from jaxssl.storage.ledger import LEDGER

LOCAL = re.compile(r"\..*\.part|\.lock|\.claimed|\.objects.*|.*\.orbax-checkpoint-tmp|damaged-\d+")  # is not sent
FIRSTS = ("config.json", ".features.json")  # say whose a folder is: one with other files only would be a stranger's
SEAL = "files.json"  # which refuses files that it does not list
LASTS = re.compile(rf"(.*/)?({re.escape(SEAL)}|arch\.json|report\.json|stats\.npy|labels/[^/]*\.json)", re.DOTALL)
JOURNAL = ("config.json", "metrics.jsonl", "tensorboard/*")  # of a run, before its checkpoints
THREADS = 8  # that send
LOOK_S = 0.2  # seconds between two looks for a new checkpoint


class Publisher:
    """Sends what is made in a folder to its URL; a thread of its own sends the checkpoints that it is to watch."""

    def __init__(self, folder: Path, tell: Callable[[str], object], *, beside: bool = True):
        self.folder = folder
        self._bucket, self._key = asking.of(places.url(folder) or "")
        self._ledger, self._tell = LEDGER, tell
        self._turn, self._over = threading.Lock(), threading.Event()
        self._watched: dict[Path, checkpoints.Sent] = {}
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._beside, name="publisher", daemon=True)
        if beside:
            self._thread.start()

    def now(self) -> None:
        """Send what is new, and remove what is gone here.

        Raises:
            InputError: the bucket did not take it.
        """
        with self._turn:
            found = [path for path in self._files() if self._ledger.tag(path) is None]
            lasts = [path for path in found if LASTS.fullmatch(self._name(path))]
            old = [*self._gone(), *(path for path in lasts if self._ledger.noted(path))]
            for path in old:  # first, or a file that is here would be taken for one that somebody removed there
                self._ledger.forget(path)
            self._ledger.save()
            for path in old:
                self._bucket.remove(self._of(path))
            for path in lasts:
                if path.name == SEAL:
                    self._clear(path.parent)
            self._send(path for path in found if path.name in FIRSTS)
            self._send(path for path in found if path.name not in FIRSTS and path not in set(lasts))
            self._send(sorted(lasts, key=lambda path: (-len(path.parts), path)))
            for each in self._watched.values():
                each.send(THREADS)
            self._failure = None

    def watch(self, folder: Path) -> None:
        """Bring a folder's checkpoints, and send from then on what is new there, and remove what is gone."""
        with self._turn:  # before all are here, those that are not would be taken for gone
            self._watched.pop(folder, None)
            checkpoints.bring(folder)
            self._watched[folder] = checkpoints.Sent(folder)

    def check(self) -> None:
        """Raise what went wrong beside the work, if it did."""
        if (failure := self._failure) is not None:
            self._failure = None
            raise failure

    def close(self) -> None:
        """End the thread; what it sends now is still sent."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beside(self) -> None:
        while not self._over.wait(LOOK_S):
            for folder, sent in list(self._watched.items()):
                if self._failure is None and sent.due():
                    try:
                        with self._turn:
                            for name in JOURNAL:  # in this order, for the first says whose the folder is
                                found = folder.parent.glob(name)
                                self._send((path for path in found if self._ledger.tag(path) is None), still=False)
                            sent.send(THREADS)
                    except Exception as failure:  # shown now, and raised where the work can end
                        self._failure = failure
                        self._tell(f"note: {failure}; the run stops at its next checkpoint")

    def _files(self) -> Iterator[Path]:
        if self.folder.is_file():
            yield self.folder
        for below, folders, names in os.walk(self.folder):
            folders[:] = [name for name in sorted(folders) if name != "checkpoints" and not LOCAL.fullmatch(name)]
            for name in sorted(names):
                if not LOCAL.fullmatch(name) and not waits(path := Path(below, name)):
                    yield path

    def _gone(self) -> list[Path]:
        """List what was sent and is not here any more, of folders that are gone, too."""
        below = (Path(folder) for folder, _, _ in os.walk(self.folder))
        folders = {*below, *(each for each in self._ledger.folders() if each.is_relative_to(self.folder))}
        paths = [
            folder / name for folder in folders if folder.name != "checkpoints" for name in self._ledger.names(folder)
        ]
        return sorted(path for path in paths if not path.exists())

    def _clear(self, folder: Path) -> None:
        """Remove objects of a folder that was written anew, under other names."""
        prefix = f"{self._of(folder)}/"
        for page in self._bucket.pages(prefix):
            for entry in page:
                if not (folder / entry.key.removeprefix(prefix)).exists():
                    self._bucket.remove(entry.key)

    def _of(self, path: Path) -> str:
        if path == self.folder:
            return self._key
        return f"{self._key}/{self._name(path)}" if self._key else self._name(path)  # of a folder that is the bucket

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _send(self, paths: Iterable[Path], *, still: bool = True) -> None:
        """Send files; those that may grow meanwhile as they are now."""

        def send(path: Path) -> None:
            key = self._of(path)
            if still:
                self._ledger.note(path, self._bucket.write(key, path).tag)
                return
            part = path.with_name(f".{path.name}.sent.part")
            shutil.copyfile(path, part)
            self._bucket.write(key, part)
            part.unlink()

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(send, paths))
        self._ledger.save()


_publishers: dict[Path, Publisher] = {}
_outputs: list[Path] = []  # what else is sent when the command ends well
_tell: Callable[[str], object] = bool


def begin(folder: Path) -> None:
    """Send from now on what is made in a folder, if a URL stands for it; see `running`."""
    folder = folder.absolute()
    if places.url(folder) is None or any(folder.is_relative_to(other) for other in _publishers):
        return
    for other in [other for other in _publishers if other.is_relative_to(folder)]:
        _publishers.pop(other).close()
    _publishers[folder] = Publisher(folder, _tell)


def at_the_end(paths: Iterable[Path]) -> None:
    """Send, when the command ends well, what URLs stand for among the paths that it writes to."""
    _outputs.extend(path.absolute() for path in paths if places.url(path))


def leave() -> None:
    """Send nothing from this process: another one of the same run does."""
    _outputs.clear()


def now(folder: Path) -> None:
    """Send what is finished in a folder; nothing where `begin` was not called, or no URL stands for it.

    Raises:
        InputError: the bucket did not take it.
    """
    for other, publisher in list(_publishers.items()):
        if folder.absolute().is_relative_to(other):
            publisher.now()


def watch(folder: Path) -> None:
    """Bring the checkpoints of a folder, for which a URL stands, and send what becomes of them beside the work.

    Raises:
        InputError: the bucket refuses, or what comes is damaged.
    """
    folder = folder.absolute()
    begin(folder.parent)
    next(each for other, each in _publishers.items() if folder.is_relative_to(other)).watch(folder)


def check() -> None:
    """Raise what went wrong while checkpoints were sent, if it did."""
    for publisher in _publishers.values():
        publisher.check()


@contextmanager
def running(tell: Callable[[str], object], *, ends: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Send, when the body of `with` ends well or by one of `ends`, all that was begun in it; then send nothing more.

    `tell` shows a line.

    Raises:
        InputError: a bucket did not take it.
    """
    global _tell
    _tell = tell
    try:
        try:
            yield
        except ends:
            _all()
            raise
        _all()
    finally:
        _outputs.clear()
        for folder in list(_publishers):
            _publishers.pop(folder).close()


def _all() -> None:
    for path in _outputs:
        if path.exists() and not any(path.is_relative_to(other) for other in _publishers):
            _publishers[path] = Publisher(path, _tell, beside=False)
    for publisher in list(_publishers.values()):
        publisher.now()
