"""What PyTorch checkpoints call our arrays: one table for fairseq, s3prl and MelHuBERT, one for Hugging Face.

A rule is a pattern of source names, the path it goes to, and a layout. `build` uses every source name exactly once and
reports together all those that do not fit.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np

from compress.address import flatten, unflatten
from compress.errors import InputError
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params, shapes

Shape = tuple[int, ...]
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
SHOWN = 12  # names of one kind of problem that a message lists


class Tensor(Protocol):
    """An array that may still be on disk."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> str: ...

    def read(self) -> np.ndarray:
        """Return it as float32."""
        ...


@dataclass(frozen=True)
class Layout:
    """How an array lies in PyTorch: its shape there, from its shape here; the way from there to here, and back."""

    source: Callable[[Shape], Shape]
    convert: Callable[[np.ndarray, Shape], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


def _flipped(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 1, 0)


SAME = Layout(lambda shape: shape, lambda array, _: array, lambda array: array)
FLAT = Layout(lambda shape: (prod(shape),), np.reshape, np.ravel)
SPLIT = Layout(  # in, *out
    lambda shape: (prod(shape[1:]), shape[0]),
    lambda array, shape: array.T.reshape(shape),
    lambda array: array.reshape(len(array), -1).T,
)
JOIN = Layout(  # *in, out
    lambda shape: (shape[-1], prod(shape[:-1])),
    lambda array, shape: array.T.reshape(shape),
    lambda array: array.reshape(-1, array.shape[-1]).T,
)
CONV = Layout(lambda shape: shape[::-1], lambda array, _: _flipped(array), _flipped)
TAPS = Layout(lambda shape: (1, 1, *shape), np.reshape, lambda array: array[None, None])


@dataclass(frozen=True)
class Rule:
    """Names that match `pattern` as a whole go to `path`, which may hold the pattern's groups by number."""

    pattern: str
    path: str
    layout: Layout


def _dense(pattern: str, path: str, layout: Layout = SPLIT) -> tuple[Rule, Rule]:
    return Rule(rf"{pattern}\.weight", f"{path}/kernel", layout), Rule(rf"{pattern}\.bias", f"{path}/bias", FLAT)


def _norm(pattern: str, path: str) -> tuple[Rule, Rule]:
    return Rule(rf"{pattern}\.weight", f"{path}/scale", FLAT), Rule(rf"{pattern}\.bias", f"{path}/bias", FLAT)


FAIRSEQ = (
    *_dense(r"feature_extractor\.conv_layers\.(\d+)\.0", r"front/convs/\1/conv", CONV),
    *_norm(r"feature_extractor\.conv_layers\.(\d+)\.2\.1", r"front/convs/\1/norm"),  # layer norm
    *_norm(r"feature_extractor\.conv_layers\.(\d+)\.2", r"front/convs/\1/norm"),  # group norm
    *_norm(r"layer_norm", "front/norm"),
    *_dense(r"(?:post|pre)_extract_proj", "project"),
    Rule(r"mask_emb", "mask_embedding", FLAT),
    Rule(r"encoder\.pos_conv\.0\.weight_g", "position/gain", TAPS),
    Rule(r"encoder\.pos_conv\.0\.weight_v", "position/kernel", CONV),
    Rule(r"encoder\.pos_conv\.0\.bias", "position/bias", FLAT),
    *_norm(r"encoder\.layer_norm", "norm"),
    *_dense(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj", r"layers/\1/attention/\2"),
    *_dense(r"encoder\.layers\.(\d+)\.self_attn\.out_proj", r"layers/\1/attention/out", JOIN),
    *_norm(r"encoder\.layers\.(\d+)\.self_attn_layer_norm", r"layers/\1/attention_norm"),
    *_dense(r"encoder\.layers\.(\d+)\.(fc[12])", r"layers/\1/ffn/\2"),
    *_norm(r"encoder\.layers\.(\d+)\.final_layer_norm", r"layers/\1/ffn_norm"),
    *_dense(r"final_proj", "head/project"),
    Rule(r"label_embs_concat", "head/codewords", SAME),
)

HUGGINGFACE = (
    *_dense(r"feature_extractor\.conv_layers\.(\d+)\.conv", r"front/convs/\1/conv", CONV),
    *_norm(r"feature_extractor\.conv_layers\.(\d+)\.layer_norm", r"front/convs/\1/norm"),
    *_norm(r"feature_projection\.layer_norm", "front/norm"),
    *_dense(r"feature_projection\.projection", "project"),
    Rule(r"masked_spec_embed", "mask_embedding", FLAT),
    Rule(r"encoder\.pos_conv_embed\.conv\.(?:parametrizations\.weight\.original0|weight_g)", "position/gain", TAPS),
    Rule(r"encoder\.pos_conv_embed\.conv\.(?:parametrizations\.weight\.original1|weight_v)", "position/kernel", CONV),
    Rule(r"encoder\.pos_conv_embed\.conv\.bias", "position/bias", FLAT),
    *_norm(r"encoder\.layer_norm", "norm"),
    *_dense(r"encoder\.layers\.(\d+)\.attention\.([qkv])_proj", r"layers/\1/attention/\2"),
    *_dense(r"encoder\.layers\.(\d+)\.attention\.out_proj", r"layers/\1/attention/out", JOIN),
    *_norm(r"encoder\.layers\.(\d+)\.layer_norm", r"layers/\1/attention_norm"),
    *_dense(r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense", r"layers/\1/ffn/fc1"),
    *_dense(r"encoder\.layers\.(\d+)\.feed_forward\.output_dense", r"layers/\1/ffn/fc2"),
    *_norm(r"encoder\.layers\.(\d+)\.final_layer_norm", r"layers/\1/ffn_norm"),
)


@dataclass
class _Problems:
    """What does not fit, by kind."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        self.found.setdefault(kind, []).append(what)

    def check(self, where: str) -> None:
        if self.found:
            lines = [f"\n  {kind}: {_listed(names)}" for kind, names in self.found.items()]
            total = sum(len(names) for names in self.found.values())
            raise InputError(f"{where}: {total} names do not fit the model" + "".join(lines))


def build(
    arch: Arch, tensors: Mapping[str, Tensor], rules: Iterable[Rule], *, left: Iterable[str] = (), where: str = "source"
) -> tuple[Params, tuple[str, ...]]:
    """Turn named PyTorch tensors into a parameter tree; nothing is read unless every name fits.

    Args:
        arch: what the tree must be.
        tensors: by source name.
        rules: the dialect's table.
        left: patterns of names that are known and not part of the model.
        where: the source, for messages.

    Returns:
        The tree, float32, and the names left behind.

    Raises:
        InputError: names that are unknown, missing, assigned twice, of another shape or not floating, all in one.
    """
    tensors = dict(tensors)
    behind = tuple(name for name in tensors if any(re.fullmatch(pattern, name) for pattern in left))
    for name in behind:
        del tensors[name]
    expected = {path: tuple(leaf.shape) for path, leaf in flatten(shapes(arch)).items()}
    chosen = _assign(expected, tensors, tuple(rules), where)
    flat = {path: _convert(*chosen[path], expected[path]) for path in expected}
    return unflatten(flat), behind


def named(params: Params, rules: Iterable[Rule]) -> dict[str, np.ndarray]:
    """Return parameters as another program names and lays them out: the inverse of `build`.

    Raises:
        InputError: the dialect has no name for an array.
    """
    rules, found = tuple(rules), {}
    for path, leaf in flatten(params).items():
        name = _source_name(path, rules)
        target, layout = _find(name, rules)
        if target != path:
            raise InputError(f"{path}: this format has no such array")
        found[name] = np.ascontiguousarray(layout.back(np.asarray(leaf)))
    return found


def _assign(
    expected: Mapping[str, Shape], tensors: Mapping[str, Tensor], rules: tuple[Rule, ...], where: str
) -> dict[str, tuple[Tensor, Layout]]:
    chosen: dict[str, tuple[Tensor, Layout]] = {}
    problems = _Problems()
    for name, tensor in tensors.items():
        path, layout = _find(name, rules)
        if path not in expected:
            problems.add("unknown", name)
        elif path in chosen:
            problems.add("assigned twice", f"{name} (to {path})")
        else:
            chosen[path] = tensor, layout
            if tensor.shape != (want := layout.source(expected[path])):
                problems.add("of another shape", f"{name} is {tensor.shape}, the model wants {want}")
            if tensor.dtype not in FLOATS:
                problems.add("not floating", f"{name} is {tensor.dtype}")
    for path in expected.keys() - chosen.keys():
        problems.add("missing", f"{_source_name(path, rules)} (for {path})")
    problems.check(where)
    return chosen


def _find(name: str, rules: tuple[Rule, ...]) -> tuple[str, Layout]:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, name):
            return match.expand(rule.path), rule.layout
    return "", SAME


def _source_name(path: str, rules: tuple[Rule, ...]) -> str:
    """Say what a missing array would be called: the first rule that leads to its path, read backwards."""
    for rule in rules:
        groups = re.findall(r"\((?!\?:)[^)]*\)", rule.pattern)
        target = rule.path
        for i, group in enumerate(groups, 1):
            target = target.replace(f"\\{i}", group)
        if match := re.fullmatch(target, path):
            name = re.sub(r"\(\?:([^|)]*)\|[^)]*\)", r"\1", rule.pattern)  # of alternatives the first
            for group, value in zip(groups, match.groups(), strict=True):
                name = name.replace(group, value, 1)
            return name.replace("\\", "")
    return path


def _convert(tensor: Tensor, layout: Layout, shape: Shape) -> np.ndarray:
    return np.ascontiguousarray(layout.convert(tensor.read(), shape))


def _listed(names: Iterable[Any]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
