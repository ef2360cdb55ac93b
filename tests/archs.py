"""Small architectures that between them have everything a model can have; the laws are tested on all of them."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np

from jaxssl.models.arch import (
    Arch,
    ClusterHead,
    Conv,
    CosineHead,
    Dropout,
    Layer,
    LogMel,
    Ranks,
    Waveform,
)
from jaxssl.models.model import apply, shapes

CONVS = (Conv(12, 10, 5), *(Conv(12, 3, 2),) * 2, Conv(12, 2, 2))

BASE = Arch(
    front=Waveform(CONVS),
    width=16,
    head_dim=4,
    layers=(Layer(4, 24), Layer(4, 24)),
    position_kernel=8,
    position_groups=4,
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
    head_dim=4,
    layers=(Layer(4, 24), Layer(4, 24), Layer(4, 24)),
    position_kernel=7,
    position_groups=2,
    head=ClusterHead(11),
)
UNEVEN = replace(
    MEL,
    front=LogMel(bins=5, stack=1),
    layers=(
        Layer(3, 20, Ranks(q=3, out=2, fc1=4)),
        Layer(0, 7, Ranks(k=2)),
        Layer(2, 0, Ranks(v=1, fc2=2)),
    ),
    project_rank=3,
    head=None,
)
WAVE_UNEVEN = replace(LARGE, layers=(Layer(2, 10, Ranks(v=2, fc2=3)), Layer(4, 6)), mask_embedding=False, head=None)

THIN = (Conv(6, 10, 5), Conv(8, 1, 1), Conv(8, 3, 2), Conv(16, 5, 4))  # a frame each 40 samples, as CONVS
STUDENT = replace(
    BASE,
    front=Waveform(THIN, feature_norm=False),
    layers=(Layer(4, 24), Layer(4, 20, reuse=True)),
    mask_embedding=False,
    head=None,
    project=False,
    time_reduction=2,
)
REUSING = replace(
    MEL,
    layers=(Layer(2, 7, Ranks(k=2)), Layer(2, 5, Ranks(v=2), reuse=True), Layer(2, 0, Ranks(out=2), reuse=True)),
    norm_first=True,
    head=None,
)

ARCHS = {
    "base": BASE,
    "large": LARGE,
    "mel": MEL,
    "uneven": UNEVEN,
    "wave-uneven": WAVE_UNEVEN,
    "student": STUDENT,
    "reusing": REUSING,
}


def weights(arch, seed=0):
    """Parameters of a trained model's size, biases and norms too, drawn without a program to compile for each shape."""
    draw = np.random.default_rng(seed)

    def one(path, leaf):
        assert leaf.dtype == np.float32, "blocks and int8 maps are made of dense ones"
        centre = float(path[-1].key in ("scale", "gain"))
        return (centre + 0.1 * draw.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes(arch))


@partial(jax.jit, static_argnums=0, static_argnames=("dtype", "padding", "stack"))
def forward(arch, params, inputs, lengths=None, **words):
    """Run a model by one program, which all tests share that give it as much, where `apply` alone compiles hundreds."""
    return apply(arch, params, inputs, lengths, **words)


def noise(arch, key, *, batch=2, frames=30):
    """Random inputs in the form an arch takes, for that many frames; `key` may be a seed."""
    draw = np.random.default_rng(key if isinstance(key, int) else np.asarray(jax.random.key_data(key)))
    waves = isinstance(arch.front, Waveform)
    shape = (batch, frames * 40 + 20) if waves else (batch, frames, arch.front.size)
    return jax.numpy.asarray(draw.standard_normal(shape, np.float32))


def beside_noise(arch, params, key):
    """Run an utterance alone, and in a batch with loud padding; return both outputs and its frames."""
    long = noise(arch, key)
    short = long[:1, : long.shape[1] * 2 // 3]
    noisy = long.at[0, short.shape[1] :].set(1e4)
    alone = forward(arch, params, short)
    together = forward(arch, params, noisy, np.array([short.shape[1], long.shape[1]], np.int32))
    return alone, together, int(alone.lengths[0])
