"""Search for a plan by the loss of whole plans: one option of each group, ever cheaper, then bettered within a budget.

Options' losses do not add up: what two blocks lose together is often ten times the sum of what each loses alone. So
every step asks for the loss of the whole choice. A choice is the number of the option of each group, a tuple.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np

Choice = tuple[int, ...]
Loss = Callable[[Choice], float]


def total(costs: Sequence[np.ndarray], choice: Choice) -> float:
    """Return what a choice costs."""
    return sum(float(cost[option]) for cost, option in zip(costs, choice, strict=True))


def descend(loss: Loss, costs: Sequence[np.ndarray]) -> Iterator[Choice]:
    """Go from option 0 of each group down, each step the one that loses least for what it saves.

    Prices of steps are looked up again only when they would be the lowest (lazy greedy): exact where steps get dearer
    the further one goes, close to it elsewhere, and a tenth of the evaluations.

    Args:
        loss: of a choice.
        costs: of each group's options.

    Yields:
        The start, then every choice on the way, to where nothing is cheaper.

    >>> costs = [np.array([4.0, 1.0]), np.array([4.0, 1.0])]
    >>> list(descend(lambda choice: 1.0 * choice[0] + 5.0 * choice[1], costs))
    [(0, 0), (1, 0), (1, 1)]
    """
    state: Choice = (0,) * len(costs)
    yield state
    turn = 0

    def price(group: int, option: int) -> tuple[float, int, int, int]:
        saved = float(costs[group][state[group]] - costs[group][option])
        return (loss(_with(state, group, option)) - loss(state)) / saved, group, option, turn

    steps = [price(g, o) for g, cost in enumerate(costs) for o in np.flatnonzero(cost < cost[0]).tolist()]
    heapq.heapify(steps)
    while steps:
        _, group, option, known = heapq.heappop(steps)
        if costs[group][option] >= costs[group][state[group]]:
            continue
        if known != turn:
            heapq.heappush(steps, price(group, option))
            continue
        state, turn = _with(state, group, option), turn + 1
        yield state


def better(loss: Loss, costs: Sequence[np.ndarray], choice: Choice, budget: float, *, sweeps: int = 3) -> Choice:
    """Better a choice within a budget: change one group, or make one dearer and another cheaper, while that helps.

    Args:
        loss: of a choice.
        costs: of each group's options.
        choice: where to begin.
        budget: that no choice's cost exceeds, unless the first one's does.
        sweeps: through all exchanges, at most.
    """
    groups = range(len(costs))
    for _ in range(sweeps):
        before = choice
        for group, other in product(groups, (None, *groups)):
            new = _exchange(costs, choice, group, other)
            if new is not None and total(costs, new) <= budget and loss(new) < loss(choice):
                choice = new
        if choice == before:
            break
    return choice


def _exchange(costs: Sequence[np.ndarray], choice: Choice, group: int, other: int | None) -> Choice | None:
    """Give a group its next dearer option, and another one its next cheaper; None where there is no such option."""
    cost = costs[group]
    dearer = np.flatnonzero(cost > cost[choice[group]])
    if not len(dearer) or other == group:
        return None
    choice = _with(choice, group, int(dearer[cost[dearer].argmin()]))
    if other is None:
        return choice
    cost = costs[other]
    cheaper = np.flatnonzero(cost < cost[choice[other]])
    return _with(choice, other, int(cheaper[cost[cheaper].argmax()])) if len(cheaper) else None


def _with(choice: Choice, group: int, option: int) -> Choice:
    return (*choice[:group], option, *choice[group + 1 :])
