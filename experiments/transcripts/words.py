"""Word error rates of what a model wrote: against the truth, and against what the dense model wrote of the same speech.

The second needs no transcript and is called agreement: how many words differ from the dense model's, of its words.
"""

from collections.abc import Sequence

import numpy as np

from jaxssl.training.error_rates import Rate, error_rate, paired

Words = tuple[str, ...]
AGAIN = 4  # times in a row that a phrase must stand to be a loop
PHRASE = 12  # words of the longest phrase looked for


def loops(words: Sequence[str]) -> bool:
    """Tell whether a phrase stands four times or more in a row, as a decoder writes that lost its way.

    >>> loops("so he said so he said so he said so he said".split())
    True
    >>> loops("no no no he said".split())
    False
    """
    return any(
        all(words[i] == words[i + size] for i in range(start, start + (AGAIN - 1) * size))
        for size in range(1, PHRASE + 1)
        for start in range(len(words) - AGAIN * size + 1)
    )


def rates(said: Sequence[Words | None], dense: Sequence[Words], mine: Sequence[Words]) -> dict[str, float | int]:
    """Compare what a model wrote of each utterance with what was said, where that is known, and with the dense model's.

    Args:
        said: words of each utterance; None: not known.
        dense: what the dense model wrote.
        mine: what the model wrote.

    Returns:
        `agreement` over utterances of which the dense model wrote anything, and, where any text is known, `wer` and
        `wer_difference` to the dense model's, each with `_low` and `_high`, the ends of a 95 % interval by a bootstrap
        over utterances, paired where it is a difference; `loops`; `agreement_words` and `wer_words`, which they are of.
    """
    heard = [i for i, words in enumerate(dense) if words]
    known = [i for i, words in enumerate(said) if words]
    found: dict[str, float | int] = {"loops": sum(map(loops, mine)), "empty": sum(not words for words in mine)}
    if heard:
        found |= _told("agreement", _rate([dense[i] for i in heard], [mine[i] for i in heard]))
    if known:
        truth = [said[i] or () for i in known]
        one, other = (_rate(truth, [each[i] for i in known]) for each in (mine, dense))
        above = paired(one, other, seed=0)
        found |= _told("wer", one)
        found |= {"wer_difference": above.mean, "wer_difference_low": above.low, "wer_difference_high": above.high}
    return found


def _rate(references: Sequence[Words], written: Sequence[Words]) -> Rate:
    return error_rate(references, written, np.arange(len(references)), seed=0)


def _told(name: str, rate: Rate) -> dict[str, float | int]:
    span = {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return {**span, f"{name}_words": int(rate.total.sum()), f"{name}_utterances": len(rate.total)}
