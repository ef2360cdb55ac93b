"""How far two tables of phone times agree: by 10 ms frames, and by boundaries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxssl.data.alignments import SILENCE
from jaxssl.data.manifest import Segment

STEP = 0.01  # seconds from one frame to the next
NEAR = 0.02  # seconds that a boundary may be off
Phones = Sequence[Segment]


@dataclass(frozen=True)
class Agreement:
    """What two alignments have in common.

    Attributes:
        utterances: compared.
        frames: share of the 10 ms frames with the same label.
        speech: the same among frames that the first one gives a phone, not silence.
        boundaries: share of the first one's phone beginnings that the second one has within 20 ms.
    """

    utterances: int
    frames: float
    speech: float
    boundaries: float


def agreement(pairs: Sequence[tuple[Phones, Phones]]) -> Agreement | None:
    """Compare the phone times of utterances, the truth first; None where there are none."""
    if not pairs:
        return None
    rows = [(_labels(truth, end), _labels(found, end)) for truth, found in pairs for end in (truth[-1].end,)]
    truth, found = (np.concatenate(side) for side in zip(*rows, strict=True))
    spoken = truth != SILENCE
    near = [_near(*pair) for pair in pairs]
    return Agreement(
        len(pairs),
        float((truth == found).mean()),
        float((truth == found)[spoken].mean()),
        float(np.concatenate(near).mean()),
    )


def _labels(phones: Phones, end: float) -> np.ndarray:
    times = np.arange(STEP / 2, end, STEP)
    starts, ends = (np.array([getattr(phone, at) for phone in phones]) for at in ("start", "end"))
    place = np.searchsorted(starts, times, side="right") - 1
    names = np.array([phone.label.upper().rstrip("012") for phone in phones])[place]
    return np.where((place >= 0) & (times < ends[place]), names, SILENCE)


def _near(truth: Phones, found: Phones) -> np.ndarray:
    wanted, there = (np.array([p.start for p in phones if p.label != SILENCE]) for phones in (truth, found))
    return np.abs(wanted[:, None] - there[None]).min(1) <= NEAR + 1e-9
