"""What every kind of source has in common: its description, and settings checked against the arrays' shapes."""

import ast
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from compress.errors import InputError
from jaxssl.convert.naming import Tensor
from jaxssl.models.arch import Arch, Conv
from jaxssl.models.part import Dialect

T = TypeVar("T", int, float, str, bool)
MOST = 2**31 - 1  # of any number of a model, as in `jaxssl.models.arch_json`
LONGEST = 64  # convolutions that an extractor may have


def said_by(path: Path, flag: str) -> str:
    """Say which command takes what a checkpoint leaves out: others that read checkpoints do not ask for it."""
    return f"say python -m tools.convert_torch {shlex.quote(str(path))} OUT {flag}, and take OUT as the model"


@dataclass(frozen=True)
class Ctc:
    """A fine-tuned model's output layer: a linear map to symbols, which is no part of our models."""

    kernel: Tensor
    bias: Tensor | None
    symbols: list[str] | None


@dataclass(frozen=True)
class Source:
    """A checkpoint, described and not yet read.

    Attributes:
        kind: what wrote it, for people.
        arch: what it holds.
        tensors: the model's, by the source's names.
        dialect: whose names these are.
        left: patterns of names that are known and not kept.
        files: what was read, weights first.
        notes: what the reader of the result should know.
        ctc: the output layer of a fine-tuned model.
    """

    kind: str
    arch: Arch
    tensors: Mapping[str, Tensor]
    dialect: Dialect
    left: tuple[str, ...]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    ctc: Ctc | None = None


@dataclass(frozen=True)
class Settings:
    """A model's numbers: as configured, else as measured on the arrays, else as the source's code would default.

    A number that is both configured and measured must agree.
    """

    path: Path
    given: Mapping[str, Any]
    measured: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """Return one setting.

        Raises:
            InputError: it is not known, not a `kind`, or the configuration and the arrays disagree.
        """
        given, measured = self.given.get(name), self.measured.get(name)
        if given is not None and measured is not None and given != measured:
            raise InputError(f"{self.path}: {name} is {given} in the configuration and {measured} in the arrays")
        value = next((value for value in (given, measured, default) if value is not None), None)
        if value is None:
            raise InputError(f"{self.path}: {name} is neither in the configuration nor to be seen in the arrays")
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST:
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            raise InputError(f"{self.path}: {name} is {str(value)[:60]!r}, which is no {kind.__name__}")
        if isinstance(value, (int, float)) and not -MOST <= value <= MOST:  # nor NaN
            raise InputError(f"{self.path}: {name} is {str(value)[:40]}, beyond {MOST}; no model has such a number")
        return value

    def positive(self, name: str) -> int:
        """Return a setting that counts something there must be."""
        if (value := self.get(name, int)) < 1:
            raise InputError(f"{self.path}: {name} is {value}, at least 1 is needed")
        return value

    def head_dim(self, width: str, heads: str) -> int:
        """Return the size of one head.

        Raises:
            InputError: the heads do not divide the width.
        """
        total, count = self.positive(width), self.positive(heads)
        if total % count:
            raise InputError(f"{self.path}: {width} {total} is no multiple of {heads} {count}")
        return total // count

    def require(self, wanted: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse, by name, settings whose model ours is not: each must be absent or one of its values."""
        for name, values in wanted.items():
            if (value := self.given.get(name)) is not None and value not in values:
                raise InputError(f"{self.path}: {name} is {value!r}; what is supported: {', '.join(map(repr, values))}")


def size(tensors: Mapping[str, Tensor], name: str, axis: int) -> int | None:
    """Measure one axis of a tensor; None where there is none."""
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if -len(shape) <= axis < len(shape) else None


def position_groups(tensors: Mapping[str, Tensor], kernel: str) -> int | None:
    """Measure the groups of the positional convolution: width over inputs of one group."""
    width, inputs = size(tensors, kernel, 0), size(tensors, kernel, 1)
    return width // inputs if width and inputs else None


def layer_count(names: Iterable[str], prefix: str = "encoder.layers.") -> int:
    """Count the distinct layers among the names."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take a prefix off the names that have it, unless the short name is there too; the long one is then unknown."""
    return {
        name if name.removeprefix(prefix) in tensors else name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
    }


def only_tensors(path: Path, values: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return a state dict as it is.

    Raises:
        InputError: it is empty, or holds anything but tensors.
    """
    if not values:
        raise InputError(f"{path}: it holds no model, or an empty one")
    # Asked of the class: what else a pickle holds takes whatever attributes the file gives it.
    if bad := [name for name, value in values.items() if not callable(getattr(type(value), "read", None))]:
        raise InputError(f"{path}: {bad[0]} is no tensor ({len(bad)} of {len(values)} entries are none)")
    return values


def parse_convs(path: Path, text: str) -> tuple[Conv, ...]:
    """Read fairseq's `[(512,10,5)] + [(512,3,2)] * 4`: lists of (channels, kernel, stride), + and *, nothing else.

    Raises:
        InputError: it is anything else, or absurdly long.
    """
    try:
        if len(text) > 1000:
            raise ValueError(text[:40])
        convs = _evaluate(ast.parse(text, mode="eval").body)
        return tuple(Conv(*(_natural(number) for number in conv)) for conv in convs)
    except (SyntaxError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: conv_feature_layers {text[:80]!r} is no list of (channels, kernel, stride)"
        ) from error


def _evaluate(node: ast.expr) -> Any:
    match node:
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_evaluate(item) for item in items]
        case ast.Constant(value=int() as number):
            return number
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            value = _evaluate(left) + _evaluate(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int() as times)) if times <= LONGEST:
            value = _evaluate(left) * times
        case _:
            raise ValueError(ast.dump(node)[:40])
    if not isinstance(value, list) or len(value) > LONGEST:
        raise ValueError("too long")
    return value


def _natural(number: object) -> int:
    if type(number) is not int or not 1 <= number <= MOST:
        raise ValueError(number)
    return number
