"""The one exception that means "what you gave cannot be used"."""

import re

LONGEST = 2000  # characters of a message; what a foreign file holds may have millions
TAIL = 400  # of these at the end, where the remedy is


class InputError(ValueError):
    """Report input that cannot be used.

    The message is one line for the person who typed the command: it names the thing, the numbers that
    disagree and the remedy. Command lines print it alone and exit with a code other than 0; any other
    exception is a bug and keeps its traceback.

    Messages quote names and texts of foreign files: they are cut, and have their control characters written out,
    here, so that wherever an error is shown, in notes and reports too, nothing that a file holds can do anything.
    """

    def __init__(self, message: object):
        super().__init__(one_line(str(message)))


def one_line(text: str) -> str:
    r"""Return a text as one printable line of at most LONGEST characters; its middle goes first.

    >>> one_line("a title: \x1b]0;owned\x07\n  and more")
    'a title: \\x1b]0;owned\\x07 and more'
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - TAIL - 3]} … {text[-TAIL:]}"
    line = visible(re.sub(r"\s*[\n\r\t]\s*", " ", text))  # which is longer by what is written out
    return line if len(line) <= LONGEST else f"{line[: LONGEST - TAIL - 3]} … {line[-TAIL:]}"


def visible(text: str) -> str:
    """Return a text with every character that no screen shows as an escape, line ends and tabs left."""
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text)
