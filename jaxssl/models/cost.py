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

from compress.address import Matrix, flatten
from jaxssl.models.arch import SAMPLE_RATE, Arch, KeyMerging, Layer, StridedConvolution
from jaxssl.models.model import shapes
from jaxssl.models.part import Units
from jaxssl.models.sites import axes, layer_matrices, matrices, sharing

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
        reduction: convolutions that make several frames one, and those that bring the output back to as many.
        attention_maps: dense maps of the mixers: q, k, v and out of attention.
        attention_core: what else mixers multiply: scores and weighted sums of attention, quadratic in time.
        ffn: feed-forward blocks.
        convolution: convolution modules of Conformers.
        adapters: small blocks behind those, of one language; and a length adapter behind the encoder.
    """

    extractor: float = 0
    project: float = 0
    position: float = 0
    reduction: float = 0
    attention_maps: float = 0
    attention_core: float = 0
    ffn: float = 0
    convolution: float = 0
    adapters: float = 0

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
    features, frames = arch.shortened(arch.front.frames(samples)), arch.frames(samples)
    project = [_map(matrix) for matrix in matrices(arch) if matrix.path == "project"]
    fixed = Macs(
        extractor=arch.front.macs(samples),
        project=features * sum(project),
        position=arch.position.macs(arch.width, features),
        adapters=arch.length_adapter.macs(arch.width, frames) if arch.length_adapter else 0,
        reduction=_reduction(arch, samples),
    )
    layers = (_layer(arch, layer, arch.frames(samples, layer=i)) for i, layer in enumerate(arch.layers))
    return sum(layers, fixed)


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
        for number, block in enumerate(layer.blocks):
            together = sharing(arch, i) if number == 0 else range(i, i + 1)
            for units in (units for units in block.units() if not units.shared):
                saved = sum(_saved(arch, j, _one_less(arch.layers[j], block.place, units)) for j in together)
                costs[f"layers/{i}/{block.place}/{units.name}"] = saved
    return costs


def nominal_macs_per_second(arch: Arch, params: Any) -> float:
    """Average the MACs as `macs_per_second` does, leaving out products with weights that are zero.

    Nominal, for a dense product does them all the same. This is how the study counts weight pruning: the dense maps of
    the layers count by the share of their weights that is not zero.
    """
    seconds = sum(UTTERANCES) / SAMPLE_RATE
    idle = 0.0
    for i in range(len(arch.layers)):
        zeros = sum(
            leaf.size - int(np.count_nonzero(np.asarray(leaf)))
            for path, leaf in flatten(params["layers"][str(i)]).items()
            if path.split("/")[-1] in ("kernel", "down", "up", "blocks")
        )
        idle += zeros * sum(arch.frames(samples, layer=i) for samples in UTTERANCES) / seconds
    return macs_per_second(arch).total - idle


def _reduction(arch: Arch, samples: int) -> int:
    """MACs of all that changes the number of frames."""
    heard = arch.front.frames(samples)
    total = arch.shortening.macs(arch.front.size, heard) if arch.shortening else 0
    back = arch.shortening.macs_back(arch.width, heard) if arch.shortening else 0
    frames = arch.shortened(heard)
    if arch.time_reduction > 1:
        total += StridedConvolution(arch.time_reduction).macs(arch.width, frames)
        frames //= arch.time_reduction
    for i, layer in enumerate(arch.layers):
        total += layer.shortening.macs(arch.width, frames) if layer.shortening else 0
        total += frames * _keys(arch, layer) if isinstance(layer.shortening, KeyMerging) else 0
        back += layer.shortening.macs_back(arch.width, frames) if layer.shortening else 0
        frames = arch.frames(samples, layer=i)
    if arch.upsampling is None:
        return total
    return total + back + arch.upsampling.macs(arch.width, heard // arch.grouped)


def _keys(arch: Arch, layer: Layer) -> int:
    """MACs of a layer's keys for one frame, which are computed before frames merge, and after it again."""
    return sum(_map(m) for m in layer_matrices(arch, 0, layer) if m.path == f"layers/0/{layer.mixer.place}/k")


def _layer(arch: Arch, layer: Layer, frames: int) -> Macs:
    mine = layer_matrices(arch, 0, layer)
    maps = {
        block.place: sum(_map(m) for m in mine if m.path.startswith(f"layers/0/{block.place}/"))
        for block in layer.blocks
    }
    core = {block.place: block.core_macs(frames, arch.width) for block in layer.blocks}
    return Macs(
        attention_maps=frames * maps[layer.mixer.place],
        attention_core=core[layer.mixer.place],
        ffn=frames * (maps["ffn"] + maps.get("macaron", 0)),
        convolution=frames * maps.get("convolution", 0) + core.get("convolution", 0),
        adapters=layer.adapter.macs(arch.width, frames) if layer.adapter else 0,
    )


def _one_less(layer: Layer, place: str, units: Units) -> Layer:
    """Return a layer with one unit less in the block of that place."""
    less = max(units.size - 1, 0)
    return layer.changed(lambda block: block.resized(units.name, less) if block.place == place else block)


def _saved(arch: Arch, index: int, smaller: Layer) -> float:
    """MACs per second that a smaller layer saves in place of layer `index`."""
    layer, frames = arch.layers[index], [arch.frames(samples, layer=index) for samples in UTTERANCES]
    saved = sum(_layer(arch, layer, n).total - _layer(arch, smaller, n).total for n in frames)
    if isinstance(layer.shortening, KeyMerging):
        before = replace(arch, layers=(*arch.layers[:index], replace(layer, shortening=None)))
        heard = sum(before.frames(samples, layer=index) for samples in UTTERANCES)
        saved += heard * (_keys(arch, layer) - _keys(arch, smaller))
    return saved / (sum(UTTERANCES) / SAMPLE_RATE)


def _counts(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.int8


def _map(matrix: Matrix) -> int:
    """MACs of a dense map on one frame. A map without inputs or outputs does not run, whatever its rank."""
    return matrix.size if matrix.max_rank else 0
