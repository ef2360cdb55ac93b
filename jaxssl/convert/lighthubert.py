"""LightHuBERT: a supernet whose subnets have parts of its arrays (Wang et al. 2022)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from compress.errors import InputError
from jaxssl.convert.config import Settings, Source, only_tensors
from jaxssl.convert.fairseq import arch_of, measure
from jaxssl.convert.naming import Tensor
from jaxssl.convert.stand_ins import entries
from jaxssl.convert.windows import Part
from jaxssl.models import supernet
from jaxssl.models.arch import Arch, Attention, FeedForward, Layer
from jaxssl.models.names import Shape
from jaxssl.models.subnets import PUBLISHED
from jaxssl.models.supernet import Subnet
from jaxssl.runtime import files

KIND = "LightHuBERT"
NAME = "hubert_pruner"
HEADS = r"layer_pred_heads\..*"  # what predicts its teacher's layers
KERNEL = "encoder.pos_conv.0."
LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
GLOBAL = "global"


@dataclass(frozen=True)
class Gain:
    """The gains of a part of a positional convolution: as much smaller as the part's norm is than the whole's.

    A subnet's kernel is cut from the normalised one.
    """

    gain: Tensor
    whole: Tensor
    part: Tensor

    @property
    def shape(self) -> Shape:
        return self.gain.shape

    @property
    def dtype(self) -> str:
        return self.gain.dtype

    def read(self) -> np.ndarray:
        """Return gain · norm of the part / norm of the whole, a norm for each tap."""
        norms = [np.sqrt(np.square(each.read().astype(np.float64)).sum((0, 1))) for each in (self.part, self.whole)]
        return np.asarray(self.gain.read() * (norms[0] / norms[1]), np.float32)


def known(state: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint of fairseq's form is a LightHuBERT."""
    model = entries(entries(state.get("cfg")).get("model"))
    names = entries(state.get("model"))
    return model.get("_name") == NAME or any(re.fullmatch(HEADS, name) for name in names)


def describe(path: Path, state: Mapping[str, Any], *, subnet: str | None = None) -> Source:
    """Describe a subnet of the supernet in a `.pt`.

    Args:
        path: the file.
        state: what it holds.
        subnet: JSON, or a file of it, with `embed_dim`, `heads_num`, `ffn_embed` as its code has them; or the name of a
            published one (`jaxssl.models.subnets.PUBLISHED`); default: the largest.

    Raises:
        InputError: the configuration contradicts the arrays, or there is no such subnet.
    """
    config = entries(state.get("cfg"))
    tensors = only_tensors(path, entries(state["model"]))
    settings = Settings(path, {**entries(config.get("task")), **entries(config.get("model"))}, measure(tensors))
    settings.require({"pos_conv_depth": (1,), "encoder_layers": (12,)})
    largest, groups = arch_of(settings, tensors, None), settings.positive("conv_pos_groups")
    chosen = _sizes(path, subnet, largest, groups) if subnet else supernet.largest(largest)
    note = f"subnet: {len(chosen.heads)} layers of {chosen.width}"
    if not subnet:
        note += ", the largest; convert_torch --subnet names another"
    return Source(
        kind=KIND,
        arch=_arch(largest, chosen),
        tensors=_cut(tensors, chosen, largest, groups),
        dialect="fairseq",
        left=(HEADS,),
        files=(path,),
        notes=(note,),
    )


def _arch(largest: Arch, subnet: Subnet) -> Arch:
    dim = largest.layers[0].attention.head_dim
    layers = (Layer(Attention(n, dim), FeedForward(units)) for n, units in zip(subnet.heads, subnet.units, strict=True))
    return replace(largest, width=subnet.width, layers=tuple(layers))


