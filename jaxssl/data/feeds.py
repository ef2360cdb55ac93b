"""Corpora as batches read them: log-Mel frames or samples, each with labels of the same rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from compress.errors import InputError
from jaxssl.data.audio import read
from jaxssl.data.logmel import Stats
from jaxssl.data.manifest import Manifest
from jaxssl.data.prepared import Labels, Prepared

SAMPLES_PER_MS = 16
WAVE_STRIDE, WAVE_REACH = 320, 400  # of HuBERT's seven convolutions: a frame each 20 ms that sees 25 ms


@dataclass(frozen=True)
class MelCorpus:
    """Normalised log-Mel, `stack` frames of 10 ms joined into one, with one label each.

    Labels of a shorter period are thinned (`labels[::2]` of 10 ms labels for 20 ms frames), as the study does.

    Attributes:
        prepared: features.
        targets: labels.
        stack: frames joined: 1 for 10 ms models, 2 for 20 ms.
        stats: mean and deviation of a model trained elsewhere; None: the corpus's own.

    Raises:
        InputError: the labels do not fit the frames; the first utterance in question is named.
    """

    prepared: Prepared
    targets: Labels
    stack: int = 2
    stats: Stats | None = None

    stride = reach = 1

    def __post_init__(self) -> None:
        ids = [utterance.id for utterance in self.prepared.manifest.utterances]
        _check(self.targets, self.lengths, period_ms=self.prepared.period_ms * self.stack, ids=ids)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Joined frames of each utterance, (utterances,) int64."""
        return -(-np.asarray(self.prepared.lengths, np.int64) // self.stack)

    @property
    def item(self) -> tuple[int, ...]:
        """Shape of one joined frame."""
        return (self.stack * len(self.prepared.stats.mean),)

    def inputs(self, i: int) -> np.ndarray:
        """Read utterance i, (frames, stack · bins) float32."""
        return np.asarray(self.prepared.inputs(i, stack=self.stack, stats=self.stats), np.float32)

    def labels(self, i: int) -> np.ndarray:
        """Read its labels, (frames,) int32."""
        return self.targets[i][:: self.prepared.period_ms * self.stack // self.targets.period_ms]


@dataclass(frozen=True)
class WaveCorpus:
    """Samples at 16 kHz, read from the audio files when asked, with a label for each frame of the model.

    Attributes:
        manifest: the utterances.
        targets: labels, of the period of the model's frames or thinned to it.
        stride: samples from one frame to the next.
        reach: samples that a frame sees.

    Raises:
        InputError: the labels do not fit the samples; the first utterance in question is named.
    """

    manifest: Manifest
    targets: Labels
    stride: int = WAVE_STRIDE
    reach: int = WAVE_REACH

    item = ()

    def __post_init__(self) -> None:
        frames = 1 + (self.lengths - self.reach) // self.stride
        ids = [utterance.id for utterance in self.manifest.utterances]
        _check(self.targets, frames, period_ms=self.stride // SAMPLES_PER_MS, ids=ids)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Samples of each utterance, (utterances,) int64."""
        return np.array([utterance.samples for utterance in self.manifest.utterances], np.int64)

    def inputs(self, i: int) -> np.ndarray:
        """Read utterance i, (samples,) float32."""
        return read(self.manifest.utterances[i].path).samples

    def labels(self, i: int) -> np.ndarray:
        """Read its labels, (frames,) int32."""
        return self.targets[i][:: self.stride // SAMPLES_PER_MS // self.targets.period_ms]


def _check(labels: Labels, frames: np.ndarray, *, period_ms: int, ids: Sequence[str]) -> None:
    """Compare rates, then the number of labels of every utterance with that of its frames."""
    if period_ms % labels.period_ms:
        raise InputError(
            f"labels {labels.name} come each {labels.period_ms} ms and the model's frames each {period_ms} ms; make "
            f"labels of {period_ms} ms, or of a part of it"
        )
    if len(labels) != len(frames):
        raise InputError(f"labels {labels.name} are of {len(labels)} utterances, the corpus has {len(frames)}")
    thinned = -(-labels.lengths // (period_ms // labels.period_ms))
    if (wrong := np.flatnonzero(thinned != frames)).size:
        i = int(wrong[0])
        raise InputError(
            f"{ids[i]}: {thinned[i]} labels ({labels.name}) for {frames[i]} frames of {period_ms} ms, and so in "
            f"{wrong.size} of {len(frames)} utterances; make the labels again from this audio"
        )
