"""DistilHuBERT as s3prl wrote it: fairseq's names, a configuration of its own, heads that predict teacher layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import InputError
from jaxssl.convert.config import Settings, Source, only_tensors
from jaxssl.convert.fairseq import arch_of, measure
from jaxssl.convert.stand_ins import entries

HEADS = r"output_layer\..*"  # one for each layer of the teacher that it was taught
SUPPORTED = {"task_emb_type": ("expand-last",), "attention_type": ("original",)}


def describe(path: Path, state: Mapping[str, Any]) -> Source:
    """Describe a `.ckpt` of s3prl's distiller; its prediction heads stay behind.

    Raises:
        InputError: its configuration is missing, unsupported or contradicts the arrays.
    """
    config = entries(entries(state["Config"]).get("distiller"))
    if not config:
        raise InputError(f"{path}: Config has no 'distiller', only {sorted(entries(state['Config']))[:5]}")
    tensors = only_tensors(path, entries(state["Distiller"]))
    convs = config.get("extractor_conv_feature_layers")
    settings = Settings(path, {**config, "conv_feature_layers": convs}, measure(tensors))
    settings.require(SUPPORTED)
    taught = settings.given.get("pred_layer_id")
    return Source(
        kind="s3prl DistilHuBERT",
        arch=arch_of(settings, tensors, None, feature_norm="layer_norm.weight" in tensors),
        tensors=tensors,
        dialect="fairseq",
        left=(HEADS,),
        files=(path,),
        notes=(f"the heads that predict the teacher's layers {taught} are left behind",),
    )
