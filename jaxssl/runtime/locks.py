"""One command at a time in a folder: who comes second is told who is there.

The lock is the system's own, on a file in the folder that says host and process: it goes when its process dies, however
that dies, and what the file says is then of a dead one, which is told.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from compress.errors import InputError

NAME = ".lock"  # of the file, in the folder
LONGEST = 300  # characters of it that are shown
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without locks


@dataclass
class Held:
    """The folders of one command, and what gives them back at its end."""

    stack: ExitStack
    tell: Callable[[str], object]
    folders: set[Path] = field(default_factory=set)


_command: ContextVar[Held | None] = ContextVar("command", default=None)


@contextmanager
def holding(tell: Callable[[str], object]) -> Iterator[None]:
    """Keep the folders that are taken inside until the end; without a command around them runs take none.

    `tell` shows a line: of a lock that a dead process left, or of a file system without locks.
    """
    with ExitStack() as stack:
        token = _command.set(Held(stack, tell))
        try:
            yield
        finally:
            _command.reset(token)


def take(folder: Path) -> None:
    """Make a folder this command's own until the command ends; one that it has already stays.

    Raises:
        InputError: another process has it; the message says which.
    """
    held, place = _command.get(), folder.resolve()
    if held is None or place in held.folders:
        return
    path = place / NAME
    file, said = _locked(path)
    if file is None:
        held.tell(f"note: {folder}: this file system has no locks; let no other command write there meanwhile")
        return
    held.folders.add(place)
    held.stack.callback(_release, path, file)
    me = f"process {os.getpid()} on {socket.gethostname()}"
    file.truncate(0)
    file.write(me)
    file.flush()
    if said:
        held.tell(f"note: {folder}: {said} ended here without a word; its place is taken")


def taken(folder: Path) -> bool:
    """Tell whether another process has a folder by `take`; where file systems have no locks, none is seen."""
    held = _command.get()
    if held is not None and folder.resolve() in held.folders:
        return False
    with suppress(OSError), (folder / NAME).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def working(folder: Path) -> Iterator[None]:
    """Let other processes see, as long as the body of `with` runs, that one works in a folder; see `at_work`."""
    with _opened(folder) as file:
        with suppress(OSError):  # there are no locks here, and `at_work` says so
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # several may
        yield


def at_work(folder: Path) -> bool:
    """Tell whether a living process works in a folder; where file systems have no locks, no one is seen.

    Raises:
        FileNotFoundError: it is gone.
    """
    with _opened(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in UNKNOWN:
                raise
    return False


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield file
    finally:
        os.close(file)


def _locked(path: Path) -> tuple[IO[str] | None, str]:
    """Open and lock a file; also return what it says. None: there are no locks here."""
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            file.seek(0)
            said = " ".join(file.read(LONGEST).split())
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(path, file):
                return file, said
        except BlockingIOError:
            file.close()
            who = said or "another process"
            raise InputError(f"{path.parent}: {who} works there; wait for its end, or choose another --out") from None
        except OSError as error:
            file.close()
            if error.errno in UNKNOWN:
                return None, ""
            raise
        file.close()  # who had it removed the file while we waited: another is there by now, or none


def _same(path: Path, file: IO[str]) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False


def _release(path: Path, file: IO[str]) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)  # while the lock is held, so that nobody else has it
    file.close()
