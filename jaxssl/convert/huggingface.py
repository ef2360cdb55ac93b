"""Folders that `save_pretrained` of Hugging Face wrote: HuBERT, and relatives that only training tells from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Any, get_args

import ml_dtypes  # noqa: F401  (teaches NumPy the name bfloat16, which safetensors asks for)
import numpy as np
from safetensors import SafetensorError, safe_open

from compress.errors import InputError
from jaxssl.convert import hf_positions, pickle_reader, whisper
from jaxssl.convert.config import MOST, Ctc, Settings, Source, layer_count, only_tensors, size, strip
from jaxssl.convert.naming import Tensor
from jaxssl.convert.stand_ins import entries
from jaxssl.models.activations import SYNONYMS, Activation
from jaxssl.models.arch import (
    Adapter,
    Arch,
    Attention,
    Conv,
    Dropout,
    FeedForward,
    GatedAttention,
    Layer,
    LengthAdapter,
    RelativeBias,
    Waveform,
)
from jaxssl.models.names import Shape
from jaxssl.runtime import files

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order transformers looks
# By model_type, what the names of transformers' classes begin with.
FAMILIES = {
    "hubert": "Hubert",
    "wav2vec2": "Wav2Vec2",
    "unispeech": "UniSpeech",
    "unispeech-sat": "UniSpeechSat",
    "data2vec-audio": "Data2VecAudio",
    "wavlm": "WavLM",
}
# What the code of a family does whatever its configuration says.
FIXED = {"data2vec-audio": {"feat_extract_norm": "layer", "do_stable_layer_norm": False}}
SHORTENING = "adapter.layers."
COUNTED = ("wav2vec2", "data2vec-audio")  # whose code in fairseq counts a padded row's frames as the convolutions give
OUTPUT = ("lm_head.weight", "lm_head.bias")
# What classes around the encoder add, whose inputs are hidden states.
LEFT = (
    r"layer_weights|(projector|classifier)\.(weight|bias)",  # …ForSequenceClassification, …ForAudioFrameClassification
    r"(tdnn\.\d+\.kernel|feature_extractor|objective)\.(weight|bias)",  # …ForXVector
    r"quantizer\.codevectors|(quantizer\.weight_proj|project_hid|project_q)\.(weight|bias)",  # …ForPreTraining
    r"label_embeddings_concat|(ctc_proj|speaker_proj|layer_norm_for_extract)\.(weight|bias)",  # UniSpeech's and SAT's
)
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SUPPORTED = {
    "model_type": (*FAMILIES, "whisper"),
    "hidden_act": (*get_args(Activation), *SYNONYMS),
    "feat_extract_activation": ("gelu",),
    "feat_extract_norm": ("group", "layer"),
    "layer_norm_eps": (1e-5,),
}
DEFAULT_CONVS = {
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}


@dataclass(frozen=True)
class SafeTensor:
    """A tensor in a safetensors file, unread; `start` is the byte at which its numbers begin."""

    path: Path
    start: int
    shape: Shape
    dtype: str

    def read(self) -> np.ndarray:
        """Return it as float32; what is float32 there is a window on the file, which may not be written into."""
        if 0 in self.shape:
            return np.zeros(self.shape, np.float32)
        window = np.memmap(self.path, self.dtype, "r", self.start, self.shape or (1,)).reshape(self.shape)
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite there, which `finite` tells
            return np.asarray(window.astype(np.float32, copy=False))


def complete(folder: Path) -> bool:
    """Tell whether a folder has a configuration and weights."""
    names = [*WEIGHTS, *(f"{name}.index.json" for name in WEIGHTS)]
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in names)


def describe(folder: Path) -> Source:
    """Describe a Hugging Face folder.

    Raises:
        InputError: the folder is none, is incomplete or damaged, or holds a model that ours is not.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: not a Hugging Face folder, config.json is missing; give a file or such a folder")
    config = _json(folder / "config.json")
    files, everything = _weights(folder)
    family = "hubert" if (said := config.get("model_type")) is None else str(said)
    if family == "whisper":
        return whisper.of_huggingface(folder, config, next(_preprocessors(folder), ("", {}))[1], files, everything)
    encoder = {name: tensor for name, tensor in everything.items() if name not in OUTPUT}
    tensors = hf_positions.folded(folder, strip(encoder, f"{family.replace('-', '_')}."))
    settings = Settings(folder, config | FIXED.get(family, {}), measure(tensors))
    settings.require(SUPPORTED)
    normalize, notes = _normalize(folder)
    ctc = _ctc(folder, everything, notes)
    if settings.get("conv_pos_batch_norm", bool):
        notes.append(hf_positions.FOLDED)
    if "masked_spec_embed" not in tensors:
        notes.append("no masked_spec_embed: masked frames will be zeros")
    return Source(
        kind=f"Hugging Face {FAMILIES[family]}{'ForCTC' if ctc else 'Model'}",
        arch=arch_of(settings, tensors, normalize, gated=family == "wavlm", counted=family in COUNTED),
        tensors=tensors,
        dialect="huggingface",
        left=LEFT,
        files=(*files, folder / "config.json"),
        notes=tuple(notes),
        ctc=ctc,
    )


