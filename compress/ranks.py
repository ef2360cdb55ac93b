"""Ranks that a whole model can afford: a budget of entries shared over its maps, or a share of each map's energy."""

from collections.abc import Mapping, Sequence

import numpy as np

from compress.address import Matrix
from compress.errors import InputError
from compress.lowrank import Decomposition

# By path, what each step of a map costs and explains: ranks 1, 2, … as long as they pay, then the map as it is.
Ladders = dict[str, tuple[np.ndarray, np.ndarray]]


def check_budget(matrices: Sequence[Matrix], budget: float) -> None:
    """Raise InputError when a budget of entries is below rank 1 everywhere, or not a number."""
    least = sum(min(matrix.factorised_size(1), matrix.size) for matrix in matrices)
    if not budget >= least:  # so that NaN is refused
        raise InputError(f"a budget of {budget:,.0f} entries is below rank 1 everywhere, {least:,.0f}; raise it")


def rank_for_energy(spectrum: np.ndarray, energy: float) -> int:
    """Return the least rank whose squared singular values hold the share `energy` of the whole.

    >>> rank_for_energy(np.array([3.0, 2.0, 1.0]), 0.9)
    2

    Raises:
        InputError: energy is not in (0, 1].
    """
    if not 0 < energy <= 1:
        raise InputError(f"energy {energy} is no share; use more than 0 and at most 1")
    held = np.cumsum(np.square(spectrum, dtype=np.float64))
    return int(np.searchsorted(held, energy * held[-1] * (1 - 1e-12)) + 1)


def allocate(decompositions: Sequence[Decomposition], budget: float) -> dict[str, int | None]:
    """Share a budget of entries over maps so that the total squared error, Σ over dropped σ², is least.

    A map's cost is rank · (in + out), which is its parameters and its MACs a frame; None leaves it as it is, at its
    present cost and without error. The choice is the best for one price per entry (Lagrange), then what is left is
    spent on the best steps that still fit; it is off the optimum by less than one such step.

    Args:
        decompositions: one for each map.
        budget: entries to spend over all of them.

    Returns:
        Rank of each path, None for a map left as it is.

    Raises:
        InputError: the budget is below rank 1 everywhere, or not a number.
    """
    check_budget([d.matrix for d in decompositions], budget)
    ladders = {d.matrix.path: _ladder(d) for d in decompositions}
    chosen = _spend_rest(ladders, _at_best_price(ladders, budget), budget)
    return {path: step + 1 if step + 1 < len(ladders[path][0]) else None for path, step in chosen.items()}


def _ladder(decomposition: Decomposition) -> tuple[np.ndarray, np.ndarray]:
    """List the steps of a map, see `Ladders`."""
    matrix, power = decomposition.matrix, np.square(decomposition.spectrum)
    ranks = np.arange(1, matrix.max_rank + 1)
    costs = ranks * (matrix.fan_in + matrix.fan_out)
    paying = costs < matrix.size
    return np.append(costs[paying], matrix.size).astype(np.float64), np.append(np.cumsum(power)[paying], power.sum())


def _at_best_price(ladders: Ladders, budget: float) -> dict[str, int]:
    def at(price: float) -> dict[str, int]:
        return {path: int(np.argmax(gains - price * costs)) for path, (costs, gains) in ladders.items()}

    low, high = 0.0, 1.0 + sum(gains[-1] for _, gains in ladders.values())
    if _cost(ladders, at(low)) <= budget:
        return at(low)
    for _ in range(200):
        middle = (low * high) ** 0.5 if low else high * 1e-3
        if _cost(ladders, at(middle)) <= budget:
            high = middle
        else:
            low = middle
        if high - low <= 1e-12 * high:
            break
    return at(high)


def _spend_rest(ladders: Ladders, steps: dict[str, int], budget: float) -> dict[str, int]:
    steps, left = dict(steps), budget - _cost(ladders, steps)
    while True:
        best, best_rate = None, 0.0
        for path, (costs, gains) in ladders.items():
            extra, gain = costs - costs[steps[path]], gains - gains[steps[path]]
            fits = (extra > 0) & (extra <= left)
            if fits.any():
                rates = np.where(fits, gain / np.where(fits, extra, 1), 0)
                if rates.max() > best_rate:
                    best, best_rate = (path, int(rates.argmax())), float(rates.max())
        if best is None:
            return steps
        path, step = best
        left -= ladders[path][0][step] - ladders[path][0][steps[path]]
        steps[path] = step


def _cost(ladders: Ladders, steps: Mapping[str, int]) -> float:
    return float(sum(costs[steps[path]] for path, (costs, _) in ladders.items()))
