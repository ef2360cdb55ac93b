"""How much the training loss feels each unit: its gradient with respect to a gate on the unit (Michel et al. 2019)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.address import Axis
from compress.errors import InputError
from jaxssl.models.arch import Arch
from jaxssl.models.inner_maps import apply_gated
from jaxssl.models.model import Params
from jaxssl.models.sites import axes
from jaxssl.training.step import Arrays, Loss

READ = ("inputs", "lengths", "labels", "mask")


def context_gradient(
    arch: Arch,
    params: Params,
    batches: Iterable[Arrays],
    loss: Loss,
    *,
    kind: Literal["heads", "hidden"] = "heads",
    key: Array | None = None,
    normalise: bool = True,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray]:
    """Score every unit by |activation · gradient| under the training loss; nothing is updated.

    With c what a unit feeds the map after it (a head's context, (batch, time, head_dim), or a hidden unit's value) and
    g = ∂loss/∂c, the score is the mean over batches of Σ over frames of |Σ_i c_i g_i|, to first order how much the loss
    changes with the unit's size frame by frame: the study's data-driven head score, after Michel et al. (2019). Σ_i c_i
    g_i is the gradient with respect to a gate of one on the unit, and so it is computed. Of a loss that is a mean over
    frames, a long batch makes no greater scores than a short one.

    Args:
        arch: what `params` is.
        params: the model.
        batches: `inputs`, `lengths`, `labels` and `mask`, as for a training step; each shape compiles once.
        loss: of the model's output, labels and mask.
        kind: which units, heads or those of the feed-forward blocks.
        key: randomness for dropout and LayerDrop, as the study had it; None is deterministic.
        normalise: divide each layer's scores by their L2 norm, as the study does, before layers are compared.
        tick: called after each batch.

    Returns:
        By axis of the kind, scores (axis.size,), float64; empty where a layer has no such units.

    Raises:
        InputError: there is no batch; or what `apply` and the loss refuse.
    """
    chosen = [axis for axis in axes(arch) if axis.name.endswith(f"/{kind}")]
    alive = [axis for axis in chosen if axis.size]

    @jax.jit
    def felt(params: Params, batch: Arrays, key: Array | None) -> dict[str, Array]:
        def value(gates: Mapping[str, Array]) -> Array:
            by_map = {path: gates[axis.name] for axis in alive for path in axis.feeds}
            output = apply_gated(arch, params, by_map, batch["inputs"], batch["lengths"], mask=batch["mask"], key=key)
            return loss(output, batch["labels"], batch["mask"])[0]

        ones = _open(arch, alive, *batch["inputs"].shape[:2])
        return {name: jnp.abs(gradient).sum((0, 1)) for name, gradient in jax.grad(value)(ones).items()}

    total = {axis.name: np.zeros(axis.size) for axis in chosen}
    count = 0
    for batch in batches:
        drawn = None if key is None else jax.random.fold_in(key, count)
        found = felt(params, {name: batch[name] for name in READ}, drawn)
        total |= {name: total[name] + np.asarray(values, np.float64) for name, values in found.items()}
        count += 1
        tick()
    if not count:
        raise InputError("the scores need at least one batch, and there is none; give more data or a smaller batch")
    return {name: _scaled(values / count, normalise) for name, values in total.items()}


def _open(arch: Arch, chosen: Sequence[Axis], rows: int, inputs: int) -> dict[str, Array]:
    """Return gates of one, (rows, frames of the unit's layer, units), by axis."""
    heard = arch.front.heard(inputs)
    frames = {axis.name: arch.reduced(heard, layer=int(axis.name.split("/")[1])) for axis in chosen}
    return {axis.name: jnp.ones((rows, frames[axis.name], axis.size)) for axis in chosen}


def _scaled(scores: np.ndarray, normalise: bool) -> np.ndarray:
    return scores / (np.linalg.norm(scores) + 1e-20) if normalise else scores
