"""Take whole layers out of a stack."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from compress.address import Tree, get
from compress.errors import InputError


def keep_layers(tree: Mapping[str, Any], keep: Sequence[int]) -> Tree:
    """Keep the layers `keep` of `layers/<i>`, renumbered from 0 in ascending order.

    Raises:
        InputError: a layer does not exist, or the numbers do not ascend.
    """
    layers = get(tree, "layers")
    count = len(layers)
    if any(not 0 <= i < count for i in keep):
        raise InputError(f"layers: cannot keep {tuple(keep)} of {count}; they are numbered 0 … {count - 1}")
    if any(b <= a for a, b in pairwise(keep)):
        raise InputError(f"layers: the numbers to keep must ascend without repeats, not {tuple(keep)}")
    return {**tree, "layers": {str(new): layers[str(old)] for new, old in enumerate(keep)}}
