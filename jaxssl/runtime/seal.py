"""Folders that know whether they are whole: `files.json` lists every file's size and its BLAKE3 digest.

Readers of array formats meet a truncated file deep inside their own threads and answer with pages of traces; a folder
is therefore checked before they see it. BLAKE3 reads a model in a quarter of SHA-256's time; lists of earlier versions
have this.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from blake3 import blake3

from compress.errors import InputError
from jaxssl.runtime import files

NAME = "files.json"
DIGESTS: dict[str, Callable[[], Any]] = {"blake3": blake3, "sha256": hashlib.sha256}  # the first is written


def seal(folder: Path, *, parts: Iterable[str] = (".",)) -> None:
    """List every file below the named parts of `folder`, its size in bytes and its digest, in `folder/files.json`."""
    files = {path.relative_to(folder).as_posix(): path for part in parts for path in _files(folder / part)}
    files.pop(NAME, None)
    listed = {name: {"bytes": path.stat().st_size, "blake3": _digest(path, "blake3")} for name, path in files.items()}
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
        kind = _kind(expected)
        if (digest := _digest(path, kind)) != expected[kind]:
            found, written = digest[:12], str(expected[kind])[:12]
            raise InputError(f"{path}: damaged: {kind} {found}…, {written}… was written; copy the folder again")


def _listed(folder: Path) -> dict[str, dict[str, str | int]]:
    path = folder / NAME
    if not path.is_file():
        raise InputError(f"{path}: missing; the copy is incomplete, copy the folder again")
    try:
        listed = files.read_object(path)
        if not listed or not all(
            isinstance(entry, dict) and {"bytes", _kind(entry)} <= set(entry) for entry in listed.values()
        ):
            raise ValueError("sizes or digests are missing")
        return listed
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); copy the folder again") from error


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _kind(entry: dict[str, str | int]) -> str:
    return next((kind for kind in DIGESTS if kind in set(entry)), "blake3")


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, DIGESTS[kind]).hexdigest()
