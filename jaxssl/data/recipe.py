"""What a batch is, and how rows of utterances become one: crops, masks, padding."""

import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compress.errors import InputError
from jaxssl.data.buckets import Plan, choose, plan
from jaxssl.data.masking import Spans, spans
from jaxssl.data.padding import pad


@dataclass(frozen=True)
class Batch:
    """One batch, padded to one of a few shapes.

    Attributes:
        inputs: (batch, frames, size) float32 normalised log-Mel, or (batch, samples) float32 waveform.
        lengths: (batch,) int32, valid frames or samples.
        labels: (batch, frames') int32, -1 where padded or unknown.
        mask: (batch, frames') bool, the span mask.
        index: (batch,) int32, utterances of the corpus; -1 for rows added to fill a batch, which have zeros for the
            shortest valid input (a row without any frame makes NaN), no label and no mask.
    """

    inputs: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    index: np.ndarray


class Corpus(Protocol):
    """Utterances with labels; n inputs carry 1 + (n − reach) // stride labels."""

    @property
    def lengths(self) -> np.ndarray:
        """Inputs (frames or samples) of each utterance, (utterances,) int64."""

    @property
    def item(self) -> tuple[int, ...]:
        """Shape of one input: (size,) of a feature frame, () of a sample."""

    @property
    def stride(self) -> int:
        """Inputs from one label to the next."""

    @property
    def reach(self) -> int:
        """Inputs that one label sees."""

    def inputs(self, i: int) -> np.ndarray:
        """Read utterance i, (length, *item) float32."""

    def labels(self, i: int) -> np.ndarray:
        """Read its labels, integers, -1 where unknown."""


@dataclass(frozen=True)
class Shard:
    """One host's rows of a global batch: contiguous, the same number for each host."""

    host: int = 0
    hosts: int = 1

    def rows(self, batch_size: int) -> slice:
        """Return this host's rows of `batch_size`."""
        if not 0 <= self.host < self.hosts:
            raise InputError(f"host {self.host} of {self.hosts}: hosts are numbered from 0 to {self.hosts - 1}")
        if batch_size < 1 or batch_size % self.hosts:
            raise InputError(f"a batch of {batch_size} is not shared evenly by {self.hosts} hosts; give a multiple")
        each = batch_size // self.hosts
        return slice(self.host * each, (self.host + 1) * each)


