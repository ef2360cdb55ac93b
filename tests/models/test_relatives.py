"""Presets of HuBERT's relatives have as many parameters as transformers' models of the same configuration."""

import pytest

from jaxssl.models import cost
from jaxssl.models.zoo import PRESETS

NORMS = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
BIASED = NORMS | {"conv_bias": True}
DATA2VEC = {"conv_pos_kernel_size": 19, "num_conv_pos_embeddings": 5}


def body(width, layers):
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "intermediate_size": 4 * width,
    }


MODELS = {
    "wav2vec2-base": ("Wav2Vec2", {}),
    "wav2vec2-large": ("Wav2Vec2", BIASED | body(1024, 24)),
    "xls-r-300m": ("Wav2Vec2", BIASED | body(1024, 24)),
    "xls-r-1b": ("Wav2Vec2", BIASED | body(1280, 48)),
    "xls-r-2b": ("Wav2Vec2", BIASED | body(1920, 48)),
    "unispeech-sat-base": ("UniSpeechSat", {}),
    "unispeech-sat-large": ("UniSpeechSat", NORMS | body(1024, 24)),
    "data2vec-audio-base": ("Data2VecAudio", DATA2VEC),
    "data2vec-audio-large": ("Data2VecAudio", DATA2VEC | body(1024, 24)),
}


@pytest.mark.parametrize(("name", "model"), MODELS.items(), ids=MODELS)
def test_parameters_are_those_of_transformers(torch, transformers, name, model):
    family, config = model
    with torch.device("meta"):
        theirs = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**config))
    assert cost.parameters(PRESETS[name]()) == sum(each.numel() for each in theirs.parameters())
