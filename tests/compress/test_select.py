"""Laws of choosing by budget and of rounding to what the hardware likes."""

import math

import numpy as np
import pytest

from compress.errors import InputError
from compress.select import highest, highest_overall, round_keep, within_budget

SIZES = {"a": 7, "b": 1, "c": 12, "none": 0, "d": 5}
COSTS = {"a": 30.0, "b": 100.0, "c": 7.0, "none": 0.0, "d": 30.0}


def drawn(seed, *, ties=False):
    draw = np.random.default_rng(seed)
    pick = (
        (lambda size: draw.integers(0, 3, size).astype(float)) if ties else (lambda size: draw.exponential(size=size))
    )
    return {name: pick(size) for name, size in SIZES.items()}


def total(keeps):
    return sum(COSTS[name] * len(keep) for name, keep in keeps.items())


every_budget = pytest.mark.parametrize("budget", [167.0, 200.0, 333.0, 360.0, 440.0, 543.0, 544.0, 1e9])


@every_budget
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_a_budget_is_kept_and_used_up(seed, protect, ties, budget):
    """The total fits, no dropped unit would fit too, of each axis the highest stay, and at least `protect` of them."""
    scores = drawn(seed, ties=ties)
    keeps = within_budget(scores, COSTS, budget, protect=protect)
    assert total(keeps) <= budget
    assert list(keeps) == list(scores)
    for name, keep in keeps.items():
        assert keep == highest(scores[name], len(keep))
        assert len(keep) >= min(protect, SIZES[name])
        assert len(keep) == SIZES[name] or total(keeps) + COSTS[name] > budget


@every_budget
@pytest.mark.parametrize("seed", range(5))
def test_what_pays_less_stays_only_if_it_is_cheaper(seed, budget):
    """A unit goes before one of less score per cost only where it would not have fitted."""
    scores = drawn(seed)
    keeps = within_budget(scores, COSTS, budget, protect=0)
    units = [(s / COSTS[n], COSTS[n], i in keeps[n]) for n, values in scores.items() for i, s in enumerate(values)]
    stayed, went = [u for u in units if u[2]], [u for u in units if not u[2]]
    assert all(kept[0] > gone[0] or kept[1] < gone[1] for kept in stayed for gone in went)


@pytest.mark.parametrize("protect", [0, 1, 2])
@pytest.mark.parametrize("ties", [False, True])
def test_at_one_price_a_budget_is_a_count(ties, protect):
    """within_budget(s, 1, n) == highest_overall(s, all − n), ties included."""
    scores, units = drawn(0, ties=ties), sum(SIZES.values())
    for count in range(sum(min(protect, size) for size in SIZES.values()), units + 1):
        keeps = within_budget(scores, dict.fromkeys(SIZES, 0.1), 0.1 * count, protect=protect)
        assert keeps == highest_overall(scores, units - count, protect=protect)


def test_the_price_decides_between_axes():
    scores = {"dear": np.array([9.0, 3.0]), "cheap": np.array([2.0, 1.0, 1.0])}
    assert within_budget(scores, {"dear": 4.0, "cheap": 1.0}, 7.0) == {"dear": (0,), "cheap": (0, 1, 2)}
    assert within_budget(scores, {"dear": 1.0, "cheap": 1.0}, 4.0) == {"dear": (0, 1), "cheap": (0, 1)}


@pytest.mark.parametrize(
    ("costs", "budget", "protect", "message"),
    [
        (COSTS, 166.9, 1, "a budget of 166.9 is below 167, the cost of the best 1 of each axis; raise it or protect"),
        (COSTS, -1.0, 0, "a budget of -1 is below 0"),
        (COSTS, math.nan, 1, "a budget of nan is below 167"),
        (COSTS, 200.0, -1, "cannot protect -1 units"),
        ({**COSTS, "c": 0.0}, 200.0, 1, "c: a unit costs 0.0; give every axis"),
        ({"a": 1.0}, 200.0, 1, "b: a unit costs None"),
    ],
)
def test_impossible_budgets_are_told(costs, budget, protect, message):
    with pytest.raises(InputError, match=message):
        within_budget(drawn(0), costs, budget, protect=protect)


def test_scores_that_are_not_numbers_have_no_place_in_a_budget():
    with pytest.raises(InputError, match="b: 1 of 1 scores"):
        within_budget({**drawn(0), "b": np.array([np.nan])}, COSTS, 200.0)


@pytest.mark.parametrize("size", [1, 3, 4, 12, 100])
@pytest.mark.parametrize("multiple", [1, 2, 4, 5, 64])
def test_the_nearest_multiple_stays(size, multiple):
    scores = np.random.default_rng(size).random(size)
    allowed = range(multiple, size + 1, multiple)
    for count in range(size + 1):
        keep = round_keep(scores, count, multiple)
        assert keep == highest(scores, len(keep))
        if count in (0, size) or not allowed:
            assert len(keep) == count
        else:
            assert len(keep) == min(allowed, key=lambda n: (abs(n - count), n))


def test_impossible_roundings_are_told():
    with pytest.raises(InputError, match="multiples of 0 units"):
        round_keep(np.ones(4), 2, 0)
    for count in (5, -1):
        with pytest.raises(InputError, match=f"cannot keep {count} of 4"):
            round_keep(np.ones(4), count, 2)
