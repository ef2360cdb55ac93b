"""Where the segments of an utterance end, in frames: by phone times, or by runs of equal cluster labels.

Ends are (segments,) int32, increasing; each is the number of frames up to its segment's last. The last is that of the
utterance.
"""

from collections.abc import Sequence

import numpy as np

from compress.errors import InputError
from jaxssl.data.manifest import Segment
from jaxssl.data.quality import frame_middles


def ends_of_phones(phones: Sequence[Segment], frames: int, *, period_ms: int) -> np.ndarray:
    """Find the ends of phones, and of what is silent between them, in an utterance of `frames` frames.

    A frame belongs to what is spoken in its middle, as `quality.frame_phones` has it; a phone in which no frame has its
    middle is none.

    Raises:
        InputError: no phone is known.
    """
    if not phones:
        raise InputError(f"segments: 0 phones are known in {frames} frames; give phone times, or take cluster labels")
    times = [time for phone in phones for time in (phone.start, phone.end)]
    cuts = np.searchsorted(frame_middles(frames, period_ms), times)
    return _increasing(np.append(cuts, frames))


def ends_of_labels(labels: np.ndarray, *, shortest: int = 1) -> np.ndarray:
    """Find the ends of runs of equal labels, (frames,) ints, after those shorter than `shortest` frames have gone.

    The shortest run goes first, the first of equally short ones, into the longer of its neighbours, the earlier of
    equally long ones. Neighbours that are then of one label are one run.

    Raises:
        InputError: `shortest` is below 1.
    """
    if shortest < 1:
        raise InputError(f"segments: runs of {shortest} frames at least are asked for; use 1 or more")
    ends = _increasing(np.append(np.flatnonzero(np.diff(labels)) + 1, len(labels)))
    kinds = labels[ends - 1]
    while len(ends) > 1:
        lengths = np.diff(ends, prepend=0)
        i = int(lengths.argmin())
        if lengths[i] >= shortest:
            break
        before, after = lengths[i - 1] if i > 0 else 0, lengths[i + 1] if i + 1 < len(lengths) else 0
        kinds[i] = kinds[i - 1] if before >= after else kinds[i + 1]
        last = np.append(kinds[1:] != kinds[:-1], True)
        ends, kinds = ends[last], kinds[last]
    return ends


def even_weights(ends: np.ndarray, frames: int) -> np.ndarray:
    """Give each frame 1 / (frames of its segment), so that a frame fires at every end; (frames,) float32.

    Frames behind the last end have 0.
    """
    lengths = np.diff(ends, prepend=0)
    weights = np.zeros(frames, np.float32)
    weights[: lengths.sum()] = np.repeat(1 / lengths, lengths)
    return weights


def _increasing(ends: np.ndarray) -> np.ndarray:
    found = np.unique(ends)
    return found[found > 0].astype(np.int32)
