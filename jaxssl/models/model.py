"""A speech encoder as pure functions: `init`, `apply`, `shapes`.

`flax.nnx` modules define the forward pass and stay behind this wall: what comes in and goes out is a frozen `Arch`
and a nested dict of arrays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

from compress.errors import InputError
from compress.quantize import float32
from jaxssl.models import choice
from jaxssl.models.arch import Arch, Layer, StridedConvolution, TransposedConvolution, Upsampling
from jaxssl.models.checks import check_arch, check_arrays, checked
from jaxssl.models.dense import Dense
from jaxssl.models.encoder_layer import EncoderLayer
from jaxssl.models.keys import Keys, OneKey
from jaxssl.models.layers import LayerNorm, dropout, frame_mask, uniform_init
from jaxssl.models.one_by_one import one_by_one
from jaxssl.models.part import Featured, Map, Padding
from jaxssl.models.rates.grouping import spread
from jaxssl.models.rates.track import Track
from jaxssl.models.stack import Stack, run_all

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Output:
    """Everything a forward pass computes.

    Attributes:
        extracted: the extractor's raw output, (batch, time, channels); None for log-Mel models.
        features: projected features, padded frames 0, (batch, time, width); fairseq's `post_extract_proj`,
            MelHuBERT's `pre_feat`. Time is that before time reduction.
        features_lengths: valid frames of each row of that, (batch,).
        hidden: input of the first layer, then each layer's output; every one (batch, time, width), fewer frames from a
            layer on that makes the sequence shorter.
        last: the encoder's output: the last layer's, through the final norm in pre-LN models, upsampled where the
            model does so.
        logits: (batch, time, clusters or codewords), or None for a model without a head.
        lengths: valid frames of each row, one array (batch,) for each of `hidden`.
        last_lengths: valid frames of each row of `last`, (batch,).
        aligned: `hidden` on the frames of `last`, repeated where these are more; `hidden` itself where the model does
            not upsample.
        shortened: what a length adapter makes of `last`, (batch, fewer, its width), or None.
        shortened_lengths: valid frames of each row of that, (batch,).
        weights: of every frame behind the front end, or at the layer, where frames fire, (batch, time) from 0 to 1,
            before they are mixed with no compression; None where none are weighed.
    """

    extracted: Array | None
    features: Array
    features_lengths: Array
    hidden: tuple[Array, ...]
    last: Array
    logits: Array | None
    lengths: tuple[Array, ...]
    last_lengths: Array
    aligned: tuple[Array, ...]
    shortened: Array | None = None
    shortened_lengths: Array | None = None
    weights: Array | None = None

    @property
    def end(self) -> tuple[Array, Array]:
        """What the whole model returns, on which a fine-tuned output layer stands, and its valid frames."""
        if self.shortened is None or self.shortened_lengths is None:
            return self.last, self.last_lengths
        return self.shortened, self.shortened_lengths


class Model(nnx.Module):
    """Front end, projection, positions, layers, head."""

    def __init__(self, arch: Arch, *, rngs: Keys):
        self.arch = arch
        self.front = arch.front.build(prepared=arch.prepared, rngs=rngs)
        if arch.shortening is not None:
            self.shortening = arch.shortening.build(arch.front.size, rngs=rngs)
        if arch.project is not None:
            outer, spec = uniform_init(arch.front.size), Map("project", (arch.front.size,), (arch.width,), arch.project)
            self.project = Dense(spec, prepared=arch.prepared, kernel_init=outer, bias_init=outer, rngs=rngs)
        if arch.mask_embedding:
            self.mask_embedding = nnx.Param(initializers.uniform(1.0)(rngs.params(), (arch.width,)))
        self.position = arch.position.build(arch.width, prepared=arch.prepared, rngs=rngs)
        self.norm = LayerNorm(arch.width, rngs=rngs)
        if (ratio := arch.time_reduction) > 1:
            self.reduction = StridedConvolution(ratio).build(arch.width, rngs=rngs)
        if arch.relative is not None:
            self.relative = arch.relative.build(rngs=rngs)
        self.lends = (*(layer.mixer.carries for layer in arch.layers[1:]), False)[: len(arch.layers)]
        each = zip(arch.layers, self.lends, strict=True)
        self.layers = nnx.List([EncoderLayer(arch, layer, lends=lends, rngs=rngs) for layer, lends in each])
        if isinstance(arch.upsampling, TransposedConvolution):
            self.upsampling = arch.upsampling.build(arch.width, rngs=rngs)
        if arch.head is not None:
            self.head = arch.head.build(arch.width, rngs=rngs)
        if arch.length_adapter is not None:
            self.length_adapter = arch.length_adapter.build(arch.width, rngs=rngs)

    def __call__(
        self,
        inputs: Array,
        lengths: Array | None,
        *,
        mask: Array | None = None,
        rngs: Keys | None = None,
        dtype: Any = jnp.float32,
        padding: Padding = "independent",
        stack: Stack = "unroll",
    ) -> Output:
        heard = self.featurise(inputs, lengths, dtype, padding)
        alone = lengths is not None and padding == "independent"
        return self.encode(heard, mask=mask, rngs=rngs, padding=padding, stack=stack, alone=alone)

    def encode(
        self,
        heard: Featured,
        *,
        mask: Array | None = None,
        rngs: Keys | None = None,
        padding: Padding = "independent",
        stack: Stack = "unroll",
        alone: bool = True,
    ) -> Output:
        """Run everything behind the front end; `alone`: no row's end hears what stands beside it."""
        whole = Track(heard.features, heard.lengths)
        short, mask = self.shorten(whole, mask, rngs)
        features = short.of(self.embed(short.x, short.valid, mask, rngs))
        inside = short.valid if padding == "independent" else None  # other programs let padding into their positions
        entered = self.enter(features, inside, rngs)
        hidden, _ = self.go_on(entered, None, 0, len(self.layers), rngs, stack)
        last = hidden[-1].of(self.norm(hidden[-1].x)) if self.arch.norm_first else hidden[-1]
        last = self.upsample(last, self.arch.upsampling)
        logits = self.head(last.x) if self.arch.head else None
        adapted = self.length_adapter(last.x, last.counts, alone=alone) if self.arch.length_adapter else (None, None)
        return Output(
            heard.extracted,
            features.x,
            features.counts,
            tuple(layer.x for layer in hidden),
            last.x,
            logits,
            tuple(layer.counts for layer in hidden),
            last.counts,
            tuple(layer.restored() if self.arch.upsampling else layer.x for layer in hidden),
            shortened=adapted[0],
            shortened_lengths=adapted[1],
            weights=hidden[-1].weights,
        )

    def featurise(self, inputs: Array, lengths: Array | None, dtype: jnp.dtype, padding: Padding) -> Featured:
        """Turn inputs into features; what lies in the padding does not matter."""
        if lengths is not None:
            valid = frame_mask(lengths, inputs.shape[1]).reshape(*inputs.shape[:2], *(1,) * (inputs.ndim - 2))
            inputs = jnp.where(valid, inputs, jnp.zeros_like(inputs))
        return self.front(inputs, lengths, dtype=dtype, padding=padding)

    def shorten(self, features: Track, mask: Array | None, rngs: Keys | None) -> tuple[Track, Array | None]:
        """Make the sequence shorter where the model does so before it projects; the mask is that of what is left."""
        if self.arch.shortening is None:
            return features, spread(mask, features.frames, self.arch.grouped)
        short = self.shortening(features.x, features.lengths, rngs)
        track = features.then(short)
        if mask is not None and mask.shape[1] == features.frames:
            return track, short.hide(mask)
        return track, spread(mask, track.frames, self.arch.grouped // self.arch.shortening.ratio)

    def upsample(self, last: Track, how: Upsampling | None) -> Track:
        """Bring a layer's output back to the frames of the front end; None: it stays as it is."""
        if how is None:
            return last
        if isinstance(how, TransposedConvolution):
            return last.whole(self.upsampling(last.x, last.counts, last.first))
        return last.whole(last.restored())

    def embed(self, x: Array, valid: Array | None, mask: Array | None, rngs: Keys | None) -> Array:
        """Project features to (batch, time, width), masked frames replaced and padded ones zeroed."""
        if mask is not None and not self.arch.mask_embedding:
            x = jnp.where(mask[..., None], jnp.zeros_like(x), x)
        x = dropout(x if self.arch.project is None else self.project(x), self.arch.dropout.features, rngs)
        if mask is not None and self.arch.mask_embedding:
            x = jnp.where(mask[..., None], self.mask_embedding[...].astype(x.dtype)[None, None], x)
        return x if valid is None else jnp.where(valid[..., None], x, jnp.zeros_like(x))

    def go_on(
        self, track: Track, carry: Any, start: int, end: int, rngs: Keys | None = None, stack: Stack = "unroll"
    ) -> tuple[list[Track], Any]:
        """Run layers from `start` to `end`, that one not among them; they hear no frame that is not valid.

        Of an earlier run the `carry` goes on. Return the first one's input, each output, and what the last lends.
        """
        keys = None if rngs is None else jax.random.split(rngs.dropout(), end - start)
        hidden, at = [track], start
        # A layer that lends something to the next runs apart from its equals, so that no scan need return it.
        for run in _runs(self.arch.layers[start:end], self.lends[start:end]):
            layers, mine = self.layers[at : at + run], None if keys is None else keys[at - start : at - start + run]
            if shorter := self.arch.layers[at].shortening:
                track = layers[0].shortened(track, rngs)
                hidden = hidden if at > start else [track]
            if shorter or at == 0:
                carry = self.relative(track.frames) if self.arch.relative else None
            outputs, carry = run_all(self.run_layer, layers, track.x, track.valid, mine, stack, carry)
            hidden += map(track.of, outputs)
            track, at = hidden[-1], at + run
        return hidden, carry

    def enter(self, features: Track, inside: Array | None, rngs: Keys | None) -> Track:
        """Return the input of the first layer: features with their positions, reduced in time where the model does.

        Positions hear no frame that is not in `inside: (batch, time)`.
        """
        x = features.x + self.position(features.x, inside)
        if not self.arch.norm_first:
            x = self.norm(x)
        track = features.of(dropout(x, self.arch.dropout.hidden, rngs))
        # A reduced frame that is valid is made of valid frames only, so what padding holds here does not matter.
        if self.arch.time_reduction > 1:
            track = track.then(self.reduction(track.x, track.lengths))
        return track

    def run_layer(
        self, layer: EncoderLayer, x: Array, valid: Array | None, key: Array | None, before: Any
    ) -> tuple[Array, Any]:
        """Run one layer; in training it is skipped at random (LayerDrop, Fan et al. 2020), what it lends is not."""
        rngs = None if key is None else Keys(key)
        (after, carry), rate = layer(x, valid, rngs, before), self.arch.dropout.layer
        if rngs is None or rate == 0.0:
            return after, carry
        return jnp.where(jax.random.bernoulli(rngs.dropout(), rate), x, after), carry


def init(arch: Arch, key: Array) -> Params:
    """Draw fresh float32 parameters: N(0, 0.02) in the encoder, PyTorch's defaults outside it (fairseq).

    Raises:
        InputError: the arch is impossible (a width its groups do not divide, …).
    """
    check_arch(arch)
    model = Model(arch, rngs=Keys(key))
    return _arrays(model)


@lru_cache(maxsize=64)
def shapes(arch: Arch) -> Params:
    """Return the parameters' tree with a `jax.ShapeDtypeStruct` for each array; nothing is computed."""
    check_arch(arch)
    bare = replace(arch, layers=())  # layer by layer: the time to trace a model grows with the square of its depth
    layers = {str(i): _layer_shapes(bare, layer) for i, layer in enumerate(arch.layers)}
    found = {**_outer_shapes(bare), "layers": layers} if layers else _outer_shapes(bare)
    return jax.tree.map(lambda leaf: leaf, found)  # which also sorts the names


def apply(
    arch: Arch,
    params: Params,
    inputs: Array,
    lengths: Array | None = None,
    *,
    mask: Array | None = None,
    key: Array | None = None,
    dtype: Any = jnp.float32,
    padding: Padding = "independent",
    stack: Stack = "unroll",
    amount: Array | None = None,
) -> Output:
    """Run the model.

    Args:
        arch: what `params` is.
        params: as `init` or `load` gave them; `shapes(arch)` lists them.
        inputs: (batch, samples) at 16 kHz for HuBERT; (batch, frames, bins × stack) normalised log-Mel for MelHuBERT.
        lengths: (batch,), valid samples or frames of each row; None: all.
        mask: (batch, frames), true where a frame is hidden from the model; of time reduction, frames before it, or
            after it, each of which hides all that it is made of.
        key: randomness for dropout and LayerDrop; None is deterministic.
        dtype: of the computation, float32, bfloat16 or "auto", the quicker one here (`choice.quickest`); parameters
            stay as they are, and those stored in bfloat16 are used as the float32 numbers they are.
        padding: "independent": what stands beside an utterance never changes its output. "fairseq" and
            "transformers" reproduce what these do in a padded batch: Base's group norm runs over the padding, and
            fairseq's HuBERT also counts frames by dividing the padded length. "faster_whisper" puts zeros behind a
            Whisper model's log-Mel, and hears them.
        stack: how consecutive equal layers run, see `stack.run_all`: with what XLA likes kept for the backward pass;
            with what is cheap computed again there; or with all computed again ("remat"), which needs the least memory.
            The values are the same.
        amount: (), how far weights are mixed with no compression (`IntegrateAndFire`), in place of what the arch says
            or `key` draws. Gradients reach it.

    Raises:
        InputError: `params` or `inputs` do not fit `arch`; the message names the first path that differs. Or an amount
            is given to a model that weighs no frames.
    """
    check_params(arch, params)
    inputs = checked(arch, inputs)
    lengths = None if lengths is None else jnp.asarray(lengths)
    rngs = None if key is None else Keys(key)
    model = restored(arch, params)
    if key is not None and choice.learns():
        model.set_attributes(learning=True, raise_if_not_found=False)
    if amount is not None:
        if arch.firing is None:
            raise InputError(
                "an amount of mixing is given, but the model fires nothing; give its arch a part that does"
            )
        fires = model if arch.fires_at is None else model.layers[arch.fires_at]
        fires.shortening.amount = nnx.Intermediate(amount)

    def run(inputs: Array, lengths: Array | None, mask: Array | None) -> Output:
        return model(inputs, lengths, mask=mask, rngs=rngs, dtype=choice.resolved(dtype), padding=padding, stack=stack)

    if rngs is None and choice.rows(inputs.shape[0], arch.front.heard(inputs.shape[1])) == "one by one":
        return one_by_one(run, inputs, lengths, mask)
    return run(inputs, lengths, mask)


def predict(arch: Arch, params: Params, last: Array) -> Array:
    """Run the output layer alone on `last: (batch, time, width)`, as `Output.last`; return the logits.

    Raises:
        InputError: the model has none.
    """
    if arch.head is None:
        raise InputError("the model has no output layer; give its arch a head")
    return restored(arch, params).head(last)


def check_params(arch: Arch, params: Params) -> None:
    """Raise InputError at the first path where `params` are not what `arch` says, as `check_arrays` does."""
    check_arrays(shapes(arch), params)


def _runs(layers: Sequence[Layer], lends: Sequence[bool]) -> list[int]:
    """Count the layers of each run of equal ones; one that makes the sequence shorter runs alone."""
    each = enumerate(zip(layers, lends, strict=True))
    runs = groupby(each, lambda one: (one[1], one[0] if one[1][0].shortening else None))
    return [len(list(run)) for _, run in runs]


@lru_cache(maxsize=64)
def _outer_shapes(bare: Arch) -> Params:
    return jax.eval_shape(lambda: _arrays(Model(bare, rngs=OneKey())))


@lru_cache(maxsize=256)
def _layer_shapes(arch: Arch, layer: Layer) -> Params:
    return jax.eval_shape(lambda: _arrays(EncoderLayer(arch, layer, rngs=OneKey())))


@lru_cache(maxsize=64)
def _skeleton(arch: Arch) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Model(arch, rngs=OneKey())))


def restored(arch: Arch, params: Params) -> Model:
    """Return the module that `params` are the parameters of."""
    graph, abstract = _skeleton(arch)
    state = jax.tree.map(lambda leaf: leaf, abstract)  # a copy: replacing writes into the state
    nnx.replace_by_pure_dict(state, nnx.restore_int_paths(float32(params)))
    return nnx.merge(graph, state)


def _arrays(module: nnx.Module) -> Params:
    return _named(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def _named(tree: Any) -> Any:
    """Give list positions their printed names, so that a path is the keys joined by '/'."""
    return {str(k): _named(v) for k, v in tree.items()} if isinstance(tree, Mapping) else tree
