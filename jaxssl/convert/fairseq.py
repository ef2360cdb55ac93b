"""HuBERT, wav2vec 2.0 and data2vec as fairseq wrote them, pre-trained or fine-tuned with CTC, and s3prl's form."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.errors import InputError
from jaxssl.convert.config import (
    Ctc,
    Settings,
    Source,
    layer_count,
    only_tensors,
    parse_convs,
    position_groups,
    said_by,
    size,
    strip,
)
from jaxssl.convert.naming import Tensor
from jaxssl.convert.stand_ins import entries
from jaxssl.models.arch import (
    FULL,
    Arch,
    Attention,
    Conv,
    ConvolutionStack,
    CosineHead,
    Dropout,
    FeedForward,
    Layer,
    Mamba,
    NoFeedForward,
    PositionalConvolution,
    Waveform,
)

MODELS = frozenset({"hubert", "hubert_ctc", "wav2vec2", "wav2vec_ctc", "data2vec_audio"})
BY_CONVOLUTIONS = frozenset({"wav2vec2", "wav2vec_ctc", "data2vec_audio"})  # count frames so, not by samples
HEADLESS = {"wav2vec2": "wav2vec 2.0", "data2vec_audio": "data2vec"}  # whose pre-training outputs are none of ours
INNER, OUTPUT = "w2v_encoder.w2v_model.", "w2v_encoder.proj"  # parts of a fine-tuned model
REFUSED = {
    "contentvec": "ContentVec whose layer norms depend on a speaker, which is not supported; give its legacy file, "
    "checkpoint_best_legacy_500.pt or _100.pt, which is a HuBERT"
}
SUPPORTED = {  # what our forward pass computes; the rest of fairseq's options is refused by name
    "activation_fn": ("gelu",),
    "layer_type": ("transformer", "mambaformer"),  # the latter in the fork that Mamba HuBERT was trained by
    "attn_type": ("",),
    "pos_enc_type": ("abs",),
    "target_glu": (False,),
    "quantize_input": (False,),
    "extractor_mode": ("default", "layer_norm"),
    "conv_pos_batch_norm": (False,),
}
HEAD = r"(final_proj\.(weight|bias)|label_embs_concat)"
WAV2VEC = r"(quantizer|project_q|target_glu|final_proj|_ema)\..*"
STACK = "encoder.pos_conv.0.0.weight"  # what only positions by several convolutions have
STRIDES = {10: 5, 3: 2, 2: 2}  # of the published extractors, by kernel
HEADS = {768: 12, 1024: 16, 1280: 16}  # of the published models, by width


@dataclass(frozen=True)
class _Parts:
    """The parts of a checkpoint that matter, whichever program wrote it."""

    tensors: Mapping[str, Tensor]
    model: Mapping[str, Any]
    task: Mapping[str, Any]
    label_sets: tuple[int, ...]
    targets: list[str] | None
    writer: str


def describe(path: Path, state: Mapping[str, Any], *, heads: int | None = None) -> Source:
    """Describe a checkpoint of fairseq or s3prl.

    `heads` is used where a fine-tuned file does not say how many heads its encoder has.

    Raises:
        InputError: the model is of another family, or its settings are missing, unsupported or contradictory.
    """
    parts = _s3prl(state) if "model_weight" in state else _fairseq(state)
    teacher = "_ema" in parts.tensors  # data2vec's, the running average of its layers, as a dict of its own
    if teacher:
        parts = replace(parts, tensors={name: each for name, each in parts.tensors.items() if name != "_ema"})
    only_tensors(path, parts.tensors)
    name = _name(path, parts.model)
    if name in REFUSED:
        raise InputError(f"{path}: {REFUSED[name]}")
    if name is not None and name not in MODELS:
        raise InputError(f"{path}: a model of type {name[:40]!r}; supported are {', '.join(sorted(MODELS))}")
    if any(key.startswith(INNER) for key in parts.tensors):
        return _fine_tuned(path, parts, heads)
    if name is None and any(key.startswith(("quantizer.", "project_q.")) for key in parts.tensors):
        name = "wav2vec2"
    headless = HEADLESS.get(str(name))
    settings = Settings(path, {**parts.task, **parts.model}, measure(parts.tensors))
    head, notes = (None, []) if headless else _head(settings, parts)
    if teacher:
        notes.append("_ema, the teacher that data2vec was trained with, is left behind")
    return Source(
        kind=f"{parts.writer} {headless or 'HuBERT'}",
        arch=_counting(arch_of(settings, parts.tensors, head), name),
        tensors=parts.tensors,
        dialect="fairseq",
        left=(WAV2VEC,) if headless else () if head else (HEAD,),
        files=(path,),
        notes=(*notes, *_mask_note(parts.tensors)),
    )


def _name(path: Path, model: Mapping[str, Any]) -> str | None:
    """Return what a configuration calls its model, if anything."""
    said = next((found for key in ("_name", "arch") if (found := model.get(key)) not in (None, "")), None)
    if said is not None and not isinstance(said, str):
        raise InputError(f"{path}: its model is called {str(said)[:40]!r}, which is no name; copy the file again")
    return said


def _counting(arch: Arch, name: object) -> Arch:
    """Let a front end count the frames of padded rows as the model's family does in fairseq."""
    if name not in BY_CONVOLUTIONS or not isinstance(arch.front, Waveform):
        return arch
    return replace(arch, front=replace(arch.front, counts="convolutions"))


