"""Early exit: a model in pieces, an output layer behind each, and the utterance leaves behind the first that is sure.

A piece is a compiled program of its own that goes on from what the one before left, so that leaving early is fewer
layers run. Sure is an output layer whose prediction of clusters has little entropy (DAISY, Lin et al. 2024,
arXiv 2406.05464: the entropy of the self-supervised model's own prediction, averaged over frames, tells how easy the
speech is). How DAISY trains its layers and sets its thresholds is not known to us: here they are softmax regressions
on frozen frames, and the threshold is given.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from compress.errors import InputError
from jaxssl.data.logmel import Stats
from jaxssl.inference.encode import front_inputs
from jaxssl.inference.prepack import prepared
from jaxssl.models.arch import Arch, ClusterHead, Repeat
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Model, Params, restored
from jaxssl.models.rates.track import Track

Regression = Mapping[str, Array]  # kernel (width, clusters) and bias (clusters,)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reached:
    """Where a batch is after a piece.

    Attributes:
        track: the layers' output so far, on as many frames as the last of them heard, and its way back to all.
        carry: what the last layer lends the next.
        last: the encoder's output if it ends here, (batch, time, width), upsampled where the model does so.
        lengths: valid frames of each row of that, (batch,).
        entropy: of the clusters predicted from it, nats, averaged over valid frames, (batch,); None without a layer
            that predicts any.
    """

    track: Track
    carry: Any
    last: Array
    lengths: Array
    entropy: Array | None


@dataclass(frozen=True)
class Cascade:
    """A model that an utterance can leave behind several layers.

    Attributes:
        arch: of the whole model.
        params: its parameters.
        exits: layers behind which to leave, counted from 1, ascending; the last is the model's own end.
        regressions: the output layer of each exit but the last.
        stats: of log-Mel features, for models that take them.
        dtype: of the computation.
    """

    arch: Arch
    params: Params
    exits: tuple[int, ...]
    regressions: Mapping[int, Regression]
    stats: Stats | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Refuse exits that are none, and models that cannot be taken apart.

        Raises:
            InputError: the message says which.
        """
        check_exits(self.arch, self.exits)
        missing = [exit for exit in self.exits[:-1] if exit not in self.regressions]
        if missing:
            raise InputError(f"exit behind layer {missing[0]}: no output layer is there that could tell; fit one")

    def ready(self) -> "Cascade":
        """Return the same with weights in the form that runs fastest here (`jaxssl.inference.prepack`)."""
        arch, params = prepared(self.arch, self.params, dtype=self.dtype)
        return replace(self, arch=arch, params=jax.device_put(params), regressions=jax.device_put(self.regressions))

    def pieces(self, samples: Array, lengths: Array) -> Iterator[tuple[int, Reached]]:
        """Run piece by piece, each when it is asked for; yield the layer behind which it ends, and what it reached.

        Args:
            samples: (batch, samples) at 16 kHz.
            lengths: (batch,), valid samples of each row.
        """
        first, *others = self.exits
        reached = _begin(
            self.arch, self.params, self.regressions.get(first), self.stats, samples, lengths, first, self.dtype
        )
        yield first, reached
        for before, after in zip(self.exits, others, strict=False):
            reached = _go_on(self.arch, self.params, self.regressions.get(after), reached, before, after)
            yield after, reached

    def leave(self, samples: Array, lengths: Array, *, threshold: float) -> tuple[int, Reached]:
        """Run one utterance until an exit's entropy is below the threshold, or to the end; arguments as of `pieces`.

        Returns:
            The layer behind which it left, and what it reached: of a threshold of 0 the whole model's output, of an
            infinite one that of the first exit.

        Raises:
            InputError: there is more than one utterance, which would not leave together.
        """
        if samples.shape[0] != 1:
            raise InputError(f"{samples.shape[0]} utterances leave one by one; give one")
        for exit, reached in self.pieces(samples, lengths):
            if reached.entropy is not None and exit < self.exits[-1] and float(reached.entropy[0]) < threshold:
                return exit, reached
        return exit, reached


