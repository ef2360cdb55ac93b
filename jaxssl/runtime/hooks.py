"""What other threads, finalizers and Orbax would print on the way out, where one line says it: they are not for users.

A Ctrl-C that falls into a finalizer is repeated, for Python would print and drop it there.
"""

import logging
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from compress.errors import one_line
from jaxssl.runtime import causes


def install() -> None:
    """Let commands end in one line."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's remarks
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_of_the_disk)
    log_in_one_line()
    sys.unraisablehook = _unraisable
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # it asks a training run to save, and would end what trains not


def log_in_one_line() -> None:
    """Let what Orbax logs be one line each, and what a failed write leaves of its other tasks, which asyncio logs."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_in_one_line)


def _not_of_the_disk(record: logging.LogRecord) -> bool:
    """Leave out what a full disk brings; Orbax raises it as well, to the command."""
    told = any(reason in record.getMessage() for reason in causes.REFUSALS)
    error = record.exc_info[1] if record.exc_info else None
    return not told and (error is None or causes.refusal(error) is None)


def _in_one_line(record: logging.LogRecord) -> bool:
    """Cut what is told, and write out its control characters: Orbax quotes whole files that it cannot read.

    No trace follows. A task is told of when it is collected, which may be while Python parses code; writing a trace
    parses too, and up to Python 3.11.7 the first parser then fails (SystemError, CPython's issue 106905).
    """
    record.msg, record.args = one_line(record.getMessage()), ()
    record.exc_info = record.exc_text = record.stack_info = None
    return True


def _unraisable(lost: Any) -> None:
    if lost.exc_type is KeyboardInterrupt:
        _interrupt_again()
    elif not (_loop_ended(lost) or (lost.exc_value and causes.refusal(lost.exc_value))):  # a file on a full disk, told
        sys.__unraisablehook__(lost)


def _interrupt_again() -> None:
    """Repeat the signal until it is raised outside this hook, from which Python would drop it once more."""
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):  # the command is leaving already
        return
    main, waiting = threading.main_thread().ident or 0, [True]

    def raised(number: int, frame: FrameType | None) -> None:
        if not _in_hook(frame):
            waiting.clear()
            signal.default_int_handler(number, frame)

    def repeat() -> None:
        while waiting:
            signal.pthread_kill(main, signal.SIGINT)  # wakes what sleeps or waits
            time.sleep(0.05)

    signal.signal(signal.SIGINT, raised)
    threading.Thread(target=repeat, daemon=True).start()


def _in_hook(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not _unraisable.__code__:
        frame = frame.f_back
    return frame is not None


def _loop_ended(lost: Any) -> bool:
    """Tell what TensorStore says when one array's failure has ended the event loop that waited for the others.

    It calls the loop from C++, so that nothing of ours is in the trace.
    """
    frame = lost.exc_traceback and lost.exc_traceback.tb_frame
    return lost.exc_type is RuntimeError and frame is not None and frame.f_code.co_name == "call_soon_threadsafe"
