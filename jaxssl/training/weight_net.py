"""A net that weighs frames for integrate-and-fire, fitted to where labels change, and what fires by it.

A model that is trained on for some minutes at the rate that suits its layers would hardly move a fresh net: it would
stay with the means that it begins with. So the net is fitted first, by guidance alone, on the frozen front end, in
seconds; then the model learns on with it.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from compress.errors import InputError
from jaxssl.data.batches import Batch
from jaxssl.models.arch import Arch, IntegrateAndFire
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Params, apply, restored
from jaxssl.models.rates.integrate_and_fire import weigh
from jaxssl.runtime.cli import progress
from jaxssl.training.corpus import Data, hearing, held_out, loader
from jaxssl.training.segment_guidance import SegmentGuidance, label_runs
from jaxssl.training.settings import Training

BATCHES = 16  # of training speech that the net is fitted to: of 8 times 3 s, their features take 40 MB at most
UPDATES = 320
LEARNING_RATE = 0.005
GUIDANCE = SegmentGuidance()
BEHIND = ("reduction", "layers", "head", "length_adapter", "upsampling")  # arrays that no weight depends on


@dataclass(frozen=True)
class Fired:
    """What fired of some utterances.

    Attributes:
        counts: fired frames of each, (utterances,).
        frames: of the front end, (utterances,).
        weight: mean weight of a frame, before any mixing.
    """

    counts: np.ndarray
    frames: np.ndarray
    weight: float

    @property
    def shares(self) -> np.ndarray:
        """Fired frames of one of the front end's, (utterances,)."""
        return self.counts / self.frames

    def room(self, margin: float) -> int:
        """Return the frames of 100 that have room where `margin` times the most that fired of an utterance has."""
        return min(100, int(np.ceil(100 * margin * self.shares.max())))

    def lost(self, part: IntegrateAndFire) -> int:
        """Count the utterances of which more fired than a part has room for."""
        return int((self.counts > part.frames(self.frames)).sum())


def fitted(
    arch: Arch,
    params: Params,
    data: Data,
    training: Training,
    *,
    guidance: SegmentGuidance = GUIDANCE,
    updates: int = UPDATES,
) -> Params:
    """Fit the net of a model that fires to where labels change, and leave all else as it is.

    Args:
        arch: of a model with `IntegrateAndFire`.
        params: its parameters; the net's are where it begins.
        data: labelled speech; a run of equal labels is a segment, of the last set where there are several.
        training: how batches are made, and in which dtype they are heard.
        guidance: the loss.
        updates: of Adam, on as many batches as `BATCHES` in turns.

    Returns:
        The parameters, with another net.

    Raises:
        InputError: the weights are no numbers afterwards, for the front end's are none.
    """
    part, at, heard = _firing(arch), arch.fires_at, hearing(arch, data)
    net = params["shortening"] if at is None else params["layers"][str(at)]["shortening"]
    bare, below = _until(arch, params, at or 0, fires=at is None)
    parts = []
    with progress("listening to segments", BATCHES) as tick:
        for batch in _first(data, training):
            given = heard(vars(batch))
            labels = batch.labels if batch.labels.ndim == 2 else batch.labels[..., -1]
            parts.append(_features(bare, training.dtype, below, given["inputs"], given["lengths"], labels))
            tick()
    optimizer = optax.adam(LEARNING_RATE)
    state = optimizer.init(net)
    step = jax.jit(partial(_update, part, guidance, optimizer))
    with progress("fitting a net of weights", updates) as tick:
        for number in range(updates):
            net, state = step(net, state, *parts[number % len(parts)])
            tick()
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(net)):
        raise InputError(
            "the net that weighs frames has learned no numbers; the front end's features are none, mend it"
        )
    if at is None:
        return {**params, "shortening": net}
    layer = {**params["layers"][str(at)], "shortening": net}
    return {**params, "layers": {**params["layers"], str(at): layer}}


