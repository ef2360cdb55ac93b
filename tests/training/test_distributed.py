"""Processes that train as one: who is missing has a name, and when one goes the others stop."""

import re
import signal
import socket
import threading
import time

import pytest

from compress.errors import InputError
from jaxssl.training import distributed
from jaxssl.training.lifeline import LOST
from jaxssl.training.rollcall import Place, call_roll, connect
from tests.processes import start

SILENCE_S = 2.0
START = """
import sys, time
import numpy as np
from compress.errors import InputError
from jaxssl.training import distributed
process, processes, port, timeout = (int(word) for word in sys.argv[1:])
try:
    distributed.initialize(f"127.0.0.1:{port}", processes, process, timeout_s=timeout, silence_s=%s)
except InputError as error:
    sys.exit(f"error: {error}")
import jax
import jax.numpy as jnp
from jaxssl.training.sharding import fetch, gather, global_batch, make_mesh, place, shardings
""" % (SILENCE_S,)  # noqa: UP031  (the program has braces of its own)
TOGETHER = """
mesh = make_mesh(fsdp=4)
local = np.arange(4 * process, 4 * process + 4, dtype=np.float32)
weight = np.arange(32, dtype=np.float32).reshape(8, 4)
with distributed.guard():
    batch = global_batch({"x": local}, mesh)
    where = shardings(weight, mesh, small=1)
    spread = place(weight, where)
    doubled = jax.jit(lambda w: 2 * w, out_shardings=where)(spread)
    total = jax.jit(lambda b: b["x"].sum())(batch)
    distributed.barrier("before the end")
    assert distributed.anywhere(process == 1) and not distributed.anywhere(False)
    np.testing.assert_array_equal(fetch(doubled), 2 * weight)
    for fsdp in (1, 4, 8):  # process 0 has all of it, all of it spread, and the half of it
        there = place(weight, shardings(weight, make_mesh(fsdp=fsdp), small=1))
        found = gather(there)
        assert process or np.array_equal(found, weight)
    distributed.meet()
    assert distributed.said({"number": process}) == {"number": 0}
    assert not doubled.is_fully_addressable and doubled.addressable_shards[0].data.shape == (2, 4)
    print("main" if distributed.is_main() else "other", jax.device_count(), float(total))
"""
WORK = """
with distributed.guard():
    while True:
        distributed.anywhere(False)
        print("working", flush=True)
        time.sleep(0.05)
"""
FAIL = """
with distributed.guard():
    distributed.anywhere(False)
    if process == 1:
        raise InputError("no such file")
    distributed.anywhere(False)
"""


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def launch(port):
    started = []

    def launch(program, process, *, processes=2, timeout=20, **settings):
        started.append(start("-c", START + program, process, processes, port, timeout, devices=4, **settings))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def last_line(process):
    """What is left of standard error without C++ remarks, and the exit code."""
    _, errors = process.communicate(timeout=60)
    return (errors.strip().splitlines() or [""])[-1], process.returncode


def test_two_processes_are_one_run(launch):
    """Eight devices in two processes: parameters are spread over four, rows over all, one process is the main one.

    An HTTP proxy that the environment names, here a dead one, is not asked.
    """
    pair = [launch(TOGETHER, i, http_proxy="http://127.0.0.1:1") for i in range(2)]
    (main, errors), (other, _) = (process.communicate(timeout=60) for process in pair)
    assert main.splitlines()[-1] == "main 8 28.0", errors
    assert other.splitlines()[-1] == "other 8 28.0"
    assert [process.returncode for process in pair] == [0, 0]


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_killed_the_other_stops(launch, victim):
    pair = [launch(WORK, i) for i in range(2)]
    for process in pair:
        wait_for(process, "working")
    pair[victim].kill()
    line, code = last_line(pair[1 - victim])
    assert code == LOST
    assert re.fullmatch(rf"error: process {1 - victim} of 2 stops: process {victim} on \S+ is gone; .*", line)


def test_when_one_hangs_the_other_stops(launch):
    pair = [launch(WORK, i) for i in range(2)]
    for process in pair:
        wait_for(process, "working")
    pair[0].send_signal(signal.SIGSTOP)
    line, code = last_line(pair[1])
    assert code == LOST
    assert f"process 0 on {socket.gethostname()} has been silent for {SILENCE_S:g} s" in line


