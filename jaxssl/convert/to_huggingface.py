"""Our models as folders that `from_pretrained` of Hugging Face's classes reads.

Which class: WavLM's for gated attention, data2vec's for stacked positions, wav2vec 2.0's for adapters and where frames
are counted as it does, Whisper's for its front end (`to_whisper`), HuBERT's for all else.
"""

from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.convert import to_whisper
from jaxssl.convert.equal_layers import differing
from jaxssl.convert.hf_positions import unfolded
from jaxssl.convert.huggingface import FAMILIES
from jaxssl.convert.naming import named
from jaxssl.inference.specialise import dequantized, unpacked
from jaxssl.models.arch import Arch, ConvolutionStack, PositionalConvolution, ScaledConvolution, Waveform, Whisper
from jaxssl.models.model import Params

ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # whose name is another there


def folder(arch: Arch, params: Params) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Return config.json, preprocessor_config.json and the tensors of model.safetensors.

    Raises:
        InputError: no class can be such a model; the message names the first reason.
    """
    arch, params = dequantized(*unpacked(arch, params))
    if isinstance(arch.front, Whisper):
        return to_whisper.folder(arch, params)
    family = _family(arch)
    front = _check(arch, family)
    layer, dropout = arch.layers[0], arch.dropout
    config = {
        "model_type": family,
        "architectures": [f"{FAMILIES[family]}Model"],
        "hidden_size": arch.width,
        "num_hidden_layers": len(arch.layers),
        "num_attention_heads": layer.attention.heads,
        "intermediate_size": layer.ffn.size,
        "hidden_act": ACTIVATIONS.get(layer.ffn.activation, layer.ffn.activation),
        "layer_norm_eps": 1e-5,
        "do_stable_layer_norm": arch.norm_first,
        "conv_dim": [conv.channels for conv in front.convs],
        "conv_kernel": [conv.kernel for conv in front.convs],
        "conv_stride": [conv.stride for conv in front.convs],
        "conv_bias": front.bias,
        "feat_extract_norm": front.norm,
        "feat_proj_layer_norm": front.feature_norm,
        "mask_time_prob": 0.05 if arch.mask_embedding else 0.0,  # without it transformers has no mask embedding
        "hidden_dropout": dropout.hidden,
        "attention_dropout": dropout.attention,
        "activation_dropout": dropout.activation,
        "feat_proj_dropout": dropout.features,
        "layerdrop": dropout.layer,
    }
    config |= _positions(arch)
    if layer.adapter is not None:
        config["adapter_attn_dim"] = layer.adapter.size
    if (short := arch.length_adapter) is not None:
        config |= {"add_adapter": True, "output_hidden_size": short.width, "num_adapter_layers": short.layers}
        config |= {"adapter_kernel_size": short.kernel, "adapter_stride": short.stride}
    if arch.relative is not None:
        config |= {"num_buckets": arch.relative.buckets, "max_bucket_distance": arch.relative.max_distance}
    features = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16_000}
    features |= {"do_normalize": front.normalize, "return_attention_mask": front.norm == "layer", "padding_value": 0.0}
    return config, features, unfolded(named(arch, _body(params), "huggingface"))


def _family(arch: Arch) -> str:
    """Name the model_type whose class has an arch's parts."""
    if arch.relative is not None:
        return "wavlm"
    if isinstance(arch.position, ConvolutionStack):
        return "data2vec-audio"
    counted = isinstance(arch.front, Waveform) and arch.front.counts == "convolutions" and arch.front.feature_norm
    plain = counted and isinstance(arch.position, PositionalConvolution)
    return "wav2vec2" if plain or any(layer.adapter for layer in arch.layers) else "hubert"


def _positions(arch: Arch) -> dict[str, Any]:
    match arch.position:
        case ConvolutionStack(depth, kernel, groups):
            sizes = {"num_conv_pos_embeddings": depth, "conv_pos_kernel_size": kernel}
        case PositionalConvolution(kernel, groups):
            sizes = {"num_conv_pos_embeddings": kernel}
        case ScaledConvolution(kernel, groups):
            sizes = {"num_conv_pos_embeddings": kernel, "conv_pos_batch_norm": True}
        case other:
            raise AssertionError(f"{other}: refused before")
    return {**sizes, "num_conv_pos_embedding_groups": groups}


def _body(params: Params) -> Params:
    """Leave out the pre-training output, which these classes do not have."""
    return {name: part for name, part in params.items() if name != "head"}


def _check(arch: Arch, family: str) -> Waveform:
    front = arch.front
    if not isinstance(front, Waveform):
        raise _refusal(family, "its front end is another")
    wanted = {"data2vec-audio": (ConvolutionStack,), "hubert": (PositionalConvolution, ScaledConvolution)}
    reasons = {
        "its extractor's output is scaled": front.scaled,
        **differing(arch),
        "its positions are causal": getattr(arch.position, "causal", False),
        "its positions are others": not isinstance(arch.position, wanted.get(family, (PositionalConvolution,))),
        "its keys have no bias": not all(layer.attention.key_bias for layer in arch.layers),
        "its features have no norm": family != "hubert" and not front.feature_norm,
        "its adapters are in post-norm layers": not arch.norm_first and any(layer.adapter for layer in arch.layers),
        "it has adapters": family != "wav2vec2" and any(layer.adapter for layer in arch.layers),
        "it has a length adapter": family == "hubert" and arch.length_adapter is not None,
        "it norms before its blocks": family == "data2vec-audio" and arch.norm_first,
        "its extractor has one norm only": family == "data2vec-audio" and front.norm != "layer",
        "it has no projection, or reduces time": arch.project is None or arch.shortens,
    }
    for reason, true in reasons.items():
        if true:
            raise _refusal(family, reason)
    return front


def _refusal(family: str, reason: str) -> InputError:
    return InputError(
        f"{FAMILIES[family]}Model cannot be this model: {reason}; export it as huggingface-code, torch, onnx or "
        "stablehlo"
    )
