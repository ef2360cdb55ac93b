"""Our waveform models as folders that Hugging Face's `HubertModel.from_pretrained` reads."""

from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.inference.specialise import dequantized, unpacked
from jaxssl.models.arch import Arch, Ranks, Waveform
from jaxssl.models.model import Params
from jaxssl.models.torch_names import HUGGINGFACE, named


def folder(arch: Arch, params: Params) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Return config.json, preprocessor_config.json and the tensors of model.safetensors.

    Raises:
        InputError: `HubertModel` cannot be such a model; the message names the first reason.
    """
    arch, params = dequantized(*unpacked(arch, params))
    front = _check(arch)
    layer, dropout = arch.layers[0], arch.dropout
    config = {
        "model_type": "hubert",
        "architectures": ["HubertModel"],
        "hidden_size": arch.width,
        "num_hidden_layers": len(arch.layers),
        "num_attention_heads": layer.heads,
        "intermediate_size": layer.ffn,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "do_stable_layer_norm": arch.norm_first,
        "conv_dim": [conv.channels for conv in front.convs],
        "conv_kernel": [conv.kernel for conv in front.convs],
        "conv_stride": [conv.stride for conv in front.convs],
        "conv_bias": front.bias,
        "feat_extract_norm": front.norm,
        "feat_proj_layer_norm": front.feature_norm,
        "num_conv_pos_embeddings": arch.position_kernel,
        "num_conv_pos_embedding_groups": arch.position_groups,
        "mask_time_prob": 0.05 if arch.mask_embedding else 0.0,  # without it transformers has no mask embedding
        "hidden_dropout": dropout.hidden,
        "attention_dropout": dropout.attention,
        "activation_dropout": dropout.activation,
        "feat_proj_dropout": dropout.features,
        "layerdrop": dropout.layer,
    }
    features = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": 16_000}
    features |= {"do_normalize": front.normalize, "return_attention_mask": front.norm == "layer", "padding_value": 0.0}
    return config, features, named(_body(params), HUGGINGFACE)


def _body(params: Params) -> Params:
    """Leave out the pre-training output, which HubertModel does not have."""
    return {name: part for name, part in params.items() if name != "head"}


def _check(arch: Arch) -> Waveform:
    reasons = {
        "it takes log-Mel frames": not isinstance(arch.front, Waveform),
        "it has no layers": not arch.layers,
        "its layers differ": len(set(arch.layers)) > 1,
        "blocks were emptied": any(not (layer.heads and layer.ffn) for layer in arch.layers),
        "heads were cut": any(layer.heads * arch.head_dim != arch.width for layer in arch.layers),
        "maps are factorised": arch.project_rank is not None or any(layer.ranks != Ranks() for layer in arch.layers),
        "attention maps are reused": any(layer.reuse for layer in arch.layers),
        "it has no projection, or reduces time": not arch.project or arch.time_reduction > 1,
    }
    for reason, true in reasons.items():
        if true:
            raise InputError(f"HubertModel cannot be this model: {reason}; export it as torch, onnx or stablehlo")
    assert isinstance(arch.front, Waveform)
    return arch.front
