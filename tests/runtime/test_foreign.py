"""What others wrote: JSON, arrays and messages are read, or refused in one line that does nothing to a screen."""

import json
import socket
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import yaml

from compress.errors import LONGEST, InputError
from jaxssl.convert.armhubert import _block
from jaxssl.data.arrays import read_array, read_arrays
from jaxssl.runtime import files
from jaxssl.training.ctc_layer import stored
from jaxssl.training.lifeline import LINE, Link
from jaxssl.training.telemetry import read_journal
from tests.processes import finish


def test_errors_are_one_line_wherever_they_are_shown():
    told = str(InputError(f"x.pt:\n  \x1b]0;owned\x07 \ud800 {'a' * 10**6}; copy it again"))
    assert told.isprintable()
    assert len(told) <= LONGEST
    assert told.startswith("x.pt: \\x1b]0;owned\\x07 \\ud800 aaa")
    assert told.endswith("aaa; copy it again")
    assert str(InputError(told)) == told


@pytest.mark.parametrize("text", ["", "{", "[" * 10**5, "9" * 5000, '{"a": ' + "9" * 5000 + "}", b"\xff{}"], ids=str)
def test_json_that_is_none(tmp_path, text):
    with pytest.raises(InputError, match="the file: damaged, not JSON"):
        files.parsed(text, "the file")


def test_json_too_deep_to_walk_through():
    assert files.parsed("[" * 60 + "]" * 60, "the file")
    with pytest.raises(InputError, match="the file: JSON nested over 64 deep"):
        files.parsed("[" * 70 + "]" * 70, "the file")


def test_json_of_another_kind(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match=r"a\.json: not names and values, but a list"):
        files.read_object(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"a\.json: not names and values, but a int"):
        files.read_rows(tmp_path / "a.json")


@pytest.mark.parametrize("kind", ["junk", "missing", "compressed", "text", "no array", "header"])
def test_arrays_that_are_none(tmp_path, kind):
    path = tmp_path / "a.npz"
    whole = {"missing": None, "text": np.array(["a"])}.get(kind, np.ones(3))
    if kind == "compressed":
        np.savez_compressed(path, a=whole)
    elif whole is not None:
        np.savez(path, a=whole)
    if kind == "junk":
        path.write_bytes(path.read_bytes()[:100])
    if kind in ("no array", "header"):
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("a.npy", b"\x93NUMPY\x01\x00\x05\x00{'a':" if kind == "header" else b"no array")
    with pytest.raises(InputError, match=r"a\.npz: (damaged or no \.npz file|an array of .*no numbers)"):
        read_arrays(path, "a")


def test_arrays_without_axes_and_headers_that_cannot_be(tmp_path):
    np.save(tmp_path / "a.npy", np.float32(1))
    with pytest.raises(InputError, match=r"shape \(\), not of 1 or more axes"):
        read_array(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    with pytest.raises(InputError, match=r"shape \(2, 2\), not of 1 axes"):
        read_array(tmp_path / "a.npy", axes=1)


NEST = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


@pytest.mark.parametrize("value", ["*a8", "&s [*s]", "2001-99-99", "9" * 5000, ":".join(["59"] * 3000) + ".5"])
def test_yaml_that_grows_or_is_none(tmp_path, value):
    (tmp_path / "a.yaml").write_text(f"{NEST}distiller:\n  conv_pos: {value}\n")
    with pytest.raises(InputError, match=r"a\.yaml: (not YAML|its aliases)"):
        _block(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("distiller: &d {conv_pos: 3}\nother: *d\n")
    assert _block(tmp_path / "a.yaml") == yaml.safe_load("conv_pos: 3")


@pytest.mark.parametrize("said", [b"{\n", b"3\n", b"x" * (LINE + 1) * 3, b"[" * 4000 + b"\n"])
def test_who_speaks_otherwise_on_a_lifeline_is_gone(said):
    """Reading never raises: the thread that listens would end without a word."""
    one, two = socket.socketpair()
    with one, two:
        link = Link(one, 1, "host")
        two.sendall(said)
        two.shutdown(socket.SHUT_WR)
        heard = []
        while (found := link.read()) is not None:
            heard += found
        assert heard == []
        assert isinstance(str(link), str)


def test_a_journal_ends_at_the_first_line_that_is_none(tmp_path):
    row = {"step": 1, "loss": 2.0}
    for bad in (b"\xff\xfe", b'{"step": []}', b'{"step": 1e400}', b"[]", b'{"step": ' + b"9" * 5000 + b"}"):
        (tmp_path / "metrics.jsonl").write_bytes(json.dumps(row).encode() + b"\n" + bad + b"\n")
        assert read_journal(tmp_path) == [row]


@pytest.mark.parametrize("symbols", [3, ["a"], [1, 2], {"a": 1, "b": 2}, None])
def test_a_ctc_layer_of_other_symbols_than_columns(symbols):
    arrays = safetensors.numpy.save({"kernel": np.zeros((4, 2), np.float32)})
    given = {"ctc/ctc.safetensors": arrays, "ctc/symbols.json": json.dumps({"symbols": symbols}).encode()}
    if symbols is None:
        assert stored(given)[2] is None
        return
    with pytest.raises(InputError, match="beside the model: damaged"):
        stored(given)


def test_what_another_process_says_cannot_move_the_cursor():
    """Its reason to stop is the last thing that this one prints."""
    program = "from jaxssl.training.lifeline import leave; leave('stops: \\x1b]0;owned\\x07' + 9000 * 'a', 3)"
    done = finish("-c", program)
    assert done.returncode == 3
    assert done.stderr.startswith("stops: \\x1b]0;owned\\x07aaa")
    assert len(done.stderr) <= LONGEST + 1


def test_what_libraries_log_is_cut_and_written_out():
    """Orbax quotes files that it cannot read; what a full disk leaves of its other tasks is told by the command."""
    program = """
import errno, logging
from jaxssl.runtime import hooks
hooks.install()
for name in ("absl", "asyncio"):
    log = logging.getLogger(name)
    log.error("a file: \\x1b[2J%s", 9000 * "b")
    full = OSError(errno.ENOSPC, "No space left on device")
    log.error("never retrieved", exc_info=(OSError, full, None))
"""
    done = finish("-c", program)
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert all("a file: \\x1b[2Jbbb" in line and len(line) < LONGEST + 100 for line in lines)


def test_a_task_that_failed_is_told_without_disturbing_a_parser():
    """It is told of when it is collected, here while Python parses; CPython up to 3.11.7 fails if a trace follows."""
    program = """
import ast, asyncio, gc, inspect
from jaxssl.runtime import hooks
hooks.install()
loop, source = asyncio.new_event_loop(), inspect.getsource(asyncio.base_events)

async def fail():
    raise ValueError("an array that cannot be read")

gc.set_threshold(50)
for _ in range(5):
    cycle = [loop.create_task(fail())]
    cycle.append(cycle)
    loop.run_until_complete(asyncio.sleep(0))
    del cycle
    ast.parse(source)
"""
    done = finish("-c", program)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert len(told) == 5, done.stderr
    assert all("an array that cannot be read" in line for line in told)
