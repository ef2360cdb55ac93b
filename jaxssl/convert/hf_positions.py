"""The positions of Hugging Face's models: one convolution, one behind a batch norm, or data2vec's several."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.convert.config import Settings, layer_count, position_groups, size
from jaxssl.convert.naming import Tensor
from jaxssl.models.arch import ConvolutionStack, PositionalConvolution, ScaledConvolution
from jaxssl.models.names import Shape

CONV, STACK = "encoder.pos_conv_embed.conv", "encoder.pos_conv_embed.layers."
NORM = "encoder.pos_conv_embed.batch_norm."
KERNELS = (f"{CONV}.weight_v", f"{CONV}.parametrizations.weight.original1", f"{STACK}0.conv.weight", f"{CONV}.weight")
EPSILON = 1e-5  # of PyTorch's batch norm
FOLDED = (
    "the batch norm before its positional convolution is folded to a scale and a shift of every channel; here the "
    "shift ends with an utterance, transformers shifts padded frames too, so that its padded batches differ"
)


@dataclass(frozen=True)
class Folded:
    """A batch norm's scale, or its bias, with the running statistics in it."""

    norm: Mapping[str, Tensor]
    bias: bool

    @property
    def shape(self) -> Shape:
        return self.norm["weight"].shape

    @property
    def dtype(self) -> str:
        return "float32"

    def read(self) -> np.ndarray:
        """Return weight / deviation, or bias - mean · weight / deviation, computed in float64."""
        each = {name: tensor.read().astype(np.float64) for name, tensor in self.norm.items()}
        scale = each["weight"] / np.sqrt(each["running_var"] + EPSILON)
        return np.asarray(each["bias"] - each["running_mean"] * scale if self.bias else scale, np.float32)


def folded(where: object, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with a batch norm, where there is one, as scale and bias alone.

    Raises:
        InputError: some of its arrays are missing, or of different shapes.
    """
    parts = ("weight", "bias", "running_mean", "running_var")
    norm = {name: tensors[NORM + name] for name in parts if NORM + name in tensors}
    if not norm:
        return dict(tensors)
    if lacking := [name for name in parts if name not in norm]:
        raise InputError(f"{where}: {NORM}{lacking[0]} is missing, {len(norm)} of 4 arrays are there; copy it again")
    if len(shapes := {tensor.shape for tensor in norm.values()}) > 1:
        raise InputError(f"{where}: the arrays of {NORM}* have shapes {sorted(shapes)}, not one")
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(NORM)}
    return rest | {f"{NORM}weight": Folded(norm, bias=False), f"{NORM}bias": Folded(norm, bias=True)}


def unfolded(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays with a batch norm's statistics beside its scale and bias, the inverse of `folded`.

    Nothing is left for the statistics to do: a mean of 0, and the variance that epsilon makes 1.
    """
    if f"{NORM}weight" not in tensors:
        return dict(tensors)
    bias = tensors[f"{NORM}bias"]
    statistics = {"running_mean": np.zeros_like(bias), "running_var": np.full_like(bias, 1 - EPSILON)}
    counted = {f"{NORM}num_batches_tracked": np.array(1, np.int64)}
    return {**tensors, **{NORM + name: array for name, array in statistics.items()}, **counted}


def measure(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off the arrays what they tell of positions, under the configuration's names.

    data2vec's `num_conv_pos_embeddings` counts convolutions, everybody else's taps.
    """
    kernel = next((name for name in KERNELS if name in tensors), "")
    taps, depth = size(tensors, kernel, 2), layer_count(tensors, STACK)
    return {
        "num_conv_pos_embeddings": depth or taps,
        "num_conv_pos_embedding_groups": position_groups(tensors, kernel),
        "conv_pos_kernel_size": taps if depth else None,
        "conv_pos_batch_norm": f"{NORM}weight" in tensors,
    }


def position(
    settings: Settings, tensors: Mapping[str, Tensor]
) -> PositionalConvolution | ConvolutionStack | ScaledConvolution:
    """Describe the positions of which these are the arrays.

    Raises:
        InputError: they and the configuration disagree.
    """
    number, groups = settings.positive("num_conv_pos_embeddings"), settings.positive("num_conv_pos_embedding_groups")
    if layer_count(tensors, STACK):
        return ConvolutionStack(number, settings.positive("conv_pos_kernel_size"), groups)
    if settings.get("conv_pos_batch_norm", bool):
        return ScaledConvolution(number, groups)
    return PositionalConvolution(number, groups)
