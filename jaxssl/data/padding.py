"""Utterances of unequal length as arrays."""

from collections.abc import Sequence

import numpy as np

from compress.errors import InputError


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
