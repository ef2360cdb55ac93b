"""Speech for a teacher and a student of which one takes waveforms and the other log-Mel."""

from dataclasses import replace

import numpy as np

from compress.errors import InputError
from jaxssl.data.batches import Corpus
from jaxssl.data.feeds import MelCorpus, WaveCorpus
from jaxssl.data.logmel import Stats
from jaxssl.inference.source import Model
from jaxssl.models.arch import Arch, LogMel
from jaxssl.training.corpus import Data


def for_both(data: Data, teacher: Model, student: Model) -> Data:
    """Return speech that both can hear, with the same crops, masks and labels.

    Where one of them takes waveforms and the other log-Mel, batches are of waveforms, and `jaxssl.training.corpus`'s
    `hearing` makes log-Mel of them for the other, normalised by its own statistics, or the corpus's where it came with
    none.

    Args:
        data: as the teacher hears it.
        teacher: whose frames are the student's (`jaxssl.training.lesson.check_teacher`).
        student: who learns from it.

    Raises:
        InputError: the log-Mel model has other bins than the corpus's statistics, and none of its own.
    """
    models = {model.arch.front.features: model for model in (teacher, student)}
    if len(models) == 1:
        return data
    mel, wave, front = models[True], models[False], models[True].arch.front
    assert isinstance(front, LogMel)  # the only one of features
    stats = mel.stats or data.stats or data.mel
    if stats is None or len(stats.mean) != front.bins:
        bins = 0 if stats is None else len(stats.mean)
        raise InputError(
            f"{mel.name} takes {front.bins} Mel bins and came without statistics (stats.npy), the speech has "
            f"those of {bins}; give the model with its stats.npy"
        )

    def samples(given: tuple[Corpus, np.ndarray]) -> tuple[Corpus, np.ndarray]:
        corpus, among = given
        if not isinstance(corpus, MelCorpus):
            return given
        hop, field = wave.arch.front.samples
        return WaveCorpus(corpus.prepared.manifest, corpus.targets, stride=hop, reach=field), among

    return replace(
        data,
        train=samples(data.train),
        valid=samples(data.valid),
        stats=None,
        mel=stats,
        per_second=wave.arch.front.rate,
    )


def heard_by(arch: Arch, model: Model, data: Data | None) -> Stats | None:
    """Return the log-Mel statistics of a model made from, or taught by, another on some speech; None of waveforms."""
    if not arch.front.features:
        return None
    return model.stats if data is None or model.stats is not None else data.mel
