"""Searches for a plan, against all plans there are."""

from itertools import pairwise, product

import numpy as np
import pytest

from compress.descent import better, descend, total


def some(seed, groups=4):
    """Groups of options, option 0 the dearest and without loss, and losses that interact."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 5, groups)
    costs = [np.sort(rng.uniform(0, 10, n))[::-1] for n in sizes]
    alone = [np.concatenate([[0], np.cumsum(rng.uniform(0, 1, n - 1))]) for n in sizes]
    together = rng.uniform(0, 1, (groups, groups))

    def loss(choice):
        each = np.array([row[i] for row, i in zip(alone, choice, strict=True)])
        return float(each.sum() + each @ together @ each)

    return loss, costs


def allowed(costs, share):
    least, most = sum(c.min() for c in costs), sum(c.max() for c in costs)
    return least + share * (most - least)


@pytest.mark.parametrize("seed", range(5))
def test_the_way_down_gets_cheaper_to_the_end(seed):
    loss, costs = some(seed)
    way = list(descend(loss, costs))
    assert way[0] == (0,) * len(costs)
    assert all(total(costs, one) > total(costs, other) for one, other in pairwise(way))
    assert total(costs, way[-1]) == pytest.approx(sum(c.min() for c in costs))


def test_what_is_found_is_close_to_the_best_of_all_plans():
    """Of 60 made-up problems the search finds the best plan in half, and is never far from it."""
    found = []
    for seed, share in product(range(20), (0.3, 0.5, 0.7)):
        loss, costs = some(seed)
        budget = allowed(costs, share)
        start = next(choice for choice in descend(loss, costs) if total(costs, choice) <= budget)
        chosen = better(loss, costs, start, budget)
        assert total(costs, chosen) <= budget
        assert loss(chosen) <= loss(start)
        fits = [c for c in product(*(range(len(c)) for c in costs)) if total(costs, c) <= budget]
        found.append(loss(chosen) / min(map(loss, fits)))
    assert np.median(found) == pytest.approx(1)
    assert max(found) < 1.3


def test_losses_are_asked_of_whole_plans():
    """Either of two blocks can go, not both: sums of what each loses alone would let both go."""
    costs = [np.array([2.0, 0.0])] * 3

    def loss(choice):
        return 0.1 * choice[0] + 0.1 * choice[1] + 5.0 * choice[0] * choice[1] + 1.0 * choice[2]

    way = list(descend(loss, costs))
    assert way[1:3] in ([(1, 0, 0), (1, 0, 1)], [(0, 1, 0), (0, 1, 1)])


def test_a_plan_is_bettered_until_no_exchange_helps():
    costs = [np.array([3.0, 1.0])] * 2

    def loss(choice):
        return 1.0 * choice[0] + 2.0 * choice[1]

    assert better(loss, costs, (0, 1), 4.0) == (1, 0)
    assert better(loss, costs, (1, 1), 6.0) == (0, 0)  # what the budget leaves is spent
    assert better(loss, costs, (0, 0), 0.0) == (0, 0)  # nothing dearer fits


def test_few_losses_are_asked():
    """Lazily: not every step is priced anew after every other."""
    rng = np.random.default_rng(0)
    costs = [np.linspace(9, 0, 10)] * 12
    alone, asked = np.cumsum(rng.uniform(0, 1, (12, 10)), 1), set()

    def loss(choice):
        asked.add(choice)
        return float(np.square(alone[range(12), choice]).sum())

    steps = len(list(descend(loss, costs)))
    assert len(asked) < steps * 12 * 5 / 3
