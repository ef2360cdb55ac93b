"""Arrays of other programs under our names: every source name is used exactly once, and what does not fit is told.

What names there are, the parts say (`jaxssl.models.arch.Arch.names`).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from compress.address import flatten, unflatten
from compress.errors import InputError
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params, shapes
from jaxssl.models.names import SAME, Layout, Rule, Shape
from jaxssl.models.part import Dialect

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
class _Chosen:
    """What becomes an array of ours."""

    name: str
    tensor: Tensor
    layout: Layout


@dataclass
class _Problems:
    """What does not fit, by kind."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        self.found.setdefault(kind, []).append(what)

    def check(self, where: str) -> None:
        if self.found:
            kinds = [f"{kind}: {_listed(names)}" for kind, names in self.found.items()]
            total = sum(len(names) for names in self.found.values())
            raise InputError(f"{where}: {total} names do not fit the model; {'; '.join(kinds)}")


def own(array: np.ndarray) -> np.ndarray:
    """Return a copy that shares nothing, its numbers in the order of its axes."""
    return np.array(array, order="C")


def build(
    arch: Arch,
    tensors: Mapping[str, Tensor],
    dialect: Dialect,
    *,
    left: Iterable[str] = (),
    where: str = "source",
    held: Callable[[np.ndarray], Any] = own,
) -> tuple[Params, tuple[str, ...]]:
    """Turn named PyTorch tensors into a parameter tree; nothing is read unless every name fits.

    Args:
        arch: what the tree must be.
        tensors: by source name.
        dialect: whose names they are.
        left: patterns of names that are known and not part of the model.
        where: the source, for messages.
        held: makes of each array as it is read, which may be a transposed window on the file, one that is kept.

    Returns:
        The tree, float32, and the names left behind.

    Raises:
        InputError: names that are unknown, missing, assigned twice, of another shape or not floating, all in one; or
            an array with numbers that are not finite.
    """
    tensors = dict(tensors)
    behind = tuple(name for name in tensors if any(re.fullmatch(pattern, name) for pattern in left))
    for name in behind:
        del tensors[name]
    expected = _expected(arch, where)
    chosen = _assign(expected, tensors, arch.names(dialect), where)
    flat = {path: held(_convert(chosen[path], expected[path], where)) for path in expected}
    return unflatten(flat), behind


def named(arch: Arch, params: Params, dialect: Dialect) -> dict[str, np.ndarray]:
    """Return parameters as another program names and lays them out: the inverse of `build`.

    Raises:
        InputError: the dialect has no name for an array.
    """
    rules, found = arch.names(dialect), {}
    for path, leaf in flatten(params).items():
        name = _source_name(path, rules)
        target, layout = _find(name, rules)
        if target != _plain(path):
            raise InputError(f"{path}: this format has no such array")
        found[name] = np.ascontiguousarray(layout.back(np.asarray(leaf)))
    return found


def _expected(arch: Arch, where: str) -> dict[str, Shape]:
    try:
        return {path: tuple(leaf.shape) for path, leaf in flatten(shapes(arch)).items()}
    except OverflowError as error:
        raise InputError(f"{where}: sizes that no arrays can have ({error}); copy the file again") from error


def _assign(
    expected: Mapping[str, Shape], tensors: Mapping[str, Tensor], rules: tuple[Rule, ...], where: str
) -> dict[str, _Chosen]:
    chosen: dict[str, _Chosen] = {}
    called = {_plain(path): path for path in expected}
    problems = _Problems()
    for name, tensor in tensors.items():
        path, layout = _find(name, rules)
        path = called.get(path, path)
        if path not in expected:
            problems.add("unknown", name)
        elif path in chosen:
            problems.add("assigned twice", f"{name} (to {path})")
        else:
            chosen[path] = _Chosen(name, tensor, layout)
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


def _plain(path: str) -> str:
    """Leave out of a path which units the array has (`compress.address.numbered`): other programs do not say."""
    return path.partition("@")[0]


def _source_name(path: str, rules: tuple[Rule, ...]) -> str:
    """Say what a missing array would be called: the first rule that leads to its path, read backwards."""
    path = _plain(path)
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


def _convert(chosen: _Chosen, shape: Shape, where: str) -> np.ndarray:
    array = finite(chosen.tensor.read(), f"{where}: {chosen.name}")
    return chosen.layout.convert(array, shape)


def finite(array: np.ndarray, where: str) -> np.ndarray:
    """Return an array as it is.

    Raises:
        InputError: some of its numbers are infinite or none.
    """
    with np.errstate(all="ignore"):
        total = array.sum()  # which needs no array of its own, and is finite where all numbers are, or nearly
    if not np.isfinite(total) and (bad := array.size - int(np.isfinite(array).sum())):
        raise InputError(
            f"{where} has {bad} of {array.size} numbers that are NaN or infinite in float32; copy the file again, or "
            "take one from before its training went wrong"
        )
    return array


def _listed(names: Iterable[Any]) -> str:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
