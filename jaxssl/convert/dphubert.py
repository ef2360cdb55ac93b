"""DPHuBERT and DPWavLM as their own code wrote them: pruned layer by layer, torchaudio's names, own configuration."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.errors import InputError
from jaxssl.convert.bare_state import renamed
from jaxssl.convert.config import Settings, Source, layer_count, only_tensors, position_groups, size
from jaxssl.convert.naming import Tensor
from jaxssl.convert.stand_ins import entries
from jaxssl.convert.windows import Part, Zeros
from jaxssl.models.arch import (
    Arch,
    Attention,
    Conv,
    Dropout,
    FeedForward,
    GatedAttention,
    Layer,
    PositionalConvolution,
    RelativeBias,
    Waveform,
)
from jaxssl.models.mixers.gated_attention import ENTRIES

POSITION = ("encoder.pos_conv_embed.conv.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1")
SCALE = "feature_extractor.dummy_weight"
MODES = {"group_norm": "group", "layer_norm": "layer"}
TABLE = "encoder.layers.0.attention.rel_attn_embed.weight"
LEFT = r"aux\..*"  # an output layer, which the released models have not


def describe(path: Path, state: Mapping[str, Any]) -> Source:
    """Describe a `.pth` of DPHuBERT or DPWavLM; a block that was pruned away adds nothing, its layer keeps both norms.

    Raises:
        InputError: its configuration is missing, unsupported or contradicts the arrays.
    """
    config = entries(state["config"])
    tensors = renamed(only_tensors(path, entries(state["state_dict"])))
    settings = Settings(path, config, _measure(tensors))
    gated = "encoder_remaining_heads" in config
    layer = _gated_layer if gated else _layer
    layers = tuple(layer(settings, tensors, i) for i in range(settings.positive("encoder_num_layers")))
    gone = [
        f"{kind} of layer {i}"
        for i, layer in enumerate(layers)
        for kind, block in (("attention", layer.mixer), ("feed-forward block", layer.ffn))
        if block.empty
    ]
    notes = [f"pruned away: {', '.join(gone)}"] if gone else []
    if "distill_linear_projs" in state:
        notes.append("distill_linear_projs, the projections to its teacher's layers, are left behind")
    notes.append("no mask embedding: masked frames will be zeros")
    return Source(
        kind="DPWavLM" if gated else "DPHuBERT",
        arch=replace(_arch(settings, tensors, layers), relative=_relative(settings, tensors) if gated else None),
        tensors=_completed(tensors, layers, settings.positive("encoder_embed_dim")),
        dialect="huggingface",
        left=(LEFT,),
        files=(path,),
        notes=tuple(notes),
    )


def _measure(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    kernel = next((name for name in POSITION if name in tensors), "")
    return {
        "encoder_embed_dim": size(tensors, "encoder.layer_norm.weight", 0),
        "encoder_num_layers": layer_count(tensors) or None,
        "encoder_pos_conv_kernel": size(tensors, kernel, 2),
        "encoder_pos_conv_groups": position_groups(tensors, kernel),
        "encoder_num_buckets": size(tensors, TABLE, 0),
        "extractor_conv_bias": "feature_extractor.conv_layers.0.conv.bias" in tensors,
    }


def _arch(settings: Settings, tensors: Mapping[str, Tensor], layers: tuple[Layer, ...]) -> Arch:
    settings.require({"extractor_mode": tuple(MODES)})
    mode = settings.get("extractor_mode", str)
    return Arch(
        front=Waveform(
            convs=_convs(settings),
            norm="layer" if MODES[mode] == "layer" else "group",
            bias=settings.get("extractor_conv_bias", bool),
            normalize=settings.get("normalize_waveform", bool, False),
            scaled=SCALE in tensors,
        ),
        width=settings.positive("encoder_embed_dim"),
        layers=layers,
        norm_first=settings.get("encoder_layer_norm_first", bool),
        position=PositionalConvolution(
            settings.positive("encoder_pos_conv_kernel"), settings.positive("encoder_pos_conv_groups")
        ),
        dropout=Dropout(
            hidden=settings.get("encoder_dropout", float, 0.1),
            attention=settings.get("encoder_attention_dropout", float, 0.1),
            activation=settings.get("encoder_ff_interm_dropout", float, 0.0),
            features=settings.get("encoder_projection_dropout", float, 0.0),
            layer=settings.get("encoder_layer_drop", float, 0.0),
        ),
    )


def _convs(settings: Settings) -> tuple[Conv, ...]:
    given = settings.given.get("extractor_conv_layer_config")
    listed = given if isinstance(given, (list, tuple)) else ()
    rows = [list(row) if isinstance(row, (list, tuple)) else [] for row in listed]
    if not rows or not all(len(row) == 3 and all(type(n) is int and n > 0 for n in row) for row in rows):
        raise InputError(
            f"{settings.path}: extractor_conv_layer_config {str(given)[:60]} is no list of (channels, kernel, stride)"
        )
    return tuple(Conv(*row) for row in rows)


def _layer(settings: Settings, tensors: Mapping[str, Tensor], index: int) -> Layer:
    """Count a layer's heads and units by its arrays; the configuration keeps the numbers of blocks that are gone."""
    head_dim, at = settings.positive("encoder_head_dim"), f"encoder.layers.{index}."
    rows = size(tensors, f"{at}attention.q_proj.weight", 0)
    units = size(tensors, f"{at}feed_forward.intermediate_dense.weight", 0)
    for name, found in (("encoder_use_attention", rows), ("encoder_use_feed_forward", units)):
        said = settings.given.get(name)
        if not isinstance(said, (list, tuple)) or index >= len(said) or bool(said[index]) is not bool(found):
            raise InputError(f"{settings.path}: {name} is {said}, layer {index} has {found or 0} rows of its arrays")
    heads, rest = divmod(rows or 0, head_dim)
    if rest:
        raise InputError(f"{settings.path}: {at}attention.q_proj has {rows} rows, no multiple of head size {head_dim}")
    return Layer(Attention(heads, head_dim), FeedForward(units or 0))


