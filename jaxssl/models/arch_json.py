"""An arch as plain JSON values, and back: by the tag `kind` of parts, and with every value's type checked."""

import dataclasses
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from compress.errors import InputError
from jaxssl.models.arch import Arch

VERSION = 2  # 1, without a number: layers of heads, ffn, ranks, packed, reuse and int8; see `_upgraded`
MOST = 2**31 - 1  # of any number in an arch


def to_json(arch: Arch) -> dict[str, Any]:
    """Write an arch as plain JSON values."""
    return {"version": VERSION, **dataclasses.asdict(arch)}


def from_json(values: Mapping[str, Any]) -> Arch:
    """Read what `to_json` wrote, or what it wrote before there were versions.

    Raises:
        InputError: a field is unknown, missing or not of its kind, or the version is a later one.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"not a description of a model, but a {type(values).__name__}; copy the file again")
    version = values.get("version", 1)
    if version not in (1, VERSION):
        raise InputError(f"a description of version {version}, this program reads up to {VERSION}; update jaxssl")
    body = {name: value for name, value in values.items() if name != "version"}
    try:
        return _read(Arch, _upgraded(body) if version == 1 else body, "")
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"not a description of a model: {error}; it may be of another version of jaxssl") from error


def _read(wanted: Any, value: Any, where: str) -> Any:
    """Return a value as the type that it should have."""
    if dataclasses.is_dataclass(wanted):
        return _record(wanted, value, where)
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return _read(_chosen(inner, value, where), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{where} is {value!r}, no list")
        return tuple(_read(inner[0], each, f"{where}/{i}") for i, each in enumerate(value))
    if origin is Literal:
        if value not in inner:
            raise TypeError(f"{where} is {value!r}, none of {', '.join(map(repr, inner))}")
        return value
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise TypeError(f"{where} is {value!r}, not of type {wanted.__name__}")
    if wanted in (int, float) and not 0 <= value <= MOST:  # nor NaN
        raise ValueError(f"{where} is {value}, not from 0 to {MOST}")
    return value


def _record(wanted: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"{where} is {value!r}, not names and values")
    hints = _hints(wanted)
    known = {each.name for each in dataclasses.fields(wanted)}
    if unknown := value.keys() - known:
        raise TypeError(f"{where or 'a model'} has no {sorted(unknown)[0]!r}")
    if missing := [each.name for each in dataclasses.fields(wanted) if _needed(each) and each.name not in value]:
        raise KeyError(_below(where, missing[0]))
    return wanted(**{name: _read(hints[name], each, _below(where, name)) for name, each in value.items()})


@lru_cache
def _hints(wanted: Any) -> dict[str, Any]:
    return get_type_hints(wanted)


def _below(where: str, name: str) -> str:
    return f"{where}/{name}" if where else name


def _needed(field: dataclasses.Field) -> bool:
    """Tell whether a description must have a field: what a model is made of is never left to defaults."""
    plain = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    return plain or field.name in ("dropout", "head")


def _chosen(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Pick the member of a union that a value is: None, a plain type, or the part whose tag it has."""
    if value is None and type(None) in kinds:
        return type(None)
    if plain := [kind for kind in kinds if kind in (bool, int, float, str)]:
        return plain[0]
    tagged = {get_args(_hints(kind)["kind"])[0]: kind for kind in kinds if dataclasses.is_dataclass(kind)}  # type: ignore[arg-type]
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in tagged:
        raise TypeError(f"{where} is of kind {kind!r}, none of {', '.join(map(repr, tagged))}")
    return tagged[kind]


def _upgraded(old: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a description of version 1 into one of version 2."""
    values = dict(old)
    head_dim = values.pop("head_dim")
    position = {"kernel": values.pop("position_kernel", 128), "groups": values.pop("position_groups", 16)}
    rank = values.pop("project_rank", None)
    project = _form(rank, None, int8=False) if values.get("project", True) else None
    layers = [_upgraded_layer(layer, head_dim) for layer in values["layers"]]
    return {**values, "layers": layers, "project": project, "position": {**position, "kind": "convolution"}}


def _upgraded_layer(layer: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    if unknown := layer.keys() - {"heads", "ffn", "ranks", "packed", "reuse", "int8"}:
        raise TypeError(f"a layer has no {sorted(unknown)[0]!r}")
    ranks, packed, int8 = layer.get("ranks") or {}, layer.get("packed") or {}, layer.get("int8", False)
    forms = {name: _form(ranks.get(name), packed.get(name), int8=int8) for name in ("q", "k", "v", "out", "fc1", "fc2")}
    if layer.get("reuse", False):
        forms["q"] = forms["k"] = _form(None, None, int8=False)
    mixer = {"heads": layer["heads"], "head_dim": head_dim, "reuse": layer.get("reuse", False), "kind": "attention"}
    ffn = {"size": layer["ffn"], "kind": "feed_forward", "fc1": forms.pop("fc1"), "fc2": forms.pop("fc2")}
    return {"mixer": {**mixer, **forms}, "ffn": ffn}


def _form(rank: int | None, blocks: Any, *, int8: bool) -> dict[str, Any]:
    if blocks is not None:
        return {"size": blocks[0], "kept": blocks[1], "kind": "blocks"}
    return {"int8": int8, "kind": "full"} if rank is None else {"rank": rank, "int8": int8, "kind": "rank"}
