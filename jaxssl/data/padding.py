"""Utterances of unequal length as arrays."""

from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError

Padded = tuple[Array, Array]  # rows (batch, longest, …) and their lengths (batch,), on the device


def pad(rows: Sequence[np.ndarray], *, to: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Put rows (n_i, …) into one zero-padded array (batch, longest, …); also return their lengths, (batch,) int32.

    Args:
        rows: at least one; equal in type and in all axes but the first.
        to: length of the padded axis instead of the longest row's, so that several batches compile once.

    Raises:
        InputError: there are no rows, or one is longer than `to`.
    """
    if not rows:
        raise InputError("no rows to pad; give at least one")
    lengths = np.array([len(row) for row in rows], np.int32)
    longest = int(lengths.max())
    if to is not None and to < longest:
        raise InputError(f"a row of {longest} does not fit into {to}; crop it, or pad to {longest} or more")
    batch = np.zeros((len(rows), longest if to is None else to, *rows[0].shape[1:]), rows[0].dtype)
    for target, row in zip(batch, rows, strict=True):
        target[: len(row)] = row
    return batch, lengths


def batches(
    rows: Sequence[np.ndarray], *, lengths: Sequence[int], size: Callable[[int], int]
) -> Iterator[tuple[np.ndarray, Padded]]:
    """Pad rows to few shapes: each to the next of `lengths`, `size(length)` rows of a length at once.

    Where too few are left for a batch, its first row is repeated.

    Args:
        rows: as `pad` takes them, none longer than the last of `lengths`.
        lengths: ascending.
        size: how many rows of that padded length make a batch.

    Yields:
        Which rows they are, and the padded batch, whose rows beyond those only fill it.
    """
    bucket = np.searchsorted(lengths, [len(row) for row in rows])
    for number, longest in enumerate(lengths):
        members, together = np.flatnonzero(bucket == number), size(longest)
        for start in range(0, len(members), together):
            named = members[start : start + together]
            filled = [*named, *[named[0]] * (together - len(named))]
            padded, valid = pad([rows[i] for i in filled], to=longest)
            yield named, (jnp.asarray(padded), jnp.asarray(valid))
