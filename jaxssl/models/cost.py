"""What a model costs by arithmetic: parameters and multiply-accumulates (MACs).

XLA's own estimate counts a scan's body once and reads low with FFTs, so MACs are counted here from the shapes; a test
cross-checks them. Counted as in "Is Smaller Always Faster?" (arXiv 2211.09949): matrix products and convolutions;
not norms, activations, biases, the log-Mel, the output layer.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np

from jaxssl.models.arch import SAMPLE_RATE, Arch, Layer, Waveform
from jaxssl.models.model import shapes

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
        attention_maps: q, k, v and output maps.
        attention_core: scores and weighted sums, quadratic in time.
        ffn: feed-forward blocks.
    """

    extractor: float = 0
    project: float = 0
    position: float = 0
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
    """Count parameters, output layer included."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(arch)))


def nonzero(params: Any) -> int:
    """Count the entries that are not zero in a tree of arrays."""
    return sum(int(np.count_nonzero(np.asarray(leaf))) for leaf in jax.tree.leaves(params))


def macs(arch: Arch, samples: int) -> Macs:
    """Count the MACs of one utterance of `samples` samples at 16 kHz, alone in its batch."""
    frames = arch.front.frames(samples)
    taps = arch.position_kernel
    fixed = Macs(
        extractor=_extractor(arch.front, samples) if isinstance(arch.front, Waveform) else 0,
        project=frames * _map(arch.front.size, arch.width, arch.project_rank),
        position=frames * arch.width * (arch.width // arch.position_groups) * taps,
    )
    return sum((_layer(arch, layer, frames) for layer in arch.layers), fixed)


def macs_per_second(arch: Arch) -> Macs:
    """Average the MACs over the study's 32 utterances, per second of speech (224.86 s in all)."""
    seconds = sum(UTTERANCES) / SAMPLE_RATE
    return sum((macs(arch, samples) for samples in UTTERANCES), Macs()) * (1 / seconds)


def _extractor(front: Waveform, samples: int) -> int:
    total, channels = 0, 1
    for conv in front.convs:
        samples = (samples - conv.kernel) // conv.stride + 1
        total += samples * conv.kernel * channels * conv.channels
        channels = conv.channels
    return total


def _layer(arch: Arch, layer: Layer, frames: int) -> Macs:
    inner, ranks = layer.heads * arch.head_dim, layer.ranks
    maps = sum(_map(arch.width, inner, rank) for rank in (ranks.q, ranks.k, ranks.v, ranks.out))
    ffn = _map(arch.width, layer.ffn, ranks.fc1) + _map(layer.ffn, arch.width, ranks.fc2)
    return Macs(attention_maps=frames * maps, attention_core=2 * frames**2 * inner, ffn=frames * ffn)


def _map(fan_in: int, fan_out: int, rank: int | None) -> int:
    """MACs of a dense map on one frame. A map without inputs or outputs does not run, whatever its rank."""
    if rank is None or fan_in * fan_out == 0:
        return fan_in * fan_out
    return rank * (fan_in + fan_out)