def heard_fire(arch: Arch, params: Params, data: Data, training: Training, *, among: str = "valid") -> Fired:
    """Count what fires of each utterance: of held-out speech ("valid"), or of some batches of "train".

    Errors as `jaxssl.training.corpus.held_out`.
    """
    _firing(arch)
    bare, below = _until(arch, params, 0 if arch.fires_at is None else arch.fires_at + 1, fires=True)
    taken = hearing(arch, data)
    batches = held_out(data, training) if among == "valid" else _first(data, training)
    found = list[np.ndarray]()
    for batch in batches:
        given = taken(vars(batch))
        each = _fired(bare, training.dtype, below, given["inputs"], given["lengths"])
        found.append(np.stack([np.asarray(column, np.float64)[batch.index >= 0] for column in each]))
    counts, frames, weights = np.concatenate(found, axis=1)
    some = frames > 0
    return Fired(counts[some], frames[some], float(weights[some].sum() / frames[some].sum()))


def _firing(arch: Arch) -> IntegrateAndFire:
    """Return what of a model weighs frames."""
    if arch.firing is None:
        raise InputError("the model weighs no frames; give its arch a part that fires")
    return arch.firing


def _until(arch: Arch, params: Params, depth: int, *, fires: bool) -> tuple[Arch, Params]:
    """Return a model's first layers alone; `fires`: what makes sequences shorter behind the front end stays."""
    bare = replace(arch, layers=arch.layers[:depth], head=None, length_adapter=None, time_reduction=1)
    bare = bare if depth else replace(bare, relative=None)
    found = {name: part for name, part in params.items() if name not in BEHIND and (depth or name != "relative")}
    layers = {str(i): params["layers"][str(i)] for i in range(depth)}
    return bare, {**found, "layers": layers} if layers else found


def _first(data: Data, training: Training) -> list[Batch]:
    """Draw the first training batches."""
    with loader(data, training) as feed:
        return [feed.batch(0, number) for number in range(min(BATCHES, feed.steps))]


@partial(jax.jit, static_argnums=(0, 1))
def _features(arch: Arch, dtype: str, params: Params, inputs: Any, lengths: Any, labels: Any) -> tuple[Any, ...]:
    """Return what is weighed, its lengths, and where segments end: what an update takes.

    That are the features, or what the last layer that there is gives.
    """
    if arch.firing is None:
        out = apply(arch, params, inputs, lengths, dtype=jnp.dtype(dtype))
        return out.hidden[-1], out.lengths[-1], *label_runs(labels, out.lengths[-1])
    heard = restored(arch, params).featurise(inputs, lengths, jnp.dtype(dtype), "independent")
    assert heard.lengths is not None  # for lengths were given
    return heard.features, heard.lengths, *label_runs(labels, heard.lengths)


def _update(
    part: IntegrateAndFire,
    guidance: SegmentGuidance,
    optimizer: optax.GradientTransformation,
    net: Params,
    state: Any,
    features: Any,
    lengths: Any,
    last: Any,
    pseudo: Any,
) -> tuple[Params, Any]:
    def loss(net: Params) -> Any:
        return guidance(weigh(part, net, features, lengths), lengths, last, pseudo)[0]

    gradient = jax.grad(loss)(net)
    with jax.numpy_dtype_promotion("standard"):  # optax's bias correction multiplies integers and floats
        change, state = optimizer.update(gradient, state, net)
    return optax.apply_updates(net, change), state


@partial(jax.jit, static_argnums=(0, 1))
def _fired(arch: Arch, dtype: str, params: Params, inputs: Any, lengths: Any) -> tuple[Any, Any, Any]:
    out = apply(arch, params, inputs, lengths, dtype=jnp.dtype(dtype))
    assert out.weights is not None
    valid = frame_mask(out.last_lengths, out.weights.shape[1])
    return out.lengths[-1], out.last_lengths, out.weights.sum(1, where=valid)
