"""What speech does to a model: statistics of each map's inputs, and how far one model is from another."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxssl.data.logmel import Stats
from jaxssl.data.padding import Padded
from jaxssl.inference.encode import front_inputs, hear
from jaxssl.inference.prepack import prepared
from jaxssl.models.arch import Arch
from jaxssl.models.inner_maps import map_inputs
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Params

Sums = dict[str, tuple[Array, Array]]  # by path of a map: a sum over valid frames, and how many these are


@dataclass(frozen=True)
class Distance:
    """How far a model's layers are from a reference's, each entry one of `Output.aligned`.

    Attributes:
        relative: ‖h − h′‖ / ‖h‖ over all valid frames.
        cosine: mean cosine of h and h′ over valid frames.
    """

    relative: tuple[float, ...]
    cosine: tuple[float, ...]


def moments(
    arch: Arch,
    params: Params,
    batches: Iterable[Padded],
    *,
    maps: Collection[str] | None = None,
    stats: Stats | None = None,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray]:
    """Average x xᵀ over the valid frames of every map's input, as the prepared model has it.

    Args:
        arch: what `params` is.
        params: the model.
        batches: speech.
        maps: paths of those that are asked for, which a wide map's sums make worth while; None: all.
        stats: of the log-Mel features, for models that take them.
        tick: called after each batch.

    Returns:
        By path, the second moment E[x xᵀ], (fan_in, fan_in) float32.
    """
    arch, params = prepared(arch, params)
    sharing: dict[str, str] = {}  # by path, the first map that hears the same, as values hear what queries do

    @jax.jit
    def heard(params: Params, samples: Array, lengths: Array) -> dict[str, tuple[Array, Array]]:
        inputs, frames = map_inputs(arch, params, *front_inputs(arch, samples, lengths, stats))
        firsts: dict[int, str] = {}
        asked = inputs if maps is None else {path: x for path, x in inputs.items() if path in maps}
        sharing.update({path: firsts.setdefault(id(x), path) for path, x in asked.items()})
        return {path: (_valid(asked[path], frames[path]), frames[path].sum()) for path in firsts.values()}

    total: Sums = {}
    for samples, lengths in batches:
        for path, (x, count) in heard(params, samples, lengths).items():
            total[path] = _with_outer(*total[path], x, count) if path in total else _outer(x, count)
        tick()
    means = _means(total)
    return {path: means[first] for path, first in sharing.items()}


def averages(
    arch: Arch, params: Params, batches: Iterable[Padded], *, stats: Stats | None = None
) -> dict[str, np.ndarray]:
    """Average x over the valid frames of every map's input within the layers; the arguments are as `moments` has them.

    Returns:
        By path, E[x], (fan_in,) float32.
    """

    @jax.jit
    def sums(params: Params, samples: Array, lengths: Array) -> Sums:
        heard, frames = map_inputs(arch, params, *front_inputs(arch, samples, lengths, stats))
        inner = {path: x for path, x in heard.items() if path.startswith("layers/")}
        return {path: (_valid(x, frames[path]).sum((0, 1)), frames[path].sum()) for path, x in inner.items()}

    return _means(reduce(partial(jax.tree.map, jnp.add), (sums(params, *batch) for batch in batches)))


def distance(
    reference: tuple[Arch, Params],
    other: tuple[Arch, Params],
    batches: Sequence[Padded],
    *,
    stats: Stats | None = None,
    dtype: Any = jnp.float32,
    tick: Callable[[], Any] = lambda: None,
) -> Distance:
    """Compare two models of equal depth and width layer by layer on the same speech; see `distances`."""
    return distances(reference, [other], batches, stats=stats, dtype=dtype, tick=tick)[0]


def distances(
    reference: tuple[Arch, Params],
    others: Sequence[tuple[Arch, Params]],
    batches: Sequence[Padded],
    *,
    stats: Stats | None = None,
    dtype: Any = jnp.float32,
    tick: Callable[[], Any] = lambda: None,
) -> list[Distance]:
    """Compare models with a reference of equal depth and width layer by layer, in one pass over the speech.

    Args:
        reference: what the others are compared with; it hears every batch once.
        others: models; those of one arch share a compiled program.
        batches: speech.
        stats: of the log-Mel features, for models that take them.
        dtype: of the computation, which all models are prepared for.
        tick: called after each batch.
    """
    dtype = jnp.dtype(dtype)
    ready = [prepared(*model, dtype=dtype) for model in (reference, *others)]
    total = np.zeros(())
    for samples, lengths in batches:
        (one, frames), *rest = (hear(*model, stats, samples, lengths, dtype=dtype) for model in ready)
        total = total + np.asarray([_compare_all(one, two, frames) for two, _ in rest], np.float64)
        tick()
    return [_distance(*each.T) for each in total]


def _distance(lost: np.ndarray, power: np.ndarray, cosine: np.ndarray, count: np.ndarray) -> Distance:
    return Distance(tuple(np.sqrt(lost / power).tolist()), tuple((cosine / count).tolist()))


def _means(sums: Sums) -> dict[str, np.ndarray]:
    return {path: np.asarray(total) / np.float32(count) for path, (total, count) in sums.items()}


def _valid(x: Array, frames: Array) -> Array:
    """Bring a map's input to (batch, time, fan_in), zeros behind each row's end."""
    x = x.reshape(*x.shape[:2], -1)
    return jnp.where(frame_mask(frames, x.shape[1])[..., None], x, jnp.zeros_like(x))


# Programs of their own, one for each width: in that of the forward pass XLA compiled every map's product anew.
@jax.jit
def _outer(x: Array, count: Array) -> tuple[Array, Array]:
    return jnp.einsum("bti,btj->ij", x, x), count


@partial(jax.jit, donate_argnums=0)
def _with_outer(total: Array, known: Array, x: Array, count: Array) -> tuple[Array, Array]:
    return total + jnp.einsum("bti,btj->ij", x, x), known + count


# A program of its own: fused into the forward passes, these sums took XLA minutes to compile for waveform models.
@jax.jit
def _compare_all(one: Array, two: Array, frames: Array) -> Array:
    valid = frame_mask(frames, one.shape[2])
    return jax.lax.map(lambda layer: _compare(layer[0], layer[1], valid), (one, two))


def _compare(one: Array, two: Array, valid: Array) -> Array:
    one, two = one.astype(jnp.float32), two.astype(jnp.float32)
    norms = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(two, axis=-1)
    cosine = (one * two).sum(-1) / jnp.maximum(norms, 1e-12)
    lost, power = jnp.square(one - two).sum(-1), jnp.square(one).sum(-1)
    each = jnp.stack([lost, power, cosine, jnp.ones_like(cosine)])
    return jnp.where(valid[None], each, jnp.zeros_like(each)).sum((1, 2))
