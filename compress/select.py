"""From scores to the indices that stay."""

import math
from collections.abc import Mapping

import numpy as np

from compress.errors import InputError

Keep = tuple[int, ...]


def highest(scores: np.ndarray, count: int) -> Keep:
    """Keep the `count` highest-scored units, in ascending order; of equals the lower index stays.

    >>> highest(np.array([0.2, 0.9, 0.5]), 2)
    (1, 2)

    Raises:
        InputError: more units asked for than there are, or fewer than none; or a score is not a number.
    """
    if not 0 <= count <= len(scores):
        raise InputError(f"cannot keep {count} of {len(scores)} units; keep 0 to {len(scores)}")
    return tuple(sorted(int(i) for i in _best_first(scores)[:count]))


def highest_overall(scores: Mapping[str, np.ndarray], drop: int, *, protect: int = 1) -> dict[str, Keep]:
    """Drop the `drop` lowest-scored units over several axes, never the `protect` best of an axis.

    Of equals the lower index stays, and between axes the one named first; on one axis of n units with one protected,
    highest_overall({a: s}, d)[a] == highest(s, n − d).

    >>> highest_overall({"a": np.array([1.0, 2.0]), "b": np.array([0.1, 0.2, 0.3])}, 2)
    {'a': (0, 1), 'b': (2,)}

    Raises:
        InputError: fewer than `drop` units are unprotected, `protect` is negative, or a score is not a number.
    """
    ranked = _ranked(scores, protect)
    free = [(scores[name][i], name, int(i)) for name, order in ranked.items() for i in order[protect:]]
    if not 0 <= drop <= len(free):
        raise InputError(f"cannot drop {drop} units: {len(free)} are free when each axis keeps its best {protect}")
    best_first = sorted(free, key=lambda unit: unit[0], reverse=True)  # stable: equals stay in order
    dropped = {(name, i) for _, name, i in best_first[len(free) - drop :]}
    return {name: tuple(i for i in range(len(v)) if (name, i) not in dropped) for name, v in scores.items()}


def within_budget(
    scores: Mapping[str, np.ndarray], costs: Mapping[str, float], budget: float, *, protect: int = 1
) -> dict[str, Keep]:
    """Keep what fits a budget: drop the units of least score per cost, never the `protect` best of an axis.

    Units are taken in the order of score per cost, the best first, as long as they fit; one that does not is passed
    over for what is cheaper. So of each axis the highest stay, and no dropped unit would still fit. Of equals the
    lower index stays, and between axes the one named first.

    >>> within_budget({"a": np.array([1.0, 2.0]), "b": np.array([3.0, 9.0])}, {"a": 1.0, "b": 4.0}, 6.0)
    {'a': (0, 1), 'b': (1,)}

    Args:
        scores: of every unit, by axis.
        costs: of one unit of each axis, above 0; in parameters or MACs, `jaxssl.models.cost.unit_costs`.
        budget: for all units together, in the same measure; kept to ten digits.
        protect: how many of each axis stay whatever they cost.

    Raises:
        InputError: the protected units alone exceed the budget, an axis has no cost above 0, `protect` is negative, or
            a score or the budget is not a number.
    """
    ranked = _ranked(scores, protect)
    _check_costs(scores, costs)
    taken = {name: list(map(int, order[:protect])) for name, order in ranked.items()}
    least = sum(costs[name] * len(units) for name, units in taken.items() if units)
    left, slack = budget - least, 1e-10 * abs(budget)  # rounding must not drop a unit where everything just fits
    if not left >= -slack:  # so that NaN is refused
        protected = f"{least:,.10g}, the cost of the best {protect} of each axis"
        raise InputError(f"a budget of {budget:,.10g} is below {protected}; raise it or protect fewer")
    free = [(scores[name][i] / costs[name], name, int(i)) for name, order in ranked.items() for i in order[protect:]]
    for _, name, i in sorted(free, key=lambda unit: unit[0], reverse=True):  # stable: equals stay in order
        if costs[name] <= left + slack:
            taken[name].append(i)
            left -= costs[name]
    return {name: tuple(sorted(units)) for name, units in taken.items()}


def round_keep(scores: np.ndarray, count: int, multiple: int) -> Keep:
    """Keep about `count` of the highest-scored units: the nearest multiple, so that shapes suit the hardware.

    Of two multiples equally near it is the lower, and never more than there are. None stay only if `count` is 0. What
    has no such multiple is left alone: all units when `count` is all of them, and `count` of fewer than `multiple`.

    >>> round_keep(np.array([0.2, 0.9, 0.5, 0.7, 0.1]), 3, 2)
    (1, 3)

    Raises:
        InputError: as `highest`; or the multiple is below 1.
    """
    if multiple < 1:
        raise InputError(f"cannot keep multiples of {multiple} units; use 1 or more")
    size = len(scores)
    if 0 < count < size and multiple <= size:
        nearest = math.ceil(count / multiple - 0.5)
        count = multiple * min(max(nearest, 1), size // multiple)
    return highest(scores, count)


def _ranked(scores: Mapping[str, np.ndarray], protect: int) -> dict[str, np.ndarray]:
    if protect < 0:
        raise InputError(f"cannot protect {protect} units of each axis; use 0 or more")
    return {name: _best_first(values, name) for name, values in scores.items()}


def _check_costs(scores: Mapping[str, np.ndarray], costs: Mapping[str, float]) -> None:
    for name, values in scores.items():
        if len(values) and not 0 < costs.get(name, 0) < math.inf:
            raise InputError(f"{name}: a unit costs {costs.get(name)}; give every axis with units a cost above 0")


def _best_first(scores: np.ndarray, name: str = "units") -> np.ndarray:
    """Order units by falling score, equals by rising index."""
    scores = np.asarray(scores)
    if unknown := int(np.isnan(scores).sum()):
        raise InputError(f"{name}: {unknown} of {scores.size} scores are not numbers; look at what they come from")
    return np.argsort(-scores, kind="stable")
