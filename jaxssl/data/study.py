"""The MelHuBERT study's corpora: a CSV of `file_path, label_path, length`, one .npy of features and one of labels each.

Features are 10 ms frames of 40 bins, normalised already; a 20 ms model joins two. Labels come each 10 or 20 ms, which
the counts tell: as many as frames, or half as many, rounded up.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np

from compress.errors import InputError
from jaxssl.data.arrays import read_array
from jaxssl.data.logmel import SHIFT, WINDOW, load_stats
from jaxssl.data.manifest import Manifest, Utterance, unique
from jaxssl.data.prepared import PERIOD_MS, Labels, Prepared

COLUMNS = ("file_path", "label_path", "length")


@dataclass(frozen=True)
class Files:
    """Rows that are a .npy file each."""

    paths: Sequence[Path]
    axes: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int, /) -> np.ndarray:
        return read_array(self.paths[i], axes=self.axes)


def read_study(
    path: str | Path, *, stats: str | Path | None = None, root: str | Path | None = None, clusters: int | None = None
) -> Prepared:
    """Open a corpus of the study; its one set of labels is called `study`.

    Utterances have no audio: their `path` is the features' file and `samples` what as many frames need.

    Args:
        path: the CSV.
        stats: mean and deviation the features were normalised by; default: `mean-std.npy` beside the CSV.
        root: what its paths are relative to; default: the CSV's folder or the one above, where the first file is.
        clusters: default: one more than the largest label.

    Raises:
        InputError: a file is missing, or lengths or rates do not fit together; the line is named.
    """
    path = Path(path)
    rows = _rows(path)
    base = Path(root) if root is not None else _root(path, rows[0][0])
    features = Files([base / row[0] for row in rows], axes=2)
    labels = Files([base / row[1] for row in rows], axes=1)
    frames = np.array([len(features[i]) for i in range(len(rows))], np.int64)
    period = _check(path, [row[2] for row in rows], frames, labels)
    if clusters is None:
        clusters = 1 + max(int(labels[i].max()) for i in range(len(rows)))
    statistics = load_stats(stats if stats is not None else path.with_name("mean-std.npy"))
    known = Labels("study", clusters, period, labels, {"source": str(path)})
    return Prepared(_manifest(path, features, frames), statistics, frames, True, features, {"study": known})


def _rows(path: Path) -> list[tuple[str, str, int]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines)
            if not set(COLUMNS) <= set(table.fieldnames or ()):
                raise InputError(f"{path}: its first line must name the columns {', '.join(COLUMNS)}")
            rows = [(row["file_path"] or "", row["label_path"] or "", int(row["length"] or "")) for row in table]
    except (UnicodeDecodeError, csv.Error, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a table of the study: {error}") from error
    if not rows:
        raise InputError(f"{path}: no rows below the first line")
    return rows


def _root(path: Path, first: str) -> Path:
    places = (path.parent, path.parent.parent)
    found = next((place for place in places if isfile(place / first)), None)
    if found is None:
        raise InputError(
            f"{path}: {first} is neither beside it nor in the folder above; say what paths are relative to"
        )
    return found


def _check(path: Path, lengths: Sequence[int], frames: np.ndarray, labels: Files) -> int:
    """Compare lengths, frames and labels; return the labels' period in ms."""
    periods = {10, 20}
    for i, (length, count) in enumerate(zip(lengths, frames.tolist(), strict=True)):
        line = i + 2
        if len(labels[i]) != length:
            raise InputError(f"{path}, line {line}: {len(labels[i])} labels in {labels.paths[i]}, length {length}")
        periods &= {n * PERIOD_MS for n in (1, 2) if -(-count // n) == length}
        if not periods:
            raise InputError(f"{path}, line {line}: {length} labels for {count} frames of 10 ms; one each 10 or 20 ms")
    return min(periods)


def _manifest(path: Path, features: Files, frames: np.ndarray) -> Manifest:
    samples = (frames - 1) * SHIFT + WINDOW
    return unique((Utterance(f.stem, f, int(n)) for f, n in zip(features.paths, samples, strict=True)), path)
