"""Processes that take turns: each program of a benchmark in one of its own, asked and answering by lines of JSON.

None has another's threads, allocator or libraries, and one that ends badly (killed, out of memory, a library that is
not there) becomes a line of text, while the others go on.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from compress.errors import InputError, one_line

Answer = Callable[[dict[str, Any]], dict[str, Any]]
PATIENCE = 600.0  # seconds for one answer; what compiles longer is not waited for


class Ended(Exception):
    """A process will answer no more; the message says why, in one line."""


class Child:
    """A program in a process of its own.

    Args:
        *words: a module and what it is told: `python -m MODULE …`.
        patience: seconds that an answer may take.
        until: when the last one must be there, by `time.monotonic`. None may take more than half of what is left until
            then, so that one that compiles for long leaves the others their turns.
        threads: as how many cores XLA's pool of threads takes the machine; they have as many cores of it, if there are.
            None: as many as there are.
    """

    def __init__(
        self, *words: str, patience: float = PATIENCE, until: float = float("inf"), threads: int | None = None
    ):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self._patience, self._until = patience, until
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # the processes share a device
        environment |= {} if threads is None else {"NPROC": str(threads)}
        command = [sys.executable, "-m", *words]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, env=environment)
        if threads is not None:
            os.sched_setaffinity(self._process.pid, sorted(os.sched_getaffinity(0))[:threads])

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask and wait for the answer.

        Raises:
            Ended: there is none, now or ever.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{json.dumps(question)}\n".encode())
            self._process.stdin.flush()
        except OSError:
            raise Ended(self._end()) from None
        told = json.loads(self._line())
        if "lacks" in told:
            raise Ended(told["lacks"])
        return told

    def close(self) -> None:
        """End the process, whatever it does; nothing, where it has been ended."""
        if self._errors.closed:
            return
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        number, line = self._process.stdout.fileno(), b""
        begin = time.monotonic()
        patience = max(0.0, min(self._patience, (self._until - begin) / 2))
        while not line.endswith(b"\n"):
            if not select.select([number], [], [], max(0.0, begin + patience - time.monotonic()))[0]:
                self._process.kill()
                raise Ended(f"no answer in {patience:.3g} s")
            some = os.read(number, 1 << 16)
            if not some:
                raise Ended(self._end())
            line += some
        return line

    def _end(self) -> str:
        """Say how the process ended."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}{', as Linux does when memory is out' if name == 'SIGKILL' else ''}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return one_line(f"ended with exit code {code}: {said[-1] if said else 'it said nothing'}")


@contextmanager
def child(*words: str, patience: float = PATIENCE, until: float = float("inf")) -> Iterator[Child]:
    """Start a process for as long as the context lasts."""
    started = Child(*words, patience=patience, until=until)
    try:
        yield started
    finally:
        started.close()


def ready(children: dict[str, Child], lost: Callable[[str, str], None], **question: Any) -> dict[str, dict[str, Any]]:
    """Ask each in turn; end those that fail, take them out and tell `lost` their name and why. Return the answers."""
    answers = {}
    for name in list(children):
        try:
            answers[name] = children[name].ask(**question)
        except Ended as end:
            children.pop(name).close()
            lost(name, str(end))
    return answers


def race(
    children: dict[str, Child],
    lost: Callable[[str, str], None],
    *,
    rounds: int,
    warmup: int = 1,
    until: float = float("inf"),
    tick: Callable[[], None] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """Let each process run once, in turns; return what each said of its runs, of those that were there to the end.

    After one round that counts none begins that might not end before `until`, by `time.monotonic`.
    """
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in children}
    for turn in range(-warmup, rounds):
        begin = time.monotonic()
        for name, answer in ready(children, lost, do="run").items():
            if turn >= 0:
                told[name].append(answer)
        tick()
        end = time.monotonic()
        if turn >= 0 and until - end < 3 * (end - begin):  # an answer may take half of what is left
            break
    return {name: told[name] for name in children}


def serve(answer: Answer, asked: Sequence[str] | None = None) -> None:
    """Answer every line on standard input, until no more come; what libraries print goes to standard error.

    A library that is not there, and what a user gave and cannot be used, are answers; anything else ends the process.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin if asked is None else asked:
        try:
            told = answer(json.loads(line))
        except (ImportError, InputError) as error:
            told = {"lacks": one_line(str(error))}
        print(json.dumps(told), file=out, flush=True)