def measure(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off the arrays what they tell, under the configuration's names."""
    return {
        "num_hidden_layers": layer_count(tensors) or None,
        "hidden_size": size(tensors, "encoder.layer_norm.weight", 0),
        "adapter_attn_dim": size(tensors, "encoder.layers.0.adapter_layer.linear_1.weight", 0),
        "intermediate_size": size(tensors, "encoder.layers.0.feed_forward.intermediate_dense.weight", 0),
        **hf_positions.measure(tensors),
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in tensors,
        **_measured_adapter(tensors),
        "num_buckets": size(tensors, "encoder.layers.0.attention.rel_attn_embed.weight", 0),
    }


def _measured_adapter(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off what its arrays tell of a length adapter, if there is one."""
    kernel = f"{SHORTENING}0.conv.weight"
    if kernel not in tensors:
        return {"add_adapter": False}
    return {
        "add_adapter": True,
        "output_hidden_size": size(tensors, kernel, 1),
        "num_adapter_layers": layer_count(tensors, SHORTENING),
        "adapter_kernel_size": size(tensors, kernel, 2),
    }


def arch_of(
    settings: Settings,
    tensors: Mapping[str, Tensor],
    normalize: bool,
    *,
    gated: bool = False,
    counted: bool = False,
) -> Arch:
    """Describe an encoder by a configuration of Hugging Face's and its arrays.

    Args:
        settings: the configuration.
        tensors: the arrays.
        normalize: whether it wants normalised waveforms.
        gated: whether its attention is WavLM's.
        counted: whether its family's code in fairseq counts frames as convolutions give them.

    Raises:
        InputError: they disagree, or settings are missing.
    """
    norm_first = settings.get("do_stable_layer_norm", bool, False)
    head_dim, heads = settings.head_dim("hidden_size", "num_attention_heads"), settings.positive("num_attention_heads")
    mixer = GatedAttention(tuple(range(heads)), head_dim) if gated else Attention(heads, head_dim)
    act = settings.get("hidden_act", str, "gelu")
    activation = next(known for known in get_args(Activation) if known == SYNONYMS.get(act, act))
    ffn = FeedForward(settings.positive("intermediate_size"), activation=activation)
    adapted = settings.given.get("adapter_attn_dim") is not None and norm_first  # which post-LN layers never are
    layer = Layer(mixer, ffn, Adapter(settings.positive("adapter_attn_dim")) if adapted else None)
    norm = settings.get("feat_extract_norm", str, "group")
    return Arch(
        front=Waveform(
            convs=_convs(settings),
            norm="layer" if norm == "layer" else "group",
            bias=settings.get("conv_bias", bool),
            normalize=normalize,
            feature_norm=settings.get("feat_proj_layer_norm", bool, True),
            counts="convolutions" if counted else "samples",
        ),
        width=settings.positive("hidden_size"),
        layers=(layer,) * settings.positive("num_hidden_layers"),
        norm_first=norm_first,
        position=hf_positions.position(settings, tensors),
        mask_embedding="masked_spec_embed" in tensors,
        dropout=Dropout(
            hidden=settings.get("hidden_dropout", float, 0.1),
            attention=settings.get("attention_dropout", float, 0.1),
            activation=settings.get("activation_dropout", float, 0.1),
            features=settings.get("feat_proj_dropout", float, 0.0),
            layer=settings.get("layerdrop", float, 0.1),
        ),
        relative=_relative(settings, heads) if gated else None,
        length_adapter=_length_adapter(settings),
    )


def _length_adapter(settings: Settings) -> LengthAdapter | None:
    if not settings.get("add_adapter", bool):
        return None
    return LengthAdapter(
        width=settings.positive("output_hidden_size"),
        layers=settings.positive("num_adapter_layers"),
        kernel=settings.positive("adapter_kernel_size"),
        stride=settings.get("adapter_stride", int, 2),
    )


def _relative(settings: Settings, heads: int) -> RelativeBias:
    far = settings.get("max_bucket_distance", int, 800)
    return RelativeBias(heads, settings.positive("num_buckets"), far)


def _convs(settings: Settings) -> tuple[Conv, ...]:
    columns = [settings.given.get(name, default) for name, default in DEFAULT_CONVS.items()]
    numbers = [isinstance(column, list) and all(type(n) is int and 0 < n <= MOST for n in column) for column in columns]
    if not all(numbers) or len({len(column) for column in columns}) != 1 or not columns[0]:
        raise InputError(
            f"{settings.path}: conv_dim, conv_kernel and conv_stride are no lists of equal length of numbers up to "
            f"{MOST}: {columns}"
        )
    return tuple(Conv(*row) for row in zip(*columns, strict=True))


def _weights(folder: Path) -> tuple[tuple[Path, ...], dict[str, Tensor]]:
    """Find the weights, in one file or in shards with an index."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return (folder / name,), _open(folder / name)
        if index.is_file():
            return _shards(index)
    raise InputError(f"{folder}: config.json is there, the weights ({' or '.join(WEIGHTS)}) are not; copy them too")


def _shards(index: Path) -> tuple[tuple[Path, ...], dict[str, Tensor]]:
    names = _json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index}: no weight_map of names to files")
    files = sorted(set(names.values()))
    if outside := [file for file in files if Path(file).name != file]:
        raise InputError(f"{index}: refused, {outside[0]!r} is no file of this folder")
    if missing := [file for file in files if not isfile(index.parent / file)]:
        raise InputError(
            f"{index}: {len(missing)} of {len(files)} shards are missing, first {missing[0]}; copy them too"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(_open(index.parent / file))
    if lacking := names.keys() - tensors.keys():
        raise InputError(f"{index}: {len(lacking)} of {len(names)} arrays are in no shard, first {min(lacking)}")
    return tuple(index.parent / file for file in files), tensors


def _open(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return dict(only_tensors(path, entries(pickle_reader.load(path))))
    try:
        with safe_open(path, framework="numpy"):  # which finds whatever is wrong with the file
            pass
    except SafetensorError as error:
        raise InputError(f"{path}: damaged or cut short ({error}); copy it again") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        listed = files.parsed(file.read(length), path)
    return {
        name: SafeTensor(
            path, 8 + length + each["data_offsets"][0], tuple(each["shape"]), DTYPES.get(each["dtype"], each["dtype"])
        )
        for name, each in listed.items()
        if name != "__metadata__"
    }


def _normalize(folder: Path) -> tuple[bool, list[str]]:
    """Find out whether the model expects normalised waveforms; only the preprocessor's file tells."""
    for name, values in _preprocessors(folder):
        if isinstance(normalize := values.get("do_normalize"), bool):
            return normalize, [f"normalize is {normalize}: do_normalize of {name}"]
    return False, ["normalize is False: the folder has no preprocessor_config.json, and the model does not normalise"]


def _preprocessors(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the files that may tell how waveforms are prepared."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = _json(folder / name)
            nested = values.get("feature_extractor")
            yield name, nested if isinstance(nested, dict) else values


def _ctc(folder: Path, tensors: Mapping[str, Tensor], notes: list[str]) -> Ctc | None:
    if "lm_head.weight" not in tensors:
        return None
    symbols = None
    if (folder / "vocab.json").is_file():
        vocabulary = _vocabulary(folder, notes)
        symbols = sorted(vocabulary, key=lambda symbol: str(vocabulary[symbol]).zfill(12))
    else:
        notes.append("no vocab.json: the CTC layer is kept without its symbols")
    return Ctc(tensors["lm_head.weight"], tensors.get("lm_head.bias"), symbols)


def _vocabulary(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Read the symbols; of a model of many languages those of the one whose adapters the folder holds."""
    vocabulary = _json(folder / "vocab.json")
    if not any(isinstance(value, dict) for value in vocabulary.values()):
        return vocabulary
    tokenizer = folder / "tokenizer_config.json"
    language = _json(tokenizer).get("target_lang") if tokenizer.is_file() else None
    if not isinstance(vocabulary.get(str(language)), dict):
        known = ", ".join(sorted(vocabulary)[:5])
        raise InputError(
            f"{folder}: vocab.json has {len(vocabulary)} languages ({known}, …), and target_lang of "
            f"tokenizer_config.json is {language!r}; set it to the one whose adapters model.safetensors holds"
        )
    notes.append(
        f"adapters, output layer and symbols are those of {language}; for another language load_adapter and "
        "save_pretrained of transformers write such a folder"
    )
    return dict(vocabulary[str(language)])


def _json(path: Path) -> dict[str, Any]:
    return files.read_object(path)
