"""A prepared corpus on disk: features of all utterances in memory-mapped files, and frame labels beside them.

    prepared/
      manifest.tsv  phones.tsv    the corpus (`jaxssl.data.manifest`)
      stats.npy                   (2, 40) mean and deviation of log-Mel over the corpus
      features.npy                (frames, 40) log-Mel each 10 ms, not normalised, one utterance after the other
      features/00000.npy  …       instead, where they are in several shards
      shards.npy                  (shards + 1,) int64, the first utterance of each shard; where there are several
      offsets.npy                 (utterances + 1,) int64, where each begins, counted through all shards
      labels/NAME.npy             (label frames,) cluster of each frame
      labels/NAME.offsets.npy     (utterances + 1,) int64
      labels/NAME.centres.npy     (clusters, size) k-means centres, where there are such
      labels/NAME.json            clusters, period_ms, source and quality; written last: labels without it do not count

`features.py` writes the first part, `labels.py` makes labels; `study.py` reads the MelHuBERT study's files as the same.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.data import corpora
from jaxssl.data.arrays import Rows, Shards, Slices, open_rows, read_array, write_array, write_blocks, write_whole
from jaxssl.data.logmel import SHIFT, WINDOW, Stats, load_stats
from jaxssl.data.manifest import Manifest
from jaxssl.runtime.files import read_object

PERIOD_MS = 10  # of the features


@dataclass(frozen=True)
class Labels:
    """Frame labels of a corpus; `labels[i]` are those of utterance i, (frames,) int32, -1 where unknown.

    Attributes:
        name: of the set.
        clusters: labels are below it.
        period_ms: time from one label to the next.
        rows: as stored.
        info: what else is known: source, inertia, purity, phone_purity, pnmi.
    """

    name: str
    clusters: int
    period_ms: int
    rows: Rows
    info: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> np.ndarray:
        return np.asarray(self.rows[i], np.int32)

    @property
    def lengths(self) -> np.ndarray:
        """Labels of each utterance, (utterances,) int64."""
        return np.array([len(self.rows[i]) for i in range(len(self.rows))], np.int64)


@dataclass(frozen=True)
class Prepared:
    """Features and labels of a corpus.

    Attributes:
        manifest: the corpus; utterance i is row i everywhere.
        stats: mean and deviation of log-Mel over it.
        lengths: 10 ms frames of each utterance, (utterances,) int64.
        normalized: whether what is stored is normalised already (the study's files are).
        rows: features as stored.
        sets: its labels, by name.
    """

    manifest: Manifest
    stats: Stats
    lengths: np.ndarray
    normalized: bool
    rows: Rows
    sets: Mapping[str, Labels]

    period_ms = PERIOD_MS

    def __len__(self) -> int:
        return len(self.rows)

    def features(self, i: int) -> np.ndarray:
        """Return utterance i as stored, (frames, bins) float32, a frame each 10 ms; see `normalized`."""
        return np.asarray(self.rows[i], np.float32)

    def inputs(self, i: int, *, stack: int = 1, stats: Stats | None = None) -> np.ndarray:
        """Return utterance i as a model reads it: normalised, `stack` frames joined into one.

        Args:
            i: the utterance.
            stack: frames joined; a short last group is filled with zeros.
            stats: those of a model trained elsewhere; default: this corpus's.

        Returns:
            (ceil(frames / stack), stack · bins) float32.
        """
        x = self.features(i)
        if stats is not None and self.normalized:
            x = x * self.stats.std + self.stats.mean
        if stats is not None or not self.normalized:
            used = stats or self.stats
            x = (x - used.mean) / used.std
        x = np.pad(x, ((0, -len(x) % stack), (0, 0)))
        return x.reshape(-1, stack * x.shape[1])

    def labels(self, name: str | None = None) -> Labels:
        """Return a set of labels; the name may be left out where there is one set.

        Raises:
            InputError: there is no such set, or several and no name.
        """
        if name is None and len(self.sets) == 1:
            return next(iter(self.sets.values()))
        if name is None or name not in self.sets:
            there = ", ".join(sorted(self.sets)) or "none; make some with experiments.prepare --labels"
            raise InputError(f"labels {name or 'of which set'}? there are {len(self.sets)} sets: {there}")
        return self.sets[name]

    def indices(self, part: str) -> np.ndarray:
        """List the utterances of one split, (count,) int64.

        Raises:
            InputError: there are none.
        """
        found = [i for i, utterance in enumerate(self.manifest.utterances) if utterance.split == part]
        if not found:
            there = ", ".join(sorted({u.split or "(none)" for u in self.manifest.utterances}))
            raise InputError(f"0 of {len(self)} utterances are in split {part!r}; splits: {there}")
        return np.array(found, np.int64)


def frame_count(samples: Any) -> Any:
    """Count 10 ms log-Mel frames of `samples` samples (an int or an array)."""
    return 1 + (samples - WINDOW) // SHIFT


def load(folder: str | Path) -> Prepared:
    """Open a prepared corpus; features and labels stay on disk until asked for, and the audio need not be there.

    Raises:
        InputError: it is not there, not finished, or its files do not fit together.
    """
    folder = Path(folder)
    if (
        not ((folder / "features.npy").is_file() or (folder / "features").is_dir())
        or not (folder / "stats.npy").is_file()
    ):
        begun = (folder / "manifest.tsv").is_file()
        why = "preparing it was not finished; run the same experiments.prepare again" if begun else "not prepared"
        raise InputError(f"{folder}: no features.npy and stats.npy: {why}")
    manifest, stats = corpora.read(folder / "manifest.tsv", present=False), load_stats(folder / "stats.npy")
    rows = _features(folder, len(manifest.utterances))
    shape = rows.shard(0).shape
    if len(shape) != 2 or shape[1] != len(stats.mean):
        raise InputError(f"{folder}: features of shape {shape}, statistics of {len(stats.mean)} bins; redo it")
    sets = {path.stem: load_labels(path, len(rows)) for path in sorted((folder / "labels").glob("*.json"))}
    return Prepared(manifest, stats, np.diff(rows.offsets), False, rows, sets)


def shard_files(folder: Path, count: int) -> tuple[Path, ...]:
    """Name the files of a corpus's features, in `count` shards."""
    if count == 1:
        return (folder / "features.npy",)
    return tuple(folder / "features" / f"{shard:05d}.npy" for shard in range(count))


def shard_bounds(folder: Path, utterances: int) -> np.ndarray:
    """Return the first utterance of each shard of a prepared corpus, and their number, (shards + 1,) int64.

    Raises:
        InputError: the table is damaged.
    """
    path = folder / "shards.npy"
    if not path.is_file():
        return np.array([0, utterances])
    first = np.asarray(read_array(path, axes=1))
    if first.dtype.kind != "i" or len(first) < 3 or first[0] or first[-1] != utterances or (np.diff(first) < 1).any():
        raise InputError(f"{path}: not the first of {utterances} utterances in each shard; make it again")
    return first


def _features(folder: Path, utterances: int) -> Shards:
    first, offsets = shard_bounds(folder, utterances), _offsets(folder / "offsets.npy", utterances)
    return Shards(shard_files(folder, len(first) - 1), first, offsets)


def load_labels(path: Path, utterances: int) -> Labels:
    """Open one set of labels by its .json file.

    Raises:
        InputError: a file is missing or damaged, or holds another number of utterances.
    """
    try:
        info = read_object(path)
        clusters, period = int(info.pop("clusters")), int(info.pop("period_ms"))
        if min(clusters, period) < 1:
            raise ValueError(f"{clusters} clusters, one each {period} ms")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: not a description of labels ({error!r}); make the labels again") from error
    rows = _slices(path.with_suffix(".npy"), path.with_suffix(".offsets.npy"), utterances)
    if rows.values.ndim != 1 or rows.values.dtype.kind != "i":
        raise InputError(f"{path}: labels are whole numbers in one row, not {rows.values.dtype} {rows.values.shape}")
    return Labels(path.stem, clusters, period, rows, info)


def check_name(name: str) -> None:
    """Refuse what cannot be the name of labels.

    Raises:
        InputError: it is no file name.
    """
    if not name or name.startswith(".") or {"/", "\\", "\0"} & set(name):
        raise InputError(f"labels cannot be called {name!r}; use letters, digits, - and _")


def write_labels(
    folder: str | Path,
    name: str,
    rows: Iterable[np.ndarray],
    *,
    clusters: int,
    period_ms: int,
    info: Mapping[str, Any],
    lengths: np.ndarray | None = None,
    centres: np.ndarray | None = None,
) -> None:
    """Add a set of labels to a prepared corpus, or replace one; it counts once it is whole.

    Args:
        folder: the prepared corpus.
        name: a file name.
        rows: labels of every utterance, (frames,), below `clusters`.
        clusters: how many there may be.
        period_ms: time from one label to the next.
        info: JSON values kept beside them.
        lengths: (utterances,), of the rows; where it is given, these need not be in memory together.
        centres: (clusters, size), kept beside them to label other corpora by.

    Raises:
        InputError: the name is no file name, the number of rows is not that of the utterances, or a label is too large.
    """
    check_name(name)
    if lengths is None:
        rows = list(_checked(name, rows, clusters))
        lengths = np.array([len(row) for row in rows], np.int64)
    offsets, dtype = np.cumsum([0, *lengths], dtype=np.int64), "int16" if clusters <= 2**15 else "int32"
    wanted = len(read_array(Path(folder) / "offsets.npy")) - 1
    if len(lengths) != wanted:
        raise InputError(f"{folder}: labels of {len(lengths)} utterances for {wanted}; give every utterance a row")
    target = Path(folder) / "labels"
    target.mkdir(exist_ok=True)
    (target / f"{name}.json").unlink(missing_ok=True)
    write_blocks(target / f"{name}.npy", (int(offsets[-1]),), dtype, _checked(name, rows, clusters))
    write_array(target / f"{name}.offsets.npy", offsets)
    if centres is not None:
        write_array(target / f"{name}.centres.npy", centres)
    described = {"clusters": clusters, "period_ms": period_ms, **info}
    write_whole(target / f"{name}.json", (json.dumps(described, indent=1) + "\n").encode())


def _checked(name: str, rows: Iterable[np.ndarray], clusters: int) -> Iterable[np.ndarray]:
    for row in rows:
        if len(row) and not -1 <= row.min() <= row.max() < clusters:
            raise InputError(
                f"labels {name}: {row.min()} to {row.max()} for {clusters} clusters; use 0 to {clusters - 1}"
            )
        yield row


def _slices(values: Path, offsets: Path, utterances: int) -> Slices:
    rows = Slices(open_rows(values), _offsets(offsets, utterances))
    if rows.offsets[-1] != len(rows.values):
        raise InputError(f"{offsets}: ends at {rows.offsets[-1]}, {values.name} has {len(rows.values)}; make it again")
    return rows


def _offsets(path: Path, utterances: int) -> np.ndarray:
    offsets = np.asarray(read_array(path, axes=1))
    if offsets.dtype.kind != "i":
        raise InputError(f"{path}: offsets are whole numbers, not {offsets.dtype}; make it again")
    if offsets.shape != (utterances + 1,):
        raise InputError(f"{path}: {offsets.size - 1} utterances, the manifest has {utterances}; make it again")
    if offsets[0] or (np.diff(offsets) < 0).any():
        raise InputError(f"{path}: does not ascend from 0; make it again")
    return offsets
