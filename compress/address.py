"""Names for the parts of a parameter tree: paths, globs, prunable axes, dense maps.

A tree is a nested dict with string keys; an array's path is its keys joined by "/", as `layers/3/ffn/fc1/kernel`.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from compress.errors import InputError

Tree = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A prunable axis: the set of tensors that share it, so that one unit is one index into each.

    Attributes:
        name: printed name, as `layers/3/attention/heads`.
        size: number of units.
        leaves: (path, axis) of every tensor that has these units.
        into: path of the dense map that the units feed, as `layers/3/attention/out`.
        also_into: paths of further such maps, where a unit is more than one map's, as a head whose map is reused.
        normed: whether a norm over all units stands before that map.
    """

    name: str
    size: int
    leaves: tuple[tuple[str, int], ...]
    into: str = ""
    also_into: tuple[str, ...] = ()
    normed: bool = False

    @property
    def feeds(self) -> tuple[str, ...]:
        """Paths of all dense maps that the units feed."""
        return (self.into, *self.also_into)


@dataclass(frozen=True)
class Matrix:
    """A dense map, `{kernel, bias}`, or the same factorised, `{down, up, bias}`, or packed, `{blocks, index, bias}`.

    Attributes:
        path: where it is, as `layers/3/ffn/fc1`.
        inputs: how many leading axes of `shape` are input; the others are output.
        shape: the dense kernel's shape, (*in, *out), also when the map is not stored so.
        rank: None when not factorised.
        blocks: (size, kept) of a packed map, as `compress.blocks` stores it; None otherwise.
        int8: whether its weights are int8, with scales beside them, as `compress.quantize` stores them.
        bias: whether it has one.
    """

    path: str
    inputs: int
    shape: tuple[int, ...]
    rank: int | None = None
    blocks: tuple[int, int] | None = None
    int8: bool = False
    bias: bool = True

    @property
    def fan_in(self) -> int:
        """Number of inputs, all input axes together."""
        return math.prod(self.shape[: self.inputs])

    @property
    def fan_out(self) -> int:
        """Number of outputs, all output axes together."""
        return math.prod(self.shape[self.inputs :])

    @property
    def max_rank(self) -> int:
        """The rank beyond which a factorisation adds nothing."""
        return min(self.fan_in, self.fan_out)

    @property
    def size(self) -> int:
        """Entries (and MACs a frame) of the map as it is, without its bias."""
        if self.blocks is not None:
            size, kept = self.blocks
            return kept * size * self.fan_out
        return self.fan_in * self.fan_out if self.rank is None else self.factorised_size(self.rank)

    def factorised_size(self, rank: int) -> int:
        """Count the entries (and MACs a frame) at a rank: rank · (in + out)."""
        return rank * (self.fan_in + self.fan_out)

    def pays(self, rank: int) -> bool:
        """Tell whether a rank makes the map smaller than it is; for a dense one, rank · (in + out) < in · out."""
        return self.factorised_size(rank) < self.size


def numbered(name: str, units: Iterable[int]) -> str:
    """Name an array after the units that it has, where they keep their numbers when others go.

    >>> numbered("scale", (0, 2, 3))
    'scale@0.2.3'
    """
    return f"{name}@{'.'.join(map(str, units))}"


def numbers(path: str) -> tuple[int, ...] | None:
    """List the units that a name or path made by `numbered` has; None for others.

    >>> numbers("gate/scale@0.2.3"), numbers("scale@"), numbers("gate/bias")
    ((0, 2, 3), (), None)
    """
    _, sign, units = path.partition("@")
    return tuple(int(unit) for unit in units.split(".") if unit) if sign else None


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """List a tree's arrays by path.

    >>> flatten({"a": {"b": 1}, "c": 2})
    {'a/b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Invert `flatten`.

    >>> unflatten({"a/b": 1, "c": 2})
    {'a': {'b': 1}, 'c': 2}
    """
    tree: Tree = {}
    for path, leaf in flat.items():
        *branches, name = path.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[name] = leaf
    return tree


def get(tree: Mapping[str, Any], path: str) -> Any:
    """Return what is at a path, an array or a subtree.

    Raises:
        InputError: nothing is there; the message shows the nearest names.
    """
    node: Any = tree
    for key in path.split("/"):
        if not isinstance(node, Mapping) or key not in node:
            raise InputError(f"{path}: no such path in the tree; near: {_near(path, flatten(tree))}")
        node = node[key]
    return node


def put(tree: Mapping[str, Any], path: str, value: Any) -> Tree:
    """Return the tree with `value` at `path`; the given tree stays as it is.

    >>> put({"a": {"b": 1}, "c": 2}, "a/b", 3)
    {'a': {'b': 3}, 'c': 2}

    Raises:
        InputError: the path runs through an array.
    """
    key, _, rest = path.partition("/")
    if not rest:
        return {**tree, key: value}
    branch = tree.get(key, {})
    if not isinstance(branch, Mapping):
        raise InputError(f"{path}: '{key}' is an array here, so nothing can be put below it")
    return {**tree, key: put(branch, rest, value)}


def match(pattern: str, names: Iterable[str]) -> tuple[str, ...]:
    """Select names by a shell glob; `*` also crosses "/", and commas separate alternatives.

    >>> match("layers/*/fc1,project", ["project", "layers/0/ffn/fc1", "layers/0/ffn/fc2"])
    ('project', 'layers/0/ffn/fc1')

    Raises:
        InputError: an alternative matches nothing; the message shows the nearest names.
    """
    names = tuple(names)
    globs = [glob.strip() for glob in pattern.split(",")]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise InputError(f"'{glob}' matches none of {len(names)} names; near: {_near(glob, names)}")
    return tuple(name for name in names if any(fnmatchcase(name, glob) for glob in globs))


def _near(name: str, names: Iterable[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, tuple(names), n=3, cutoff=0.0)) or "nothing at all"
