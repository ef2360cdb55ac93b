"""Span masks for pre-training: fairseq's static spans, as HuBERT and MelHuBERT use them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.errors import InputError


@dataclass(frozen=True)
class Spans:
    """How much is masked, in pieces of which length.

    Attributes:
        probability: frames in spans, counted with overlaps, as a share of the valid ones; above 0, at most 1.
        span: frames in one span.
    """

    probability: float
    span: int

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise InputError(f"mask probability {self.probability:g} is not in (0, 1]; MelHuBERT takes 0.7, HuBERT 0.8")
        if self.span < 1:
            raise InputError(f"a mask span of {self.span} frames masks nothing; give 1 or more")


MELHUBERT_20MS = Spans(0.7, 5)
MELHUBERT_10MS = Spans(0.7, 10)
HUBERT = Spans(0.8, 10)


def spans(
    rng: np.random.Generator,
    lengths: Sequence[int] | np.ndarray,
    frames: int,
    *,
    probability: float,
    span: int,
    least: int = 2,
) -> np.ndarray:
    """Draw the frames to mask: spans of one length that may overlap (fairseq's `compute_mask_indices`, static).

    A row of T valid frames gets n = ⌊probability · T / span + U(0, 1)⌋ spans, at least `least`, with n different
    starts in [0, T − span); frames beyond them stay, and so does the last valid one. A row with T − span ≤ n has too
    few starts: as in fairseq, they are drawn from [0, n] and what reaches over T is cut off. T ≥ `least` always masks
    a frame there.

    Args:
        rng: where the numbers come from; rows draw from it one after another.
        lengths: (batch,), valid frames of each row, 1 or more.
        frames: length of the padded axis.
        probability: see `Spans`.
        span: see `Spans`.
        least: spans in a row, whatever its length.

    Returns:
        (batch, frames) bool, True where the input is hidden from the model.

    Raises:
        InputError: a row has no frames or more than `frames`.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= frames:
        raise InputError(f"rows of {lengths.min()} to {lengths.max()} frames do not fit a mask of {frames}; from 1 on")
    masks = np.zeros((len(lengths), frames), bool)
    for mask, length in zip(masks, lengths.tolist(), strict=True):
        count = max(least, int(probability * length / span + rng.random()))
        starts = rng.choice(max(length - span, count + 1), count, replace=False)
        mask[:length][_joined(starts, span, length)] = True
    return masks


def _joined(starts: np.ndarray, span: int, length: int) -> np.ndarray:
    """List the frames below `length` that spans cover, some of them twice."""
    covered = (starts[:, None] + np.arange(span)[None, :]).ravel()
    return covered[covered < length]
