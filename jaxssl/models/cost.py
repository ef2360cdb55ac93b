"""What a model costs by arithmetic: parameters and multiply-accumulates (MACs).

XLA's own estimate counts a scan's body once and reads low with FFTs, so MACs are counted here from the shapes; a test
cross-checks them. Counted as in "Is Smaller Always Faster?" (arXiv 2211.09949): matrix products and convolutions;
not norms, activations, biases, the log-Mel, the output layer.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from compress.address import flatten
from jaxssl.models.arch import SAMPLE_RATE, Arch, Layer, Waveform
from jaxssl.models.model import shapes
from jaxssl.models.sites import axes, sharing

# The 32 utterances over which the study's figure is an average, in samples.
UTTERANCES = (
    *(20560, 34560, 38480, 42560, 45600, 48720, 52000, 55120, 59120, 62720, 66400, 71200, 75200, 78640, 82800, 87520),
    *(92720, 98560, 104400, 111120, 118480, 125040, 132720, 142640, 154000, 166720, 180880, 197920, 217920, 239280),
    *(268160, 326000),
)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates by part.

    Attributes:
        extractor: waveform convolutions.
        project: features to the encoder's width.
        position: positional convolution.
        reduction: convolution that makes several frames one.
        attention_maps: q, k, v and output maps.
        attention_core: scores and weighted sums, quadratic in time.
        ffn: feed-forward blocks.
    """

    extractor: float = 0
    project: float = 0
    position: float = 0
    reduction: float = 0
    attention_maps: float = 0
    attention_core: float = 0
    ffn: float = 0

    @property
    def total(self) -> float:
        """Sum over the parts."""
        return sum(getattr(self, part.name) for part in fields(self))

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def __mul__(self, factor: float) -> "Macs":
        return Macs(*(getattr(self, part.name) * factor for part in fields(self)))


def parameters(arch: Arch) -> int:
    """Count parameters, output layer and scales of int8 maps included; the block numbers of packed maps are none."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(arch)) if _counts(leaf))


def nonzero(params: Any) -> int:
    """Count the parameters that are not zero in a tree of arrays."""
    return sum(int(np.count_nonzero(np.asarray(leaf))) for leaf in jax.tree.leaves(params) if _counts(leaf))


def macs(arch: Arch, samples: int) -> Macs:
    """Count the MACs of one utterance of `samples` samples at 16 kHz, alone in its batch."""
    features, frames = arch.front.frames(samples), arch.frames(samples)
    taps = arch.position_kernel
    fixed = Macs(
        extractor=_extractor(arch.front, samples) if isinstance(arch.front, Waveform) else 0,
        project=features * _map(arch.front.size, arch.width, arch.project_rank) if arch.project else 0,
        position=features * arch.width * (arch.width // arch.position_groups) * taps,
        reduction=frames * arch.time_reduction * arch.width**2 if arch.time_reduction > 1 else 0,
    )
    return sum((_layer(arch, layer, frames) for layer in arch.layers), fixed)


def macs_per_second(arch: Arch) -> Macs:
    """Average the MACs over the study's 32 utterances, per second of speech (224.86 s in all)."""
    seconds = sum(UTTERANCES) / SAMPLE_RATE
    return sum((macs(arch, samples) for samples in UTTERANCES), Macs()) * (1 / seconds)


def unit_costs(arch: Arch, kind: Literal["params", "macs"]) -> dict[str, float]:
    """Tell what one unit of each prunable axis costs: what the model has less with one unit less.

    Args:
        arch: of the model as it is.
        kind: "params", or "macs" per second of speech, averaged as `macs_per_second`. The maps of a block's last unit
            stop altogether, so where they are factorised it saves more MACs than one of several.

    Returns:
        By axis, as `jaxssl.models.sites.axes` names and orders them; 0 where no unit is left.
    """
    if kind == "params":
        sizes = {path: math.prod(leaf.shape) for path, leaf in flatten(shapes(arch)).items()}
        return {axis.name: sum(sizes[path] / max(axis.size, 1) for path, _ in axis.leaves) for axis in axes(arch)}
    costs: dict[str, float] = {}
    for i, layer in enumerate(arch.layers):
        if not layer.reuse:
            alike = [arch.layers[j] for j in sharing(arch, i)]
            fewer = (replace(each, heads=max(each.heads - 1, 0)) for each in alike)
            costs[f"layers/{i}/attention/heads"] = sum(_saved(arch, *pair) for pair in zip(alike, fewer, strict=True))
        costs[f"layers/{i}/ffn/hidden"] = _saved(arch, layer, replace(layer, ffn=max(layer.ffn - 1, 0)))
    return costs


def nominal_macs_per_second(arch: Arch, params: Any) -> float:
    """Average the MACs as `macs_per_second` does, leaving out products with weights that are zero.

    Nominal, for a dense product does them all the same. This is how the study counts weight pruning: the dense maps of
    the layers count by the share of their weights that is not zero.
    """
    seconds = sum(UTTERANCES) / SAMPLE_RATE
    frames = sum(arch.frames(samples) for samples in UTTERANCES) / seconds
    weights = (params["layers"][str(i)] for i in range(len(arch.layers)))
    zeros = sum(
        leaf.size - int(np.count_nonzero(np.asarray(leaf)))
        for layer in weights
        for path, leaf in flatten(layer).items()
        if path.split("/")[-1] in ("kernel", "down", "up", "blocks")
    )
    return macs_per_second(arch).total - frames * zeros


def _extractor(front: Waveform, samples: int) -> int:
    total, channels = 0, 1
    for conv in front.convs:
        samples = (samples - conv.kernel) // conv.stride + 1
        total += samples * conv.kernel * channels * conv.channels
        channels = conv.channels
    return total


def _layer(arch: Arch, layer: Layer, frames: int) -> Macs:
    inner, ranks, packed = layer.heads * arch.head_dim, layer.ranks, layer.packed
    names = ("v",) if layer.reuse else ("q", "k", "v")
    maps = sum(_map(arch.width, inner, getattr(ranks, n), getattr(packed, n)) for n in names)
    maps += _map(inner, arch.width, ranks.out, packed.out)
    ffn = _map(arch.width, layer.ffn, ranks.fc1, packed.fc1) + _map(layer.ffn, arch.width, ranks.fc2, packed.fc2)
    core = (1 if layer.reuse else 2) * frames**2 * inner  # scores, unless they are the layer's before; weighted sums
    return Macs(attention_maps=frames * maps, attention_core=core, ffn=frames * ffn)


def _saved(arch: Arch, layer: Layer, smaller: Layer) -> float:
    """MACs per second that a smaller layer saves."""
    frames = [arch.frames(samples) for samples in UTTERANCES]
    saved = sum(_layer(arch, layer, n).total - _layer(arch, smaller, n).total for n in frames)
    return saved / (sum(UTTERANCES) / SAMPLE_RATE)


def _counts(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.int8


def _map(fan_in: int, fan_out: int, rank: int | None, blocks: tuple[int, int] | None = None) -> int:
    """MACs of a dense map on one frame. A map without inputs or outputs does not run, whatever its rank."""
    if blocks is not None:
        size, kept = blocks
        return fan_out * size * kept
    if rank is None or fan_in * fan_out == 0:
        return fan_in * fan_out
    return rank * (fan_in + fan_out)
