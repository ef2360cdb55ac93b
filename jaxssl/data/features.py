"""Preparing a corpus: log-Mel features of all utterances into one file, in a way that may be broken off at any time.

Frames do not depend on what stands beside them, so utterances are laid one after the other into a fixed grid of
samples (long ones are cut, frames at seams are thrown away): one compiled program, no padding, any length. The grids
follow from the lengths alone; a run that was broken off goes on at the grid it stopped at and ends with the same bytes.
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
from jaxssl.data.arrays import Slices, open_rows, write_array, write_whole
from jaxssl.data.audio import SHORTEST, read
from jaxssl.data.logmel import SHIFT, WINDOW, collect, logmel, stats_bytes
from jaxssl.data.manifest import Manifest, Utterance, write
from jaxssl.data.prepared import frame_count
from jaxssl.runtime import locks
from jaxssl.runtime.files import naming, read_json
from jaxssl.storage import places, publishing

ROWS, SAMPLES = (
    8,
    160_000,
)  # of a grid; rows longer than 10 s fall out of a CPU's cache, at a third of the speed
SEAM = -(-WINDOW // SHIFT) - 1  # frames that reach from one utterance into the next
BINS = 40
AHEAD = 16  # utterances decoded in advance
Storage = Literal["float16", "float32"]


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
        offsets: where each utterance begins in features.npy, in frames.
        grids: the pieces of every grid.
        bytes: size of features.npy.
    """

    offsets: np.ndarray
    grids: tuple[tuple[Piece, ...], ...]
    bytes: int


def plan(manifest: Manifest, *, storage: Storage = "float16") -> Plan:
    """Lay out all utterances and tell the size beforehand.

    Raises:
        InputError: an utterance is shorter than a frame.
    """
    if short := [u for u in manifest.utterances if u.samples < SHORTEST]:
        some = f"{len(short)} of {len(manifest.utterances)} utterances are shorter than a frame of {SHORTEST} samples"
        raise InputError(f"{some}, the first is {short[0].path} with {short[0].samples}; leave them out")
    frames = [frame_count(u.samples) for u in manifest.utterances]
    offsets = np.cumsum([0, *frames], dtype=np.int64)
    return Plan(offsets, tuple(_grids(frames)), int(offsets[-1]) * BINS * np.dtype(storage).itemsize)


def prepare(
    manifest: Manifest,
    folder: str | Path,
    *,
    storage: Storage = "float16",
    tick: Callable[[], object] = bool,
) -> None:
    """Write manifest, features and statistics of a corpus; go on where a run with the same corpus stopped.

    Args:
        manifest: the corpus.
        folder: where; labels that are there stay when the corpus is the same.
        storage: float16 is off by 0.1 % of a deviation and half as large.
        tick: called once for each of `plan(manifest).grids`.

    Raises:
        InputError: a file is not what the manifest says, the disk is too small, or the folder holds another corpus, or
            another command works there.
    """
    folder, planned = Path(folder), plan(manifest, storage=storage)
    folder.mkdir(parents=True, exist_ok=True)
    done = _begin(manifest, folder, planned, storage)
    locks.take(folder)
    publishing.begin(folder)
    if done < len(planned.grids) or not (folder / "features.npy").is_file():
        _check_space(folder, planned)
        _extract(manifest, folder, planned, storage, done, tick)
    else:
        for _ in planned.grids:
            tick()
    if not (folder / "stats.npy").is_file():
        rows = Slices(open_rows(folder / "features.npy"), planned.offsets)
        write_whole(folder / "stats.npy", stats_bytes(collect(rows[i] for i in range(len(rows)))))


def _grids(frames: list[int]) -> Iterator[tuple[Piece, ...]]:
    """Cut utterances into pieces and lay them into the rows of one grid after another."""
    capacity, row, at = frame_count(SAMPLES), 0, 0
    grid: list[Piece] = []
    for utterance, count in enumerate(frames):
        first = 0
        while first < count:
            if at >= capacity:
                row, at = row + 1, 0
            if row == ROWS:
                yield tuple(grid)
                grid, row = [], 0
            taken = min(count - first, capacity - at)
            grid.append(Piece(utterance, first, taken, row, at))
            first, at = first + taken, at + taken + SEAM
    if grid:
        yield tuple(grid)


