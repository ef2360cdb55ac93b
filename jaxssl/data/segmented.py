"""A corpus whose frames say, beside their label, which segment they are in: a phone, or a run of labels made smooth."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from compress.errors import InputError
from jaxssl.data.feeds import SAMPLES_PER_MS, MelCorpus, WaveCorpus
from jaxssl.data.manifest import Manifest
from jaxssl.data.segment_ends import ends_of_labels, ends_of_phones

Segments = Literal["phones", "smoothed"]
SMOOTHED_MS = 60  # runs of labels below that go into their neighbours


@dataclass(frozen=True)
class Segmented:
    """A corpus whose labels are (frames, 2): the label, and the number of the frame's segment in its utterance.

    Attributes:
        corpus: log-Mel frames or samples, with labels.
        by: phones: by phone times, silence between them being segments too; smoothed: runs of equal labels, after those
            shorter than 60 ms have gone.
        among: the utterances that will be read.

    Raises:
        InputError: the phones of one of them are not known.
    """

    corpus: MelCorpus | WaveCorpus
    by: Segments
    among: tuple[int, ...]

    def __post_init__(self) -> None:
        said = self.manifest.utterances
        if self.by == "phones" and (silent := [i for i in self.among if not said[i].phones]):
            raise InputError(
                f"{said[silent[0]].id}: no phone times, and so of {len(silent)} of {len(self.among)} utterances; take "
                "speech that has them, or segments by labels or smoothed ones"
            )

    @property
    def manifest(self) -> Manifest:
        """The utterances."""
        return self.corpus.prepared.manifest if isinstance(self.corpus, MelCorpus) else self.corpus.manifest

    @property
    def period_ms(self) -> int:
        """Milliseconds from one frame to the next."""
        if isinstance(self.corpus, MelCorpus):
            return self.corpus.prepared.period_ms * self.corpus.stack
        return self.corpus.stride // SAMPLES_PER_MS

    @property
    def lengths(self) -> np.ndarray:
        """Inputs of each utterance, (utterances,) int64."""
        return self.corpus.lengths

    @property
    def item(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.corpus.item

    @property
    def stride(self) -> int:
        """Inputs from one label to the next."""
        return self.corpus.stride

    @property
    def reach(self) -> int:
        """Inputs that one label sees."""
        return self.corpus.reach

    def inputs(self, i: int) -> np.ndarray:
        """Read utterance i."""
        return self.corpus.inputs(i)

    def labels(self, i: int) -> np.ndarray:
        """Read its labels and segments, (frames, 2) int32."""
        labels = self.corpus.labels(i)
        if self.by == "phones":
            ends = ends_of_phones(self.manifest.utterances[i].phones, len(labels), period_ms=self.period_ms)
        else:
            ends = ends_of_labels(labels, shortest=max(-(-SMOOTHED_MS // self.period_ms), 1))
        numbers = np.searchsorted(ends, np.arange(len(labels)), side="right")
        return np.stack([labels, numbers.astype(np.int32)], axis=1)
