"""Which files of a folder are the same as their objects: a hidden list in each folder, of what was fetched or sent.

A file that is in the list and unchanged since, while the bucket has another or none, is old; one that is not in the
list, or changed, is this machine's own work, which the bucket does not have yet. A checkpoint, a folder, is in the list
of the folder above it, by the last of its files.
"""

import json
import os
import threading
from pathlib import Path

NAME = ".objects"
WHOLE = "files.json"  # of a checkpoint, as `jaxssl.runtime.seal` writes it: the last of its files


class Ledger:
    """The lists of a folder and of those below it, as far as they were asked for."""

    def __init__(self) -> None:
        self._known: dict[Path, dict[str, list[object]]] = {}
        self._changed: set[Path] = set()
        self._lock = threading.RLock()

    def tag(self, path: Path) -> str | None:
        """Return the tag of the object that a file is the same as; None: it is own work, or not there."""
        state, noted = _state(path), self._of(path.parent).get(path.name)
        return str(noted[0]) if state and noted and noted[1:] == state else None

    def noted(self, path: Path) -> str | None:
        """Return the tag of the object that a file was the same as, whatever was done to it since."""
        noted = self._of(path.parent).get(path.name)
        return str(noted[0]) if noted else None

    def note(self, path: Path, tag: str) -> None:
        """Remember that a file is the same as the object of that tag."""
        if state := _state(path):
            with self._lock:
                self._of(path.parent)[path.name] = [tag, *state]
                self._changed.add(path.parent)

    def forget(self, path: Path) -> None:
        """Remember nothing of a file."""
        with self._lock:
            if self._of(path.parent).pop(path.name, None):
                self._changed.add(path.parent)

    def names(self, folder: Path) -> list[str]:
        """List the files of a folder that were noted."""
        return list(self._of(folder))

    def folders(self) -> list[Path]:
        """List the folders that were asked for, whether they are still there or not."""
        return list(self._known)

    def save(self) -> None:
        """Write the lists that changed."""
        with self._lock:
            for folder in self._changed:
                if folder.is_dir():
                    part = folder / f"{NAME}.{os.getpid()}.part"
                    part.write_text(json.dumps(self._of(folder)))
                    os.replace(part, folder / NAME)
            self._changed.clear()

    def _of(self, folder: Path) -> dict[str, list[object]]:
        with self._lock:
            return self._read(folder)

    def _read(self, folder: Path) -> dict[str, list[object]]:
        if folder not in self._known:
            try:
                found = json.loads((folder / NAME).read_bytes())
            except (OSError, ValueError):  # what it would say is then found out again
                found = {}
            named = found.items() if isinstance(found, dict) else ()
            self._known[folder] = {name: noted for name, noted in named if isinstance(noted, list) and len(noted) == 3}
        return self._known[folder]


LEDGER = Ledger()  # of this process: two would not know of each other's notes


def _state(path: Path) -> list[object]:
    try:
        found = os.stat(path / WHOLE if path.is_dir() else path)
    except FileNotFoundError:
        return []
    return [found.st_size, found.st_mtime_ns]
