"""Processes in turns: what they answer, and that whatever ends one badly is a line, and the others go on."""

import os
import time

import pytest

from benchmarks.turns import Child, Ended, child, race, ready
from tests.conftest import ROOT

PROGRAM = """
import os, signal, sys, time
from benchmarks.turns import serve
from compress.errors import InputError

def answer(question):
    print("what libraries say", flush=True)
    os.write(1, b"and C libraries too\\n")
    match sys.argv[1], question["do"]:
        case "killed", "run":
            os.kill(os.getpid(), signal.SIGKILL)
        case "dies", "run":
            raise RuntimeError("no memory\\nfor this")
        case "leaves", "run":
            os._exit(7)
        case "lacks", _:
            import no_such_library
        case "refuses", _:
            raise InputError("a batch of 0: give 1 or more")
        case "hangs", "run":
            time.sleep(1000)
        case "slow", "run":
            time.sleep(0.2)
    return {"seconds": 1.0, "asked": question["do"]}

serve(answer)
"""


@pytest.fixture(autouse=True)
def _program(tmp_path, monkeypatch):
    (tmp_path / "answering.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))


def test_a_process_answers_whatever_its_libraries_print():
    with child("answering", "well") as process:
        assert process.ask(do="prepare") == {"seconds": 1.0, "asked": "prepare"}
        assert process.ask(do="run")["asked"] == "run"


def test_no_answer_is_waited_for_beyond_the_end():
    with child("answering", "hangs", until=time.monotonic() + 5) as process:
        begin = time.monotonic()
        with pytest.raises(Ended, match="no answer in"):
            process.ask(do="run")
        assert time.monotonic() - begin < 60
    with child("answering", "well", until=0.0) as late, pytest.raises(Ended, match="no answer in 0 s"):
        late.ask(do="prepare")


ENDS = {
    "killed": "killed by SIGKILL, as Linux does when memory is out",
    "dies": "ended with exit code 1: for this",
    "leaves": "ended with exit code 7: and C libraries too",
    "lacks": "No module named 'no_such_library'",
    "refuses": "a batch of 0: give 1 or more",
    "hangs": "no answer in 5 s",
}


def test_a_bad_end_is_one_line_and_the_others_go_on():
    names, lost = ["well", *ENDS, "too"], {}
    children = {name: Child("answering", name) for name in names}
    try:
        children["hangs"].ask(do="prepare")
        children["hangs"]._patience = 5.0  # from now on: Python's start takes what it takes
        told = race(children, lambda who, why: lost.update({who: why}), rounds=2)
        assert told == {name: [{"seconds": 1.0, "asked": "run"}] * 2 for name in ("well", "too")}
        assert list(children) == ["well", "too"]
        assert lost == ENDS
        assert ready(children, pytest.fail, do="prepare").keys() == {"well", "too"}
    finally:
        for each in children.values():
            each.close()


def test_rounds_that_were_run_count_when_the_time_is_over():
    children = {name: Child("answering", "slow") for name in ("one", "two")}
    try:
        ready(children, pytest.fail, do="prepare")
        for until, rounds in ((time.monotonic() + 4, range(1, 10)), (0.0, [1])):
            told = race(children, pytest.fail, rounds=100, until=until)
            assert len(told["one"]) == len(told["two"])
            assert len(told["one"]) in rounds
    finally:
        for each in children.values():
            each.close()


def test_who_has_ended_answers_no_more():
    with child("answering", "killed") as process:
        for _ in range(2):
            with pytest.raises(Ended, match="SIGKILL"):
                process.ask(do="run")