def _s3prl(state: Mapping[str, Any]) -> _Parts:
    dictionaries = state.get("dictionaries_symbols")
    listed = dictionaries if isinstance(dictionaries, (list, tuple)) else ()
    sets = tuple(len(symbols) for symbols in listed if isinstance(symbols, list))
    model, task = entries(state.get("model_cfg")), entries(state.get("task_cfg"))
    return _Parts(entries(state["model_weight"]), model, task, sets, None, "s3prl-converted")


def _fairseq(state: Mapping[str, Any]) -> _Parts:
    model, task = _sections(state.get("cfg") or state.get("args"))
    remembered = entries(state.get("task_state"))
    dictionaries = remembered.get("dictionaries")
    listed = dictionaries if isinstance(dictionaries, list) else []
    sets = tuple(len(symbols) for item in listed if (symbols := _symbols(item)) is not None)
    return _Parts(entries(state["model"]), model, task, sets, _symbols(remembered.get("target_dictionary")), "fairseq")


def _sections(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a configuration into the model's and the task's; an old `args` Namespace holds both side by side."""
    whole = entries(config)
    return (entries(whole["model"]), entries(whole.get("task"))) if "model" in whole else (whole, whole)


def _symbols(dictionary: Any) -> list[str] | None:
    symbols = entries(dictionary).get("symbols")
    return [str(symbol) for symbol in symbols] if isinstance(symbols, list) else None


def measure(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read off the arrays what they tell, under fairseq's names."""
    first = "feature_extractor.conv_layers.0"
    return {
        "encoder_layers": layer_count(tensors) or None,
        "encoder_embed_dim": size(tensors, "encoder.layer_norm.weight", 0),
        "encoder_ffn_embed_dim": size(tensors, "encoder.layers.0.fc1.weight", 0),
        "conv_pos": size(tensors, "encoder.pos_conv.0.weight_g", -1),
        "conv_pos_groups": position_groups(tensors, STACK if STACK in tensors else "encoder.pos_conv.0.weight_v"),
        "pos_conv_depth": layer_count(tensors, "encoder.pos_conv.") if STACK in tensors else 1,
        "conv_bias": f"{first}.0.bias" in tensors,
        "extractor_mode": "layer_norm" if f"{first}.2.1.weight" in tensors else "default",
    }


def arch_of(
    settings: Settings, tensors: Mapping[str, Tensor], head: CosineHead | None, *, feature_norm: bool = True
) -> Arch:
    """Describe an encoder by fairseq's settings and its arrays; whether features are normalised the caller knows.

    Raises:
        InputError: they disagree, or are of a model that ours is not.
    """
    settings.require(SUPPORTED)
    mamba = settings.get("layer_type", str, "transformer") == "mambaformer"
    layer = _mamba(settings, tensors) if mamba else _transformer(settings)
    return Arch(
        front=Waveform(
            convs=_convs(settings, tensors),
            norm="layer" if settings.get("extractor_mode", str) == "layer_norm" else "group",
            bias=settings.get("conv_bias", bool),
            normalize=settings.get("normalize", bool, False),
            gradient_scale=settings.get("feature_grad_mult", float, 1.0),
            feature_norm=feature_norm,
        ),
        width=settings.positive("encoder_embed_dim"),
        layers=(layer,) * settings.positive("encoder_layers"),
        norm_first=settings.get("layer_norm_first", bool, False),
        position=_position(settings, tensors),
        mask_embedding="mask_emb" in tensors,
        dropout=Dropout(
            hidden=settings.get("dropout", float, 0.1),
            attention=settings.get("attention_dropout", float, 0.1),
            activation=settings.get("activation_dropout", float, 0.0),
            features=settings.get("dropout_input", float, 0.0),
            layer=settings.get("encoder_layerdrop", float, 0.0),
        ),
        head=head,
        project=None if _equally_wide(settings, tensors) else FULL,
    )


def _transformer(settings: Settings) -> Layer:
    head_dim = settings.head_dim("encoder_embed_dim", "encoder_attention_heads")
    mixer = Attention(settings.positive("encoder_attention_heads"), head_dim)
    return Layer(mixer, FeedForward(settings.positive("encoder_ffn_embed_dim")))


def _mamba(settings: Settings, tensors: Mapping[str, Tensor]) -> Layer:
    """Describe a layer of Mamba HuBERT (arXiv 2506.12606), whose feed-forward block is none where its size is -1."""
    at = "encoder.layers.0.mamba"
    sizes = [(f"{at}.A_log", 0), (f"{at}.A_log", 1), (f"{at}.conv1d.weight", 2), (f"{at}.dt_proj.weight", 1)]
    if lacking := [name for name, axis in sizes if size(tensors, name, axis) is None]:
        raise InputError(f"{settings.path}: layer_type is 'mambaformer', and there is no {lacking[0]}; copy it again")
    units = settings.get("encoder_ffn_embed_dim", int, -1)
    inner, state, taps, rank = (size(tensors, name, axis) or 0 for name, axis in sizes)
    return Layer(Mamba(inner, state, taps, rank), FeedForward(units) if units > 0 else NoFeedForward())


def _equally_wide(settings: Settings, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the extractor is as wide as the encoder: fairseq has no projection between them then."""
    width = settings.measured.get("encoder_embed_dim")
    return "post_extract_proj.weight" not in tensors and size(tensors, "layer_norm.weight", 0) == width


def _position(settings: Settings, tensors: Mapping[str, Tensor]) -> PositionalConvolution | ConvolutionStack:
    """Describe one convolution, or several that share its taps, 3 at least each, as fairseq divides them."""
    groups, depth = settings.positive("conv_pos_groups"), settings.positive("pos_conv_depth")
    if STACK not in tensors:
        return PositionalConvolution(settings.positive("conv_pos"), groups)
    taps = size(tensors, STACK, 2) or 0
    said = settings.get("conv_pos", int, taps * depth)
    if max(3, said // depth) != taps:
        raise InputError(
            f"{settings.path}: conv_pos {said} over pos_conv_depth {depth} makes kernels of {max(3, said // depth)}, "
            f"the arrays have {taps}"
        )
    return ConvolutionStack(depth, taps, groups)


def _convs(settings: Settings, tensors: Mapping[str, Tensor]) -> tuple[Conv, ...]:
    convs = parse_convs(settings.path, settings.get("conv_feature_layers", str))
    count = layer_count(tensors, "feature_extractor.conv_layers.")
    if len(convs) != count:
        raise InputError(
            f"{settings.path}: conv_feature_layers lists {len(convs)} convolutions, the arrays are {count}"
        )
    return convs


def _head(settings: Settings, parts: _Parts) -> tuple[CosineHead | None, list[str]]:
    """Describe HuBERT's output: codewords per label set as the dictionaries say, else all in one set."""
    rows = size(parts.tensors, "label_embs_concat", 0)
    if rows is None and "final_proj.weight" not in parts.tensors:
        return None, ["no final_proj and label_embs_concat: the model comes without its pre-training head"]
    sets = parts.label_sets if sum(parts.label_sets) == rows else (rows or 1,)
    notes = []
    if parts.label_sets and sets != parts.label_sets:
        notes.append(f"{rows} codewords and dictionaries of {parts.label_sets} symbols: taken as one label set")
    dim = settings.get("final_dim", int, 0)
    width = dim if dim > 0 else settings.positive("encoder_embed_dim")
    untied = settings.get("untie_final_proj", bool, False)
    return CosineHead(width, sets, untied, settings.get("logit_temp", float, 0.1)), notes


def _mask_note(tensors: Mapping[str, Tensor]) -> list[str]:
    return [] if "mask_emb" in tensors else ["no mask_emb: masked frames will be zeros"]


def _fine_tuned(path: Path, parts: _Parts, heads: int | None) -> Source:
    """Describe a CTC model: the encoder by the configuration it carries, the output layer apart."""
    everything = dict(parts.tensors)
    kernel, bias = everything.pop(f"{OUTPUT}.weight", None), everything.pop(f"{OUTPUT}.bias", None)
    tensors = strip(everything, INNER)
    model, task = _sections(parts.model.get("w2v_args"))
    task = {key: value for key, value in (*parts.task.items(), *task.items()) if value is not None}
    settings = Settings(path, {**task, **model}, measure(tensors))
    notes = _mask_note(tensors)
    if "encoder_layers" not in model:
        settings, guessed = _guess(path, parts, tensors, heads)
        notes += guessed
    if kernel is None:
        notes.append("a fine-tuned model without w2v_encoder.proj: there is no CTC layer to keep")
    elif parts.targets is None:
        notes.append("no target dictionary in the file: the CTC layer is kept without its symbols")
    return Source(
        kind=f"{parts.writer} CTC model",
        arch=_counting(arch_of(settings, tensors, None), _name(path, parts.model)),
        tensors=tensors,
        dialect="fairseq",
        left=(HEAD, WAV2VEC),
        files=(path,),
        notes=tuple(notes),
        ctc=Ctc(kernel, bias, parts.targets) if kernel is not None else None,
    )


def _guess(path: Path, parts: _Parts, tensors: Mapping[str, Tensor], heads: int | None) -> tuple[Settings, list[str]]:
    """Stand in for a configuration that the file lacks: shapes where they tell, published models' habits where not."""
    measured = measure(tensors)
    width = measured["encoder_embed_dim"]
    convs = _measure_convs(path, tensors)
    pre_norm = measured["extractor_mode"] == "layer_norm"
    outer = {**parts.model, **parts.task}  # the model's `normalize` only points at the task's
    told = isinstance(outer.get("normalize"), bool)
    normalize = outer["normalize"] if told else pre_norm
    heads_used = heads or HEADS.get(width)
    if heads_used is None:
        raise InputError(
            f"{path}: says nothing of its encoder, and arrays of width {width} not its heads; "
            f"{said_by(path, '--heads N')}"
        )
    dropouts = {
        name: outer.get(name) for name in ("dropout", "attention_dropout", "activation_dropout", "dropout_input")
    }
    given = {
        **dropouts,
        "encoder_layerdrop": outer.get("layerdrop"),
        "encoder_attention_heads": heads_used,
        "conv_feature_layers": str(convs),
        "layer_norm_first": pre_norm,
        "normalize": normalize,
    }
    said = "as --heads says" if heads else "assumed; convert_torch --heads N if it is wrong"
    notes = [
        "the file does not hold its encoder's configuration; layers, widths, kernels, channels, biases, extractor norm "
        f"and positions come from shapes ({measured['encoder_layers']} layers of {width})",
        f"heads {heads_used} ({said}), strides {[stride for _, _, stride in convs]} and "
        f"{'pre' if pre_norm else 'post'}-LN (assumed from the published models), normalize {normalize} "
        f"({'from the fine-tuning task' if told else 'assumed'})",
    ]
    return Settings(path, given, measured), notes


def _measure_convs(path: Path, tensors: Mapping[str, Tensor]) -> list[tuple[int, int, int]]:
    convs = []
    for i in range(layer_count(tensors, "feature_extractor.conv_layers.")):
        name = f"feature_extractor.conv_layers.{i}.0.weight"
        channels, kernel = size(tensors, name, 0), size(tensors, name, 2)
        if channels is None or kernel not in STRIDES:
            raise InputError(f"{path}: no configuration, and {name} with kernel {kernel} leaves its stride unknown")
        convs.append((channels, kernel, STRIDES[kernel]))
    return convs
