"""What an exception comes from: libraries wrap a Ctrl-C or a full disk into exceptions of their own."""

import errno
import os
import re
from collections.abc import Iterator

# What a disk answers that does not take what is written; Orbax and TensorStore keep the text, not always the number.
REFUSALS = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))
PLACE = re.compile(r'"(/[^"]+)"')  # as TensorStore names files


def chain(error: BaseException) -> Iterator[BaseException]:
    """Go through an exception, what it was raised from or beside, and a group's members; each once, outermost first."""
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        members = found.exceptions if isinstance(found, BaseExceptionGroup) else ()
        waiting += [each for each in (found.__cause__, found.__context__, *members) if each is not None]


def interrupted(error: BaseException) -> bool:
    """Tell whether a Ctrl-C is behind an exception, whatever was raised on the way out."""
    return any(isinstance(each, KeyboardInterrupt) for each in chain(error))


def refusal(error: BaseException) -> str | None:
    """Say in one line how the disk refused what was written; None where it is not behind the exception."""
    for each in chain(error):
        for reason in REFUSALS:
            if reason in str(each):
                named = PLACE.search(str(each))
                return f"{getattr(each, 'filename', None) or (named[1] if named else 'output')}: {reason}"
    return None
