"""Folders that know whether they are whole: `files.json` lists every file's size and SHA-256.

Readers of array formats meet a truncated file deep inside their own threads and answer with pages of traces; a folder
is therefore checked before they see it.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from compress.errors import InputError
from jaxssl.runtime import files

NAME = "files.json"


def seal(folder: Path, *, parts: Iterable[str] = (".",)) -> None:
    """List every file below the named parts of `folder`, its size in bytes and its SHA-256, in `folder/files.json`."""
    files = {path.relative_to(folder).as_posix(): path for part in parts for path in _files(folder / part)}
    files.pop(NAME, None)
    listed = {name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for name, path in files.items()}
    (folder / NAME).write_text(json.dumps(listed, indent=1) + "\n")


def check(folder: Path, *, parts: Iterable[str] = ()) -> None:
    """Compare a folder with its list.

    Args:
        folder: that was sealed.
        parts: of it, of which every file must be in the list; hidden ones are others', such as file managers'.

    Raises:
        InputError: the list is missing or damaged or leaves a file out, or a file is missing, has another size or other
            content.
    """
    listed = _listed(folder)
    for path in (path for part in parts for path in _files(folder / part) if path.name[0] != "."):
        if (name := path.relative_to(folder).as_posix()) not in listed and name != NAME:
            raise InputError(f"{path}: not in the list {NAME}, which is damaged; copy the folder again")
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing; the copy is incomplete, copy the folder again")
        if (size := path.stat().st_size) != expected["bytes"]:
            raise InputError(f"{path}: damaged: {size} bytes, {expected['bytes']} were written; copy the folder again")
        if (digest := _digest(path)) != expected["sha256"]:
            found, written = digest[:12], str(expected["sha256"])[:12]
            raise InputError(f"{path}: damaged: SHA-256 {found}…, {written}… was written; copy the folder again")


def _listed(folder: Path) -> dict[str, dict[str, str | int]]:
    path = folder / NAME
    if not path.is_file():
        raise InputError(f"{path}: missing; the copy is incomplete, copy the folder again")
    try:
        listed = files.read_object(path)
        if not listed or not all({"bytes", "sha256"} <= set(entry) for entry in listed.values()):
            raise ValueError("sizes or digests are missing")
        return listed
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); copy the folder again") from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
