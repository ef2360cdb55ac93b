"""Our waveform models as folders that `from_pretrained` of Hugging Face's `HubertModel` or `WavLMModel` reads."""

from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.convert.naming import named
from jaxssl.inference.specialise import dequantized, unpacked
from jaxssl.models.arch import Arch, PositionalConvolution, Waveform
from jaxssl.models.model import Params
from jaxssl.models.sites import matrices

ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # whose name is another there


def folder(arch: Arch, params: Params) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Return config.json, preprocessor_config.json and the tensors of model.safetensors.

    Raises:
        InputError: that class cannot be such a model; the message names the first reason.
    """
    arch, params = dequantized(*unpacked(arch, params))
    front, position = _check(arch)
    layer, dropout = arch.layers[0], arch.dropout
    config = {
        "model_type": "hubert",
        "architectures": [_kind(arch)],
        "hidden_size": arch.width,
        "num_hidden_layers": len(arch.layers),
        "num_attention_heads": layer.mixer.heads,
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
        "num_conv_pos_embeddings": position.kernel,
        "num_conv_pos_embedding_groups": position.groups,
        "mask_time_prob": 0.05 if arch.mask_embedding else 0.0,  # without it transformers has no mask embedding
        "hidden_dropout": dropout.hidden,
        "attention_dropout": dropout.attention,
        "activation_dropout": dropout.activation,
        "feat_proj_dropout": dropout.features,
        "layerdrop": dropout.layer,
    }
    if arch.relative is not None:
        config |= {"model_type": "wavlm", "num_buckets": arch.relative.buckets}
        config |= {"max_bucket_distance": arch.relative.max_distance}
    features = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16_000}
    features |= {"do_normalize": front.normalize, "return_attention_mask": front.norm == "layer", "padding_value": 0.0}
    return config, features, named(arch, _body(params), "huggingface")


def _kind(arch: Arch) -> str:
    return "HubertModel" if arch.relative is None else "WavLMModel"


def _body(params: Params) -> Params:
    """Leave out the pre-training output, which these classes do not have."""
    return {name: part for name, part in params.items() if name != "head"}


def _check(arch: Arch) -> tuple[Waveform, PositionalConvolution]:
    reasons = {
        "its front end is another": not isinstance(arch.front, Waveform),
        "its extractor's output is scaled": isinstance(arch.front, Waveform) and arch.front.scaled,
        "it has no layers": not arch.layers,
        "its layers differ": len(set(arch.layers)) > 1,
        "blocks were emptied": any(block.empty for layer in arch.layers for block in layer.blocks),
        "heads were cut": any(layer.mixer.heads * layer.mixer.head_dim != arch.width for layer in arch.layers),
        "its positions are no convolution": not isinstance(arch.position, PositionalConvolution),
        "maps are factorised": any(matrix.rank is not None for matrix in matrices(arch)),
        "it has adapters": any(layer.adapter for layer in arch.layers),
        "it has a length adapter": arch.length_adapter is not None,
        "its keys have no bias": not all(layer.mixer.key_bias for layer in arch.layers),
        "attention maps are reused": any(layer.mixer.carries for layer in arch.layers),
        "its features have no norm": arch.relative is not None and not getattr(arch.front, "feature_norm", True),
        "it has no projection, or reduces time": arch.project is None or arch.time_reduction > 1,
    }
    for reason, true in reasons.items():
        if true:
            raise InputError(f"{_kind(arch)} cannot be this model: {reason}; export it as torch, onnx or stablehlo")
    assert isinstance(arch.front, Waveform)
    assert isinstance(arch.position, PositionalConvolution)
    return arch.front, arch.position
