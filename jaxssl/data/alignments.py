"""When which phone is spoken: tables of phone times and Praat TextGrids."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from compress.errors import InputError
from jaxssl.data.manifest import Segment
from jaxssl.data.tab_separated import read_rows

ID = ("id", "utt", "path")  # names a column may have, the first one there is taken
START, END, DURATION = ("start", "start_s"), ("end", "end_s"), ("duration", "dur_s")
LABEL = ("label", "phone")
SILENCE = "SIL"

# Praat reads free-standing strings, numbers and flags and takes the rest for comment: one rule for both forms.
TOKEN = re.compile(r'(?<!\S)(?:"(?P<text>(?:[^"]|"")*)"|(?P<number>[-+]?\d[\d.eE+-]*)|(?P<flag><\w+>))(?!\S)')


def read_phones(path: str | Path) -> dict[str, tuple[Segment, ...]]:
    """Read phone times by utterance, sorted by time.

    Columns: `id`, `utt` or `path`; `start` or `start_s`; `end` or `end_s`, or instead `duration` or `dur_s`; `label`
    or `phone`. Others are ignored.

    Raises:
        InputError: a column is missing, or a time is no number, or a phone ends before it starts.
    """
    path = Path(path)
    found: dict[str, list[Segment]] = defaultdict(list)
    for number, row in read_rows(path, ID, START, (*END, *DURATION), LABEL):
        place = f"{path}, line {number}"
        start = _seconds(_first(row, START), place)
        end = _seconds(_first(row, END), place) if _first(row, END) is not None else None
        if end is None:  # rounded to nanoseconds: 0.5 + 0.06 is not 0.56
            end = round(start + _seconds(_first(row, DURATION), place), 9)
        if end < start:
            raise InputError(f"{place}: a phone from {start} s to {end} s; its end must not be before its start")
        found[_first(row, ID) or ""].append(Segment(start, end, _first(row, LABEL) or SILENCE))
    return {identity: tuple(sorted(segments, key=lambda s: (s.start, s.end))) for identity, segments in found.items()}


def read_textgrid(path: str | Path, *, tier: str = "phones") -> tuple[Segment, ...]:
    """Read an interval tier of a Praat TextGrid, long or short form; silence, an empty label there, is `SIL`.

    Args:
        path: the file, UTF-8 or UTF-16.
        tier: its name, or the end of it (`Anna - phones`).

    Returns:
        Its intervals; none when the file has no such tier.

    Raises:
        InputError: not a TextGrid, or one that ends too early.
    """
    path = Path(path)
    tokens = TOKEN.finditer(_text(path))
    try:
        kind = [_take(tokens, "text") for _ in range(2)]
        if kind != ["ooTextFile", "TextGrid"]:
            raise ValueError(f"it begins with {kind}")
        *_, tiers = (_take(tokens, what) for what in ("number", "number", "flag", "number"))
        for _ in range(int(tiers)):
            name, segments = _tier(tokens)
            if name.lower().endswith(tier):
                return segments
    except (ValueError, OverflowError) as error:  # a count may be infinite
        raise InputError(f"{path}: not a whole TextGrid ({error}); repair it or remove it") from None
    return ()


def _tier(tokens: Iterator[re.Match[str]]) -> tuple[str, tuple[Segment, ...]]:
    """Read one tier: class, name, start, end, count, then intervals, or points of which nothing is kept."""
    kind, name = _take(tokens, "text"), _take(tokens, "text")
    *_, count = (int(float(_take(tokens, "number"))) for _ in range(3))
    if kind != "TextTier":
        return name, tuple(_interval(tokens) for _ in range(count))
    for _ in range(count):
        _take(tokens, "number"), _take(tokens, "text")
    return "", ()


def _interval(tokens: Iterator[re.Match[str]]) -> Segment:
    start, end = float(_take(tokens, "number")), float(_take(tokens, "number"))
    return Segment(start, end, _take(tokens, "text").strip() or SILENCE)


def _take(tokens: Iterator[re.Match[str]], kind: str) -> str:
    """Return the next token's value, which must be of this kind."""
    token = next(tokens, None)
    if token is None:
        raise ValueError("it ends too early")
    if token.lastgroup != kind:
        raise ValueError(f"{token[0]} where a {kind} is due")
    return token[kind].replace('""', '"')


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a TextGrid: {error}; it must be UTF-8 or UTF-16 text") from error


def _first(row: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((row[name] for name in names if name in row), None)


def _seconds(text: str | None, place: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise InputError(f"{place}: a time is {text!r}, not a number of seconds; correct it")
    return value
