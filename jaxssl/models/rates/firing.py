"""Continuous integrate-and-fire: frames are added up by weights, and each time these reach a threshold one is fired.

Dong and Xu 2020; for self-supervised speech models Meng et al. 2022 and, for a continuous range of rates, Chen et al.
2023. Which part of a frame goes into which fired one is a matrix, so that no loop over time is needed: with threshold b
and c(t) the sum of the weights up to frame t, fired frame k has of frame t

    W[k, t] = max(0, min(c(t), (k + 1) b) - max(c(t - 1), k b)).
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxssl.models.layers import frame_mask

Tail = Literal["drop", "round"]

# What rounding may cost a sum of a few thousand weights 1/r. A threshold missed by less counts as reached: else the
# last frame of average pooling would come and go with the ratio. It changes how many frames fire, never their values.
SLACK = 1e-4
TAIL = 0.5  # of weight, not of the threshold
SEEN = 1e-3  # of a threshold; a frame of which less was fired counts as not fired, so that nothing divides by dust


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Firing:
    """Which part of each frame goes where.

    Attributes:
        shares: W, (batch, fired, time) float32; 0 in rows that did not fire. A row that did sums to the threshold.
        lengths: fired frames of each row, (batch,) int32; more than `shares` has rows where the bound was too low.
        turns: how often the threshold had been reached at each frame, (batch, time) int32, the frame itself counted.
    """

    shares: Array
    lengths: Array
    turns: Array

    def fire(self, x: Array) -> Array:
        """Add up frames: z_k = sum over t of W[k, t] x_t, from (batch, time, width) to (batch, fired, width)."""
        return _product("bkt,btd->bkd", self.shares, x)

    def spread(self, z: Array) -> Array:
        """Lay fired frames out over the frames that they are made of, (batch, fired, width) to (batch, time, width).

        y_t = sum over k of W[k, t] z_k, divided by the sum over k of W[k, t]. A frame that no fired one has anything of
        takes the one that was being added up, and what lies behind the last firing takes the last; all are 0 where
        nothing fired.
        """
        total = self.shares.sum(1, keepdims=True)
        seen = total > SEEN
        current = jnp.minimum(self.turns, self.lengths[:, None] - 1)[:, None]
        current = (jnp.arange(self.shares.shape[1])[None, :, None] == current).astype(jnp.float32)
        mixture = jnp.where(seen, self.shares / jnp.where(seen, total, jnp.ones_like(total)), current)
        return _product("bkt,bkd->btd", mixture, z)

    def durations(self, weights: Array) -> Array:
        """Count the frames that each fired one covers, (batch, fired) float32.

        A frame at which one fires is divided by the parts of its weight. They do not add up to all frames: those behind
        the last firing are nobody's, nor are frames without weight. `weights: (batch, time)` are those that fired.
        """
        some = (weights > 0)[:, None]
        return jnp.where(some, self.shares / jnp.where(some, weights[:, None], 1.0), 0.0).sum(-1)


def integrate(
    weights: Array,
    lengths: Array | None = None,
    *,
    bound: int,
    threshold: float = 1.0,
    tail: Tail = "drop",
) -> Firing:
    """Fire a frame each time the running sum of the weights has grown by `threshold`.

    Weights 1 are no compression, weights 1/r average pooling of r frames, either with threshold 1.

    Args:
        weights: (batch, time), 0 or more; of a frame that fires several times, several thresholds.
        lengths: (batch,), valid frames of each row; None: all. What others weigh does not matter.
        bound: frames that may fire at most. More are not in `shares`, and `lengths` says how many they were.
        threshold: above 0.
        tail: what is left over at the end fires not at all ("drop", as in training), or where it weighs 0.5 or more,
            scaled up to the threshold ("round").
    """
    weights = weights.astype(jnp.float32) / threshold
    if lengths is not None:
        weights = jnp.where(frame_mask(lengths, weights.shape[1]), weights, jnp.zeros_like(weights))
    whole, part = _running(weights)
    places = jnp.arange(bound, dtype=jnp.int32)[None, :, None]
    filled = jnp.clip((whole[:, None] - places).astype(jnp.float32) + part[:, None], 0.0, 1.0)
    shares = jnp.diff(filled, axis=2, prepend=jnp.zeros_like(filled[..., :1]))
    last, over = whole[:, -1], part[:, -1]
    late = over > 1 - SLACK
    fired, rest = last + late.astype(jnp.int32), jnp.where(late, 0.0, over)
    if tail == "round":
        more = rest * threshold > TAIL - SLACK
        scale = jnp.where(more, 1 / jnp.where(more, rest, 1.0), 1.0)[:, None, None]
        shares = jnp.where(places == fired[:, None, None], shares * scale, shares)
        fired = fired + more.astype(jnp.int32)
    shares = jnp.where(places < fired[:, None, None], shares * threshold, 0.0)
    return Firing(shares, fired, whole)


def _running(weights: Array) -> tuple[Array, Array]:
    """Sum weights up to each frame, (batch, time): the whole part, int32, and the rest, float32.

    The rest is added up in units of 2^-32, where overflow is what carries into the whole part. So it is as exact after
    an hour as at the start; in float32 sums would be off by a thousandth after 10,000 frames, and a fired frame's share
    is a difference of two of them.
    """
    whole = jnp.floor(weights)
    steps = ((weights - whole) * 2.0**32).astype(jnp.uint32)
    rest = jnp.cumsum(steps, axis=1)
    carried = rest < steps  # it went over 2^32 at this frame
    turns = jnp.cumsum(whole.astype(jnp.int32) + carried.astype(jnp.int32), axis=1)
    plain = jnp.cumsum(weights, axis=1)  # whose gradient is that of both parts together
    part = rest.astype(jnp.float32) * 2.0**-32
    return turns, part + (plain - jax.lax.stop_gradient(plain))


def mixed(weights: Array, amount: Array) -> Array:
    """Mix weights with no compression, by an amount from 0 (none) over 1 (the weights themselves) to 2 (all 0).

    (1 - amount) + amount · weights, from 1 on (2 - amount) · weights (Chen et al. 2023). Gradients reach the amount,
    which is () or (batch,); weights are (batch, time).
    """
    amount = jnp.broadcast_to(amount.astype(jnp.float32), weights.shape[:1])[:, None]
    zero = jnp.zeros_like(amount)
    ones, own = jnp.maximum(1 - amount, zero), jnp.maximum(amount, zero) - 2 * jnp.maximum(amount - 1, zero)
    return ones + own * weights


def frame_period(amount: Array, *, rate: float, period: float = 20.0) -> Array:
    """Return the mean milliseconds from one fired frame to the next: `period` over the mean of the mixed weights.

    `rate` is the weights' mean before (2/9 with segments of unsupervised recognition), `amount` 0 to below 2, `period`
    that of frames that go in. Inverse: `amount_for`.
    """
    return period / (jnp.maximum(1 - amount, 0) + jnp.minimum(amount, 2 - amount) * rate)


def amount_for(wanted: Array, *, rate: float, period: float = 20.0) -> Array:
    """Return the amount of mixing at which frames come each `wanted` milliseconds; the inverse of `frame_period`."""
    share = period / wanted
    return jnp.where(share >= rate, (1 - share) / (1 - rate), 2 - share / rate)


def rescaled(weights: Array, targets: Array, *, threshold: float = 1.0, own: float = 0.0) -> Array:
    """Scale weights so that each row fires a given number of frames.

    Args:
        weights: (batch, time), 0 where a frame does not count; a row without weight stays so.
        targets: (batch,), frames to be fired.
        threshold: at which one is.
        own: share of the weights' own sum in the new one; 0: the targets alone count.
    """
    total = weights.sum(1)
    wanted = (1 - own) * (threshold * targets.astype(jnp.float32) + SLACK) + own * total
    return weights * (wanted / jnp.where(total > 0, total, jnp.ones_like(total)))[:, None]


def at_least_once(weights: Array, *, threshold: float = 1.0) -> Array:
    """Scale up the weights, (batch, time), of rows that would never reach the threshold, so that they do once.

    An utterance of which nothing is left would have no output. What the original has for this does nothing: it divides
    the sum by itself.
    """
    total = weights.sum(1, keepdims=True)
    few = (total > 0) & (total < threshold)
    return weights * jnp.where(few, threshold / jnp.where(few, total, jnp.ones_like(total)), jnp.ones_like(total))


def _product(equation: str, shares: Array, x: Array) -> Array:
    """Multiply in the dtype of `x`; in float32 exactly, for a share of 1 must leave a frame as it is."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, shares.astype(x.dtype), x, precision=precision)
