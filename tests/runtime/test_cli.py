"""What every command line shares."""

import errno
import os
import re
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.table import Table

from compress.errors import InputError
from jaxssl.runtime import cli
from jaxssl.runtime.cli import command, console, visible
from tests.processes import finish, start

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [f"experiments.{path.stem}" for path in sorted((ROOT / "experiments").glob("[a-z]*.py"))]
COMMANDS += ["tools.convert_torch", "tools.export"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_to_start_it_and_what_a_flag_does(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, name, raising=False)  # another command or test may have imported it
    with pytest.raises(SystemExit) as left:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    lines = capsys.readouterr().out
    told = " ".join(lines.replace("│", " ").split())
    assert left.value.code == 0
    assert told.startswith(f"usage: python -m {name} ")
    assert "default: True" not in told
    assert len(re.findall(r"^[│ ]*--no-", lines, re.MULTILINE)) == told.count("(on by default; this flag turns it off)")


@pytest.mark.parametrize("machine", ["idle", "busy"])
def test_ctrl_c_in_a_garbage_collector_callback_still_interrupts(machine):
    """Python prints and drops what is raised there; XLA has such a callback. On a busy machine, too."""
    done = finish("-c", (SLOW if machine == "busy" else "") + INTERRUPTED, timeout=100)
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr


SLOW = """
import threading, time

start = threading.Thread.start

def late(self):  # what repeats the signal begins long before the hook that starts it ends
    start(self)
    time.sleep(0.5)

threading.Thread.start = late
"""
INTERRUPTED = """
import gc, time
from dataclasses import dataclass
from jaxssl.runtime.cli import main

@dataclass(frozen=True)
class Config: pass

def interrupt(phase, _):
    gc.callbacks.remove(interrupt)
    raise KeyboardInterrupt

def run(_):
    gc.callbacks.append(interrupt)
    gc.collect()
    time.sleep(200)

main(run, Config, "")
"""


@pytest.mark.parametrize("times", [1, 2, 9])
def test_ctrl_c_during_imports_is_one_line(times, tmp_path):
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands/__init__.py").write_text("from jaxssl.runtime import early\nearly.listen()\n")
    interrupts = f"import os, signal\nfor _ in range({times}): os.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n"
    (tmp_path / "commands/one.py").write_text(interrupts)
    with start("-m", "commands.one", cwd=tmp_path) as process:
        _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (130, "interrupted: nothing had begun\n")


def test_ctrl_c_while_the_first_is_told_changes_nothing(monkeypatch, capsys):
    """As of an impatient user."""
    told = iter((True, False))

    def again(_):
        if next(told):
            raise KeyboardInterrupt
        return True

    def run(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.causes, "interrupted", again)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        command(run, Nothing, "", args=[], remember=False)
    assert left.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted")


@pytest.mark.parametrize("name", ["experiments", "tools", "benchmarks"])
def test_every_room_of_commands_listens_first(name):
    """What is imported before it would be interrupted with a traceback."""
    lines = (ROOT / name / "__init__.py").read_text().splitlines()
    assert [line for line in lines if line][1:] == ["from jaxssl.runtime import early", "early.listen()"]


@dataclass(frozen=True)
class Nothing:
    """No options."""


def wrapped(inner, outer, how):
    """Raise one exception in the ways in which libraries make another of it."""
    try:
        raise inner
    except BaseException as error:
        if how == "cause":
            raise outer from error
        if how == "hidden":
            raise outer from None
        if how == "group":
            raise BaseExceptionGroup("several", [outer, error]) from None
        raise outer  # noqa: B904


HOWS = ("cause", "context", "hidden", "group")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("outer", [ValueError("not restored"), InputError("cannot be read"), OSError(5, "lost")])
def test_a_wrapped_ctrl_c_is_a_ctrl_c(how, outer, monkeypatch, capsys):
    """Orbax's event loop makes another exception of one that arrives while it reads."""

    def run(_):
        wrapped(wrapping(), RuntimeError("outermost"), how)

    def wrapping():
        try:
            wrapped(KeyboardInterrupt(), outer, how)
        except BaseException as error:
            return error

    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own Ctrl-C stays
    with pytest.raises(SystemExit) as left:
        command(run, Nothing, "", args=[], remember=False)
    assert left.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_wrapped_refusal_of_the_disk_is_one_line(how, number, capsys):
    """TensorStore keeps the text alone, Orbax the exception."""
    text = f"RESOURCE_EXHAUSTED: Error writing local file: {os.strerror(number)} [OS error {number}]\nmore lines"
    raised = iter((OSError(number, os.strerror(number)), ValueError(text)))
    for _ in range(2):
        code = command(lambda _: wrapped(next(raised), RuntimeError("a"), how), Nothing, "", args=[], remember=False)
        err = capsys.readouterr().err
        assert code == 2
        assert os.strerror(number) in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("how", HOWS)
def test_a_bug_beside_a_missing_file_keeps_its_traceback(how):
    with pytest.raises((TypeError, BaseExceptionGroup)):
        command(lambda _: wrapped(FileNotFoundError("a"), TypeError("bug"), how), Nothing, "", args=[], remember=False)


@pytest.mark.parametrize("hostile", ["\x1b]0;owned\x07", "\x1b[2J", "a\r\nb\u202e", "\x00\x7f\x9b31m"])
def test_foreign_text_is_shown_and_not_obeyed(hostile, capsys):
    """In error messages, notes and tables alike; no sequence sets a title, clears a screen or turns text around."""

    def run(_):
        console.print(f"note: {hostile}", markup=False)
        table = Table("a")
        table.add_row(hostile)
        console.print(table)
        raise InputError(f"a name {hostile} " + "x" * 10**6)

    assert command(run, Nothing, "", args=[], remember=False) == 2
    out, err = capsys.readouterr()
    assert all(each.isprintable() or each == "\n" for each in out + err)
    assert len(err.splitlines()) == 1
    assert len(err) < 2500


@pytest.mark.parametrize("text", ["plain", "é — ü ½", "日本語", "a\tb\nc"])
def test_what_can_be_read_stays(text):
    assert visible(text) == text


TALKS = """
import sys
from dataclasses import dataclass
from jaxssl.runtime.cli import command, console, progress

@dataclass(frozen=True)
class Config:
    pass

def talk(_):
    with progress("going", 2) as tick:
        tick()
    for number in range(int(sys.argv[1])):
        console.print("a line of some words", number)

sys.exit(command(talk, Config, "", args=[], remember=False))
"""


@pytest.mark.slow
@pytest.mark.parametrize("lines", [1, 3000])
@pytest.mark.parametrize(
    ("where", "code", "told"),
    [
        (">/dev/full", 2, "error: output: No space left on device"),
        ("| true", 2, "error: output: Broken pipe"),
        (">&-", 0, ""),
        (">&- 2>&-", 0, None),
        (">/dev/full 2>&1", 2, None),
        ("2>/dev/full >/dev/null", 2, None),
    ],
)
def test_whatever_takes_the_output(tmp_path, where, code, told, lines):
    """A full disk, a pipe that nobody reads, or nothing at all: one line where there is a place for it."""
    (tmp_path / "talk.py").write_text(TALKS)
    line = f"set -o pipefail; {{ sleep 0.2; {sys.executable} {tmp_path}/talk.py {lines}; }} {where}"
    done = subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == code, done.stderr
    if told is not None:
        errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("going")]
        assert [line.partition(";")[0] for line in errors] == ([told] if told else [])
