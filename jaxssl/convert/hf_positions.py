"""The positions of Hugging Face's models: one convolution, or data2vec's several."""

from collections.abc import Mapping
from typing import Any

from jaxssl.convert.config import Settings, layer_count, position_groups, size
from jaxssl.convert.naming import Tensor
from jaxssl.models.arch import ConvolutionStack, PositionalConvolution

CONV, STACK = "encoder.pos_conv_embed.conv", "encoder.pos_conv_embed.layers."
KERNELS = (f"{CONV}.weight_v", f"{CONV}.parametrizations.weight.original1", f"{STACK}0.conv.weight")


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
    }


def position(settings: Settings, tensors: Mapping[str, Tensor]) -> PositionalConvolution | ConvolutionStack:
    """Describe the positions of which these are the arrays.

    Raises:
        InputError: they and the configuration disagree.
    """
    number, groups = settings.positive("num_conv_pos_embeddings"), settings.positive("num_conv_pos_embedding_groups")
    if layer_count(tensors, STACK):
        return ConvolutionStack(number, settings.positive("conv_pos_kernel_size"), groups)
    return PositionalConvolution(number, groups)
