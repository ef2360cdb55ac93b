"""What one model makes of utterances, heard once: means, chosen frames, and all frames where memory allows.

CTC probes need every frame again and again. Where those do not fit, they are computed anew for each batch, as SUPERB's
code does: slow, but any corpus will do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError
from experiments.probes.probing import log_mel, log_mel_frames
from experiments.probes.tasks import BUCKETS, batches
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.padding import pad
from jaxssl.inference.encode import LONGEST, hear, timing
from jaxssl.inference.source import Model
from jaxssl.models.arch import Arch
from jaxssl.models.model import init
from jaxssl.runtime.cli import follow
from jaxssl.training.ctc import Scale, Source

# Samples padded to; no utterance may be longer than the last. Whisper has positions for 30 s.
LENGTHS = (*BUCKETS, LONGEST * SAMPLE_RATE, 4 * BUCKETS[-1])

BASELINES = "log-Mel", "random weights"
Hearing = Callable[[Array, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Heard:
    """A model's layers on a list of utterances.

    Attributes:
        model: what listened.
        hear: samples, lengths → layers (layers, batch, frames, width), valid frames (batch,).
        signals: samples of the utterances.
        frames: of each utterance, (utterances,).
        means: over the frames of each, (layers, utterances, width).
        variances: the same.
        picked: frames that were asked for, under their name; of each utterance (layers, frames, width).
        kept: all frames of each utterance, (layers, frames, width); none where memory did not allow it.
    """

    model: Model
    hear: Hearing
    signals: Sequence[np.ndarray]
    frames: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    picked: Mapping[str, Sequence[np.ndarray]]
    kept: Sequence[np.ndarray] = ()

    def scale(self, rows: np.ndarray) -> Scale:
        """Return mean and deviation over all frames of some utterances."""
        share = self.frames[rows] / self.frames[rows].sum()
        means, variances = (x[:, rows].astype(np.float64) for x in (self.means, self.variances))
        mean = np.einsum("n,lnw->lw", share, means)
        spread = variances + np.square(means - mean[:, None])  # within utterances and between them
        return Scale(mean.astype(np.float32), np.sqrt(np.einsum("n,lnw->lw", share, spread)).astype(np.float32))

    def source(self, rows: np.ndarray) -> Source:
        """Return the frames of some utterances as CTC takes them, padded to the longest of them all."""
        longest = int(self.frames[rows].max())

        def cached(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            layers, _, width = self.means.shape
            features = np.zeros((layers, len(batch), longest, width), np.float32)
            for place, row in enumerate(rows[batch].tolist()):
                features[:, place, : self.frames[row]] = self.kept[row]
            return features, self.frames[rows[batch]].astype(np.int32)

        if self.kept:
            return cached
        most = max(len(self.signals[row]) for row in rows)

        def anew(batch: np.ndarray) -> tuple[Array, Array]:
            samples, lengths = pad([self.signals[row] for row in rows[batch]], to=most)
            return self.hear(jnp.asarray(samples), jnp.asarray(lengths))

        return anew


def program(model: Model) -> Hearing:
    """Return the compiled function from samples and lengths to all layers of a model, stacked, and valid frames."""
    return partial(hear, model.arch, model.params, model.stats)


def baselines(model: Model, *, seed: int) -> list[tuple[Model, Hearing]]:
    """Return what a model's layers are held against: the log-Mel frames at its rate, and its own shape untrained.

    Raises:
        InputError: no log-Mel frames come at the model's times.
    """
    frames, untrained = BASELINES
    plain = replace(model, name=frames, targets=None)  # it predicts nothing
    fresh = replace(model, name=untrained, params=init(model.arch, jax.random.key(seed)))
    return [(plain, partial(log_mel_frames, log_mel(model.arch), model.stats)), (fresh, program(fresh))]


def listen(
    model: Model,
    signals: Sequence[np.ndarray],
    picks: Mapping[str, Sequence[np.ndarray]],
    *,
    memory: float,
    whole: np.ndarray,
    hearing: Hearing | None = None,
) -> Heard:
    """Hear utterances once.

    Args:
        model: what listens.
        signals: samples, 64 s each at most.
        picks: under each name, places of the frames wanted of each utterance.
        memory: bytes that all frames may take.
        whole: (utterances,) bool, those of which all frames are wanted.
        hearing: what gives its layers; default: all of the model's own.

    Raises:
        InputError: the model's layers hold NaN or infinities.
    """
    hearing, lengths = hearing or program(model), np.array([len(signal) for signal in signals])
    size = 4 * sum(model.arch.frames(lengths[whole]).tolist()) * (len(model.arch.layers) + 1) * model.arch.width
    keep, parts = size <= memory, list(batches(signals, buckets=LENGTHS))
    frames = np.zeros(len(signals), int)
    means, variances, kept = ([np.zeros(0)] * len(signals) for _ in range(3))
    picked = {name: [np.zeros(0)] * len(signals) for name in picks}
    for rows, batch in follow(parts, f"listening: {model.name}", total=len(parts)):
        layers, counts = map(np.asarray, hearing(*batch))
        for place, row in enumerate(rows.tolist()):
            valid = layers[:, place, : counts[place]]
            if bad := int(np.count_nonzero(~np.isfinite(valid))):
                raise InputError(
                    f"{model.name}: {bad} of {valid.size} values of an utterance are NaN or infinite; mend it"
                )
            frames[row], means[row], variances[row] = counts[place], valid.mean(1), valid.var(1)
            kept[row] = valid.copy() if keep and whole[row] else kept[row]
            for name, places in picks.items():
                picked[name][row] = valid[:, places[row]]
    stacked = np.stack(means, 1), np.stack(variances, 1)
    return Heard(model, hearing, signals, frames, *stacked, picked, kept if keep and whole.any() else ())


def period_ms(arch: Arch) -> int | None:
    """Return the time from one of a model's frames to the next, where its frames are log-Mel's or joined ones."""
    try:
        log_mel(replace(arch, time_reduction=1, shortening=None, layers=()))
    except InputError:
        return None
    how = timing(arch, features=False)
    return 1000 * how.hop // how.rate
