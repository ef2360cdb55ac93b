"""What the tools' command lines share: one line for what went wrong, and the exit code."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from compress.errors import InputError


def guarded(work: Callable[[], object], out: Path) -> int:
    """Do the work that writes `out`; return 0, 2 for what cannot be used or written, 130 when interrupted."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's remarks are not for users
    try:
        work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or out}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
