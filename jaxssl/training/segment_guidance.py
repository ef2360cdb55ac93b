"""What tells a weight net where segments end: losses of its weights against a share, ends, and weights that fit them.

Meng et al. 2022, Chen et al. 2023. All are for the net's own weights, before they are mixed with no compression
(`firing.mixed`), and all are means over what is valid, so that padding changes none.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from compress.errors import InputError
from jaxssl.models.layers import frame_mask
from jaxssl.training.losses import Sums, ratio


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

    def __call__(self, weights: Array, lengths: Array, ends: Array, pseudo: Array) -> tuple[Array, Sums]:
        """Compare `weights: (batch, time)`; return the loss, and each part as a sum and a count.

        Args:
            weights: of the net, 0 to 1.
            lengths: (batch,), valid frames of each row.
            ends: as `segment_loss` takes them.
            pseudo: as `frame_loss` takes them.
        """
        parts = {
            "count_loss": (self.count, count_loss(weights, lengths, share=self.share)),
            "segment_loss": (self.segments, segment_loss(weights, ends)),
            "frame_loss": (self.frames, frame_loss(weights, lengths, pseudo)),
        }
        one = jnp.ones((), jnp.float32)
        total = sum((factor * value for factor, value in parts.values()), jnp.zeros((), jnp.float32))
        return total, {name: (value, one) for name, (_, value) in parts.items()}


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


def segment_loss(weights: Array, ends: Array) -> Array:
    """Return the mean over segments of |sum of weights up to the i-th end - i|: each end should fire its frame.

    Args:
        weights: (batch, time).
        ends: (batch, segments) int32, frames up to the last of each segment, counted from 1; -1 where there is none.
            The mean is over those there are, whereas the original counts those that are not as 0.
    """
    sums = jnp.cumsum(weights.astype(jnp.float32), axis=1)
    there = ends > 0
    reached = jnp.take_along_axis(sums, jnp.maximum(ends - 1, 0), axis=1)
    wanted = jnp.arange(1, ends.shape[1] + 1, dtype=jnp.float32)[None]
    missed = jnp.where(there, jnp.abs(reached - wanted), 0.0)
    return ratio(missed.sum(), there.sum().astype(jnp.float32))


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
