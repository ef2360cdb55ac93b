"""Preparing a corpus: log-Mel features of all utterances, by any number of processes, and broken off at any time.

Frames do not depend on what stands beside them, so utterances are laid one after the other into a fixed grid of
samples (long ones are cut, frames at seams are thrown away): one compiled program, no padding, any length. The corpus
is cut into shards, and these into grids, by the lengths of its utterances alone. A shard is one file, which appears
when it is whole: who makes it, and what was there before, does not change its bytes.
"""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from compress.errors import InputError
from jaxssl.data import corpora
from jaxssl.data.arrays import Shards, write_array, write_blocks, write_whole
from jaxssl.data.audio import SAMPLE_RATE, SHORTEST, read
from jaxssl.data.logmel import SHIFT, WINDOW, logmel, stats_bytes, stats_of, sums
from jaxssl.data.manifest import Manifest, Utterance, write
from jaxssl.data.prepared import frame_count, shard_files
from jaxssl.data.team import ALONE, Team
from jaxssl.runtime import locks
from jaxssl.runtime.files import empty, read_json
from jaxssl.storage import places, publishing

ROWS, SAMPLES = (
    8,
    160_000,
)  # of a grid; rows longer than 10 s fall out of a CPU's cache, at a third of the speed
SEAM = -(-WINDOW // SHIFT) - 1  # frames that reach from one utterance into the next
BINS = 40
AHEAD = 16  # utterances decoded in advance
MINUTE = 60 * SAMPLE_RATE // SHIFT  # frames
SHARD = 60 * MINUTE  # frames of a shard: 29 MB in float16
WHOLE = 2**62  # frames of a shard in folders of before there were shards
Storage = Literal["float16", "float32"]
_logmel = jax.jit(logmel)


class Piece(NamedTuple):
    """Frames `first` to `first + frames` of an utterance, at frame `at` of row `row` of a grid."""

    utterance: int
    first: int
    frames: int
    row: int
    at: int


@dataclass(frozen=True)
class Plan:
    """What preparing a corpus takes.

    Attributes:
        offsets: where each utterance begins among the features, in frames.
        first: (shards + 1,), the first utterance of each shard, and their number.
        storage: type of the features.
    """

    offsets: np.ndarray
    first: np.ndarray
    storage: Storage

    @property
    def bytes(self) -> int:
        """Size of all features."""
        return self.size(0, len(self.first) - 1)

    def size(self, shard: int, end: int) -> int:
        """Count the bytes of the features of some shards."""
        frames = int(self.offsets[self.first[end]] - self.offsets[self.first[shard]])
        return frames * BINS * np.dtype(self.storage).itemsize

    def grids(self, shard: int) -> Iterator[tuple[Piece, ...]]:
        """Lay out the utterances of a shard."""
        begin, end = self.first[shard], self.first[shard + 1]
        return _grids(np.diff(self.offsets[begin : end + 1]).tolist(), int(begin))


@dataclass(frozen=True)
class Work:
    """Features that are to be made.

    Attributes:
        manifest: the corpus.
        folder: where.
        plan: of all.
        team: who makes them.
        missing: shards that are not there.
    """

    manifest: Manifest
    folder: Path
    plan: Plan
    team: Team
    missing: tuple[int, ...]

    @property
    def grids(self) -> int:
        """Count the grids that this process computes."""
        return sum(1 for shard in self.team.mine(self.missing) for _ in self.plan.grids(shard))

    @property
    def seconds(self) -> float:
        """Duration of the speech that is missing."""
        begins = self.plan.offsets[self.plan.first]
        return float(sum(begins[k + 1] - begins[k] for k in self.missing)) * SHIFT / SAMPLE_RATE


def plan(manifest: Manifest, *, storage: Storage = "float16", shard_frames: int = SHARD) -> Plan:
    """Lay out all utterances and tell the size beforehand.

    Args:
        manifest: the corpus.
        storage: type of the features.
        shard_frames: of a shard at most, but for its last utterance; shards are as equal as whole utterances can be.

    Raises:
        InputError: an utterance is shorter than a frame.
    """
    if short := [u for u in manifest.utterances if u.samples < SHORTEST]:
        some = f"{len(short)} of {len(manifest.utterances)} utterances are shorter than a frame of {SHORTEST} samples"
        raise InputError(f"{some}, the first is {short[0].path} with {short[0].samples}; leave them out")
    offsets = np.cumsum([0, *(frame_count(u.samples) for u in manifest.utterances)], dtype=np.int64)
    count = -(-int(offsets[-1]) // shard_frames)
    ends = np.searchsorted(offsets, np.arange(count + 1) * int(offsets[-1]) // count)
    return Plan(offsets, np.unique(ends), storage)


def prepare(
    manifest: Manifest,
    folder: str | Path,
    *,
    storage: Storage = "float16",
    shard_frames: int | None = None,
    team: Team = ALONE,
    tick: Callable[[], object] = bool,
) -> None:
    """Write manifest, features and statistics of a corpus: `begin`, `extract` and `finish`, which see, in one."""
    work = begin(manifest, folder, storage=storage, shard_frames=shard_frames, team=team)
    extract(work, tick)
    finish(work)


def begin(
    manifest: Manifest | None,
    folder: str | Path,
    *,
    storage: Storage = "float16",
    shard_frames: int | None = None,
    team: Team = ALONE,
) -> Work:
    """Write the tables of a corpus, or check that those there are of this one, and see which features are missing.

    Args:
        manifest: the corpus; only process 0 needs it, the others read what that writes.
        folder: where; labels that are there stay when the corpus is the same.
        storage: float16 is off by 0.1 % of a deviation and half as large.
        shard_frames: frames of a shard, see `plan`; None: what the folder has, else `SHARD`.
        team: who works together; all call this, `extract` and `finish`.

    Raises:
        InputError: the disk is too small, or the folder holds another corpus, or another command works there.
    """
    folder = Path(folder)
    if manifest is None or not team.main:
        team.wait()
        for name in (".features.json", "manifest.tsv"):
            team.see(folder / name)
        manifest = corpora.read(folder / "manifest.tsv", present=False)
    planned = plan(manifest, storage=storage, shard_frames=_shard_frames(folder, shard_frames))
    there = np.zeros(len(planned.first) - 1, bool)
    if team.main:
        folder.mkdir(parents=True, exist_ok=True)
        _begin(manifest, folder, planned, _shard_frames(folder, shard_frames))
        locks.take(folder)
        publishing.begin(folder)
        there[:] = [path.is_file() for path in shard_files(folder, len(there))]
        _check_space(folder, planned, there)
        team.wait()
    work = Work(manifest, folder, planned, team, tuple(np.flatnonzero(~team.said(there)).tolist()))
    if team.main and work.missing:
        (folder / "stats.npy").unlink(missing_ok=True)
    return work


def extract(work: Work, tick: Callable[[], object] = bool) -> None:
    """Make this process's part of the features that are missing, one shard after another.

    Args:
        work: of `begin`.
        tick: called once for each of `work.grids`.

    Raises:
        InputError: a file is not what the manifest says.
    """
    files = shard_files(work.folder, len(work.plan.first) - 1)
    for shard in work.team.mine(work.missing):
        frames = computed(work.manifest, work.plan, shard, tick)
        write_blocks(files[shard], frames.shape, work.plan.storage, (frames,))
    work.team.wait()


def computed(manifest: Manifest, planned: Plan, shard: int, tick: Callable[[], object] = bool) -> np.ndarray:
    """Compute the features of a shard, (frames, bins), in memory; `tick` is called once for each of its grids.

    Raises:
        InputError: a file is not what the manifest says.
    """
    begin, end = (int(planned.offsets[planned.first[k]]) for k in (shard, shard + 1))
    frames = np.empty((end - begin, BINS), planned.storage)
    for pieces, samples in _filled(manifest, list(planned.grids(shard))):
        found = np.asarray(_logmel(samples))
        for piece in pieces:
            at = int(planned.offsets[piece.utterance]) + piece.first - begin
            frames[at : at + piece.frames] = found[piece.row, piece.at : piece.at + piece.frames]
        tick()
    return frames


def finish(work: Work) -> None:
    """Write the statistics of the features, unless they are there; they are the last of a prepared corpus.

    Each shard is added up by one process, and the sums are added in the order of the shards.

    Raises:
        InputError: a bin never varies, or a shard that another process wrote does not appear.
    """
    planned, team, path = work.plan, work.team, work.folder / "stats.npy"
    done = team.main and path.is_file()  # whoever asks before it is there may be told so for a while after
    if not team.said(np.array([done])).all():
        count = len(planned.first) - 1
        files = shard_files(work.folder, count)
        for file in team.mine(files):
            team.see(file)
        rows = Shards(files, planned.first, planned.offsets)
        mine = [_sums(rows, planned.first, shard) for shard in team.mine(range(count))]
        total = team.shared(np.reshape(mine, (-1, 2, BINS)), count).sum(0)
        if team.main:
            write_whole(path, stats_bytes(stats_of(total, int(planned.offsets[-1]))))
    team.wait()
    team.see(path)


def _sums(rows: Shards, first: np.ndarray, shard: int) -> np.ndarray:
    total = np.zeros((2, BINS))
    for i in range(int(first[shard]), int(first[shard + 1])):
        total = total + sums(rows[i])
    return total


def _grids(frames: list[int], utterance: int) -> Iterator[tuple[Piece, ...]]:
    """Cut utterances, numbered from `utterance` on, into pieces and lay these into the rows of grid after grid."""
    capacity, row, at = frame_count(SAMPLES), 0, 0
    grid: list[Piece] = []
    for number, count in enumerate(frames, utterance):
        first = 0
        while first < count:
            if at >= capacity:
                row, at = row + 1, 0
            if row == ROWS:
                yield tuple(grid)
                grid, row = [], 0
            taken = min(count - first, capacity - at)
            grid.append(Piece(number, first, taken, row, at))
            first, at = first + taken, at + taken + SEAM
    if grid:
        yield tuple(grid)


def _begin(manifest: Manifest, folder: Path, planned: Plan, shard_frames: int) -> None:
    """Write the tables, or check that those there are of this corpus."""
    journal = {"corpus": _fingerprint(manifest), "storage": planned.storage, "shard_frames": shard_frames}
    there = _journal(folder)
    if there is None and not empty(folder):
        raise InputError(f"{folder}: holds files but no prepared corpus; choose another folder")
    if there is not None and (there.get("corpus"), there.get("storage")) != (journal["corpus"], planned.storage):
        what = "another corpus" if there.get("corpus") != journal["corpus"] else f"{there.get('storage')} features"
        raise InputError(f"{folder}: holds {what}, not this {planned.storage} one; remove it or choose another folder")
    if there is None:
        write_whole(folder / ".features.json", json.dumps(journal).encode())
    write(manifest, folder)
    write_array(folder / "offsets.npy", planned.offsets)
    if len(planned.first) > 2:
        write_array(folder / "shards.npy", planned.first)


def _journal(folder: Path) -> Mapping[str, Any] | None:
    path = folder / ".features.json"
    if not path.is_file():
        return None
    try:
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove {folder} and prepare it again") from error


def _shard_frames(folder: Path, asked: int | None) -> int:
    """Return the frames of a shard: those of the folder, where there is one, or those that are asked for."""
    if (journal := _journal(folder)) is None:
        return asked or SHARD
    there = journal.get("shard_frames", WHOLE)
    if not isinstance(there, int) or there < 1:
        raise InputError(f"{folder / '.features.json'}: damaged ({there!r} frames); prepare {folder} again")
    if asked is not None and asked != there:
        has = "features in one file" if there == WHOLE else f"shards of {there * SHIFT / SAMPLE_RATE / 60:g} minutes"
        raise InputError(f"{folder}: holds {has}, not of {asked * SHIFT / SAMPLE_RATE / 60:g}; leave out --shard")
    return there


def _filled(manifest: Manifest, grids: Sequence[tuple[Piece, ...]]) -> Iterator[tuple[tuple[Piece, ...], np.ndarray]]:
    """Yield each grid and its samples, (ROWS, SAMPLES)."""
    wanted = dict.fromkeys(piece.utterance for grid in grids for piece in grid)
    stream, current, speech = _read_ahead(manifest, list(wanted)), -1, np.empty(0, np.float32)
    for grid in grids:
        samples = np.zeros((ROWS, SAMPLES), np.float32)
        for piece in grid:
            while current != piece.utterance:
                current, speech = next(stream)
            cut = speech[piece.first * SHIFT : (piece.first + piece.frames - 1) * SHIFT + WINDOW]
            samples[piece.row, piece.at * SHIFT : piece.at * SHIFT + len(cut)] = cut
        yield grid, samples


def _read_ahead(manifest: Manifest, wanted: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (utterance, samples) in order, decoding in threads while the consumer computes."""
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
        try:
            for i in wanted:
                waiting.append((i, pool.submit(_read, manifest.utterances[i])))
                if len(waiting) > AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _read(utterance: Utterance) -> np.ndarray:
    samples = read(utterance.path).samples
    if len(samples) != utterance.samples:
        there = f"{len(samples)} samples at 16 kHz, the manifest says {utterance.samples}"
        raise InputError(f"{utterance.path}: {there}; correct the manifest or leave its column samples empty")
    return samples


def _fingerprint(manifest: Manifest) -> str:
    """Name a corpus by what its features follow from: which files, how long, in which order."""
    lines = (f"{u.id}\t{places.url(u.path) or os.path.realpath(u.path)}\t{u.samples}\n" for u in manifest.utterances)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_space(folder: Path, planned: Plan, there: np.ndarray) -> None:
    missing = sum(planned.size(shard, shard + 1) for shard in np.flatnonzero(~there).tolist())
    if (free := shutil.disk_usage(folder).free) < missing:
        raise InputError(f"{folder}: the features need {missing / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; make room")
