"""What several seeds answered is averaged, and the bootstrap sees the means."""

import numpy as np
import pytest

from experiments.probes.rates import Answer, averaged, compare
from jaxssl.training.error_rates import error_rate
from jaxssl.training.probe import Score, interval

TOTAL = np.array([10, 20, 30])


def score(*correct):
    right = np.array(correct)
    return Score(right.sum() / TOTAL.sum(), 0.0, 1.0, right, TOTAL, np.array([0.5, 0.5]), 1e-3)


def answer(found, layers=(0.5, 0.5)):
    return Answer("frame accuracy", found, np.array(layers), 1, int(TOTAL.sum()), 3)


def test_one_seed_stays_as_it_is():
    one = answer(score(1, 2, 3))
    assert averaged([[one]], seed=0) == [one]


def test_accuracies_are_the_mean_of_the_seeds():
    (found,) = averaged([[answer(score(2, 4, 6), (1, 0))], [answer(score(4, 8, 12), (0, 1))]], seed=0)
    assert found.by_seed == pytest.approx((0.2, 0.4))
    assert found.found.accuracy == pytest.approx(0.3)
    assert (found.found.low, found.found.high) == interval(np.array([3.0, 6, 9]), TOTAL, seed=0)
    np.testing.assert_array_equal(found.layers, [0.5, 0.5])
    row = compare("phones", "model", [found], [found], seed=0)[0]
    assert row["by_seed"] == pytest.approx([0.2, 0.4])
    assert row["correct_by_unit"] == [3, 6, 9]


def test_error_rates_are_too():
    said, units = [("A", "B"), ("C", "D")], np.arange(2)
    one, two = (error_rate(said, wrote, units, seed=0) for wrote in ([("A",), ("C", "D")], [("A",), ("D",)]))
    (found,) = averaged([[Answer("PER", each, np.ones(1), 2, 4, 4)] for each in (one, two)], seed=0)
    assert found.by_seed == (0.25, 0.5)
    assert found.found.value == 0.375
    np.testing.assert_array_equal(found.found.errors, [1.0, 0.5])
    assert found.found.deletions in (1, 2)