def _sizes(path: Path, text: str, largest: Arch, groups: int) -> Subnet:
    """Read a subnet, and compare it with the supernet.

    Raises:
        InputError: it is no subnet, or not one of this supernet.
    """
    values, most, dim = _named(text) or _json(text), supernet.largest(largest), largest.layers[0].attention.head_dim
    width, heads, units = values.get("embed_dim"), values.get("heads_num"), values.get("ffn_embed")
    if not (type(width) is int and width > 0 and _naturals(heads) and _naturals(units)):
        raise InputError(
            f"--subnet: embed_dim {width}, heads_num {heads}, ffn_embed {units}; give a number and two lists of numbers"
        )
    depth = values.get("layer_num", len(heads))
    least = len(most.heads) - len(supernet.dropped(len(most.heads)))
    if not len(heads) == len(units) == depth or not least <= depth <= len(most.heads):
        raise InputError(
            f"--subnet: {len(heads)} heads_num, {len(units)} ffn_embed, layer_num {depth}; subnets of {path} have "
            f"{least} to {len(most.heads)} layers, and as many of each"
        )
    if values.get("atten_dim", [dim * n for n in heads]) != [dim * n for n in heads]:
        raise InputError(f"--subnet: atten_dim {values['atten_dim']} is not heads_num {heads} times {dim}")
    reach = values.get("slide_wsz") or []
    if not isinstance(reach, list) or any(window != GLOBAL for window in reach):
        raise InputError(f"--subnet: slide_wsz is {values['slide_wsz']}; what is supported: {GLOBAL!r} in every layer")
    ratio = max(most.units) // most.width
    if width > most.width or width % groups or max(heads) > max(most.heads) or max(units) > ratio * width:
        raise InputError(
            f"--subnet: embed_dim {width}, up to {max(heads)} heads_num and {max(units)} ffn_embed; {path} has up to "
            f"{most.width} (in {groups}s), {max(most.heads)} and {ratio} times embed_dim"
        )
    return Subnet(width, tuple(heads), tuple(units))


def _named(text: str) -> dict[str, Any] | None:
    """Return the published subnet of a name, as its code has it; None where it is no such name."""
    found = PUBLISHED.get(text)
    if found is None:
        return None
    return {"embed_dim": found.width, "heads_num": [*found.heads], "ffn_embed": [*found.units]}


def _json(text: str) -> dict[str, Any]:
    try:
        if text.lstrip().startswith("{"):
            return files.named(files.parsed(text, "--subnet"), "--subnet")
        return files.read_object(Path(text))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--subnet {text[:60]}: neither JSON nor a file of it ({error}); give embed_dim, heads_num and ffn_embed, "
            f"or {' or '.join(PUBLISHED)}"
        ) from error


def _naturals(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and bool(values) and all(type(each) is int and each > 0 for each in values)


def _cut(tensors: Mapping[str, Tensor], subnet: Subnet, largest: Arch, groups: int) -> dict[str, Tensor]:
    """Take a subnet's part of every array, its layers counted from 0."""
    width = range(subnet.width)
    kept: dict[str, Tensor] = {}
    places = {old: new for new, old in enumerate(supernet.layers_kept(len(subnet.heads), len(largest.layers)))}
    for name, tensor in tensors.items():
        match = LAYER.fullmatch(name)
        if not match:
            kept[name] = _outer(name, tensor, width, groups)
        elif (index := places.get(int(match[1]))) is not None:
            layer = largest.layers[int(match[1])]
            heads = range(subnet.heads[index] * layer.attention.head_dim)
            units = supernet.units_kept(subnet.units[index], subnet.width, layer.ffn.size, largest.width)
            kept[f"encoder.layers.{index}.{match[2]}"] = _inner(match[2], tensor, width, heads, units)
    gain, whole, part = kept.get(f"{KERNEL}weight_g"), tensors.get(f"{KERNEL}weight_v"), kept.get(f"{KERNEL}weight_v")
    if gain is None or whole is None or part is None:
        return kept  # and what is missing is told with the other names
    return kept | {f"{KERNEL}weight_g": Gain(gain, whole, part)}


def _outer(name: str, tensor: Tensor, width: range, groups: int) -> Tensor:
    if name == f"{KERNEL}weight_v":
        return Part(tensor, (width, range(len(width) // groups)), name)
    if name == f"{KERNEL}bias" or name.startswith(("post_extract_proj.", "encoder.layer_norm.", "mask_emb")):
        return Part(tensor, (width,), name)
    return tensor


def _inner(name: str, tensor: Tensor, width: range, heads: range, units: Sequence[int]) -> Tensor:
    """Take a part of an array of a layer: what the map's output and, of a matrix, its input have."""
    kept: dict[str, tuple[Sequence[int], ...]]
    kept = {"self_attn.out_proj": (width, heads), "fc1": (units, width), "fc2": (width, units)}
    kept |= dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (heads, width))
    return Part(tensor, kept.get(name.rpartition(".")[0], (width,))[: len(tensor.shape)], name)
