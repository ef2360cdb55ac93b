"""The best choice of options, found by trying all of them."""

from itertools import product

import numpy as np
import pytest

from compress.errors import InputError
from compress.knapsack import STEPS, knapsack


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_that_fits_is_better(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, 5)
    losses, costs = [rng.normal(size=n) for n in sizes], [rng.integers(0, 20, n).astype(float) for n in sizes]
    least, most = sum(c.min() for c in costs), sum(c.max() for c in costs)
    budget = least + rng.uniform(0.1, 1) * (most - least) + 0.5
    chosen = knapsack(losses, costs, budget)
    total = sum(cost[i] for cost, i in zip(costs, chosen, strict=True))
    assert total <= budget
    each = product(*map(range, sizes))
    slack = budget * len(sizes) / STEPS
    fits = [c for c in each if sum(cost[i] for cost, i in zip(costs, c, strict=True)) <= budget - slack]
    best = min(sum(loss[i] for loss, i in zip(losses, c, strict=True)) for c in fits)
    assert sum(loss[i] for loss, i in zip(losses, chosen, strict=True)) <= best + 1e-12


def test_the_cheapest_fits_exactly():
    cost = np.array([1.0, 1 / 3])
    assert knapsack([np.array([0.0, 1.0])] * 3, [cost] * 3, 1.0) == [1, 1, 1]


def test_a_budget_that_nothing_fits_is_refused():
    with pytest.raises(InputError, match="cheapest options cost 3, the budget is 2"):
        knapsack([np.zeros(1)] * 3, [np.ones(1)] * 3, 2.0)
    with pytest.raises(InputError, match="not finite"):
        knapsack([np.array([np.nan])], [np.ones(1)], 2.0)
