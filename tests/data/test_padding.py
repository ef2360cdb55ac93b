"""Padding: rows keep their content, zeros follow, the caller's arrays stay."""

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.padding import pad

ROWS = [np.ones(2, np.float32), np.ones(5, np.float32)]


def test_rows_are_followed_by_zeros():
    batch, lengths = pad(ROWS)
    np.testing.assert_array_equal(batch, [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert (batch.dtype, lengths.dtype, lengths.tolist()) == (np.float32, np.int32, [2, 5])


def test_a_given_length():
    assert pad(ROWS, to=7)[0].shape == (2, 7)
    assert pad([np.ones((3, 40))], to=4)[0].shape == (1, 4, 40)
    with pytest.raises(InputError, match="row of 5 does not fit into 4"):
        pad(ROWS, to=4)


def test_nothing_to_pad():
    with pytest.raises(InputError, match="no rows"):
        pad([])
