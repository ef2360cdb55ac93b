"""A few padded lengths for a whole corpus, so that a run compiles a few programs and pads little."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.errors import InputError

CANDIDATES = 64  # lengths tried as edges: the search is quadratic in them and its result hardly changes beyond


@dataclass(frozen=True)
class Plan:
    """Which utterances make which batch.

    Attributes:
        buckets: (batches,) int64, bucket of each batch.
        rows: (batches, batch size) int64, its utterances; -1 fills the last batch of a corpus that is not cut short.
    """

    buckets: np.ndarray
    rows: np.ndarray


def choose(lengths: np.ndarray, *, batch_size: int, most: int = 8, waste: float = 0.1) -> tuple[int, ...]:
    """Choose padded lengths: as few as keep padding below `waste`, at most `most` of them, placed to pad least.

    Edges are lengths of the corpus at which the utterances so far make whole batches. Dynamic programming finds, for
    each number of edges, those that minimise the sum of padded lengths.

    Args:
        lengths: (utterances,), at least one.
        batch_size: utterances in a batch.
        most: edges at most.
        waste: share of the padded length that may be padding; `most` comes first.

    Returns:
        Ascending; the last is the longest length.

    Raises:
        InputError: `most` is below 1 or `waste` not in [0, 1).
    """
    if most < 1 or not 0 <= waste < 1:
        raise InputError(f"{most} buckets wasting {waste:g}; give at least 1 bucket and a waste from 0 to below 1")
    edges, below = _candidates(np.sort(lengths), batch_size)
    padded = edges * below
    cuts: list[np.ndarray] = []
    while len(cuts) + 1 < min(most, len(edges)) and padded[-1] * (1 - waste) > lengths.sum():
        # Row: the edge before; column: the edge whose cost this is. Not below it, nothing gets cheaper.
        cost = padded[:, None] + edges[None, :] * (below[None, :] - below[:, None])
        cost = np.where(edges[:, None] < edges[None, :], cost, padded[None, :])
        cuts.append(np.where(cost.min(0) < padded, cost.argmin(0), -1))
        padded = cost.min(0)
    return _trace(edges, cuts)


def padding(lengths: np.ndarray, edges: Sequence[int]) -> float:
    """Compute the share of padding when each utterance is padded to the next edge."""
    return 1 - float(lengths.sum()) / float(np.asarray(edges)[np.searchsorted(edges, lengths)].sum())


def plan(
    lengths: np.ndarray, edges: Sequence[int], *, batch_size: int, rng: np.random.Generator | None, fill: bool = False
) -> Plan:
    """Put utterances of similar length together, each into one batch.

    What is left over of a bucket goes to the next longer one, so that fewer than `batch_size` utterances of the whole
    corpus make no batch: they are dropped, or with `fill` rows of -1 join them. How many batches each bucket gives
    depends on lengths and edges only.

    Args:
        lengths: (utterances,), none above the last edge.
        edges: ascending.
        batch_size: utterances in a batch.
        rng: shuffles inside buckets, and then batches; None: sorted by length.
        fill: keep the last utterances too.
    """
    order = np.argsort(lengths, kind="stable")
    pools = np.split(order, np.searchsorted(lengths[order], edges, side="right")[:-1])
    buckets: list[int] = []
    rows, left = [np.zeros((0, batch_size), np.int64)], np.zeros(0, np.int64)
    for bucket, pool in enumerate(pools):
        pool = np.concatenate([left, pool if rng is None else rng.permutation(pool)])
        if fill and bucket == len(pools) - 1:
            pool = np.pad(pool, (0, -len(pool) % batch_size), constant_values=-1)
        whole, left = np.split(pool, [len(pool) - len(pool) % batch_size])
        rows.append(whole.reshape(-1, batch_size))
        buckets += [bucket] * len(rows[-1])
    together = np.arange(len(buckets)) if rng is None else rng.permutation(len(buckets))
    return Plan(np.array(buckets, np.int64)[together], np.concatenate(rows)[together])


class Watch:
    """Counts the shapes a run meets, each of which is a compilation, and speaks up past the number announced."""

    def __init__(self, announced: int):
        self.announced = announced
        self.shapes: set[tuple[int, ...]] = set()

    def see(self, shape: tuple[int, ...]) -> str | None:
        """Count a batch's shape; return a line for the user if it is new and one too many, else None."""
        if shape in self.shapes:
            return None
        self.shapes.add(shape)
        if len(self.shapes) <= self.announced:
            return None
        return (
            f"batches of shape {shape} compile again: {len(self.shapes)} shapes so far, {self.announced} announced; "
            "each costs a compilation, use fewer buckets or one crop"
        )


def _candidates(ordered: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return possible edges and how many utterances are not longer than each, both int64."""
    edges = np.unique([*ordered[batch_size - 1 :: batch_size], ordered[-1]]).astype(np.int64)
    if len(edges) > CANDIDATES:
        edges = edges[np.linspace(0, len(edges) - 1, CANDIDATES).round().astype(int)]
    return edges, np.searchsorted(ordered, edges, side="right")


def _trace(edges: np.ndarray, cuts: list[np.ndarray]) -> tuple[int, ...]:
    """Follow the cuts back from the last edge; -1 says that no further one helped."""
    at, found = len(edges) - 1, [int(edges[-1])]
    for cut in reversed(cuts):
        if cut[at] >= 0:
            at = int(cut[at])
            found.append(int(edges[at]))
    return tuple(reversed(found))