def _gated_layer(settings: Settings, tensors: Mapping[str, Tensor], index: int) -> Layer:
    """Describe a layer of DPWavLM, whose configuration lists the heads that are left by their numbers."""
    numbers, total = _heads(settings, index), _total(settings)
    head_dim, rest = divmod(settings.positive("encoder_embed_dim"), total)
    if rest:
        width = settings.positive("encoder_embed_dim")
        raise InputError(f"{settings.path}: encoder_embed_dim {width} is no multiple of {total} heads")
    plain = _layer(replace(settings, given={**settings.given, "encoder_head_dim": head_dim}), tensors, index)
    if plain.attention.heads not in (0, len(numbers)):
        raise InputError(
            f"{settings.path}: encoder_remaining_heads of layer {index} is {list(numbers)}, its arrays have "
            f"{plain.attention.heads} heads"
        )
    return replace(plain, mixer=GatedAttention(numbers if plain.attention.heads else (), head_dim))


def _heads(settings: Settings, index: int) -> tuple[int, ...]:
    listed = settings.given.get("encoder_remaining_heads")
    mine = listed[index] if isinstance(listed, (list, tuple)) and index < len(listed) else None
    if not isinstance(mine, (list, tuple)) or not all(type(n) is int and 0 <= n < _total(settings) for n in mine):
        raise InputError(
            f"{settings.path}: encoder_remaining_heads of layer {index} is {str(mine)[:60]}, no list of heads below "
            f"{_total(settings)}"
        )
    return tuple(mine)


def _total(settings: Settings) -> int:
    """Return how many heads every layer had before it was pruned."""
    listed = settings.given.get("encoder_total_num_heads")
    first = listed[0] if isinstance(listed, (list, tuple)) and listed else None
    if type(first) is not int or first < 1 or any(n != first for n in listed or ()):
        raise InputError(
            f"{settings.path}: encoder_total_num_heads is {str(listed)[:60]}, not one number for all layers"
        )
    return first


def _relative(settings: Settings, tensors: Mapping[str, Tensor]) -> RelativeBias:
    if TABLE not in tensors:
        raise InputError(
            f"{settings.path}: {TABLE} is missing, the table that all layers' attention reads; copy it again"
        )
    far = settings.get("encoder_max_distance", int, 800)
    return RelativeBias(_total(settings), settings.positive("encoder_num_buckets"), far)


def _completed(tensors: Mapping[str, Tensor], layers: tuple[Layer, ...], width: int) -> dict[str, Tensor]:
    """Add the arrays of blocks that are gone: without rows, and with an output bias of zeros."""
    added: dict[str, Tensor] = {}
    for i, layer in enumerate(layers):
        at = f"encoder.layers.{i}."
        if isinstance(layer.mixer, GatedAttention):
            added |= _gates(tensors, f"{at}attention.gru_rel_pos_", layer.mixer)
        inner = [f"{at}attention.{name}_proj" for name in "qkv"] if layer.mixer.empty else []
        outer = [f"{at}attention.out_proj"] if layer.mixer.empty else []
        if layer.ffn.empty:
            inner.append(f"{at}feed_forward.intermediate_dense")
            outer.append(f"{at}feed_forward.output_dense")
        added |= {f"{name}.weight": Zeros((0, width)) for name in inner} | {f"{n}.bias": Zeros((0,)) for n in inner}
        added |= {f"{n}.weight": Zeros((width, 0)) for n in outer} | {f"{n}.bias": Zeros((width,)) for n in outer}
    return {**tensors, **added}


def _gates(tensors: Mapping[str, Tensor], at: str, mixer: GatedAttention) -> dict[str, Tensor]:
    """Return what a layer's gates lack: all of it where attention is gone, else constants of its own heads only."""
    constant = tensors.get(f"{at}const")
    if constant is None:
        linear = {f"{at}linear.weight": Zeros((ENTRIES, mixer.head_dim)), f"{at}linear.bias": Zeros((ENTRIES,))}
        return {**linear, f"{at}const": Zeros((1, mixer.heads, 1, 1))}
    whole = len(constant.shape) == 4 and constant.shape[1] > max(mixer.remaining, default=-1)
    return {f"{at}const": Part(constant, (range(1), mixer.remaining), f"{at}const")} if whole else {}