class Recipe:
    """What turns rows of utterances into a batch: bucket edges, crops and masks for one corpus.

    Args:
        corpus: the utterances.
        batch_size: global, over all hosts.
        crop: inputs (frames or samples) of the longest piece; longer utterances give a random window, which starts at
            a multiple of the stride so that labels stay aligned. None: no crops.
        spans: how to mask.
        seed: 0 or more.
        shard: this host's share.
        buckets: padded lengths at most.
        waste: share of padding at most, if `buckets` are enough for it.
        shortest: utterances with fewer inputs are left out (the study: 320 frames of 10 ms, 160 of 20 ms).
        among: the utterances to use, of one split, say; None: all.

    Raises:
        InputError: settings that do not fit each other or leave no utterance.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        batch_size: int,
        crop: int | None,
        spans: Spans,
        seed: int,
        shard: Shard,
        buckets: int,
        waste: float,
        shortest: int,
        among: Sequence[int] | np.ndarray | None,
    ):
        if seed < 0:
            raise InputError(f"seed {seed} is negative; give 0 or more")
        shortest = max(shortest, corpus.reach)
        if crop is not None and crop < shortest:
            raise InputError(f"a crop of {crop} is below the shortest utterance wanted, {shortest}; crop longer")
        self.corpus, self.spans, self.seed, self.batch_size = corpus, spans, seed, batch_size
        self.part = shard.rows(batch_size)
        self.crop = sys.maxsize if crop is None else crop
        self.chosen, self.too_short = _chosen(corpus.lengths, shortest, among)
        self.lengths = np.minimum(corpus.lengths[self.chosen], self.crop)
        self.edges = choose(self.lengths, batch_size=batch_size, most=buckets, waste=waste)

    def plan(self, *, rng: np.random.Generator | None, fill: bool) -> Plan:
        """Arrange an epoch; rows are numbers of the corpus's utterances."""
        local = plan(self.lengths, self.edges, batch_size=self.batch_size, rng=rng, fill=fill)
        return Plan(local.buckets, np.where(local.rows < 0, -1, self.chosen[local.rows]))

    def shapes(self, planned: Plan) -> tuple[tuple[int, ...], ...]:
        """List the shapes of `inputs` on this host, shortest first."""
        batch = self.part.stop - self.part.start
        return tuple((batch, self.edges[bucket], *self.corpus.item) for bucket in np.unique(planned.buckets))

    def identity(self) -> dict[str, int]:
        """Return integers that differ where batches do, for whatever reason but spans and content."""
        layout = zlib.crc32(np.concatenate([self.chosen, self.lengths, self.edges]).astype("<i8").tobytes())
        return {"seed": self.seed, "batch_size": self.batch_size, "utterances": len(self.chosen), "layout": layout}

    def batch(self, planned: Plan, step: int, *, stream: tuple[int, int]) -> Batch:
        """Read one batch; (seed, *stream, utterance) draws each crop and mask."""
        edge, index = self.edges[planned.buckets[step]], planned.rows[step, self.part]
        # + 1: seeds are not negative, and the rows that fill a batch are.
        rows = [self._row(int(i), np.random.default_rng((self.seed, *stream, int(i) + 1))) for i in index]
        inputs, lengths = pad([row[0] for row in rows], to=edge)
        # Padding is zeros: labels go in one higher and come out one lower.
        labels, _ = pad([row[1] + np.int32(1) for row in rows], to=self._frames(edge))
        mask, _ = pad([row[2] for row in rows], to=labels.shape[1])
        labels -= 1
        return Batch(inputs, lengths, labels, mask, index.astype(np.int32))

    def _frames(self, length: int) -> int:
        return 1 + (length - self.corpus.reach) // self.corpus.stride

    def _row(self, i: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs, labels and mask of one utterance, cropped."""
        if i < 0:
            filler = np.zeros((self.corpus.reach, *self.corpus.item), np.float32)
            return filler, np.full(1, -1, np.int32), np.zeros(1, bool)
        inputs, labels = self.corpus.inputs(i), self.corpus.labels(i)
        if len(inputs) != self.corpus.lengths[i] or len(labels) != self._frames(len(inputs)):
            raise InputError(
                f"utterance {i}: {len(inputs)} inputs for {self.corpus.lengths[i]} and {len(labels)} labels for "
                f"{self._frames(len(inputs))}; prepare the corpus and its labels again"
            )
        length, stride = min(len(inputs), self.crop), self.corpus.stride
        first, count = int(rng.integers((len(inputs) - length) // stride + 1)), self._frames(length)
        mask = spans(rng, [count], count, probability=self.spans.probability, span=self.spans.span)[0]
        start = first * stride
        return inputs[start : start + length], np.asarray(labels[first : first + count], np.int32), mask


def _chosen(lengths: np.ndarray, shortest: int, among: Sequence[int] | np.ndarray | None) -> tuple[np.ndarray, int]:
    """List the utterances that are long enough; also count the others."""
    of = np.arange(len(lengths)) if among is None else np.unique(np.asarray(among, np.int64))
    if len(of) and not 0 <= of[0] <= of[-1] < len(lengths):
        raise InputError(f"utterances {of[0]} to {of[-1]} are wanted of a corpus of {len(lengths)}; they count from 0")
    kept = of[lengths[of] >= shortest]
    if not len(kept):
        raise InputError(f"0 of {len(of)} utterances have {shortest} frames or samples; add speech or accept shorter")
    return kept, len(of) - len(kept)
