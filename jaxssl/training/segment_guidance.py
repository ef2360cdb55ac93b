"""What tells a weight net where segments end: losses of its weights against a share, ends, and weights that fit them.

Meng et al. 2022, Chen et al. 2023. All are for the net's own weights, before they are mixed with no compression
(`firing.mixed`), and all are means over what is valid, so that padding changes none.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from compress.errors import InputError
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Output
from jaxssl.training.losses import MaskedPrediction, Sums, ratio


@dataclass(frozen=True)
class SegmentGuidance:
    """Pull weights towards segments: the sum of three losses, each with its own factor; 0 leaves one out.

    The defaults are those of the released once-for-all wav2vec 2.0 (xraychen/OFA-Wav2Vec2).

    Attributes:
        count: factor of `count_loss`.
        segments: factor of `segment_loss`.
        frames: factor of `frame_loss`.
        share: of frames that should fire, for `count_loss`.
    """

    count: float = 0.0
    segments: float = 0.05
    frames: float = 0.5
    share: float = 0.25

    def __post_init__(self) -> None:
        if min(self.count, self.segments, self.frames) < 0 or not 0 < self.share <= 1:
            raise InputError(f"{self}: factors are 0 or more, a share above 0 and at most 1; correct them")

    def __call__(self, weights: Array, lengths: Array, last: Array, pseudo: Array) -> tuple[Array, Sums]:
        """Compare `weights: (batch, time)`; return the loss, and each part as a sum and a count.

        Args:
            weights: of the net, 0 to 1.
            lengths: (batch,), valid frames of each row.
            last: as `segment_loss` takes it.
            pseudo: as `frame_loss` takes it.
        """
        parts = {
            "count_loss": (self.count, count_loss(weights, lengths, share=self.share)),
            "segment_loss": (self.segments, segment_loss(weights, last)),
            "frame_loss": (self.frames, frame_loss(weights, lengths, pseudo)),
        }
        one = jnp.ones((), jnp.float32)
        total = sum((factor * value for factor, value in parts.values()), jnp.zeros((), jnp.float32))
        return total, {name: (value, one) for name, (_, value) in parts.items()}


@dataclass(frozen=True)
class GuidedPrediction:
    """Masked prediction of a model that fires, while its weights learn where labels change.

    Attributes:
        prediction: the loss of the frames; what is reported as `loss` is this alone, so that models compare.
        guidance: the losses of the weights, in which a run of equal labels is a segment, or, where there is one label
            set more than is predicted, one of its labels.
    """

    prediction: MaskedPrediction
    guidance: SegmentGuidance = SegmentGuidance()

    def __call__(self, output: Output, labels: Array, mask: Array) -> tuple[Array, Sums]:
        """Compare a model's output with `labels`; arguments and reports as `MaskedPrediction`, and those of guidance.

        Raises:
            InputError: the model weighs no frames, or its labels are not one for each that it weighs.
        """
        if output.weights is None:
            raise InputError("the model weighs no frames that guidance could be for; give its arch a part that fires")
        sets, more = len(self.prediction.clusters), labels.ndim > 2
        first = labels[..., sets if labels.shape[-1] > sets else 0] if more else labels
        labels = labels[..., :sets] if more else labels
        if output.weights.shape != first.shape:
            raise InputError(f"{first.shape[1]} labels for {output.weights.shape[1]} weights; give one for each")
        value, sums = self.prediction(output, labels, mask)
        guided, told = self.guidance(output.weights, output.last_lengths, *label_runs(first, output.last_lengths))
        return value + guided, sums | told


def label_runs(labels: Array, lengths: Array) -> tuple[Array, Array]:
    """Find runs of equal labels: where one has its last frame, and 1 / its frames at each; both (batch, time).

    `labels` are (batch, time), of which `lengths: (batch,)` are valid. `segment_ends` has the same, and ways to drop
    short runs, for data that is prepared.
    """
    at = jnp.arange(labels.shape[1])[None]
    valid, changed = frame_mask(lengths, labels.shape[1]), labels[:, 1:] != labels[:, :-1]
    edge = jnp.ones_like(changed[:, :1])
    last = valid & (jnp.concatenate([changed, edge], 1) | (at == lengths[:, None] - 1))
    begun = jax.lax.cummax(jnp.where(jnp.concatenate([edge, changed], 1), at, 0), axis=1)
    ended = jax.lax.cummin(jnp.where(last, at, labels.shape[1]), axis=1, reverse=True)
    return last, jnp.where(valid, 1 / (ended - begun + 1).astype(jnp.float32), 0.0)


def count_loss(weights: Array, lengths: Array, *, share: float) -> Array:
    """Return |mean over rows of (sum of weights / frames) - share|: how many fire, but not where.

    Args:
        weights: (batch, time).
        lengths: (batch,), valid frames of each row.
        share: of frames that should fire.
    """
    valid = frame_mask(lengths, weights.shape[1])
    means = ratio(weights.astype(jnp.float32).sum(1, where=valid), lengths.astype(jnp.float32))
    return jnp.abs(means.mean() - share)


def segment_loss(weights: Array, last: Array) -> Array:
    """Return the mean over segments of |sum of weights up to the i-th end - i|: each end should fire its frame.

    Args:
        weights: (batch, time).
        last: (batch, time), true at the last frame of each segment. The original pads a list of ends, and counts in the
            mean, as 0, those that are not there.
    """
    missed = jnp.abs(jnp.cumsum(weights.astype(jnp.float32), axis=1) - jnp.cumsum(last.astype(jnp.float32), axis=1))
    return ratio(missed.sum(where=last), last.sum().astype(jnp.float32))


def frame_loss(weights: Array, lengths: Array, pseudo: Array) -> Array:
    """Return the mean over valid frames of |weight - pseudo weight|.

    Args:
        weights: (batch, time).
        lengths: (batch,), valid frames of each row.
        pseudo: (batch, time), what each should weigh, as `segment_ends.even_weights` has it.
    """
    valid = frame_mask(lengths, weights.shape[1])
    missed = jnp.where(valid, jnp.abs(weights.astype(jnp.float32) - pseudo), 0.0)
    return ratio(missed.sum(), valid.sum().astype(jnp.float32))
