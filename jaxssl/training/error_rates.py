"""Error rates of what was written down, and how sure they are: jiwer's alignments, bootstrap over utterances.

A symbol is whatever is counted: phones for PER, characters for CER, words for WER.

>>> found = error_rate([("A", "B"), ("C",)], [("A",), ("C", "D")], np.arange(2), seed=0)
>>> round(found.value, 3), found.substitutions, found.deletions, found.insertions
(0.667, 0, 1, 1)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

from compress.errors import InputError
from jaxssl.training.probe import Difference, interval

SPACE = "▁"  # stands for a space that is itself a symbol


@dataclass(frozen=True)
class Rate:
    """Errors over symbols of the references.

    Attributes:
        value: (substitutions + deletions + insertions) / symbols; above 1 where much is inserted.
        low: lower end of the 95 % bootstrap interval over units.
        high: upper end.
        errors: of each unit, units in ascending order, (units,).
        total: symbols of each unit's references, (units,).
        substitutions: in all.
        deletions: in all.
        insertions: in all.
    """

    value: float
    low: float
    high: float
    errors: np.ndarray
    total: np.ndarray
    substitutions: int
    deletions: int
    insertions: int


def error_rate(
    references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]], units: np.ndarray, *, seed: int
) -> Rate:
    """Align what was written with what was said, utterance by utterance, at the least number of errors.

    Args:
        references: symbols that were said, at least one each.
        hypotheses: symbols that were written.
        units: (utterances,) integers; utterances of one (the same sentence by several voices) are resampled together.
        seed: of the bootstrap (Bisani & Ney 2004).

    Raises:
        InputError: nothing was said, or the numbers of utterances differ.
    """
    if not len(references) == len(hypotheses) == len(units) or not len(units):
        said = f"{len(references)} references, {len(hypotheses)} hypotheses, {len(units)} units"
        raise InputError(f"error rate: {said}; give one of each for at least one utterance")
    if empty := sum(not len(reference) for reference in references):
        raise InputError(f"error rate: {empty} of {len(references)} references are empty; leave those utterances out")
    counts = np.array([_count(*pair) for pair in zip(references, hypotheses, strict=True)])
    _, place = np.unique(units, return_inverse=True)
    errors = np.bincount(place, counts.sum(1)).astype(int)
    total = np.bincount(place, [len(reference) for reference in references]).astype(int)
    value, span = float(errors.sum() / total.sum()), interval(errors, total, seed=seed)
    return Rate(value, *span, errors, total, *counts.sum(0).tolist())


def paired(one: Rate, other: Rate, *, seed: int) -> Difference:
    """Tell by how much one rate is higher than another; both are seen on the same resampled units.

    Raises:
        InputError: they were not tested on the same utterances.
    """
    if not np.array_equal(one.total, other.total):
        said = f"{one.total.sum()} and {other.total.sum()} symbols in {len(one.total)} and {len(other.total)} units"
        raise InputError(f"paired bootstrap: tested on {said}; test both systems on the same utterances")
    more = one.errors - other.errors
    return Difference(float(more.sum() / one.total.sum()), *interval(more, one.total, seed=seed))


def _count(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[int, int, int]:
    """Count substitutions, deletions and insertions; jiwer parts words by spaces."""
    said, wrote = (" ".join(symbol.replace(" ", SPACE) for symbol in line) for line in (reference, hypothesis))
    found = jiwer.process_words(said, wrote)
    return found.substitutions, found.deletions, found.insertions
