"""Whisper's encoders, from Hugging Face's folders, OpenAI's files and CTranslate2's folders; decoders stay behind.

Hugging Face names an encoder's arrays as fairseq does, and the others' names are brought to these.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from jaxssl.convert import ctranslate2
from jaxssl.convert.config import Settings, Source, layer_count, only_tensors, size, strip
from jaxssl.convert.naming import Tensor, finite
from jaxssl.convert.stand_ins import entries
from jaxssl.convert.windows import Part
from jaxssl.models.activations import SYNONYMS, Activation
from jaxssl.models.arch import Arch, Attention, Dropout, FeedForward, Layer, Sinusoids, Whisper
from jaxssl.models.keys import OneKey

POSITIONS = "encoder.embed_positions.weight"
LEFT = (
    re.escape(POSITIONS),
    r"decoder\..*|proj_out\.weight",
    r"layer_weights|(projector|classifier)\.(weight|bias)",  # …ForAudioClassification
)
SUPPORTED = {"activation_function": (*get_args(Activation), *SYNONYMS)}
HEARD = {  # of a preprocessor: what the log-Mel here does
    "sampling_rate": (16_000,),
    "n_fft": (400,),
    "hop_length": (160,),
    "dither": (0.0,),
}
OPENAI = (
    (r"encoder\.blocks\.(\d+)\.attn\.(q|k|v)(?:uery|ey|alue)\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (r"encoder\.blocks\.(\d+)\.attn\.out\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"encoder\.blocks\.(\d+)\.attn_ln\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"encoder\.blocks\.(\d+)\.mlp_ln\.", r"encoder.layers.\1.final_layer_norm."),
    (r"encoder\.blocks\.(\d+)\.mlp\.0\.", r"encoder.layers.\1.fc1."),
    (r"encoder\.blocks\.(\d+)\.mlp\.2\.", r"encoder.layers.\1.fc2."),
    (r"encoder\.ln_post\.", "encoder.layer_norm."),
    (r"encoder\.positional_embedding", POSITIONS),
)
DIMS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
}
CTRANSLATE2 = (
    (r"encoder/layer_(\d+)/self_attention/layer_norm/", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"encoder/layer_(\d+)/self_attention/linear_0/", r"encoder.layers.\1.self_attn.qkv_proj."),
    (r"encoder/layer_(\d+)/self_attention/linear_1/", r"encoder.layers.\1.self_attn.out_proj."),
    (r"encoder/layer_(\d+)/ffn/layer_norm/", r"encoder.layers.\1.final_layer_norm."),
    (r"encoder/layer_(\d+)/ffn/linear_0/", r"encoder.layers.\1.fc1."),
    (r"encoder/layer_(\d+)/ffn/linear_1/", r"encoder.layers.\1.fc2."),
    (r"encoder/layer_norm/", "encoder.layer_norm."),
    (r"encoder/(conv[12])/", r"encoder.\1."),
    (r"encoder/position_encodings/encodings", POSITIONS),
    (r"gamma", "weight"),
    (r"beta", "bias"),
)
TOLERANCE = 5e-3  # of stored positions, which bfloat16 rounds by 2e-3


def of_huggingface(
    folder: Path,
    config: Mapping[str, Any],
    extractor: Mapping[str, Any],
    files: tuple[Path, ...],
    arrays: Mapping[str, Tensor],
) -> Source:
    """Describe a folder of transformers; `extractor` is its preprocessor's configuration.

    Raises:
        InputError: it is of another log-Mel or activation, or contradicts itself.
    """
    Settings(folder, extractor).require(HEARD)
    tensors = strip(arrays, "model.")
    found = measured(tensors)
    Settings(folder, extractor, {"feature_size": found["num_mel_bins"]}).positive("feature_size")
    settings = Settings(folder, config, found)
    return _source("Hugging Face WhisperModel", settings, tensors, (*files, folder / "config.json"))


def of_openai(path: Path, state: Mapping[str, Any]) -> Source:
    """Describe a file of OpenAI's, {dims, model_state_dict}.

    Raises:
        InputError: it contradicts itself.
    """
    tensors = renamed(only_tensors(path, entries(state["model_state_dict"])), OPENAI)
    dims = {ours: entries(state["dims"]).get(theirs) for theirs, ours in DIMS.items()}
    return _source("OpenAI Whisper", Settings(path, dims, measured(tensors)), tensors, (path,))


def of_ctranslate2(folder: Path) -> Source:
    """Describe a folder of CTranslate2's, as faster-whisper takes them.

    Raises:
        InputError: its weights are of another model, or contradict each other.
    """
    path = folder / "model.bin"
    spec, found = ctranslate2.load(path)
    if spec != "WhisperSpec":
        raise InputError(f"{path}: a {spec} of CTranslate2; only WhisperSpec is supported")
    found = dict(found)
    heads = found.pop("encoder/num_heads", None)
    if heads is None:
        raise InputError(f"{path}: it does not say how many heads attend (encoder/num_heads); convert the model again")
    tensors = {f"decoder.{name}": each for name, each in found.items() if not name.startswith("encoder/")}
    mine = ctranslate2.dequantised(path, {name: each for name, each in found.items() if name.startswith("encoder/")})
    inner = renamed(mine, CTRANSLATE2)
    tensors |= dict(pair for name, each in inner.items() for pair in _split(path, name, each))
    if heads.shape not in ((), (1,)) or not heads.dtype.startswith("int"):
        raise InputError(
            f"{path}: encoder/num_heads is {heads.dtype} of shape {heads.shape}, not a whole number; convert the model "
            "again"
        )
    settings = Settings(path, {"encoder_attention_heads": int(heads.raw().item())}, measured(tensors))
    source = _source("CTranslate2 Whisper", settings, tensors, (path,))
    ints = sum(isinstance(each, ctranslate2.Quantised) for each in mine.values())
    note = f"{ints} arrays are stored as integers and are float32 here, rounded as they were"
    return replace(source, notes=(*source.notes, note)) if ints else source


def measured(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off the arrays what they tell, under the names of transformers' configuration."""
    return {
        "encoder_layers": layer_count(tensors) or None,
        "d_model": size(tensors, "encoder.layer_norm.weight", 0),
        "encoder_ffn_dim": size(tensors, "encoder.layers.0.fc1.weight", 0),
        "num_mel_bins": size(tensors, "encoder.conv1.weight", 1),
        "max_source_positions": size(tensors, POSITIONS, 0),
    }


