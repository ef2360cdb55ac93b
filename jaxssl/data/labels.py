"""Frame labels for pre-training: a corpus clustered by any features, and labels brought to the rate of a model.

The shards of the corpus are labelled one after the other, each by one process. What is there of them when a run breaks
off stays: the next goes on, with other processes if need be, and its labels are the same.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from compress.errors import InputError
from jaxssl.data.arrays import Rows, read_arrays
from jaxssl.data.kmeans import Frames, assign, fit_together
from jaxssl.data.prepared import Labels
from jaxssl.data.team import ALONE, Team
from jaxssl.runtime.files import write_arrays

# Utterances → each one's number and frames, (frames, size), in any order. What a call gives for an utterance may differ
# in the last bits with what else was asked for, as models hear several at once.
Vectors = Callable[[Sequence[int]], Iterator[tuple[int, np.ndarray]]]


@dataclass(frozen=True)
class Clustering:
    """Labels of every utterance, and the centres they stand for.

    Attributes:
        centres: (clusters, size) float32.
        rows: labels of each utterance, (frames,) int32.
        inertia: mean squared distance of a frame to its centre, over all frames.
        fitted: frames that the centres were fitted to; 0 when they were given.
        new: utterances that were labelled in this call.
        fit_s: seconds that fitting took in it.
    """

    centres: np.ndarray
    rows: "Made"
    inertia: float
    fitted: int
    new: tuple[int, ...]
    fit_s: float


@dataclass(frozen=True)
class Made:
    """Labels in files of one shard each; row i is that of utterance i.

    Attributes:
        files: of the shards.
        first: (shards + 1,), the first utterance of each.
    """

    files: tuple[Path, ...]
    first: np.ndarray

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, i: int, /) -> np.ndarray:
        shard = int(np.searchsorted(self.first, i, side="right")) - 1
        found, place = self._shard(shard), i - int(self.first[shard])
        return found["labels"][found["offsets"][place] : found["offsets"][place + 1]]

    def inertia(self) -> float:
        """Compute the mean squared distance, the shards' sums added in their order."""
        every = [read_arrays(file, "distance", "offsets") for file in self.files]
        return float(sum(each["distance"][0] for each in every)) / max(sum(int(e["offsets"][-1]) for e in every), 1)

    @cached_property
    def _shard(self) -> Callable[[int], dict[str, np.ndarray]]:
        return lru_cache(2)(lambda shard: read_arrays(self.files[shard], "labels", "offsets"))


@dataclass(frozen=True)
class Fit:
    """Centres, and what they were fitted to.

    Attributes:
        centres: (clusters, size) float32.
        fitted: number of frames.
        turns: (utterances,) in which round of drawing its frames came in, from 1; 0 of those that were not drawn.
    """

    centres: np.ndarray
    fitted: int
    turns: np.ndarray


@dataclass(frozen=True)
class Corpus:
    """What is clustered.

    Attributes:
        vectors: gives the frames of utterances.
        frames: (utterances,), about how many each has.
        first: (shards + 1,), the first utterance of each shard, and their number.
    """

    vectors: Vectors
    frames: np.ndarray
    first: np.ndarray

    def size(self, shards: Sequence[int]) -> int:
        """Count the utterances of some shards."""
        return sum(int(self.first[shard + 1] - self.first[shard]) for shard in shards)

    def shard_of(self, utterances: np.ndarray) -> np.ndarray:
        """Say in which shard utterances are."""
        return np.searchsorted(self.first, utterances, side="right") - 1


def cluster(
    corpus: Corpus,
    folder: Path,
    *,
    clusters: int,
    seed: int,
    limit: int = 1_000_000,
    restarts: int = 5,
    centres: np.ndarray | None = None,
    team: Team = ALONE,
    tick: Callable[[], object] = bool,
) -> Clustering:
    """Fit k-means to a sample of a corpus and label all of it, or go on where an earlier call with the same stopped.

    The sample is whole utterances in an order drawn by `seed`, cut off at `limit` frames. They stay in memory until
    they are labelled, so that the features of every utterance are computed once.

    Args:
        corpus: what is clustered.
        folder: of what is made, which is this call's alone.
        clusters: k.
        seed: of the sample and of the fit.
        limit: frames to fit to at most.
        restarts: initialisations tried.
        centres: (clusters, size), those of another corpus, to be used instead of a fit.
        team: who works together; all call this.
        tick: called once for every utterance that this process does, or need not do.

    Raises:
        InputError: fewer different frames than clusters.
    """
    kept, fit_s = dict[int, np.ndarray](), 0.0
    if centres is None:
        found, kept, fit_s = _fitted(
            corpus, folder, clusters=clusters, seed=seed, limit=limit, restarts=restarts, team=team
        )
    else:
        found = Fit(centres, 0, np.zeros(len(corpus.frames), np.int8))
    files = tuple(folder / f"{shard:05d}.npz" for shard in range(len(corpus.first) - 1))
    absent = missing(files, team)
    for _ in range(corpus.size(team.mine(range(len(files)))) - corpus.size(team.mine(absent))):
        tick()
    for shard in team.mine(absent):
        _label(corpus, shard, found, kept, files[shard], tick)
    team.wait()
    made = Made(files, corpus.first)
    if team.main:
        for file in files:
            team.see(file)
    total = team.said(np.array([made.inertia() if team.main else 0.0]))
    new = tuple(i for k in absent for i in range(int(corpus.first[k]), int(corpus.first[k + 1])))
    return Clustering(found.centres, made, float(total[0]), found.fitted, new, fit_s)


