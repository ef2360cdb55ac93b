"""Padding: rows keep their content, zeros follow, the caller's arrays stay."""

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.padding import batches, pad

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


def test_batches_have_few_shapes_and_every_row_once():
    rows = [np.full(n, i, np.float32) for i, n in enumerate((3, 9, 1, 4, 10, 2, 5))]
    found = list(batches(rows, lengths=(4, 10), size=lambda length: 8 // length or 1))
    assert {padded.shape for _, (padded, _) in found} == {(2, 4), (1, 10)}
    assert sorted(i for named, _ in found for i in named) == list(range(7))
    for named, (padded, lengths) in ((named, map(np.asarray, batch)) for named, batch in found):
        for place, i in enumerate([*named, *[named[0]] * (len(padded) - len(named))]):
            assert lengths[place] == len(rows[i])
            assert (padded[place, : len(rows[i])] == i).all()
            assert not padded[place, len(rows[i]) :].any()
