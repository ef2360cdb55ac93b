"""Our waveform models as the `.pth` that DPHuBERT's own code reads: any heads, units and channels in every layer.

Models with gated relative positions, as WavLM's, are what that code calls DPWavLM.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.convert.dphubert import MODES, SCALE
from jaxssl.convert.naming import named
from jaxssl.inference.specialise import dequantized, unpacked
from jaxssl.models.arch import (
    Arch,
    Attention,
    GatedAttention,
    Layer,
    PositionalConvolution,
    RelativeBias,
    Waveform,
)
from jaxssl.models.mixers.gated_attention import ENTRIES
from jaxssl.models.model import Params
from jaxssl.models.part import BlockT
from jaxssl.models.sites import matrices

PRUNING = (  # switches for which of its gates there are
    "extractor_prune_conv_channels",
    "encoder_prune_attention_heads",
    "encoder_prune_attention_layer",
    "encoder_prune_feed_forward_intermediate",
    "encoder_prune_feed_forward_layer",
)
OLD = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
LEFT = ("head", "mask_embedding")  # which that code has no place for


def state(arch: Arch, params: Params) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return `state_dict` and `config`.

    A block without units is gone there, where its bias is zero; else it has one unit of zeros, which adds the bias.

    Raises:
        InputError: that code cannot be such a model; the message names the first reason.
    """
    arch, params = dequantized(*unpacked(arch, params))
    front, position = _check(arch, params)
    pairs = [_kept(arch.width, layer, params["layers"][str(i)]) for i, layer in enumerate(arch.layers)]
    layers = tuple(layer for layer, _ in pairs)
    body = {name: part for name, part in params.items() if name not in LEFT}
    found = named(arch, {**body, "layers": {str(i): arrays for i, (_, arrays) in enumerate(pairs)}}, "huggingface")
    found.setdefault(SCALE, np.ones(front.size, np.float32))
    if arch.relative is not None:
        found |= _constants(arch.relative.heads, layers, found)
    return {_renamed(name): array for name, array in found.items()}, _config(arch, front, position, layers)


def _kept(width: int, layer: Layer, arrays: Params) -> tuple[Layer, Params]:
    """Return a layer whose blocks have units or add nothing, and its arrays without those that add nothing."""
    found = dict(arrays)
    mixer = _block(width, layer.mixer, found)
    ffn = _block(width, layer.ffn, found)
    return replace(layer, mixer=mixer, ffn=ffn), found


def _block(width: int, block: BlockT, arrays: Params) -> BlockT:
    if not block.empty:
        return block
    (units,) = block.units()
    bias = np.asarray(arrays.pop(block.place)[units.into]["bias"])
    if not bias.any():
        return block
    one = block.resized(units.name, 1)
    zeros = {spec.name: (np.zeros((*spec.inputs, *spec.outputs), np.float32), spec.outputs) for spec in one.maps(width)}
    arrays[block.place] = {
        name: {"kernel": kernel, "bias": bias if name == units.into else np.zeros(outputs, np.float32)}
        for name, (kernel, outputs) in zeros.items()
    }
    if isinstance(one, GatedAttention):
        gate = {"kernel": np.zeros((one.head_dim, ENTRIES), np.float32), "bias": np.zeros(ENTRIES, np.float32)}
        arrays[block.place]["gate"] = {**gate, "constant": np.ones(one.heads, np.float32)}
    return one