def missing(files: Sequence[Path], team: Team) -> tuple[int, ...]:
    """List, alike in all processes, the shards that are not there; all wait, so that nobody writes meanwhile."""
    there = np.array([team.main and file.is_file() for file in files], np.uint8)
    return tuple(np.flatnonzero(team.said(there) == 0).tolist())


def _fitted(
    corpus: Corpus, folder: Path, *, clusters: int, seed: int, limit: int, restarts: int, team: Team
) -> tuple[Fit, dict[int, np.ndarray], float]:
    """Read the centres that are there, or fit them.

    Returns:
        Them, the frames of this process that they came from, and the seconds that fitting took.
    """
    path = folder / "fit.npz"
    if not missing((path,), team):
        team.see(path)
        there = read_arrays(path, "centres", "fitted", "turns")
        return Fit(there["centres"], int(there["fitted"][0]), there["turns"]), {}, 0.0
    kept, lengths, turns = _sample(corpus, limit=limit, seed=seed, team=team)
    drawn = np.array(list(lengths))
    starts = np.minimum(np.cumsum([0, *lengths.values()]), limit)
    owners = corpus.shard_of(drawn) % team.processes
    size = int(team.gather(np.array([next(iter(kept.values())).shape[1] if kept else 0])).max())
    mine = np.concatenate([np.zeros((0, size), np.float32), *kept.values()])
    ends = np.cumsum([0, *map(len, kept.values())]).tolist()
    kept = {i: mine[begin:end] for i, begin, end in zip(kept, ends, ends[1:], strict=False)}  # not twice in memory
    frames = Frames(starts, owners, mine, team)
    begun = time.monotonic()
    centres = fit_together(frames, clusters=clusters, seed=seed, restarts=restarts)
    if team.main:
        write_arrays(path, {"centres": centres, "fitted": np.array([len(frames)]), "turns": turns})
    return Fit(centres, len(frames), turns), kept, time.monotonic() - begun


def _sample(
    corpus: Corpus, *, limit: int, seed: int, team: Team
) -> tuple[dict[int, np.ndarray], dict[int, int], np.ndarray]:
    """Compute utterances in an order drawn by `seed` until they have `limit` frames.

    Returns:
        The frames of those whose shards are this process's, and the lengths and turns (see `Fit`) of all; in the order
        of drawing.
    """
    order = np.random.default_rng(seed).permutation(len(corpus.frames))
    turns, kept, lengths = np.zeros(len(order), np.int8), dict[int, np.ndarray](), dict[int, int]()
    for turn in range(1, np.iinfo(np.int8).max):
        wanted = limit - sum(lengths.values())
        if wanted <= 0 or len(lengths) == len(order):
            break
        rest = order[len(lengths) :]
        drawn = rest[: int(np.searchsorted(np.cumsum(corpus.frames[rest]), wanted)) + 1]
        turns[drawn] = turn
        shards, here = corpus.shard_of(drawn), np.zeros(len(drawn), np.int64)
        found = dict[int, np.ndarray]()
        for shard in team.mine(range(len(corpus.first) - 1)):
            found |= {i: np.asarray(x, np.float32) for i, x in corpus.vectors(np.sort(drawn[shards == shard]).tolist())}
        for place, i in enumerate(drawn.tolist()):
            if i in found:
                kept[i], here[place] = found[i], len(found[i])
        lengths |= dict(zip(drawn.tolist(), team.gather(here).sum(0).tolist(), strict=True))
    return kept, lengths, turns


def _label(
    corpus: Corpus, shard: int, found: Fit, kept: dict[int, np.ndarray], path: Path, tick: Callable[[], object]
) -> None:
    """Label one shard; the utterances of a turn are asked for together, so that it matters not who was there before."""
    begin, end = int(corpus.first[shard]), int(corpus.first[shard + 1])
    rows, distances = dict[int, np.ndarray](), np.zeros(end - begin)
    for turn in np.unique(found.turns[begin:end]):
        chosen = (begin + np.flatnonzero(found.turns[begin:end] == turn)).tolist()
        there = all(i in kept for i in chosen)
        for i, frames in ((i, kept.pop(i)) for i in chosen) if there else corpus.vectors(chosen):
            rows[i], apart = assign(frames, found.centres)
            distances[i - begin] = apart.sum(dtype=np.float64)
            tick()
    labels = [rows[i] for i in range(begin, end)]
    offsets = np.cumsum([0, *map(len, labels)], dtype=np.int64)
    distance = np.array([sum(distances.tolist())])
    write_arrays(path, {"labels": np.concatenate(labels), "offsets": offsets, "distance": distance})


@dataclass(frozen=True)
class Strided:
    """Rows of which every `step`-th entry counts."""

    rows: Rows
    step: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int, /) -> np.ndarray:
        return self.rows[i][:: self.step]


def at_period(labels: Labels, period_ms: int) -> Labels:
    """Take labels at a longer period, as the MelHuBERT study does with 10 ms labels for a 20 ms model: `label[::2]`.

    Raises:
        InputError: the period is not a multiple of the labels' own.
    """
    step, rest = divmod(period_ms, labels.period_ms)
    if rest or step < 1:
        rates = f"labels {labels.name} come each {labels.period_ms} ms, {period_ms} ms are asked for"
        raise InputError(f"{rates}; a multiple of {labels.period_ms} is possible")
    if step == 1:
        return labels
    return replace(labels, period_ms=period_ms, rows=Strided(labels.rows, step))