def _begin(manifest: Manifest, folder: Path, planned: Plan, storage: Storage) -> int:
    """Write the tables, or check that those there are of this corpus; return how many grids are done."""
    journal = {"corpus": _fingerprint(manifest), "storage": storage, "grids": len(planned.grids), "done": 0}
    there = _journal(folder)
    if there is None and any(folder.iterdir()):
        raise InputError(f"{folder}: holds files but no prepared corpus; choose another folder")
    if there is not None and there != {**journal, "done": there.get("done")}:
        what = "another corpus" if there.get("corpus") != journal["corpus"] else f"{there.get('storage')} features"
        raise InputError(f"{folder}: holds {what}, not this {storage} one; remove it or choose another folder")
    if there is None:
        write_whole(folder / ".features.json", json.dumps(journal).encode())
    write(manifest, folder)
    write_array(folder / "offsets.npy", planned.offsets)
    return int(there["done"]) if there is not None else 0


def _journal(folder: Path) -> Mapping[str, Any] | None:
    path = folder / ".features.json"
    if not path.is_file():
        return None
    try:
        return dict(read_json(path))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove {folder} and prepare it again") from error


def _extract(
    manifest: Manifest, folder: Path, planned: Plan, storage: Storage, done: int, tick: Callable[[], object]
) -> None:
    part = folder / ".features.npy.part"
    shape = (int(planned.offsets[-1]), BINS)
    first, done = _begun(part, shape, storage, done)
    for _ in range(done):
        tick()
    compute, row = jax.jit(logmel), BINS * np.dtype(storage).itemsize
    # Written, not mapped: where the disk is full meanwhile, a map ends the process without a word.
    with naming(part), part.open("r+b") as file:
        for i, samples in _filled(manifest, planned.grids, done):
            frames = np.asarray(compute(samples))
            for piece in planned.grids[i]:
                file.seek(first + row * int(planned.offsets[piece.utterance] + piece.first))
                file.write(frames[piece.row, piece.at : piece.at + piece.frames].astype(storage).tobytes())
            file.flush()  # before the journal says so
            os.fsync(file.fileno())
            journal = {**(_journal(folder) or {}), "done": i + 1}
            write_whole(folder / ".features.json", json.dumps(journal).encode())
            tick()
    os.replace(part, folder / "features.npy")


def _begun(part: Path, shape: tuple[int, int], storage: Storage, done: int) -> tuple[int, int]:
    """Begin the unfinished file, unless it is there; return where its numbers begin and how many grids are done."""
    if done and part.is_file():
        there = np.lib.format.open_memmap(part, mode="r")
        if there.shape == shape and there.dtype == storage:
            return there.offset, done
    return np.lib.format.open_memmap(part, mode="w+", dtype=storage, shape=shape).offset, 0


def _filled(manifest: Manifest, grids: Sequence[Sequence[Piece]], start: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, samples) of each grid from `start` on."""
    wanted = dict.fromkeys(piece.utterance for grid in grids[start:] for piece in grid)
    stream, current, speech = _read_ahead(manifest, list(wanted)), -1, np.empty(0, np.float32)
    for i in range(start, len(grids)):
        samples = np.zeros((ROWS, SAMPLES), np.float32)
        for piece in grids[i]:
            while current != piece.utterance:
                current, speech = next(stream)
            cut = speech[piece.first * SHIFT : (piece.first + piece.frames - 1) * SHIFT + WINDOW]
            samples[piece.row, piece.at * SHIFT : piece.at * SHIFT + len(cut)] = cut
        yield i, samples


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


def _check_space(folder: Path, planned: Plan) -> None:
    part = folder / ".features.npy.part"
    missing = planned.bytes - (part.stat().st_blocks * 512 if part.is_file() else 0)
    if (free := shutil.disk_usage(folder).free) < missing:
        raise InputError(f"{folder}: the features need {missing / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; make room")