def _constants(heads: int, layers: tuple[Layer, ...], found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return each gate's constants of all heads that there were, as that code has them; those of gone ones are 1."""
    whole = {}
    for i, layer in enumerate(layers):
        if isinstance(layer.mixer, GatedAttention) and layer.mixer.heads:
            name = f"encoder.layers.{i}.attention.gru_rel_pos_const"
            whole[name] = np.ones((1, heads, 1, 1), np.float32)
            whole[name][:, list(layer.mixer.remaining)] = found[name]
    return whole


def _renamed(name: str) -> str:
    """Give an array the name that torchaudio's code has for it, the inverse of `bare_state.renamed`."""
    for new, old in OLD.items():
        name = name.replace(new, old)
    if name.startswith("encoder."):
        return f"encoder.transformer.{name.removeprefix('encoder.')}"
    return f"encoder.{name}" if name.startswith("feature_projection.") else name


def _config(arch: Arch, front: Waveform, position: PositionalConvolution, layers: tuple[Layer, ...]) -> dict[str, Any]:
    """Return the arguments of `wav2vec2_model` of DPHuBERT's code; blocks that are gone need a size all the same."""
    dropout = arch.dropout
    return {
        "extractor_mode": next(mode for mode, norm in MODES.items() if norm == front.norm),
        "extractor_conv_layer_config": [(conv.channels, conv.kernel, conv.stride) for conv in front.convs],
        "extractor_conv_bias": front.bias,
        "encoder_embed_dim": arch.width,
        "encoder_projection_dropout": dropout.features,
        "encoder_pos_conv_kernel": position.kernel,
        "encoder_pos_conv_groups": position.groups,
        "encoder_num_layers": len(layers),
        "encoder_use_attention": [not layer.mixer.empty for layer in layers],
        "encoder_use_feed_forward": [not layer.ffn.empty for layer in layers],
        **_heads(arch.relative, layers),
        "encoder_attention_dropout": dropout.attention,
        "encoder_ff_interm_features": [layer.ffn.size or 1 for layer in layers],
        "encoder_ff_interm_dropout": dropout.activation,
        "encoder_dropout": dropout.hidden,
        "encoder_layer_norm_first": arch.norm_first,
        "encoder_layer_drop": dropout.layer,
        "aux_num_out": None,
        "normalize_waveform": front.normalize,
        **dict.fromkeys(PRUNING, False),
    }


def _heads(relative: RelativeBias | None, layers: tuple[Layer, ...]) -> dict[str, Any]:
    """Return how many heads there are, and their size; of gated ones their numbers, and the table's sizes."""
    if relative is None:
        heads = [layer.attention.heads or 1 for layer in layers]
        return {"encoder_num_heads": heads, "encoder_head_dim": layers[0].attention.head_dim}
    left = [list(layer.mixer.remaining) if isinstance(layer.mixer, GatedAttention) else [] for layer in layers]
    return {
        "encoder_total_num_heads": [relative.heads] * len(layers),
        "encoder_remaining_heads": [numbers or list(range(relative.heads)) for numbers in left],
        "encoder_num_buckets": relative.buckets,
        "encoder_max_distance": relative.max_distance,
    }


def _lost(arch: Arch, params: Params) -> bool:
    """Tell whether relative positions have no place, for the first layer's attention adds nothing and is gone."""
    if arch.relative is None or not arch.layers or not arch.layers[0].mixer.empty:
        return False
    return not np.asarray(params["layers"]["0"]["attention"]["out"]["bias"]).any()


def _check(arch: Arch, params: Params) -> tuple[Waveform, PositionalConvolution]:
    front, position = arch.front, arch.position
    if not isinstance(front, Waveform):
        raise _refusal("it takes log-Mel frames")
    if not isinstance(position, PositionalConvolution):
        raise _refusal("its positions are no convolution")
    reasons = {
        "it has no layers": not arch.layers,
        "its features have no norm": not front.feature_norm,
        "its mixers are not attention": any(layer.mixer.place != Attention.place for layer in arch.layers),
        "its keys have no bias": not all(layer.attention.key_bias for layer in arch.layers),
        "its first layer has no attention, which holds the relative positions": _lost(arch, params),
        "attention maps are reused": any(layer.mixer.carries for layer in arch.layers),
        "its attention has a limited context": any(layer.attention.context != (None, None) for layer in arch.layers),
        "its positions are causal": position.causal,
        "heads differ in size": len({layer.attention.head_dim for layer in arch.layers}) > 1,
        "its activation is not GELU": any(layer.ffn.activation != "gelu" for layer in arch.layers),
        "maps are factorised": any(matrix.rank is not None for matrix in matrices(arch)),
        "its layers are a Conformer's": any(layer.conformer for layer in arch.layers),
        "it has adapters": any(layer.adapter for layer in arch.layers),
        "it has a length adapter": arch.length_adapter is not None,
        "it has no projection, or reduces time": arch.project is None or arch.shortens,
    }
    for reason, true in reasons.items():
        if true:
            raise _refusal(reason)
    return front, position


def _refusal(reason: str) -> InputError:
    return InputError(f"DPHuBERT's code cannot be this model: {reason}; export it as torch, onnx or stablehlo")
