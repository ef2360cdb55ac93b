"""What every command line shares, of experiments and tools: parsing, one-line errors, exit codes, progress."""

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from functools import partial
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment

from compress.errors import InputError, one_line, visible
from jaxssl.runtime import causes, compiled, early, hooks, locks, ranges
from jaxssl.storage import fetching, patience, places, publishing

Config = TypeVar("Config")
Item = TypeVar("Item")
# A setting that is on unless its flag, --no-NAME, is given.
On = Annotated[bool, tyro.conf.arg(help_behavior_hint="(on by default; this flag turns it off)")]


class Terminal(Console):
    """A console that shows control characters instead of obeying them: names and texts come from foreign files."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Lay out what is printed: control characters as Python writes them, paths that stand for URLs as these."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(places.shown(segment.text)))

    def on_broken_pipe(self) -> None:
        """Raise what a pipe answers that nobody reads any more, where rich would end the process without a word."""
        raise


early.outputs()
# Files and pipes have no width of their own: give tables room there instead of rich's 80 columns.
console = Terminal(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 150)
messages = Terminal(stderr=True, highlight=False, soft_wrap=True)


class Preempted(Exception):
    """The run was told to stop, and saved before it did."""


def main(run: Callable[[Config], Any], config: type[Config], description: str, *, remember: bool = True) -> None:
    """Carry out a command line, see `command`, and leave with its exit code where that is not 0."""
    if code := command(run, config, description, remember=remember):
        sys.exit(code)


def command(
    run: Callable[[Config], Any],
    config: type[Config],
    description: str,
    *,
    args: Sequence[str] | None = None,
    remember: bool = True,
) -> int:
    """Parse a command line into `config`, run, and return the exit code.

    Args:
        run: does the work.
        config: dataclass of the options.
        description: of the command, for `--help`.
        args: words of the command line; None: the process's own.
        remember: keep the programs that are compiled on disk for the next run (`jaxssl.runtime.compiled`).

    Returns:
        0: done. 75: told to stop (SIGTERM), and saved: the same command goes on. 2: the input cannot be used, or the
        disk does not take the output; one line on standard error says why. Interrupted, the process ends with 130.
    """
    hooks.install()
    patience.begin(partial(messages.print, markup=False))
    try:
        early.done()
        return _carried_out(run, config, description, sys.argv[1:] if args is None else args, remember=remember)
    except KeyboardInterrupt:  # another one, while the first was told
        _leave()


def _carried_out(
    run: Callable[[Config], Any], config: type[Config], description: str, args: Sequence[str], *, remember: bool
) -> int:
    try:
        values = read(config, args, description)
        if remember:
            compiled.remember()
        tell = partial(messages.print, markup=False)
        with locks.holding(tell), publishing.running(tell, ends=(Preempted,)):
            publishing.at_the_end(ranges.written(values))
            run(values)
        sys.stdout.flush()  # here, where a full disk behind it can still be told
    except BaseException as error:
        if causes.interrupted(error):  # also where a library has made another exception of it
            _leave()
        if (told := _ending(error)) is None:
            raise
        return _told(*told)
    finally:
        if line := patience.told():
            _told(line, 0)
    return 0


def _ending(error: BaseException) -> tuple[str, int] | None:
    """Say in one line, and by an exit code, what ended a run; None: a bug did."""
    match error:
        case InputError():
            return f"error: {error}", 2
        case Preempted():
            return f"stopped: {error}", 75  # EX_TEMPFAIL: try again later
    what = causes.refusal(error)
    if what is None and isinstance(error, OSError):
        what = f"{error.filename or 'output'}: {error.strerror or error}"
    return (f"error: {what}; nothing half-written was kept", 2) if what else None


def _leave() -> NoReturn:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one is enough
    messages.print("interrupted: finished models are whole, unfinished ones were removed")
    sys.stdout.flush()
    os._exit(130)  # XLA's threads may still run, and the interpreter's own shutdown has crashed under them


def read(config: type[Config], args: Sequence[str], description: str = "") -> Config:
    """Parse a command line, and hold every setting to what its type says (`jaxssl.runtime.ranges`).

    Raises:
        InputError: a word that cannot be read, a setting outside its range, or an empty one.
        SystemExit: help was asked for, and is printed.
    """
    for before, word in zip(("", *args), args, strict=False):
        if not word or (word.startswith("--") and word.endswith("=")):
            name = word[:-1] or (before if before.startswith("--") else "the command line")
            raise InputError(f"{name}: an empty word; write what is meant, or leave it out")
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            flags = (tyro.conf.FlagCreatePairsOff,)
            words = [places.word(word) for word in args]
            values = tyro.cli(config, prog=_program(), description=description, args=words, config=flags)
    except SystemExit as left:
        if not left.code:
            raise
        raise InputError(_misread(told.getvalue(), config)) from None
    if words != list(args):
        with messages.status("reading buckets"):
            fetching.bring_all(values)
    ranges.check(values)
    return values


def _misread(box: str, config: type) -> str:
    """Say in one line what tyro draws in a box about words that it cannot read, and what may be given instead."""
    lines = [line.strip("│ ") for line in box.splitlines() if line[:1] not in ("╭", "╰")]
    text = " ".join(line for line in lines if line.strip("─"))
    text = re.split(r"\.? (?:Argument helptext|For full helptext)", text)[0]
    named = re.search(r"(?:parsing|argument) '?(--[\w-]+)", text)
    found = [rule.form for name, rule in ranges.rules(config) if named and ranges.flag(name) == named[1]]
    return f"{text}; {f'give {found[0]}, or ' if found else ''}see --help"


def _program() -> str | None:
    """Say how the command was started; None, which is the file's name, where it was not started as a module."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"


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


def _told(message: str, code: int) -> int:
    with suppress(OSError):  # standard error may be full, too
        messages.print(one_line(message), markup=False)
    try:
        sys.stdout.flush()
    except OSError:  # what it does not take would be tried, and told of, once more at the interpreter's end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
