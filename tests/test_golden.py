"""A golden array that is not met is named."""

import numpy as np
import pytest

from tests.golden import meets

WANTED = {"last": np.arange(6.0).reshape(1, 3, 2), "layers": {"0": {"bias": np.ones(2)}}}


def test_what_is_near_meets():
    meets({"last": WANTED["last"] + 1e-5, "layers": WANTED["layers"]}, WANTED, atol=2e-5)
    longer = np.concatenate([WANTED["last"], np.full((1, 1, 2), np.nan)], 1)
    meets({"last": longer}, WANTED, lengths=[4])  # frames that the golden file does not hold


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"layers": {"0": {"bias": np.array([1.0, 1.5])}}}, r"layers/0/bias: 1 of 2 .* at \(1,\): 1.5, golden 1 "),
        ({"layers": {"0": {"bias": np.array([np.nan, 1.0])}}}, r"layers/0/bias: 1 of 2 .* at \(0,\): nan"),
        ({"last": np.zeros((1, 3, 1))}, r"last: shape \(1, 3, 1\), golden \(1, 3, 2\)"),
        ({"first": np.zeros(3)}, "first: no such golden array"),
    ],
)
def test_what_is_not_is_named(found, message):
    with pytest.raises(AssertionError, match=message):
        meets(found, WANTED, atol=1e-4)


def test_rows_are_named():
    with pytest.raises(AssertionError, match=r"last, row 0: 4 of 4"):
        meets({"last": WANTED["last"] + 1}, WANTED, lengths=[2])
