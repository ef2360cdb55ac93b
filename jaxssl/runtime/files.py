"""Files that appear whole or not at all: text, JSON, CSV, arrays; and the folder that a run may take."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError

Row = Mapping[str, Any]


def claim(out: Path) -> None:
    """Make the output folder, and make sure before hours of work that it can be written.

    Raises:
        InputError: it holds something that is no run of ours.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file())):
        raise InputError(f"{out}: not a run folder of ours; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").unlink(missing_ok=True)  # a report that is there is of a finished run


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows under the union of their keys; what is a list or a dict stays in report.json only."""
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, (list, dict)))
    with _whole(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(keys), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(_whole(path), path)


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that the file appears whole or not at all."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text so that the file appears whole or not at all."""
    _whole(path).write_text(text)
    os.replace(_whole(path), path)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as .npz so that the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _whole(path).open("wb") as file:
        np.savez(file, **arrays)
    os.replace(_whole(path), path)


def _whole(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
