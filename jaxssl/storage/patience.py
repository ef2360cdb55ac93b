"""Asking a store again: what may pass is waited for with growing, random pauses, within a limit, and counted."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from compress.errors import InputError

T = TypeVar("T")
FIRST_S, LONGEST_S = 0.1, 20.0  # pauses; each is twice the one before, at most, and random between half and all of it
LIMIT_S = 300.0
NOTICE_S = 10.0  # of waiting for one answer, after which whoever watches is told
LIMIT = "JAXSSL_BUCKET_PATIENCE"  # environment variable of the limit, in seconds

_counts: Counter[str] = Counter()
_lock = threading.Lock()
_tell: Callable[[str], object] = bool  # shows a line


class Passing(Exception):
    """A failure that may pass: a busy store, a cut connection, an answer that is too short; the text is its kind."""


def persist(request: Callable[[], T], where: str, *, sleep: Callable[[float], object] = time.sleep) -> T:
    """Ask until there is an answer.

    Args:
        request: asks once; raises `Passing` where asking again may help.
        where: what is asked for, as messages name it.
        sleep: waits for seconds.

    Raises:
        InputError: there was none within the limit.
    """
    began, pause, tries, limit, noticed = time.monotonic(), FIRST_S, 0, limit_s(), False
    while True:
        try:
            tries += 1
            _count("requests")
            return request()
        except Passing as failure:
            wait = pause * random.uniform(0.5, 1)
            took = time.monotonic() - began
            if took + wait > limit:
                raise InputError(
                    f"{where}: no answer in {took:.0f} s and {tries} tries, the last: {failure}; see whether the store "
                    f"and the network are up, or set {LIMIT} (seconds; {limit:g})"
                ) from failure
            _count(str(failure).partition(":")[0])
            if took > NOTICE_S and not noticed:
                noticed = True
                _tell(f"note: {where}: {failure}; it is tried again for {limit:g} s in all")
            sleep(wait)
            pause = min(2 * pause, LONGEST_S)


def limit_s() -> float:
    """Return how long is asked again, in seconds.

    Raises:
        InputError: the environment says what is no time.
    """
    text = os.environ.get(LIMIT) or str(LIMIT_S)
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not 0 <= limit <= 86_400:
        raise InputError(f"{LIMIT}={text}: not a time; give seconds, 0 to 86400")
    return limit


def told() -> str | None:
    """Say in one line what was asked again so far; None: nothing was."""
    with _lock:
        again = {kind: count for kind, count in _counts.items() if kind != "requests"}
        if not again:
            return None
        kinds = ", ".join(f"{count} × {kind}" for kind, count in sorted(again.items()))
        return f"buckets: {sum(again.values())} of {_counts['requests']} requests were tried again ({kinds})"


def begin(tell: Callable[[str], object]) -> None:
    """Count from zero; `tell` shows a line."""
    global _tell
    _tell = tell
    with _lock:
        _counts.clear()


def _count(kind: str) -> None:
    with _lock:
        _counts[kind] += 1
