"""What frame labels are worth: how much they tell about phones, where phones are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.errors import InputError
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.logmel import SHIFT, WINDOW
from jaxssl.data.manifest import Segment
from jaxssl.data.prepared import Labels, Prepared


@dataclass(frozen=True)
class Quality:
    """How well clusters match phones (HuBERT, Hsu et al. 2021, §IV-E), from the joint distribution p(y, z) over frames.

    Attributes:
        purity: cluster purity, Σ_y p(y) max_z p(z | y): how much of a phone lies in its commonest cluster.
        phone_purity: Σ_z p(z) max_y p(y | z): accuracy when each cluster is read as its commonest phone.
        pnmi: phone-normalised mutual information, I(y; z) / H(y), in [0, 1]; 0 where there is one phone only.
        frames: frames whose phone is known.
    """

    purity: float
    phone_purity: float
    pnmi: float
    frames: int


def quality(phones: np.ndarray, clusters: np.ndarray) -> Quality:
    """Compare clusters with phones, both (frames,) ints; frames where either is negative are left out.

    Raises:
        InputError: their lengths differ, or no frame is left.
    """
    if phones.shape != clusters.shape:
        raise InputError(f"quality: {len(phones)} phone frames, {len(clusters)} cluster frames; bring both to one rate")
    known = (phones >= 0) & (clusters >= 0)
    if not known.any():
        raise InputError(f"quality: the phone is known in 0 of {len(phones)} frames; give phone times")
    counts = np.zeros((phones.max() + 1, clusters.max() + 1))
    np.add.at(counts, (phones[known], clusters[known]), 1)
    joint = counts / counts.sum()
    pnmi = (entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)) / (entropy(joint.sum(1)) or 1.0)
    return Quality(float(joint.max(1).sum()), float(joint.max(0).sum()), max(pnmi, 0.0), int(known.sum()))


def phone_names(utterances: Sequence[Sequence[Segment]]) -> tuple[str, ...]:
    """List the phones that occur, sorted; their places are the ids that `frame_phones` gives."""
    return tuple(sorted({segment.label for segments in utterances for segment in segments}))


def frame_phones(segments: Sequence[Segment], frames: int, *, period_ms: int, names: Sequence[str]) -> np.ndarray:
    """Say which phone is spoken in the middle of each frame, (frames,) int32 places in `names`, -1 where unknown."""
    place = {name: i for i, name in enumerate(names)}
    middles = frame_middles(frames, period_ms)
    found = np.full(frames, -1, np.int32)
    for segment in segments:
        begin, end = np.searchsorted(middles, (segment.start, segment.end))
        found[begin:end] = place.get(segment.label, -1)
    return found


def frame_middles(frames: int, period_ms: int) -> np.ndarray:
    """Return the seconds at which frames have their middle, (frames,).

    A frame of period P joins 25 ms windows that begin from tP to (t + 1)P − 10 ms: its middle is at tP + (P + 15)/2.
    """
    return (np.arange(frames) * period_ms + (period_ms + 1000 * (WINDOW - SHIFT) / SAMPLE_RATE) / 2) / 1000


def phone_quality(corpus: Prepared, labels: Labels) -> Quality | None:
    """Compare labels with the corpus's phone times; None where no phone is known."""
    spoken = [utterance.phones for utterance in corpus.manifest.utterances]
    known = [i for i, segments in enumerate(spoken) if segments]
    if not known:
        return None
    names = phone_names(spoken)
    rows = [(labels[i], spoken[i]) for i in known]
    phones = [frame_phones(segments, len(row), period_ms=labels.period_ms, names=names) for row, segments in rows]
    return quality(np.concatenate(phones), np.concatenate([row for row, _ in rows]))


def entropy(counts: np.ndarray) -> float:
    """Compute −Σ p ln p in nats of a distribution, given as counts or probabilities of any shape."""
    positive = counts[counts > 0] / counts.sum()
    return float(-(positive * np.log(positive)).sum())
