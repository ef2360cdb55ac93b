"""Whisper's encoders as folders of Hugging Face's, without a decoder.

`WhisperModel` holds a decoder, which the folder says to be of no layers: its encoder is whole, and what little of the
decoder is left is drawn anew. `WhisperForAudioClassification` has the encoder alone, behind an output of its own.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from jaxssl.convert.equal_layers import differing
from jaxssl.convert.naming import named
from jaxssl.convert.whisper import POSITIONS
from jaxssl.models.arch import Arch, Sinusoids, Whisper
from jaxssl.models.fronts.whisper_frames import SHIFT, WINDOW
from jaxssl.models.keys import OneKey
from jaxssl.models.model import Params

ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}  # whose name is another there
NO_DECODER = {
    "decoder_layers": 0,
    "decoder_attention_heads": 1,
    "decoder_ffn_dim": 1,
    "vocab_size": 1,
    "max_target_positions": 1,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}


def folder(arch: Arch, params: Params) -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Return config.json, preprocessor_config.json and the tensors of model.safetensors.

    Raises:
        InputError: Whisper's class cannot be such a model; the message names the first reason.
    """
    front = _check(arch)
    layer, dropout = arch.layers[0], arch.dropout
    config = {
        "model_type": "whisper",
        "architectures": ["WhisperModel"],
        "d_model": arch.width,
        "encoder_layers": len(arch.layers),
        "encoder_attention_heads": layer.attention.heads,
        "encoder_ffn_dim": layer.ffn.size,
        "activation_function": ACTIVATIONS.get(layer.ffn.activation, layer.ffn.activation),
        "num_mel_bins": front.bins,
        "max_source_positions": front.longest,
        "dropout": dropout.hidden,
        "attention_dropout": dropout.attention,
        "activation_dropout": dropout.activation,
        "encoder_layerdrop": dropout.layer,
        **NO_DECODER,
    }
    frames = front.rate // front.hop  # a second
    whole = not front.longest % frames  # seconds, as all published ones hear
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": front.bins,
        "sampling_rate": front.rate,
        "hop_length": SHIFT,
        "n_fft": WINDOW,
        "chunk_length": front.longest // frames if whole else front.longest / frames,
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    tensors = named(arch, {name: part for name, part in params.items() if name != "head"}, "fairseq")
    module = arch.position.build(arch.width, prepared=False, rngs=OneKey())
    tensors[POSITIONS] = np.array(module(jnp.zeros((1, front.longest, arch.width)), None)[0])
    return config, features, tensors


def _check(arch: Arch) -> Whisper:
    front = arch.front
    assert isinstance(front, Whisper)
    wanted = isinstance(arch.position, Sinusoids) and arch.position.layout == "halves"
    reasons = {
        f"its first convolution has {front.hidden} channels, the second {front.width}": front.hidden != front.width,
        **differing(arch),
        "its positions are others": not wanted,
        "its keys have a bias": any(layer.attention.key_bias for layer in arch.layers),
        "it has adapters": any(layer.adapter for layer in arch.layers),
        "it norms behind its blocks": not arch.norm_first,
        "it has a projection, or reduces time": arch.project is not None or arch.shortens,
        "its attention has relative positions": arch.relative is not None,
        "it has a mask embedding": arch.mask_embedding,
    }
    for reason, true in reasons.items():
        if true:
            raise InputError(
                f"WhisperModel cannot be this model: {reason}; export it as huggingface-code, torch, onnx or stablehlo"
            )
    return front