def test_when_one_fails_the_other_says_why(launch):
    pair = [launch(FAIL, i) for i in range(2)]
    line, code = last_line(pair[0])
    assert code == LOST
    assert f"process 1 on {socket.gethostname()} failed: InputError: no such file" in line
    assert last_line(pair[1]) == ("compress.errors.InputError: no such file", 2)


def test_a_missing_process_is_named(launch):
    here = launch("", 0, timeout=1)
    line, code = last_line(here)
    assert code == 1
    assert line.startswith("error: process 1 of 2 did not come within 1 s, none came; ")


def wait_for(process, word):
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(process.communicate()[1])


def call(places, *, timeout_s=5.0):
    """Call the roll in threads; what each got: lifelines or the message of its error."""
    found = {}

    def one(number, place):
        try:
            found[number] = call_roll(place, timeout_s=timeout_s)
        except InputError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(places)]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    for links in found.values():
        for link in links if isinstance(links, list) else []:
            link.socket.close()
    return [found[i] for i in range(len(places))]


def test_the_roll_is_complete(port):
    """Whatever the order in which they come."""
    found = call([Place(f"127.0.0.1:{port}", 4, i) for i in (2, 0, 3, 1)])
    assert sorted(link.process for link in found[1]) == [1, 2, 3]
    assert [[link.process for link in found[i]] for i in (0, 2, 3)] == [[0]] * 3


def test_all_learn_who_is_missing(port):
    found = call([Place(f"127.0.0.1:{port}", 5, i) for i in (0, 1, 3)], timeout_s=0.5)
    host = socket.gethostname()
    assert found[0] == (
        f"process 2, 4 of 5 did not come within 0.5 s, 2 came (process 1 on {host}, process 3 on {host}); "
        f"start what is missing, or see that it reaches 127.0.0.1:{port}"
    )
    assert found == found[:1] * 3


def test_process_0_is_missing(port):
    (found,) = call([Place(f"127.0.0.1:{port}", 2, 1)], timeout_s=0.3)
    assert found == f"process 0 did not answer at 127.0.0.1:{port} within 0.3 s; start it, or open that port"


def test_processes_that_contradict_each_other(port):
    where, host = f"127.0.0.1:{port}", socket.gethostname()
    found = call([Place(where, 3, 0), Place(where, 3, 1), Place(where, 3, 1)])
    assert set(found) == {f"two processes are number 1: on {host} and on {host}; give each its own --process"}
    found = call([Place(where, 3, 0), Place(where, 2, 1)])
    assert set(found) == {f"process 1 on {host} was started with --processes 2, process 0 with 3; they must agree"}


def test_strangers_are_sent_away(port):
    """A port scanner, a browser and a process that gave up do not disturb the roll."""
    gathered = []
    main = threading.Thread(target=lambda: gathered.extend(call([Place(f"127.0.0.1:{port}", 3, 0)])))
    main.start()
    for words in (b"", b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", b'{"process": 1, "processes": 3, "host": "gone"}\n'):
        with connect(("127.0.0.1", port), time.monotonic() + 5) as stranger:
            stranger.sendall(words)
    call([Place(f"127.0.0.1:{port}", 3, 2), Place(f"127.0.0.1:{port}", 3, 1)])
    main.join()
    assert [(link.process, link.host) for link in gathered[0]] == [(i, socket.gethostname()) for i in (2, 1)]


def test_a_port_that_is_taken(port):
    with socket.create_server(("", port)), pytest.raises(InputError, match=f"port {port} of process 0: "):
        call_roll(Place(f"127.0.0.1:{port}", 2, 0), timeout_s=1)


def test_one_process_has_nothing_to_join(monkeypatch):
    for name in ("KUBERNETES_SERVICE_HOST", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    distributed.initialize(timeout_s=1)
    distributed.initialize("127.0.0.1:1", 1, 0, timeout_s=1)
    distributed.barrier("alone")
    assert distributed.is_main()
    assert not distributed.anywhere(False)
    with pytest.raises(ZeroDivisionError), distributed.guard():
        _ = 1 / 0


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((None, 2, None), "--coordinator and --process not given"),
        (("host:1", None, 0), "--processes not given"),
        (("host", 2, 0), "--coordinator host: not HOST:PORT"),
        ((":80", 2, 0), "not HOST:PORT"),
        (("host:1", 2, 2), "--process 2 of --processes 2: must be from 0 to 1"),
    ],
)
def test_a_place_that_is_none(place, message):
    with pytest.raises(InputError, match=message):
        distributed.initialize(*place, timeout_s=1)
