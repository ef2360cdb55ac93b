"""State dicts without a configuration, by transformers' names or torchaudio's: shapes say what the model is.

What shapes cannot say is assumed as the published models have it, and noted.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.errors import InputError
from jaxssl.convert import hf_positions
from jaxssl.convert.config import Ctc, Settings, Source, layer_count, only_tensors, said_by, size, strip
from jaxssl.convert.fairseq import HEADS, STRIDES
from jaxssl.convert.huggingface import DEFAULT_CONVS, FAMILIES, LEFT, arch_of, measure
from jaxssl.convert.naming import Tensor
from jaxssl.convert.windows import Part

EXTRACTOR = "feature_extractor.conv_layers."
INSIDE = "encoder.transformer."  # torchaudio's, where transformers has encoder.
OUTPUTS = (("lm_head.weight", "lm_head.bias"), ("aux.weight", "aux.bias"))  # transformers', torchaudio's
TABLE = "encoder.layers.0.attention.rel_attn_embed.weight"  # which only WavLM has
JOINED = ".attention.attention."  # torchaudio's WavLM: a module within a module, q, k and v in one array
TRAINED_WITH = r"logit_generator\..*"  # torchaudio's pre-training output


def known(state: Mapping[str, Any]) -> bool:
    """Tell whether a state dict is one of these by its names."""
    return any(re.search(rf"(^|\.){EXTRACTOR}0\.conv\.weight$", name) for name in state)


def describe(path: Path, state: Mapping[str, Any], *, heads: int | None = None) -> Source:
    """Describe a state dict; `heads` is how many its attention has, where its width does not tell.

    Raises:
        InputError: it holds what is no tensor, or leaves open how many heads or which strides there are.
    """
    everything = dict(only_tensors(path, state))
    output = next((pair for pair in OUTPUTS if pair[0] in everything), None)
    kernel, bias = (everything.pop(name, None) for name in output) if output else (None, None)
    torchaudio = any(INSIDE in name for name in everything)
    for family in FAMILIES:
        everything = strip(everything, f"{family.replace('-', '_')}.")
    tensors = hf_positions.folded(path, renamed(everything) if torchaudio else everything)
    settings, notes = _guess(path, tensors, heads)
    layered = settings.get("feat_extract_norm", str) == "layer"
    notes.append(f"normalize {layered} (assumed, as the published models with such an extractor)")
    if kernel is not None:
        notes.append("a state dict has no dictionary: the CTC layer is kept without its symbols")
    return Source(
        kind=f"state dict of {'torchaudio' if torchaudio else 'Hugging Face'}",
        arch=arch_of(settings, tensors, layered, gated=TABLE in tensors),
        tensors=tensors,
        dialect="huggingface",
        left=(*LEFT, TRAINED_WITH),
        files=(path,),
        notes=tuple(notes),
        ctc=Ctc(kernel, bias, None) if kernel is not None else None,
    )


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give torchaudio's arrays transformers' names, which differ by where the parts hang."""
    return {
        name.replace(INSIDE, "encoder.", 1)
        .replace("encoder.feature_projection.", "feature_projection.", 1)
        .replace("mask_generator.mask_embedding", "masked_spec_embed", 1): tensor
        for name, tensor in _apart(tensors).items()
    }


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take q, k and v out of the one array that torchaudio's WavLM has of them."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name.replace(JOINED, ".attention.", 1)
        start, joined, kind = short.partition("in_proj_")
        if not joined or kind not in ("weight", "bias") or tensor.shape[0] % 3:
            found[short] = tensor
            continue
        rows = tensor.shape[0] // 3
        found |= {
            f"{start}{q}_proj.{kind}": Part(tensor, (range(i * rows, (i + 1) * rows),)) for i, q in enumerate("qkv")
        }
    return found


def _guess(path: Path, tensors: Mapping[str, Tensor], heads: int | None) -> tuple[Settings, list[str]]:
    """Stand in for a configuration: shapes where they tell, published models' habits where not."""
    measured = measure(tensors)
    width = measured["hidden_size"]
    if not heads and width not in HEADS:
        raise InputError(
            f"{path}: a state dict does not say how many heads attend, and no published model is {width} wide; "
            f"{said_by(path, '--heads N')}"
        )
    layered = f"{EXTRACTOR}1.layer_norm.weight" in tensors
    pre_norm = layered and not measured["conv_pos_kernel_size"]  # data2vec is post-LN in every size
    convs = [_conv(path, tensors, i) for i in range(layer_count(tensors, EXTRACTOR))]
    columns = {name: [conv[i] for conv in convs] for i, name in enumerate(DEFAULT_CONVS)}
    given = {
        "num_attention_heads": heads or HEADS[width],
        "feat_extract_norm": "layer" if layered else "group",
        "feat_proj_layer_norm": "feature_projection.layer_norm.weight" in tensors,
        "do_stable_layer_norm": pre_norm,
        **columns,
        "adapter_attn_dim": measured["adapter_attn_dim"],
    }
    said = "as --heads says" if heads else f"assumed of {width} wide models; convert_torch --heads N if it is wrong"
    notes = [
        f"no configuration: {measured['num_hidden_layers']} layers of {width} come from shapes; heads "
        f"{given['num_attention_heads']} ({said}), strides {columns['conv_stride']}, "
        f"{'pre' if pre_norm else 'post'}-LN and GELU are assumed as the published models have them"
    ]
    if TABLE in tensors:
        notes.append("relative positions up to distance 800 are assumed, as the published WavLM models have them")
    if measured["add_adapter"]:
        notes.append("a stride of 2 is assumed of its length adapter, as transformers has it by default")
    if "masked_spec_embed" not in tensors:
        notes.append("no masked_spec_embed: masked frames will be zeros")
    return Settings(path, given, measured), notes


def _conv(path: Path, tensors: Mapping[str, Tensor], index: int) -> tuple[int, int, int]:
    name = f"{EXTRACTOR}{index}.conv.weight"
    channels, kernel = size(tensors, name, 0), size(tensors, name, 2)
    if channels is None or kernel not in STRIDES:
        raise InputError(
            f"{path}: no configuration, and {name} with kernel {kernel} leaves its stride unknown; give a folder of "
            "save_pretrained"
        )
    return channels, kernel, STRIDES[kernel]
