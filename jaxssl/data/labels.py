"""Frame labels for pre-training: k-means over any features, and labels brought to the rate of a model's frames."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from compress.errors import InputError
from jaxssl.data.arrays import Rows
from jaxssl.data.prepared import Labels

BLOCK = 4096  # frames whose distances to all centres are in memory at once
Vectors = Callable[[int], np.ndarray]  # utterance → (frames, size)


@dataclass(frozen=True)
class Clustering:
    """Labels of every utterance, and the centres they stand for.

    Attributes:
        centres: (clusters, size) float32.
        rows: labels of each utterance, (frames,) int32.
        inertia: mean squared distance of a frame to its centre, over all frames.
        fitted: frames that the centres were fitted to; 0 when they were given.
    """

    centres: np.ndarray
    rows: tuple[np.ndarray, ...]
    inertia: float
    fitted: int


def cluster(
    vectors: Vectors,
    utterances: int,
    *,
    clusters: int,
    seed: int,
    limit: int = 1_000_000,
    restarts: int = 5,
    centres: np.ndarray | None = None,
    tick: Callable[[], object] = bool,
) -> Clustering:
    """Fit k-means to a sample of a corpus and label all of it.

    The sample is whole utterances in an order drawn by `seed`, cut off at `limit` frames. They stay in memory until
    they are labelled, so that the features of every utterance are computed once.

    Args:
        vectors: gives the frames of an utterance, (frames, size).
        utterances: how many there are.
        clusters: k.
        seed: of the sample and of the fit.
        limit: frames to fit to at most.
        restarts: initialisations tried.
        centres: (clusters, size), those of another corpus, to be used instead of a fit.
        tick: called once for every utterance.

    Raises:
        InputError: fewer different frames than clusters.
    """
    kept: dict[int, np.ndarray] = {}
    fitted = 0
    if centres is None:
        kept = _sample(vectors, utterances, limit=limit, seed=seed, tick=tick)
        frames = np.concatenate(list(kept.values()))[:limit]
        centres, fitted = fit(frames, clusters=clusters, seed=seed, restarts=restarts), len(frames)
    rows: list[np.ndarray] = []
    total, count = 0.0, 0
    for i in range(utterances):
        if i not in kept:
            tick()
        row, distances = assign(kept.pop(i) if i in kept else vectors(i), centres)
        rows.append(row)
        total, count = total + float(distances.sum(dtype=np.float64)), count + len(row)
    return Clustering(centres, tuple(rows), total / max(count, 1), fitted)


def _sample(
    vectors: Vectors, utterances: int, *, limit: int, seed: int, tick: Callable[[], object]
) -> dict[int, np.ndarray]:
    """Compute utterances in an order drawn by `seed` until they have `limit` frames."""
    kept: dict[int, np.ndarray] = {}
    frames = 0
    for i in np.random.default_rng(seed).permutation(utterances).tolist():
        if frames >= limit:
            break
        kept[i] = np.asarray(vectors(i), np.float32)
        frames += len(kept[i])
        tick()
    return kept


def fit(frames: np.ndarray, *, clusters: int, seed: int, restarts: int = 5) -> np.ndarray:
    """Find k-means centres of `frames: (count, size)` by mini-batches; return them, (clusters, size) float32.

    Settings are those of fairseq's learn_kmeans.py: k-means++, batches of 10,000, at most 100 passes, stop after 100
    batches without gain, no reassignment; it restarts 20 times.

    Raises:
        InputError: fewer different frames than clusters, or frames that are not finite.
    """
    from sklearn.cluster import MiniBatchKMeans  # slow, and training never needs it
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    if bad := int(np.count_nonzero(~np.isfinite(frames))):
        raise InputError(f"k-means: {bad} of {frames.size} values are not finite; look at the features")
    different = len(np.unique(frames, axis=0)) if len(frames) < 100 * clusters else clusters
    if clusters < 1 or different < clusters:
        raise InputError(f"k-means: {clusters} clusters of {different} different frames; use fewer, or more speech")
    model = MiniBatchKMeans(
        clusters,
        batch_size=10_000,
        max_iter=100,
        tol=0.0,
        max_no_improvement=100,
        n_init=restarts,
        reassignment_ratio=0.0,
        random_state=seed,
    )
    with threadpool_limits(1):  # sums in one order whatever the cores; more threads were no faster
        return np.asarray(model.fit(frames).cluster_centers_, np.float32)


def assign(frames: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each frame its nearest centre, the first of equally near ones.

    Args:
        frames: (count, size).
        centres: (clusters, size).

    Returns:
        (count,) int32 labels, and (count,) float32 squared distances.

    Raises:
        InputError: frames and centres differ in size.
    """
    if frames.ndim != 2 or frames.shape[1] != centres.shape[1]:
        raise InputError(
            f"k-means: frames of shape {frames.shape}, centres of {centres.shape[1]}; use the same features"
        )
    labels, distances = np.empty(len(frames), np.int32), np.empty(len(frames), np.float32)
    wide = centres.astype(np.float64)
    norms = np.square(wide).sum(1)
    for start in range(0, len(frames), BLOCK):
        x = frames[start : start + BLOCK].astype(np.float64)
        squared = np.square(x).sum(1)[:, None] - 2 * x @ wide.T + norms[None]
        nearest = squared.argmin(1)
        labels[start : start + BLOCK] = nearest
        distances[start : start + BLOCK] = np.maximum(squared[np.arange(len(x)), nearest], 0)
    return labels, distances


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
