"""Share a budget: one option of each group, least total loss at a total cost that fits."""

from collections.abc import Sequence

import numpy as np

from compress.errors import InputError

STEPS = 4000  # parts the budget is divided into


def knapsack(losses: Sequence[np.ndarray], costs: Sequence[np.ndarray], budget: float) -> list[int]:
    """Choose an option of each group (the multiple-choice knapsack problem, by dynamic programming).

    Costs are rounded up to parts of the budget, so the choice always fits; it is the best one but for the rounding, a
    4,000th of the budget for each group.

    Args:
        losses: of each group's options, any numbers.
        costs: of the same options, 0 or more.
        budget: that the costs' sum must not exceed.

    Returns:
        The number of the option chosen of each group.

    Raises:
        InputError: even the cheapest options cost more, or a number is not finite.

    >>> knapsack([np.array([0.0, 1.0]), np.array([0.0, 5.0])], [np.array([4.0, 1.0]), np.array([4.0, 1.0])], 5.0)
    [1, 0]
    """
    if not np.isfinite(np.concatenate([*losses, *costs, [budget]])).all():
        raise InputError("knapsack: a loss, a cost or the budget is not finite; measure again")
    least = sum(float(cost.min()) for cost in costs)
    if least > budget:
        raise InputError(f"knapsack: the cheapest options cost {least:g}, the budget is {budget:g}; raise it")
    parts = [np.ceil(np.asarray(cost) / max(budget, 1e-30) * STEPS - 1e-9).astype(int) for cost in costs]
    best, choices = np.zeros(STEPS + 1), []  # best[b]: least loss of the groups so far with b parts to spend
    for loss, part in zip(losses, parts, strict=True):
        tried = np.full((len(loss), STEPS + 1), np.inf)
        for option in np.flatnonzero(part <= STEPS):
            tried[option, part[option] :] = best[: STEPS + 1 - part[option]] + loss[option]
        choices.append(tried.argmin(0))
        best = tried.min(0)
    if not np.isfinite(best[-1]):  # it fits exactly, and rounding up took it over
        return [int(np.argmin(cost)) for cost in costs]
    left, chosen = STEPS, []
    for choice, part in zip(choices[::-1], parts[::-1], strict=True):
        chosen.append(int(choice[left]))
        left -= part[chosen[-1]]
    return chosen[::-1]
