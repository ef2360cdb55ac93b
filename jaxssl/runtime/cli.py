"""What every experiment's command line shares: parsing, one-line errors, progress."""

import _thread
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from compress.errors import InputError
from jaxssl.runtime import compiled

Config = TypeVar("Config")
Item = TypeVar("Item")

# Files and pipes have no width of their own: give tables room there instead of rich's 80 columns.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 150)
messages = Console(stderr=True, highlight=False, soft_wrap=True)


class Preempted(Exception):
    """The run was told to stop, and saved before it did."""


def main(run: Callable[[Config], Any], config: type[Config], description: str, *, remember: bool = True) -> None:
    """Parse the command line into `config`, run, and leave with an exit code.

    With `remember` the programs that are compiled stay on disk for the next run (`jaxssl.runtime.compiled`).

    0: done. 75: told to stop (SIGTERM), and saved: the same command goes on. 2: the input cannot be used, or the disk
    does not take the output; one line on standard error says why.
    130: interrupted.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax's remarks are not for users
    sys.unraisablehook = _interrupt_again
    values = tyro.cli(config, description=description, config=(tyro.conf.FlagCreatePairsOff,))
    if remember:
        compiled.remember()
    try:
        run(values)
    except InputError as error:
        _leave(f"error: {error}", 2)
    except OSError as error:
        _leave(f"error: {error.filename or 'output'}: {error.strerror or error}; nothing half-written was kept", 2)
    except Preempted as stopped:
        _leave(f"stopped: {stopped}", 75)  # EX_TEMPFAIL: try again later
    except KeyboardInterrupt:
        messages.print("interrupted: finished models are whole, unfinished ones were removed")
        sys.stdout.flush()
        os._exit(130)  # XLA's threads may still run, and the interpreter's own shutdown has crashed under them


def follow(items: Iterable[Item], what: str, *, total: int) -> Iterator[Item]:
    """Go through items with a progress bar."""
    with progress(what, total) as tick:
        for item in items:
            yield item
            tick()


@contextmanager
def updates(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show how far a training run is; call what is given with the update's number and a text.

    On a terminal a bar moves; elsewhere each call prints a line.
    """
    if not messages.is_terminal:
        yield lambda number, text: messages.print(f"{what} {number}/{total}: {text}", markup=False)
        return
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=messages) as bar:
        task = bar.add_task(what, total=total, text="compiling")
        yield lambda number, text: bar.update(task, completed=number, text=text)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar with elapsed and remaining time; call what is given once per step."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=messages, transient=not messages.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _interrupt_again(lost: Any) -> None:
    """Repeat a Ctrl-C that fell into a callback of the garbage collector, where Python prints and drops it."""
    if lost.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


def _leave(message: str, code: int) -> None:
    messages.print(message.replace("\n", " "), markup=False)
    sys.exit(code)