def check_exits(arch: Arch, exits: tuple[int, ...]) -> None:
    """Refuse exits that are none, and models that cannot be taken apart.

    Raises:
        InputError: the message says which.
    """
    depth = len(arch.layers)
    if not exits or list(exits) != sorted(set(exits)) or exits[0] < 1 or exits[-1] != depth:
        raise InputError(f"exits {', '.join(map(str, exits))}: give layers from 1 to {depth}, rising, {depth} last")
    if arch.length_adapter:
        raise InputError(
            "a length adapter stands behind the encoder, and only the model's own end goes through it; take it off, or "
            "use another model"
        )


def truncated_arch(arch: Arch, depth: int) -> Arch:
    """Return the arch of a model's first layers, without an output layer.

    Frames come back as at the model's own end. But a map that was learned for groups of all its layers does not fit
    behind fewer of its shortenings: there they are repeated, where any became fewer.
    """
    found = replace(arch, layers=arch.layers[:depth], head=None)
    if arch.upsampling is None or found.grouped == arch.grouped:
        return found
    return replace(found, upsampling=Repeat() if found.shortens else None)


def truncated(arch: Arch, params: Params, depth: int, regression: Regression | None = None) -> tuple[Arch, Params]:
    """Return a model's first layers as a model: what an exit behind layer `depth`, counted from 1, gives.

    Its output layer is a regression of clusters, or none; its frames are `truncated_arch`'s.
    """
    found = truncated_arch(arch, depth)
    less = {"head"} | (set() if found.upsampling == arch.upsampling else {"upsampling"})
    kept = {name: part for name, part in params.items() if name not in less}
    kept["layers"] = {str(i): params["layers"][str(i)] for i in range(depth)}
    if regression is None:
        return found, kept
    head = ClusterHead(regression["kernel"].shape[1])
    return replace(found, head=head), {**kept, "head": {"project": dict(regression)}}


@partial(jax.jit, static_argnums=(0, 6, 7))
def _begin(
    arch: Arch,
    params: Params,
    regression: Regression | None,
    stats: Stats | None,
    samples: Array,
    lengths: Array,
    end: int,
    dtype: Any,
) -> Reached:
    """Run the front end and the first layers."""
    inputs, counts = front_inputs(arch, samples, lengths, stats)
    model = restored(arch, params)
    heard = model.featurise(inputs, counts, jnp.dtype(dtype), "independent")
    track, _ = model.shorten(Track(heard.features, heard.lengths), None, None)
    track = model.enter(track.of(model.embed(track.x, track.valid, None, None)), track.valid, None)
    return _through(model, regression, track, None, 0, end)


@partial(jax.jit, static_argnums=(0, 4, 5))
def _go_on(
    arch: Arch, params: Params, regression: Regression | None, reached: Reached, start: int, end: int
) -> Reached:
    """Run layers `start` to `end`, the last not among them."""
    return _through(restored(arch, params), regression, reached.track, reached.carry, start, end)


def _through(model: Model, regression: Regression | None, track: Track, carry: Any, start: int, end: int) -> Reached:
    """Run some layers, and the output layer behind them."""
    hidden, carry = model.go_on(track, carry, start, end)
    track = hidden[-1]
    last = track.of(model.norm(track.x)) if model.arch.norm_first else track
    last = model.upsample(last, truncated_arch(model.arch, end).upsampling)
    lent = carry if model.lends[end - 1] or model.arch.relative else None
    found = None if regression is None else entropy(last.x, last.counts, regression)
    return Reached(track, lent, last.x, last.counts, found)


def entropy(last: Array, lengths: Array, regression: Regression) -> Array:
    """Return the entropy of the clusters that a regression predicts, nats, averaged over valid frames, (batch,).

    Args:
        last: (batch, time, width).
        lengths: valid frames of each row, (batch,); a row without any has NaN.
        regression: kernel and bias.
    """
    logits = jnp.einsum("btw,wc->btc", last.astype(jnp.float32), regression["kernel"]) + regression["bias"][None, None]
    logs = jax.nn.log_softmax(logits)
    each = -(jnp.exp(logs) * logs).sum(-1)
    return each.mean(1, where=frame_mask(lengths, last.shape[1]))