def renamed(tensors: Mapping[str, Any], rules: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Give arrays other names: whatever a pattern matches of a name becomes something else."""
    found = {}
    for name, tensor in tensors.items():
        for pattern, other in rules:
            name = re.sub(pattern, other, name)
        found[name] = tensor
    return found


def arch_of(settings: Settings) -> Arch:
    """Describe an encoder by a configuration of transformers'.

    Raises:
        InputError: settings are missing, or disagree with the arrays.
    """
    width = settings.positive("d_model")
    heads = settings.positive("encoder_attention_heads")
    act = settings.get("activation_function", str, "gelu")
    activation = next(known for known in get_args(Activation) if known == SYNONYMS.get(act, act))
    mixer = Attention(heads, settings.head_dim("d_model", "encoder_attention_heads"), key_bias=False)
    layer = Layer(mixer, FeedForward(settings.positive("encoder_ffn_dim"), activation=activation))
    return Arch(
        front=Whisper(
            width, width, bins=settings.positive("num_mel_bins"), longest=settings.positive("max_source_positions")
        ),
        width=width,
        layers=(layer,) * settings.positive("encoder_layers"),
        norm_first=True,
        position=Sinusoids("halves"),
        project=None,
        dropout=Dropout(
            hidden=settings.get("dropout", float, 0.0),
            attention=settings.get("attention_dropout", float, 0.0),
            activation=settings.get("activation_dropout", float, 0.0),
            layer=settings.get("encoder_layerdrop", float, 0.0),
        ),
    )


def _source(kind: str, settings: Settings, tensors: Mapping[str, Tensor], files: tuple[Path, ...]) -> Source:
    settings.require(SUPPORTED)
    position = _position(settings, tensors[POSITIONS]) if POSITIONS in tensors else Sinusoids("halves")
    return Source(
        kind=kind,
        arch=replace(arch_of(settings), position=position),
        tensors=tensors,
        dialect="fairseq",
        left=LEFT,
        files=files,
        notes=(
            "the encoder alone: the decoder is left behind",
            f"positions are computed, not kept, and rounded to {position.rounded}, as the stored ones are",
        ),
    )


def _position(settings: Settings, stored: Tensor) -> Sinusoids:
    """Describe the stored positions, which are Whisper's sines and cosines, rounded to float16 or not.

    Raises:
        InputError: they differ by more than a rounding from these.
    """
    width = settings.positive("d_model")
    if len(stored.shape) != 2 or stored.shape[1] != width:
        raise InputError(f"{settings.path}: {POSITIONS} is {stored.shape}, the model {width} wide")
    found = finite(stored.read(), f"{settings.path}: {POSITIONS}")
    exact = (found == found.astype(np.float16)).all()
    position = Sinusoids("halves", "float16" if exact else "float32")
    position.check(width)
    module = position.build(width, prepared=False, rngs=OneKey())
    wanted = np.asarray(module(jnp.zeros((1, *stored.shape)), None)[0])
    if not (most := float(np.abs(found - wanted).max())) < TOLERANCE:
        raise InputError(
            f"{settings.path}: {POSITIONS} differs by {most:.2g} from the sines and cosines that Whisper has; trained "
            "positions are not supported"
        )
    return position


def _split(path: Path, name: str, tensor: Tensor) -> list[tuple[str, Any]]:
    """Take queries, keys and values apart, which CTranslate2 keeps in one; the keys' bias is zeros."""
    if ".qkv_proj." not in name:
        return [(name, tensor)]
    third = tensor.shape[0] // 3
    parts = {each: Part(tensor, (range(i * third, (i + 1) * third),)) for i, each in enumerate("qkv")}
    if name.endswith("bias") and parts.pop("k").read().any():
        raise InputError(f"{path}: keys have a bias in {name}, which Whisper's have not")
    return [(name.replace("qkv_proj", f"{each}_proj"), part) for each, part in parts.items()]
