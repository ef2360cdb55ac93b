"""How much each unit of an axis matters, judged by its weights."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from compress.address import Axis, get
from compress.errors import InputError


def magnitude(params: Mapping[str, Any], axis: Axis, *, order: int = 1, leaves: str = "*") -> np.ndarray:
    """Sum |w|^order over everything that belongs to each unit.

    With order 1 and all leaves this is the study's FFN-row score, ‖W1[i]‖₁ + |b1[i]| + ‖W2[:, i]‖₁; with
    `leaves="*/[qkv]/*"` its head score, which leaves the output map aside ("Is Smaller Always Faster?", §3).

    Of a factorised map only the side with the units counts, `up` or `down`; its norms are not the dense kernel's, so
    the ranking can differ though the function is the same. Score first and factorise then to keep the study's order.

    Args:
        params: the tree.
        axis: whose units to score.
        order: 1 for the L1 norm, 2 for the squared L2 norm.
        leaves: glob on the paths that count.

    Returns:
        Scores, (axis.size,), float64.

    Raises:
        InputError: no leaf of the axis matches `leaves`.
    """
    chosen = [(path, at) for path, at in axis.leaves if fnmatchcase(path, leaves)]
    if not chosen:
        raise InputError(f"{axis.name}: '{leaves}' matches none of its {len(axis.leaves)} tensors")
    return np.sum([_per_unit(get(params, path), at, order) for path, at in chosen], axis=0)


def _per_unit(array: Any, at: int, order: int) -> np.ndarray:
    array = np.moveaxis(np.asarray(array), at, 0)
    return (np.abs(array) ** order).reshape(array.shape[0], -1).sum(1, dtype=np.float64)
