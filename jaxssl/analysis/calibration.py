"""What speech does to a model: statistics of each map's inputs, and how far one model is from another."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.address import Matrix
from compress.lowrank import Heard, Moment
from jaxssl.data.logmel import Stats
from jaxssl.data.padding import Padded
from jaxssl.inference.encode import front_inputs, hear_behind, hear_front
from jaxssl.inference.prepack import prepared
from jaxssl.models.arch import Arch
from jaxssl.models.inner_maps import map_inputs, map_products
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Params

Sums = dict[str, tuple[Array, ...]]  # by path of a map: a sum over valid frames, how many these are, and more


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
    return _means(_listened(arch, params, batches, maps, stats=stats, tick=tick))


def unit_moments(
    arch: Arch,
    params: Params,
    batches: Iterable[Padded],
    units: Mapping[str, int],
    *,
    stats: Stats | None = None,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray]:
    """Average x xᵀ within the units of some maps' inputs: of a wide input made of many, that is little of the whole.

    Args:
        arch: what `params` is.
        params: the model.
        batches: speech.
        units: how many make the input of each map, by path.
        stats: of the log-Mel features, for models that take them.
        tick: called after each batch.

    Returns:
        By path, the blocks on the diagonal of what `moments` returns, (units, width, width) float32.
    """
    return _means(_listened(arch, params, batches, units, units=units, stats=stats, tick=tick))


def moments_to_decompose(
    arch: Arch,
    params: Params,
    batches: Iterable[Padded],
    maps: Iterable[Matrix],
    *,
    stats: Stats | None = None,
    tick: Callable[[], Any] = lambda: None,
) -> dict[str, Moment]:
    """Return by path what `compress.lowrank` decomposes maps with: of those with more inputs than outputs, `Heard`.

    The outputs' moment of a feed-forward block's second map is a sixteenth as large as its inputs'.
    Arguments are as `moments` has them.
    """
    sizes = {matrix.path: matrix.fan_in for matrix in maps}
    wide = {matrix.path for matrix in maps if matrix.fan_in > matrix.fan_out}
    total = _listened(arch, params, batches, sizes, products=wide, stats=stats, tick=tick)
    found = _means(total)
    powers = {path: float(total[path][2]) / float(total[path][1]) / sizes[path] for path in wide & found.keys()}
    return {path: Heard(each, powers[path]) if path in wide else each for path, each in found.items()}


def _listened(
    arch: Arch,
    params: Params,
    batches: Iterable[Padded],
    maps: Collection[str] | None,
    *,
    products: Collection[str] = (),
    units: Mapping[str, int] = MappingProxyType({}),
    stats: Stats | None,
    tick: Callable[[], Any],
) -> Sums:
    """Sum over valid frames x xᵀ of every map's input x, of some what they make of it, with ‖x‖², or within units."""
    arch, params = prepared(arch, params)
    sharing: dict[str, str] = {}  # by path, the first map that hears the same, as values hear what queries do

    @jax.jit
    def heard(params: Params, samples: Array, lengths: Array) -> dict[str, tuple[Array, Array, Array]]:
        inputs, frames, made = map_products(arch, params, *front_inputs(arch, samples, lengths, stats), of=products)
        firsts: dict[int, str] = {}
        asked = {path: x for path, x in inputs.items() if maps is None or path in maps}
        alone = {*made, *units}
        sharing.update({path: path if path in alone else firsts.setdefault(id(x), path) for path, x in asked.items()})
        valid = {path: _valid(asked[path], frames[path]) for path in dict.fromkeys(sharing.values())}
        outer = {path: _valid(made[path], frames[path]) if path in made else x for path, x in valid.items()}
        parts = {path: (*outer[path].shape[:2], size, -1) for path, size in units.items() if path in outer}
        outer |= {path: outer[path].reshape(shape) for path, shape in parts.items()}
        power = {path: jnp.square(x).sum() if path in made else jnp.zeros(()) for path, x in valid.items()}
        return {path: (outer[path], frames[path].sum(), power[path]) for path in valid}

    total: Sums = {}
    for samples, lengths in batches:
        for path, found in heard(params, samples, lengths).items():
            total[path] = _added_outer(total[path], *found) if path in total else _outer(*found)
        tick()
    return {path: total[first] for path, first in sharing.items()}


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
        others: models; those of one arch share a compiled program, and a front end that is the same arrays runs once.
        batches: speech.
        stats: of the log-Mel features, for models that take them.
        dtype: of the computation, which all models are prepared for.
        tick: called after each batch.
    """
    dtype = jnp.dtype(dtype)
    models = (reference, *others)
    ready = [prepared(*model, dtype=dtype) for model in models]
    first = [_same_front(models, number) for number in range(len(models))]
    total = np.zeros(())
    for samples, lengths in batches:
        fronts = {at: hear_front(*ready[at], stats, samples, lengths, dtype=dtype) for at in dict.fromkeys(first)}
        (one, frames), *rest = (hear_behind(*ready[at], fronts[same]) for at, same in enumerate(first))
        total = total + np.asarray([_compare_all(one, two, frames) for two, _ in rest], np.float64)
        tick()
    return [_distance(*each.T) for each in total]


def _same_front(models: Sequence[tuple[Arch, Params]], number: int) -> int:
    """Return the first of the models whose front end is that of this one, array for array."""

    def front(at: int) -> tuple[Any, ...]:
        arch, params = models[at]
        return (arch.front, *map(id, jax.tree.leaves(params.get("front", {}))))

    return next(at for at in range(number + 1) if front(at) == front(number))


def _distance(lost: np.ndarray, power: np.ndarray, cosine: np.ndarray, count: np.ndarray) -> Distance:
    return Distance(tuple(np.sqrt(lost / power).tolist()), tuple((cosine / count).tolist()))


def _means(sums: Sums) -> dict[str, np.ndarray]:
    return {path: np.asarray(total) / np.float32(count) for path, (total, count, *_) in sums.items()}


def _valid(x: Array, frames: Array) -> Array:
    """Bring a map's input to (batch, time, fan_in), zeros behind each row's end."""
    x = x.reshape(*x.shape[:2], -1)
    return jnp.where(frame_mask(frames, x.shape[1])[..., None], x, jnp.zeros_like(x))


# Programs of their own, one for each width: in that of the forward pass XLA compiled every map's product anew.
@jax.jit
def _outer(x: Array, *more: Array) -> tuple[Array, ...]:
    return jnp.einsum("bti,btj->ij" if x.ndim == 3 else "btui,btuj->uij", x, x), *more


@partial(jax.jit, donate_argnums=0)
def _added_outer(total: tuple[Array, ...], *found: Array) -> tuple[Array, ...]:
    return jax.tree.map(jnp.add, total, _outer(*found))


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
