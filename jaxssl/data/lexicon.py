"""How words are said: a lexicon as LibriSpeech's, a word and its phones on each line.

    HELLO  HH AH0 L OW1

The digits are the stress of vowels (ARPAbet); without them there are 39 phones. CMUdict reads the same way: its
comments (`;;;`) are skipped, its `WORD(2)` are second pronunciations. Where a word has several, the first counts.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from compress.errors import InputError

COMMENT = ";;;"
Lexicon = Mapping[str, tuple[str, ...]]


def read_lexicon(path: str | Path, *, stress: bool = False) -> Lexicon:
    """Read a lexicon, word → phones, words in capitals.

    Args:
        path: UTF-8 text.
        stress: keep the digits of stress at the vowels.

    Raises:
        InputError: it cannot be read, a word has no phones, or there are no words; the line is named.
    """
    path = Path(path)
    words: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.startswith(COMMENT):
            continue
        word, *phones = line.split()
        if not phones:
            raise InputError(f"{path}, line {number}: {word!r} has no phones; write WORD P1 P2 …, parted by spaces")
        plain = tuple(phones) if stress else tuple(_unstressed(phone) for phone in phones)
        words.setdefault(_first_form(word.upper()), plain)
    if not words:
        raise InputError(f"{path}: no words in this lexicon; write WORD P1 P2 …, one word a line")
    return words


def pronounce(text: str, lexicon: Lexicon) -> tuple[str, ...]:
    """Return the phones of a text, word by word.

    >>> pronounce("hello, you", {"HELLO": ("HH", "AH"), "YOU": ("Y", "UW")})
    ('HH', 'AH', 'Y', 'UW')

    Raises:
        KeyError: a word is not in the lexicon; see `unknown`.
    """
    return tuple(phone for word in words(text) for phone in lexicon[word])


def unknown(texts: Iterable[str], lexicon: Lexicon) -> list[str]:
    """List the words that a lexicon lacks, each once, in the order they come."""
    return list(dict.fromkeys(word for text in texts for word in words(text) if word not in lexicon))


def words(text: str) -> list[str]:
    """Part a text into words: capitals, digits and apostrophes; all else only separates.

    >>> words("It's half-past two.")
    ["IT'S", 'HALF', 'PAST', 'TWO']
    """
    return "".join(c if c.isalnum() or c == "'" else " " for c in text.upper().replace("’", "'")).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a lexicon: {error}; it must be UTF-8 text") from error


def _unstressed(phone: str) -> str:
    return phone.rstrip("012") or phone


def _first_form(word: str) -> str:
    """Drop the number of a further pronunciation, `WORD(2)`."""
    head, bracket, number = word.partition("(")
    return head if head and bracket and number.rstrip(")").isdecimal() else word
