"""Loss spikes: updates whose loss or gradient is far above the recent ones, found and passed over on the device.

The recent ones are summed up by their median and their median distance from it, which spikes among them do not move
(Hampel's rule). Spikes enter the window like all others, so that what lasts longer than half of it is no spike any
more. OLMo passes over updates in the same way, by mean and standard deviation.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

WINDOW = 128  # updates that are remembered
ENOUGH = 64  # of them, before which nothing counts as a spike
SIGMA = 1.4826  # median distances of a normal distribution in a standard deviation
# Losses of one batch may vary by no more than rounding: a spike is at least `far` times that above.
LEAST_LOSS, LEAST_NORM = 0.02, 0.1  # share of the median loss; of the norm's natural logarithm


@dataclass(frozen=True)
class Policy:
    """What counts as a spike, and what follows.

    Attributes:
        far: how many (robust) standard deviations above the median of the recent ones.
        row: how many in a row let a run go back to a checkpoint; None: it never does.
        shrink: factor of the step after each time that it went back.
    """

    far: float
    row: int | None
    shrink: float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Spikes:
    """What a training state remembers of its updates.

    Attributes:
        recent: (2, WINDOW) losses and logarithms of gradient norms of the latest updates; infinite where none was yet.
        seen: () int32, updates that the window has seen.
        total: () int32, updates passed over as spikes.
        row: () int32, how many in a row until now were spikes or not finite; once it is the policy's, it stays so.
        first: () int32, the update that the row began with.
        returns: () int32, how often the run went back to a checkpoint.
    """

    recent: Array
    seen: Array
    total: Array
    row: Array
    first: Array
    returns: Array


def none_yet() -> Spikes:
    """Return what is remembered before the first update."""
    zeros = [jnp.zeros((), jnp.int32) for _ in range(5)]  # each its own memory: updates reuse it
    return Spikes(jnp.full((2, WINDOW), jnp.inf, jnp.float32), *zeros)


def begun_anew(spikes: Spikes) -> Spikes:
    """Forget the recent updates, as where the model was changed by hand; counts stay."""
    zero = jnp.zeros_like(spikes.seen)
    return replace(spikes, recent=jnp.full_like(spikes.recent, jnp.inf), seen=zero, row=zero.copy())


def watched(spikes: Spikes, policy: Policy, loss: Array, norm: Array, number: Array) -> tuple[Array, Spikes]:
    """Tell whether an update is a spike, and remember it.

    Args:
        spikes: what is remembered of those before.
        policy: what counts as one.
        loss: () of its batches.
        norm: () of its gradient.
        number: () of the update, from 1.

    Returns:
        () bool, and what is remembered now. An update that is not finite is no spike, but part of a row of them.
    """
    now = jnp.stack([loss, jnp.log(jnp.maximum(norm, np.float32(1e-30)))]).astype(jnp.float32)
    finite = jnp.isfinite(now).all()
    count = jnp.minimum(spikes.seen, WINDOW)
    spike = finite & (count >= ENOUGH) & (now > _highest(spikes.recent, count, policy.far)).any()
    place = jnp.where(jnp.arange(WINDOW) == spikes.seen % WINDOW, now[:, None], spikes.recent)
    row = jnp.where(spike | ~finite, spikes.row + 1, 0)
    if policy.row is not None:  # whoever reads it seldom must not miss it
        row = jnp.where(spikes.row >= policy.row, spikes.row, row)
    return spike, Spikes(
        recent=jnp.where(finite, place, spikes.recent),
        seen=spikes.seen + finite.astype(jnp.int32),
        total=spikes.total + spike.astype(jnp.int32),
        row=row,
        first=jnp.where((spikes.row == 0) & (row > 0), number, spikes.first),
        returns=spikes.returns,
    )


def passed_over(spike: Array, gradient: Any) -> Any:
    """Return the gradient, of a spike such that the optimiser passes over it: it does so where one is not finite."""
    leaves, form = jax.tree.flatten(gradient)
    smallest = min(range(len(leaves)), key=lambda i: leaves[i].size or np.inf)
    leaves[smallest] = jnp.where(spike, jnp.nan, leaves[smallest])
    return jax.tree.unflatten(form, leaves)


def step_size(spikes: Spikes, policy: Policy) -> Array:
    """Return the () factor of the step: 1 in a run that never went back."""
    return jnp.float32(policy.shrink) ** spikes.returns.astype(jnp.float32)


def _highest(recent: Array, count: Array, far: float) -> Array:
    """Return (2,) loss and logarithm of the norm above which an update is a spike; infinite values count for none."""
    middle = _median(recent, count)
    spread = np.float32(SIGMA) * _median(jnp.abs(recent - middle[:, None]), count)
    least = jnp.stack([np.float32(LEAST_LOSS) * jnp.abs(middle[0]), jnp.float32(LEAST_NORM)])
    return middle + np.float32(far) * jnp.maximum(spread, least)


def _median(values: Array, count: Array) -> Array:
    """Return the median of each row's first `count` values by size."""
    ordered = jnp.sort(values, axis=-1)
    middle = [jax.lax.dynamic_index_in_dim(ordered, i, 1, keepdims=False) for i in ((count - 1) // 2, count // 2)]
    return (middle[0] + middle[1]) / np.float32(2)
