"""WavLM as Microsoft published it: a file with `cfg`, a flat dict of settings, and `model`, by fairseq's names."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxssl.convert import fairseq
from jaxssl.convert.config import Settings, Source, size
from jaxssl.convert.stand_ins import entries
from jaxssl.models.arch import GatedAttention, RelativeBias

TABLE = "encoder.layers.0.self_attn.relative_attention_bias.weight"
SUPPORTED = {"relative_position_embedding": (True,), "gru_rel_pos": (True,), "expand_attention_head_size": (-1, 0)}


def holds(state: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint is WavLM's: its settings say so, or its arrays do."""
    return "relative_position_embedding" in entries(state["cfg"]) or TABLE in entries(state["model"])


def describe(path: Path, state: Mapping[str, Any]) -> Source:
    """Describe a checkpoint: what fairseq's HuBERT would be, with gated relative positions.

    Raises:
        InputError: the positions are of another kind, or as `fairseq.describe`.
    """
    plain = fairseq.describe(path, state)
    settings = Settings(path, entries(state["cfg"]), {"num_buckets": size(plain.tensors, TABLE, 0)})
    settings.require(SUPPORTED)
    layer = plain.arch.layers[0]
    heads, far = layer.attention.heads, settings.get("max_distance", int, 1280)
    gated = replace(layer, mixer=GatedAttention(tuple(range(heads)), layer.attention.head_dim))
    relative = RelativeBias(heads, settings.positive("num_buckets"), far)
    arch = replace(plain.arch, layers=(gated,) * len(plain.arch.layers), relative=relative)
    return replace(plain, kind="WavLM", arch=arch)
