"""k-means by mini-batches, of frames that lie with several processes; the number of processes changes no bit of it.

The method and its random numbers are those of scikit-learn's MiniBatchKMeans with the settings of fairseq's
learn_kmeans.py. A batch is drawn by number, from all frames, and its frames go to all processes. Each gives blocks of
them their nearest centres, and all move the centres by the same sums.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.errors import InputError
from jaxssl.data.team import ALONE, Team

BATCH, PASSES, PATIENCE = 10_000, 100, 100  # frames; over all frames, at most; batches without gain before the end
BLOCK = 512  # frames that one process assigns at a time: a sum's last bit may depend on its place in a product
AT_ONCE = 4096  # frames whose distances to all centres are in memory at once


@dataclass(frozen=True)
class Frames:
    """Frames in stretches, each with one process.

    Attributes:
        starts: (stretches + 1,) the number of the first frame of each stretch, and of all frames.
        owners: (stretches,) the process that has it.
        mine: (frames of this process at least, size) float32, its stretches one after the other.
        team: the processes.
    """

    starts: np.ndarray
    owners: np.ndarray
    mine: np.ndarray
    team: Team = ALONE

    def __len__(self) -> int:
        return int(self.starts[-1])

    def fetch(self, numbers: np.ndarray) -> np.ndarray:
        """Bring frames to all processes, (numbers, size); all ask for the same."""
        stretch = np.searchsorted(self.starts, numbers, side="right") - 1
        owners = self.owners[stretch]
        lengths = np.where(self.owners == self.team.process, np.diff(self.starts), 0)
        place = (np.cumsum(lengths) - lengths - self.starts[:-1])[stretch] + numbers
        mine = self.mine[place[owners == self.team.process]]
        if self.team.processes == 1:
            return mine
        # Of few sizes, as each is a program.
        most = -(-int(np.bincount(owners, minlength=self.team.processes).max()) // BLOCK) * BLOCK
        every = self.team.gather(np.concatenate([mine, np.zeros((most - len(mine), mine.shape[1]), mine.dtype)]))
        found = np.empty((len(numbers), mine.shape[1]), mine.dtype)
        for process in range(self.team.processes):
            chosen = owners == process
            found[chosen] = every[process, : int(chosen.sum())]
        return found


def fit(frames: np.ndarray, *, clusters: int, seed: int, restarts: int = 5) -> np.ndarray:
    """Find k-means centres of `frames: (count, size)`, see `fit_together`."""
    alone = Frames(np.array([0, len(frames)]), np.zeros(1, np.int64), np.asarray(frames, np.float32))
    return fit_together(alone, clusters=clusters, seed=seed, restarts=restarts)


def fit_together(frames: Frames, *, clusters: int, seed: int, restarts: int = 5) -> np.ndarray:
    """Find k-means centres by mini-batches; return them, (clusters, size) float32, in all processes.

    Settings are those of fairseq's learn_kmeans.py: k-means++, batches of 10,000, at most 100 passes, stop after 100
    batches without gain, no reassignment; it restarts 20 times.

    Raises:
        InputError: fewer different frames than clusters, or frames that are not finite.
    """
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    count = len(frames)
    bad = int(frames.team.gather(np.array([np.count_nonzero(~np.isfinite(frames.mine))])).sum())
    if bad:
        raise InputError(
            f"k-means: {bad} of {count * frames.mine.shape[1]} values are not finite; look at the features"
        )
    different = clusters
    if count < 100 * clusters:
        different = len(np.unique(frames.fetch(np.arange(count)), axis=0))
    if clusters < 1 or different < clusters:
        raise InputError(f"k-means: {clusters} clusters of {different} different frames; use fewer, or more speech")
    random = np.random.RandomState(seed)  # the older generator, which scikit-learn draws from
    with threadpool_limits(1):  # sums in one order whatever the cores; more threads were no faster
        return _moved(frames, _begun(frames, random, clusters, restarts), random).astype(np.float32)


def _begun(frames: Frames, random: np.random.RandomState, clusters: int, restarts: int) -> np.ndarray:
    """Choose centres by k-means++ of some frames, several times, and take those that are nearest to other frames."""
    from sklearn.cluster import kmeans_plusplus  # slow to import, and training never needs it

    count, batch, team = len(frames), min(BATCH, len(frames)), frames.team
    some = min(3 * batch if 3 * batch >= clusters else 3 * clusters, count)
    valid = frames.fetch(random.randint(0, count, some))
    found = []
    for _ in range(restarts):
        numbers = random.randint(0, count, some) if some < count else np.arange(count)
        x, drawn = frames.fetch(numbers), np.zeros((clusters, frames.mine.shape[1]), np.float32)
        if team.main:  # it cannot be shared out, and others may need the processor
            drawn = np.asarray(kmeans_plusplus(x, clusters, random_state=random)[0], np.float32)
        _agree(random, team)
        centres = team.said(drawn).astype(np.float64)
        found.append((_assigned(valid, centres, team)[1].sum(), centres))
    return min(found, key=lambda pair: pair[0])[1]


def _agree(random: np.random.RandomState, team: Team) -> None:
    """Let random numbers go on in all processes where they stand in process 0."""
    state = random.get_state(legacy=False)
    words = team.said(np.append(state["state"]["key"], np.uint32(state["state"]["pos"])))
    random.set_state({**state, "state": {"key": words[:-1], "pos": int(words[-1])}})


def _moved(frames: Frames, centres: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Move centres by one mini-batch after another, until these have come no nearer for long."""
    count, batch = len(frames), min(BATCH, len(frames))
    seen = np.zeros(len(centres))
    smooth = least = None
    waited = 0
    for step in range(PASSES * count // batch):
        numbers = np.minimum((random.random_sample(batch) * count).astype(np.int64), count - 1)
        x = frames.fetch(numbers)
        labels, distances = _assigned(x, centres, frames.team)
        centres, seen = _averaged(x, labels, centres, seen)
        if step == 0:  # of the first centres
            continue
        inertia, share = float(distances.sum()) / batch, min(batch * 2.0 / (count + 1), 1.0)
        smooth = inertia if smooth is None else smooth * (1 - share) + inertia * share
        if least is None or smooth < least:
            least, waited = smooth, 0
        elif (waited := waited + 1) >= PATIENCE:
            break
    return centres


def _averaged(
    x: np.ndarray, labels: np.ndarray, centres: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Make each centre the mean of all frames that it ever was nearest to, and count these."""
    counts = np.bincount(labels, minlength=len(centres))
    used = np.flatnonzero(counts)
    order = np.argsort(labels, kind="stable")
    sums = np.add.reduceat(x[order].astype(np.float64), (np.cumsum(counts) - counts)[used], axis=0)
    moved, total = centres.copy(), seen + counts
    moved[used] = (centres[used] * seen[used, None] + sums) / total[used, None]
    return moved, total


def _assigned(x: np.ndarray, centres: np.ndarray, team: Team) -> tuple[np.ndarray, np.ndarray]:
    """Give each frame its nearest centre, blocks of them in each process; labels and squared distances."""
    blocks = [x[start : start + BLOCK] for start in range(0, len(x), BLOCK)]
    mine: Sequence[np.ndarray] = team.mine(blocks)
    rows = np.zeros((len(mine), BLOCK, 2))
    for row, block in zip(rows, mine, strict=True):
        row[: len(block), 0], row[: len(block), 1] = nearest(block, centres)
    every = team.shared(rows, len(blocks)).reshape(-1, 2)[: len(x)]
    return every[:, 0].astype(np.int64), every[:, 1]


def times(frames: np.ndarray, centres: np.ndarray) -> tuple[float, float, float]:
    """Measure what a fit to such frames takes: k-means++ once, a batch's nearest centres, and moving the centres.

    Args:
        frames: (3 × `BATCH`, size).
        centres: (clusters, size).

    Returns:
        Seconds of each.
    """
    from sklearn.cluster import kmeans_plusplus
    from threadpoolctl import threadpool_limits

    x, wide = frames[:BATCH], centres.astype(np.float64)
    with threadpool_limits(1):
        clock = [time.monotonic()]
        kmeans_plusplus(frames, len(centres), random_state=0)
        clock.append(time.monotonic())
        labels, _ = _assigned(x, wide, ALONE)
        clock.append(time.monotonic())
        _averaged(x, labels, wide, np.zeros(len(centres)))
        clock.append(time.monotonic())
    begin, near, move = np.diff(clock).tolist()
    return begin, near, move


def nearest(frames: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest centre of each frame, the first of equally near ones: (count,), and its squared distance."""
    wide, x = centres.astype(np.float64), frames.astype(np.float64)
    squared = np.square(x).sum(1)[:, None] - 2 * x @ wide.T + np.square(wide).sum(1)[None]
    found = squared.argmin(1)
    return found, np.maximum(squared[np.arange(len(x)), found], 0)


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
    for start in range(0, len(frames), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        labels[part], distances[part] = nearest(frames[part], centres)
    return labels, distances
