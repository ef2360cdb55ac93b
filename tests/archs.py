"""Small architectures that between them have everything a model can have; the laws are tested on all of them."""

from dataclasses import replace
from functools import lru_cache, partial

import jax
import numpy as np
from flax import nnx

from jaxssl.models.arch import (
    Adapter,
    Arch,
    Attention,
    AveragePooling,
    ClusterHead,
    Conv,
    ConvolutionModule,
    ConvolutionStack,
    ConvolvedMel,
    CosineHead,
    Dropout,
    FeedForward,
    GatedAttention,
    IntegrateAndFire,
    Layer,
    LengthAdapter,
    LogMel,
    Macaron,
    Mamba,
    Mamba2,
    NoFeedForward,
    PositionalConvolution,
    Rank,
    RelativeBias,
    Repeat,
    ScaledConvolution,
    Sinusoids,
    StridedConvolution,
    SummaryMixing,
    TransposedConvolution,
    Waveform,
    Whisper,
)
from jaxssl.models.keys import OneKey
from jaxssl.models.model import apply, init, shapes

MAPS = ("q", "k", "v", "out", "fc1", "fc2")
CONVS = (Conv(12, 10, 5), *(Conv(12, 3, 2),) * 2, Conv(12, 2, 2))


def transformer_layer(heads, size, *, head_dim=4, reuse=False, **forms):
    """A layer of attention and feed-forward; `forms` are those of q, k, v, out, fc1 and fc2, or words of attention."""
    feed = {name: forms.pop(name) for name in ("fc1", "fc2") if name in forms}
    return Layer(Attention(heads, head_dim, reuse, **forms), FeedForward(size, **feed))


def gated_layer(remaining, size, *, head_dim=4, **forms):
    """A layer of WavLM, of the heads of these numbers; `forms` as `transformer_layer`."""
    feed = {name: forms.pop(name) for name in ("fc1", "fc2") if name in forms}
    return Layer(GatedAttention(tuple(remaining), head_dim, **forms), FeedForward(size, **feed))


BASE = Arch(
    front=Waveform(CONVS),
    width=16,
    layers=(transformer_layer(4, 24), transformer_layer(4, 24)),
    position=PositionalConvolution(8, 4),
    mask_embedding=True,
    dropout=Dropout(features=0.1, layer=0.1),
    head=CosineHead(6, (9, 5)),
)
LARGE = replace(
    BASE, front=Waveform(CONVS, norm="layer", bias=True, normalize=True), norm_first=True, head=CosineHead(6, (9,))
)
MEL = Arch(
    front=LogMel(bins=5, stack=2),
    width=16,
    layers=(transformer_layer(4, 24), transformer_layer(4, 24), transformer_layer(4, 24)),
    position=PositionalConvolution(7, 2),
    head=ClusterHead(11),
)
UNEVEN = replace(
    MEL,
    front=LogMel(bins=5, stack=1),
    layers=(
        transformer_layer(3, 20, q=Rank(3), out=Rank(2), fc1=Rank(4)),
        transformer_layer(0, 7, k=Rank(2)),
        transformer_layer(2, 0, v=Rank(1), fc2=Rank(2)),
    ),
    project=Rank(3),
    head=None,
)
WAVE_UNEVEN = replace(
    LARGE,
    layers=(transformer_layer(2, 10, v=Rank(2), fc2=Rank(3)), transformer_layer(4, 6)),
    mask_embedding=False,
    head=None,
)

THIN = (Conv(6, 10, 5), Conv(8, 1, 1), Conv(8, 3, 2), Conv(16, 5, 4))  # a frame each 40 samples, as CONVS
STUDENT = replace(
    BASE,
    front=Waveform(THIN, feature_norm=False, scaled=True),
    layers=(transformer_layer(4, 24), transformer_layer(4, 20, reuse=True)),
    mask_embedding=False,
    head=None,
    project=None,
    time_reduction=2,
)
SOFTENED = replace(  # of which shapes do not tell
    STUDENT, layers=(transformer_layer(4, 24, softened=True), transformer_layer(4, 20, reuse=True))
)
LIMITED = replace(  # of which shapes do not tell
    MEL,
    layers=(
        transformer_layer(4, 24, left=3, right=1),
        transformer_layer(4, 24, right=0, softened=True),
        transformer_layer(4, 20, reuse=True),
    ),
    head=None,
)
REUSING = replace(
    MEL,
    layers=(
        transformer_layer(2, 7, k=Rank(2)),
        transformer_layer(2, 5, v=Rank(2), reuse=True),
        transformer_layer(2, 0, out=Rank(2), reuse=True),
    ),
    norm_first=True,
    head=None,
)

WAVLM = replace(
    MEL,
    layers=(gated_layer(range(4), 24), gated_layer((1, 3), 7, q=Rank(3), out=Rank(2)), gated_layer((), 0)),
    norm_first=True,
    relative=RelativeBias(4, 12, 20),
    head=None,
)

SUMMARY = replace(
    MEL,
    layers=(
        Layer(SummaryMixing(4, 4, 3, 3, 5), FeedForward(24)),
        Layer(SummaryMixing(1, 6, 5, mode="fast", local1=Rank(3), merge_summary=Rank(2)), FeedForward(7)),
    ),
)
MAMBA = replace(  # of both directions, so that padding comes first in one; and beside attention
    BASE,
    layers=(
        Layer(Mamba(20, state=5, taps=3, rank=2, directions="inner"), FeedForward(24)),
        Layer(
            Mamba(12, state=3, rank=2, directions="external", back=9, input=Rank(3), back_out=Rank(2)), NoFeedForward()
        ),
        transformer_layer(2, 7),
    ),
    position=PositionalConvolution(8, 4, causal=True),
    mask_embedding=False,
    head=None,
)

