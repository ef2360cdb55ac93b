"""What a command does before it imports: a Ctrl-C is one line and exit code 130, and closed outputs are opened.

Nothing has begun by then, so that there is nothing to clean up, and Python's own way would print where the imports are.
`jaxssl.runtime.cli` takes over when they are done.
"""

import os
import signal
import sys
from typing import Any


def listen() -> None:
    """Take Ctrl-C, where a module is being started by `python -m`; packages of commands call it first.

    A process that was started to ignore it goes on doing so.
    """
    outputs()
    starting = sys.argv[0] == "-m"  # what Python has there until the module is found
    if starting and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def outputs() -> None:
    """Open what is closed of standard input, output and error, so that no file of ours gets its number.

    What libraries print would be written into that file; and Python has no `sys.stdout` then.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (as Python's own, it stays open)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def done() -> None:
    """Give Ctrl-C back to Python, which raises it where the program is."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(*_: Any) -> None:
    os.write(2, b"interrupted: nothing had begun\n")
    os._exit(130)
