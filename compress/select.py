"""From scores to the indices that stay."""

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
    if protect < 0:
        raise InputError(f"cannot protect {protect} units of each axis; use 0 or more")
    ranked = {name: _best_first(values, name) for name, values in scores.items()}
    free = [(scores[name][i], name, int(i)) for name, order in ranked.items() for i in order[protect:]]
    if not 0 <= drop <= len(free):
        raise InputError(f"cannot drop {drop} units: {len(free)} are free when each axis keeps its best {protect}")
    best_first = sorted(free, key=lambda unit: unit[0], reverse=True)  # stable: equals stay in order
    dropped = {(name, i) for _, name, i in best_first[len(free) - drop :]}
    return {name: tuple(i for i in range(len(v)) if (name, i) not in dropped) for name, v in scores.items()}


def _best_first(scores: np.ndarray, name: str = "units") -> np.ndarray:
    """Order units by falling score, equals by rising index."""
    scores = np.asarray(scores)
    if unknown := int(np.isnan(scores).sum()):
        raise InputError(f"{name}: {unknown} of {scores.size} scores are not numbers; look at what they come from")
    return np.argsort(-scores, kind="stable")
