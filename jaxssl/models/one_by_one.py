"""Rows of a batch one after another, where each is enough work for a device and all together miss its caches."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array


def one_by_one(run: Callable[..., Any], *arrays: Array | None) -> Any:
    """Return `run(*arrays)` of a function that treats every row alone; `arrays` are (batch, …) or None.

    Every array that `run` returns has the batch as its first axis too.
    """

    def row(each: tuple[Array | None, ...]) -> Any:
        out = run(*(None if array is None else array[None] for array in each))
        return jax.tree.map(lambda leaf: leaf[0], out)

    return jax.lax.map(row, arrays)
