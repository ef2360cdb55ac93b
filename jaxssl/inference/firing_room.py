"""Fired frames with no more room than they need: frames are weighed first, and a program of a few runs behind them.

A program has fixed shapes, so that `IntegrateAndFire` computes `most` of 100 frames whatever fires. Here the model runs
to where its frames are weighed, the host reads how many will fire, and the rest runs by the program of the smallest
room that holds them: fewer fired frames are fewer milliseconds, and no utterance is lost for want of room.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from jaxssl.models.arch import Arch
from jaxssl.models.model import Params, restored
from jaxssl.models.rates.integrate_and_fire import Integration
from jaxssl.models.rates.track import Track

# Of 100 frames; each room is some four fifths of the one before, so that a ninth of it stays empty on the mean.
ROOMS = (4, 5, 6, 8, 9, 12, 14, 18, 22, 27, 34, 42, 52, 64, 80, 100)
MORE = 1  # frames: two programs round differently, and the second may fire what the first just missed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Held:
    """A batch before its frames fire.

    Attributes:
        track: features of the front end, or the input of the layer that fires.
        needed: frames of 100 that there must be room for, ().
    """

    track: Track
    needed: Array


def held(arch: Arch, params: Params, inputs: Array, lengths: Array | None, dtype: Any) -> Held:
    """Run a model to where its frames fire.

    Args:
        arch: of a model that fires.
        params: its parameters.
        inputs: of its front end, as `jaxssl.models.model.apply`.
        lengths: (batch,), valid samples or frames of each row; None: all.
        dtype: of the computation.
    """
    model, at = restored(arch, params), arch.fires_at
    heard = model.featurise(inputs, lengths, jnp.dtype(dtype), "independent")
    track = Track(heard.features, heard.lengths)
    if at is not None:
        short, _ = model.shorten(track, None, None)
        track = model.enter(short.of(model.embed(short.x, short.valid, None, None)), short.valid, None)
        track = model.go_on(track, None, 0, at)[0][-1]
    fires: Integration = (model if at is None else model.layers[at]).shortening
    fired, frames = fires.count(track.x, track.lengths) + MORE, jnp.maximum(track.counts, 1)
    return Held(track, jnp.max(-((99 - 100 * fired) // frames)))


def roomed(arch: Arch, needed: int) -> Arch:
    """Return the arch with the smallest room that holds what fires, of `ROOMS` and its own, which is never exceeded."""
    part = arch.firing
    assert part is not None
    return arch.refired(replace(part, most=min([room for room in ROOMS if room >= needed] + [part.most])))


@partial(jax.jit, static_argnums=(0, 3))
def released(arch: Arch, params: Params, before: Held, layers: Literal["last", "logits"]) -> tuple[Array, Array]:
    """Let frames fire, and run the rest of the model.

    Args:
        arch: as `roomed` has it.
        params: the model's parameters.
        before: what `held` gave.
        layers: "last", what the whole model returns, (batch, time, width); or what its output layer says.

    Returns:
        That, and the valid frames of each row, (batch,). A row of which more fires than there is room for is NaN.
    """
    model, track, at = restored(arch, params), before.track, arch.fires_at
    if at is None:
        short, _ = model.shorten(track, None, None)
        track = model.enter(short.of(model.embed(short.x, short.valid, None, None)), short.valid, None)
    last = model.go_on(track, None, at or 0, len(arch.layers))[0][-1]
    last = model.upsample(last.of(model.norm(last.x)) if arch.norm_first else last, arch.upsampling)
    if layers == "logits":
        return model.head(last.x), last.counts
    return model.length_adapter(last.x, last.counts, alone=True) if arch.length_adapter else (last.x, last.counts)
