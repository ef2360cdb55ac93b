"""A corpus prepared by several processes, one of which is killed: the other names it, and the work is taken up."""

import signal
import socket

import pytest
import soundfile

from jaxssl.data.demo import utterances
from jaxssl.training.lifeline import LOST
from jaxssl.training.preparation import Preparation, prepare
from tests.processes import start

# The command, in a process that is killed when it has labelled its first shard of two.
DYING = """
import os, signal
from jaxssl.data import labels
from jaxssl.runtime.cli import main
from jaxssl.training.preparation import Preparation, run

def written(path, arrays, write=labels.write_arrays):
    write(path, arrays)
    if path.name == "00001.npz":
        os.kill(os.getpid(), signal.SIGKILL)

labels.write_arrays = written
main(run, Preparation, "")
"""
SETTINGS = {"shard": 0.03, "clusters": 6, "frames": 400, "restarts": 1, "valid": 0}


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    for i, samples in enumerate(utterances(8)):
        soundfile.write(folder / f"{i}.flac", samples[: 16000 + 777 * i], 16000)
    return folder


@pytest.fixture(scope="module")
def alone(audio, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "prepared"
    prepare(Preparation(audio=(str(audio),), out=out, **SETTINGS))
    return out


def launch(audio, out, *programs):
    """Start a process of the command for each of these programs; None is the command itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--audio", audio, "--out", out, "--coordinator", f"127.0.0.1:{port}", "--processes", len(programs)]
    words += [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    started = [("-m", "experiments.prepare") if program is None else ("-c", program) for program in programs]
    return [start(*how, *words, "--process", i) for i, how in enumerate(started)]


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("again", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_is_named_and_its_shards_are_taken_up(audio, alone, tmp_path, again):
    """By one process, or by two."""
    pair = launch(audio, tmp_path / "out", None, DYING)
    (_, errors), _ = (process.communicate(timeout=120) for process in pair)
    assert [process.returncode for process in pair] == [LOST, -signal.SIGKILL], errors
    told = f"error: process 0 of 2 stops: process 1 on {socket.gethostname()} is gone; its own log may say why"
    assert errors.strip().splitlines()[-1] == told
    assert (tmp_path / "out/labels/.logmel-6/00001.npz").is_file()
    assert not (tmp_path / "out/labels/.logmel-6/00003.npz").is_file()
    if again == 1:
        prepare(Preparation(audio=(str(audio),), out=tmp_path / "out", **SETTINGS))
    else:
        both = launch(audio, tmp_path / "out", None, None)
        told = [process.communicate(timeout=120) for process in both]
        assert [process.returncode for process in both] == [0, 0], told
        assert "for each of 2 processes" in told[0][0]
        assert "corpus" in told[0][0]
        assert "corpus" not in told[1][0]
    left = {name: x for name, x in files(tmp_path / "out").items() if name != ".lock"}
    assert left == files(alone)
