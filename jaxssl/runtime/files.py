"""Files that appear whole or not at all: text, JSON, CSV, arrays; and the folder that a run may take."""

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.runtime import locks
from jaxssl.storage import places, publishing

Row = Mapping[str, Any]
DEPTH = 64  # of JSON; ours have some 10, and whoever walks through one must not run out of stack
SETTINGS = "config.json"  # of the run that owns a folder
CLAIMED = ".claimed"  # in a folder that no run owns yet, so that what is prepared in it makes it no stranger's


def claim(out: Path) -> None:
    """Make the output folder, and make sure before hours of work that it can be taken and written.

    What an earlier run left there stays: a command may still be refused. A run that really begins says so by `own`.

    Raises:
        InputError: it holds something that is no run of ours, or another command works there.
    """
    marks = [out / name for name in (SETTINGS, CLAIMED)]
    if out.exists() and (not out.is_dir() or (not empty(out) and not any(mark.is_file() for mark in marks))):
        raise InputError(f"{out}: not a run folder of ours; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / CLAIMED).touch()
    locks.take(out)
    if (out / SETTINGS).is_file():
        (out / CLAIMED).unlink()


def own(out: Path, settings: Any) -> None:
    """Make a claimed folder this run's own, once nothing can be refused any more; what is made there goes to its URL.

    Args:
        out: the folder.
        settings: of the run, a dataclass, or a mapping of JSON values.
    """
    (out / "report.json").unlink(missing_ok=True)  # a report that is there is of a finished run
    write_json(out / SETTINGS, plain(settings) if dataclasses.is_dataclass(settings) else settings)
    (out / CLAIMED).unlink(missing_ok=True)
    publishing.begin(out)


def plain(settings: Any) -> dict[str, Any]:
    """Write settings, a dataclass, as JSON values; paths that stand for URLs as these."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=places.shown))


def read_json(path: Path, *, most: int = 100_000_000) -> Any:
    """Read JSON that others may have written; what it should hold, the caller checks.

    Raises:
        InputError: it is no JSON, or is beyond `most` bytes, nested too deep, or has a number of thousands of digits.
        OSError: it is not there, or cannot be read.
    """
    if (size := path.stat().st_size) > most:
        raise InputError(f"{path}: {size} bytes, more than {most}; this is none of ours")
    return parsed(path.read_bytes(), path)


def parsed(text: str | bytes, where: object) -> Any:
    """Read JSON that others may have written; `where` says whose it is, and what it should hold, the caller checks.

    Raises:
        InputError: it is no JSON, is nested too deep, or has a number of thousands of digits.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: damaged, not JSON ({error}); make or copy it again") from error
    level = [values]
    for _ in range(DEPTH):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return values
    raise InputError(f"{where}: JSON nested over {DEPTH} deep; this is none of ours")


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def read_object(path: Path, *, most: int = 100_000_000) -> dict[str, Any]:
    """Read a JSON file of names and values, as `read_json`.

    Raises:
        InputError: as `read_json`, or it holds something else.
        OSError: it is not there, or cannot be read.
    """
    return named(read_json(path, most=most), path)


def read_rows(path: Path, *texts: str) -> list[dict[str, Any]]:
    """Read a JSON file of rows, each of names and values, as `read_json`.

    Args:
        path: the file.
        texts: names that every row must have, of texts.

    Raises:
        InputError: as `read_json`, or it holds something else.
        OSError: it is not there, or cannot be read.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: no list of rows, but a {type(rows).__name__}; make or copy it again")
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in texts if not isinstance(named(row, path).get(name), str)]:
            raise InputError(f"{path}: row {number} of {len(rows)} has no text {missing[0]}; make or copy it again")
    return [named(row, path) for row in rows]


def named(values: Any, where: object) -> dict[str, Any]:
    """Return a JSON value that has to be one of names and values.

    Raises:
        InputError: it is another.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where}: not names and values, but a {type(values).__name__}; make or copy it again")
    return values


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows under the union of their keys; what is a list or a dict stays in report.json only."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, (list, dict)))
    with whole(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(keys), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that the file appears whole or not at all."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text so that the file appears whole or not at all."""
    with whole(path) as part:
        part.write_text(text)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as .npz so that the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def empty(folder: Path) -> bool:
    """Tell whether a folder holds nothing but what `whole` leaves where it is killed."""
    return all(path.name.startswith(".") and path.name.endswith(".part") for path in folder.iterdir())


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a place to write a file at, which gets its name when all is written, and goes where that fails."""
    part = path.with_name(f".{path.name}.part")
    try:
        with naming(path):
            yield part
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give errors of the disk the name of the file that is written, which those of an open file do not have."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
