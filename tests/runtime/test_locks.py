"""Two commands in one folder: the second is told of the first, and what a dead one left stops nobody."""

import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from compress.errors import InputError
from jaxssl.runtime import files, locks
from jaxssl.runtime.cli import command
from tests.processes import start


@dataclass(frozen=True)
class Config:
    """Where to."""

    out: Path = Path("out")


def run(config):
    files.claim(config.out)
    files.own(config.out, {"a": 1})


@pytest.fixture
def other(tmp_path):
    """A process that holds the folder `tmp_path / "out"`."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / files.CLAIMED).touch()
    with start("-c", HOLDER, tmp_path / "out") as process:
        assert process.stdout.readline() == "taken\n", process.stderr.read()
        yield process
        process.kill()


HOLDER = """
import sys, time
from pathlib import Path
from jaxssl.runtime import locks

with locks.holding(print):
    locks.take(Path(sys.argv[1]))
    print("taken", flush=True)
    time.sleep(200)
"""


def test_the_second_is_told_of_the_first(other, tmp_path, capsys):
    assert command(run, Config, "", args=["--out", str(tmp_path / "out")], remember=False) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert f"process {other.pid} on {socket.gethostname()} works there; wait for its end" in told
    assert not (tmp_path / "out/config.json").exists()


def test_a_dead_one_is_told_and_its_place_taken(other, tmp_path, capsys):
    other.kill()
    other.wait()
    assert (tmp_path / "out" / locks.NAME).is_file()
    assert command(run, Config, "", args=["--out", str(tmp_path / "out")], remember=False) == 0
    assert f"process {other.pid} on {socket.gethostname()} ended here without a word" in capsys.readouterr().err
    assert not (tmp_path / "out" / locks.NAME).exists()
    assert command(run, Config, "", args=["--out", str(tmp_path / "out")], remember=False) == 0
    assert capsys.readouterr().err == ""


def test_a_command_may_take_a_folder_twice_and_gives_it_back_however_it_ends(tmp_path):
    def fail(config):
        run(config)
        run(config)
        assert (config.out / locks.NAME).is_file()
        raise InputError("no")

    for _ in range(2):
        assert command(fail, Config, "", args=["--out", str(tmp_path / "out")], remember=False) == 2
        assert not (tmp_path / "out" / locks.NAME).exists()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(locks.UNKNOWN[0], "no locks")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    assert command(run, Config, "", args=["--out", str(tmp_path / "out")], remember=False) == 0
    assert "this file system has no locks" in capsys.readouterr().err


def test_without_a_command_nothing_is_locked(tmp_path):
    run(Config(tmp_path / "out"))
    assert not (tmp_path / "out" / locks.NAME).exists()
