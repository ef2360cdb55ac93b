"""What PyTorch checkpoints call our arrays, and how the arrays lie there.

A rule is a pattern of source names, the path it goes to, and a layout. Parts list the rules of their own arrays;
`jaxssl.convert.naming` applies them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

Shape = tuple[int, ...]


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
PAIR = Layout(  # in, out, 2: two maps of one input, one above the other
    lambda shape: (shape[2] * shape[1], shape[0]),
    lambda array, shape: array.reshape(2, shape[1], shape[0]).transpose(2, 1, 0),
    lambda array: array.transpose(2, 1, 0).reshape(-1, array.shape[0]),
)
CONV = Layout(lambda shape: shape[::-1], lambda array, _: _flipped(array), _flipped)
TAPS = Layout(lambda shape: (1, 1, *shape), np.reshape, lambda array: array[None, None])


@dataclass(frozen=True)
class Rule:
    """Names that match `pattern` as a whole go to `path`, which may hold the pattern's groups by number."""

    pattern: str
    path: str
    layout: Layout


def dense_rules(pattern: str, path: str, layout: Layout = SPLIT) -> tuple[Rule, Rule]:
    """Name the arrays of a linear map or a convolution."""
    return Rule(rf"{pattern}\.weight", f"{path}/kernel", layout), Rule(rf"{pattern}\.bias", f"{path}/bias", FLAT)


def norm_rules(pattern: str, path: str) -> tuple[Rule, Rule]:
    """Name the arrays of a norm."""
    return Rule(rf"{pattern}\.weight", f"{path}/scale", FLAT), Rule(rf"{pattern}\.bias", f"{path}/bias", FLAT)
