"""Gates on units: which ones stay is learned together with the weights, under a target for the size.

A unit's gate multiplies what the unit feeds on; it is drawn from a hard-concrete distribution, a stretched sigmoid of
noise cut off at 0 and 1, so that whole units close while the expectation has a gradient (Louizos et al. 2018; with
these constants DPHuBERT, Peng et al. 2023, section 3.2):

    u ~ U(0, 1)    s = σ((log u − log(1 − u) + log α) / β)    z = min(1, max(0, s (ζ − γ) + γ))
    P(z > 0) = σ(log α − β log(−γ / ζ))

The size is held to its target by an augmented Lagrangian, λ₁ (t̂ − t) + λ₂ (t̂ − t)², whose multipliers climb.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.address import Axis, Tree, flatten, get, put
from jaxssl.models.arch import Arch
from jaxssl.models.fronts.waveform import scale_gradient
from jaxssl.models.model import Params, shapes
from jaxssl.models.stack import Stack
from jaxssl.training.distillation import Distillation, distilling
from jaxssl.training.losses import Sums
from jaxssl.training.step import Arrays, Objective

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
OPEN = math.log(0.99 / 0.01)  # log α of a fresh gate: it is open
STIFF = 10.0  # λ₂ at the start; the published 0 needs tens of thousands of updates until it counts
GATES = "gates"  # among a student's parameters in training
TARGET = "target"  # in a batch: share of the parameters that is to go


def fresh(axes: Sequence[Axis]) -> Params:
    """Return open gates for every unit, {"open": by axis log α (units,)}, and the two multipliers."""
    gates = {axis.name: jnp.full(axis.size, OPEN, jnp.float32) for axis in axes}
    return {"open": gates, "multipliers": jnp.array([0.0, STIFF], jnp.float32)}


def drawn(logits: Array, key: Array) -> Array:
    """Draw the gates z of `logits: (units,)`."""
    u = jax.random.uniform(key, logits.shape, minval=1e-6, maxval=1 - 1e-6)
    return _stretched(jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + logits) / BETA))


def settled(logits: Array, keep: Array | None = None) -> Array:
    """Return the gates as they are once training is over: 0, or σ(0.8 log α / β) for those that stay.

    Args:
        logits: log α, (units,).
        keep: (units,) bool, which stay; None: as many as are expected to be open, those most open (the choice of
            DPHuBERT's code, after Wang et al. 2020).
    """
    if keep is None:
        closed = logits.size - jnp.round(chance(logits).sum()).astype(int)
        keep = jnp.argsort(jnp.argsort(logits)) >= closed
    return jnp.where(keep, jax.nn.sigmoid(0.8 / BETA * logits), 0.0)


def chosen(arch: Arch, axes: Sequence[Axis], logits: Mapping[str, Any], target: float) -> dict[str, np.ndarray]:
    """Choose which gates stay open so that the target is met: all those above one log α.

    The Lagrangian brings the expected size to the target; what rounding and the last updates leave is made up here.

    Args:
        arch: before anything goes.
        axes: whose units have gates.
        logits: by axis log α, (units,).
        target: share of the parameters that is to go.

    Returns:
        By axis (units,) bool.
    """
    values = {axis.name: np.asarray(logits[axis.name]) for axis in axes}
    every = np.sort(np.concatenate(list(values.values())))

    def keeps(count: int) -> dict[str, np.ndarray]:
        least = every[count] if count < len(every) else np.inf
        return {name: row >= least for name, row in values.items()}

    dense = size(arch, axes, {axis.name: axis.size for axis in axes})

    def gone(count: int) -> float:
        return 1 - float(size(arch, axes, {name: int(row.sum()) for name, row in keeps(count).items()})) / dense

    count = bisect.bisect_left(range(len(every) + 1), target, key=gone)
    return keeps(min((count - 1, count), key=lambda n: abs(gone(max(n, 0)) - target)))


def chance(logits: Array) -> Array:
    """Return P(z > 0)."""
    return jax.nn.sigmoid(logits - BETA * math.log(-GAMMA / ZETA))


def gated(params: Mapping[str, Any], axes: Sequence[Axis], gates: Mapping[str, Array]) -> Tree:
    """Multiply by the gates the weights of the maps that the units feed; shapes stay.

    gated(params, axes, zeros and ones) computes what masking, or cutting, the zeros does.
    """
    tree: Tree = dict(params)
    for axis in axes:
        for path, at in axis.leaves:
            if path.rpartition("/")[0] in axis.feeds:
                leaf = get(tree, path)
                shape = [1] * leaf.ndim
                shape[at] = axis.size
                tree = put(tree, path, leaf * gates[axis.name].reshape(shape).astype(leaf.dtype))
    return tree


def size(arch: Arch, axes: Sequence[Axis], counts: Mapping[str, Any]) -> Any:
    """Count the parameters of a model that keeps `counts` units of the axes; exact for integers, smooth between."""
    at = {leaf: axis.name for axis in axes for leaf in axis.leaves}
    total: Any = 0
    for path, leaf in flatten(shapes(arch)).items():
        fixed = math.prod(n for i, n in enumerate(leaf.shape) if (path, i) not in at)
        product: Any = fixed
        for i in range(len(leaf.shape)):
            if (path, i) in at:
                product = product * counts[at[path, i]]
        total = total + product
    return total


def gating(
    arch: Arch, loss: Distillation, axes: Sequence[Axis], *, dtype: Any = jnp.float32, stack: Stack = "unroll"
) -> Objective:
    """Return the objective of distilling and pruning at once: `params` has the gates under `GATES`.

    Args:
        arch: of the student before anything goes.
        loss: how it learns from the teacher.
        axes: whose units have gates.
        dtype: of the computation.
        stack: see `jaxssl.models.model.apply`.
    """
    dense = size(arch, axes, {axis.name: axis.size for axis in axes})

    def objective(params: Any, held: Any, batch: Arrays, key: Array | None) -> tuple[Array, Sums]:
        logits, multipliers = params[GATES]["open"], params[GATES]["multipliers"]
        keys = None if key is None else dict(zip(logits, jax.random.split(key, len(logits)), strict=True))
        z = {name: settled(a) if keys is None else drawn(a, keys[name]) for name, a in logits.items()}
        learn = distilling(arch, loss, view=lambda params, _: gated(params, axes, z), dtype=dtype, stack=stack)
        rest = {name: part for name, part in params.items() if name != GATES}
        value, sums = learn(rest, held, batch, key)
        gone = 1 - size(arch, axes, {name: chance(a).sum() for name, a in logits.items()}) / dense
        off = gone - batch[TARGET]
        climbing = scale_gradient(multipliers, -1.0)
        one = jnp.ones((), jnp.float32)
        told = {"gone": (gone, one), "target": (batch[TARGET], one)}
        return value + climbing[0] * off + climbing[1] * jnp.square(off), sums | told

    return objective


def _stretched(s: Array) -> Array:
    return jnp.clip(s * (ZETA - GAMMA) + GAMMA, 0, 1)
