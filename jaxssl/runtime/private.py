"""Folders of the user's cache that nobody else can have written into: programs are kept there, and run."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from compress.errors import InputError


def cache(kind: str) -> Path:
    """Return the folder of that kind in the user's cache; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jaxssl" / kind


def folder(path: Path) -> Path:
    """Make a folder that only this user can enter, or make sure that only this user could write into the one there.

    Raises:
        InputError: it is another user's, open to others, or a link.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if reason := _strange(path, stat.S_ISDIR):
        raise InputError(f"{path}: {reason}, and programs kept in it are run; remove it")
    return path


def file(path: Path) -> bool:
    """Tell whether a file is there that only this user could write.

    Raises:
        InputError: there is one that others could.
    """
    if not path.is_symlink() and not path.exists():
        return False
    if reason := _strange(path, stat.S_ISREG):
        raise InputError(f"{path}: {reason}, and it would be run; remove it")
    return True


def _strange(path: Path, kind: Callable[[int], bool]) -> str | None:
    """Say why something in the file system is not ours alone; None where it is."""
    found = path.lstat()
    if not kind(found.st_mode):
        return "is a link or of another kind"
    if found.st_uid != os.getuid():
        return f"belongs to user {found.st_uid}, not to {os.getuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {stat.S_IMODE(found.st_mode):o})"
    return None