MAMBA2 = replace(
    MEL,
    layers=(
        Layer(Mamba2(4, 3, 5, groups=2, taps=3, directions="inner", select=Rank(2)), FeedForward(24)),
        Layer(Mamba2(3, 4, 6, directions="external", back=2, input=Rank(3), back_out=Rank(2)), NoFeedForward()),
    ),
    head=None,
)
CONFORMER = replace(  # around Mamba-2, so that the laws are tried on both at once
    MEL,
    front=ConvolvedMel(6, (Conv(10, 3, 2), Conv(12, 3, 1))),
    layers=(
        replace(MAMBA2.layers[0], macaron=Macaron(9), convolution=ConvolutionModule(10, 5)),
        replace(
            MAMBA2.layers[1],
            macaron=Macaron(8, fc1=Rank(3)),
            convolution=ConvolutionModule(6, 3, pointwise=Rank(2), out=Rank(3)),
        ),
    ),
    norm_first=True,
    position=Sinusoids(),
)

ARCHS = {
    "base": BASE,
    "large": LARGE,
    "mel": MEL,
    "uneven": UNEVEN,
    "wave-uneven": WAVE_UNEVEN,
    "student": STUDENT,
    "reusing": REUSING,
    "wavlm": WAVLM,
    "summary": SUMMARY,
    "mamba": MAMBA,
    "conformer": CONFORMER,
    "shortened": replace(
        MEL,
        layers=(MEL.layers[0], replace(MEL.layers[1], shortening=StridedConvolution(2))),
        shortening=AveragePooling(3),
        upsampling=TransposedConvolution(6),
    ),
    "firing": replace(
        MEL, layers=MEL.layers[:1], shortening=IntegrateAndFire(3, amount=0.8, most=90), upsampling=Repeat()
    ),
    "firing-inside": replace(
        MEL,
        layers=(MEL.layers[0], replace(MEL.layers[1], shortening=IntegrateAndFire(3, amount=0.8, most=90))),
        upsampling=Repeat(),
    ),
    "sinusoid": replace(MEL, position=Sinusoids()),
    "whisper": Arch(
        front=Whisper(16, 12, bins=6, longest=60),
        width=16,
        layers=(transformer_layer(4, 24, key_bias=False), transformer_layer(2, 9, k=Rank(3), key_bias=False)),
        norm_first=True,
        position=Sinusoids("halves"),
        project=None,
    ),
    "convolution-stack": replace(
        MEL,
        layers=MEL.layers[:1],
        position=ConvolutionStack(3, 4, 4),
        head=None,
        length_adapter=LengthAdapter(10, 2),
    ),
    "scaled-convolution": replace(
        MEL,
        layers=(replace(MEL.layers[0], adapter=Adapter(3)),),
        norm_first=True,
        position=ScaledConvolution(6, 4, causal=True),
        head=None,
    ),
}


def without_layers(arch):
    """What is left of an arch where arrays must tell all of its layers: where frames fire too, but not how often."""
    return replace(arch, layers=(), shortening=arch.firing or arch.shortening)


def weights(arch, seed=0):
    """Parameters of a trained model's size, biases and norms too, drawn without a program to compile for each shape."""
    draw = np.random.default_rng(seed)

    def one(path, leaf):
        assert leaf.dtype == np.float32, "blocks and int8 maps are made of dense ones"
        centre = float(path[-1].key in ("scale", "gain"))
        return (centre + 0.1 * draw.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes(arch))


def fresh(arch):
    """Parameters as `init` draws them, drawn once."""
    return jax.tree.map(lambda leaf: leaf, _fresh(arch))  # a copy: tests may put other arrays into the tree


@lru_cache
def _fresh(arch):
    return init(arch, jax.random.key(0, impl="rbg"))


@partial(jax.jit, static_argnums=0, static_argnames=("dtype", "padding", "stack"))
def forward(arch, params, inputs, lengths=None, **words):
    """Run a model by one program, which all tests share that give it as much, where `apply` alone compiles hundreds."""
    return apply(arch, params, inputs, lengths, **words)


@partial(jax.jit, static_argnums=0)
def mix(part, arrays, x, valid=None):
    """Run a mixer alone, with these arrays, on `x: (batch, time, width)`."""
    module = part.build(x.shape[-1], dropout=Dropout(), prepared=False, lends=False, rngs=OneKey())
    graph, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, arrays)
    return nnx.merge(graph, state)(x, valid, None, None)[0]


def noise(arch, key, *, batch=2, frames=30):
    """Random inputs in the form an arch takes, for that many frames; `key` may be a seed."""
    draw = np.random.default_rng(key if isinstance(key, int) else np.asarray(jax.random.key_data(key)))
    front = arch.front
    shape = (batch, frames, front.size) if front.features else (batch, frames * front.hop + 20)
    return jax.device_put(draw.standard_normal(shape, np.float32))  # asarray would compile a program for each shape


def beside_noise(arch, params, key):
    """Run an utterance alone, and in a batch with loud padding; return both outputs and its frames."""
    long = noise(arch, key)
    short = long[:1, : long.shape[1] * 2 // 3]
    noisy = long.at[0, short.shape[1] :].set(1e4)
    alone = forward(arch, params, short)
    together = forward(arch, params, noisy, np.array([short.shape[1], long.shape[1]], np.int32))
    return alone, together, int(alone.last_lengths[0])
