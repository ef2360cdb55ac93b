"""MelHuBERT checkpoints of the study's code: plain, distilled, and pruned by weights, heads or rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.convert.config import Settings, Source, layer_count, only_tensors, position_groups, size
from jaxssl.convert.naming import Tensor
from jaxssl.convert.stand_ins import entries
from jaxssl.models.arch import (
    Arch,
    Attention,
    ClusterHead,
    Dropout,
    FeedForward,
    Layer,
    LogMel,
    PositionalConvolution,
)
from jaxssl.models.names import Shape

BINS = 40  # of every MelHuBERT; feat_emb_dim 40 is a 10 ms model, 80 a 20 ms one
SUPPORTED = {
    "activation_fn": ("gelu",),
    "pos_emb_type": ("conv",),
    "pos_conv_depth": (1,),
    "attention_type": ("original",),
    "learnable_mask_emb": (False,),
}


@dataclass(frozen=True)
class Masked:
    """A weight under PyTorch's pruning: what counts is `<name>_orig` × `<name>_mask`."""

    original: Tensor
    mask: Tensor

    @property
    def shape(self) -> Shape:
        return self.original.shape

    @property
    def dtype(self) -> str:
        return self.original.dtype

    def read(self) -> np.ndarray:
        """Read the product; where the mask is 0 the result is 0, whatever the weight was."""
        return np.where(self.mask.read() != 0, self.original.read(), np.float32(0))


def describe(path: Path, state: Mapping[str, Any]) -> Source:
    """Describe a `.ckpt` of the study; heads and FFN units are counted layer by layer, as pruned models differ.

    Raises:
        InputError: its configuration is missing, unsupported or contradicts the arrays.
    """
    whole = entries(state["Upstream_Config"])
    config = entries(whole.get("melhubert") or whole.get("hubert"))  # the name before the model had its own
    if not config:
        raise InputError(f"{path}: Upstream_Config has neither 'melhubert' nor 'hubert', only {sorted(whole)[:5]}")
    tensors = _effective(path, only_tensors(path, entries(state["model"])))
    settings = Settings(path, config, _measure(tensors))
    settings.require(SUPPORTED)
    return Source(
        kind="MelHuBERT",
        arch=_arch(settings, tensors, entries(state.get("Args"))),
        tensors=tensors,
        dialect="fairseq",
        left=(),
        files=(path,),
        notes=_notes(settings, tensors),
    )


def _effective(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join each `_orig` with its `_mask`; a lone one keeps its name and is reported as unknown."""
    effective = dict(tensors)
    for name in [name for name in tensors if name.endswith("_orig") and f"{name[:-5]}_mask" in tensors]:
        joined = Masked(effective.pop(name), effective.pop(f"{name[:-5]}_mask"))
        if joined.mask.shape != joined.shape:
            raise InputError(f"{path}: {name} is {joined.shape}, its mask {joined.mask.shape}")
        if name[:-5] in effective:
            raise InputError(f"{path}: {name[:-5]} is there both pruned (_orig, _mask) and plain")
        effective[name[:-5]] = joined
    return effective


def _measure(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "feat_emb_dim": size(tensors, "pre_extract_proj.weight", 1),
        "encoder_layers": layer_count(tensors),
        "encoder_embed_dim": size(tensors, "encoder.layer_norm.weight", 0),
        "conv_pos": size(tensors, "encoder.pos_conv.0.weight_g", -1),
        "conv_pos_groups": position_groups(tensors, "encoder.pos_conv.0.weight_v"),
        "num_cluster": size(tensors, "final_proj.weight", 0),
    }


def _arch(settings: Settings, tensors: Mapping[str, Tensor], args: Mapping[str, Any]) -> Arch:
    head_dim = settings.head_dim("encoder_embed_dim", "encoder_attention_heads")
    layers = settings.get("encoder_layers", int)
    return Arch(
        front=LogMel(BINS, _stack(settings, args.get("frame_period"))),
        width=settings.positive("encoder_embed_dim"),
        layers=tuple(_layer(settings.path, tensors, i, head_dim) for i in range(layers)),
        norm_first=settings.get("layer_norm_first", bool, False),
        position=PositionalConvolution(settings.positive("conv_pos"), settings.positive("conv_pos_groups")),
        dropout=Dropout(
            hidden=settings.get("dropout", float, 0.1),
            attention=settings.get("attention_dropout", float, 0.1),
            activation=settings.get("activation_dropout", float, 0.1),
            layer=settings.get("encoder_layerdrop", float, 0.0),
        ),
        head=ClusterHead(settings.positive("num_cluster")),
    )


def _stack(settings: Settings, period: object) -> int:
    features = settings.positive("feat_emb_dim")
    stack, rest = divmod(features, BINS)
    if rest or not stack:
        raise InputError(f"{settings.path}: feat_emb_dim is {features}, no multiple of {BINS} Mel bins")
    if isinstance(period, int) and period != 10 * stack:
        raise InputError(f"{settings.path}: frame_period is {period} ms, feat_emb_dim {features} means {10 * stack} ms")
    return stack


def _layer(path: Path, tensors: Mapping[str, Tensor], index: int, head_dim: int) -> Layer:
    prefix = f"encoder.layers.{index}."
    rows, units = size(tensors, f"{prefix}self_attn.q_proj.weight", 0), size(tensors, f"{prefix}fc1.weight", 0)
    heads, rest = divmod(rows or 0, head_dim)
    if rest:
        raise InputError(f"{path}: {prefix}self_attn.q_proj has {rows} rows, no multiple of the head size {head_dim}")
    return Layer(Attention(heads, head_dim), FeedForward(units or 0))


def _notes(settings: Settings, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    notes = []
    if masked := [tensor for tensor in tensors.values() if isinstance(tensor, Masked)]:
        total = sum(int(np.prod(tensor.shape)) for tensor in masked)
        kept = sum(int(np.count_nonzero(tensor.mask.read())) for tensor in masked)
        notes.append(f"weight-pruned: {total - kept} of {total} prunable entries are 0")
    if settings.given.get("mask_before_proj") is False:
        notes.append("it was trained with masks after the projection; ours mask before it")
    return tuple(notes)
