"""Signals are heard while a run trains, by all its processes after the same update, and nowhere else."""

import os
import signal
import threading

import pytest

from jaxssl.training import told as told_module
from jaxssl.training.told import AGREE_EVERY, SIGNALS, Told, listening


def send(which):
    os.kill(os.getpid(), which)


@pytest.mark.parametrize(("which", "name"), SIGNALS.items(), ids=str)
def test_a_signal_is_heard_and_the_old_handler_comes_back(which, name):
    def mine(number, frame):
        raise AssertionError("the handler from before was called")

    before = signal.signal(which, mine)
    try:
        with listening() as told:
            assert not getattr(told, name).is_set()
            send(which)
            assert getattr(told, name).wait(5)
        assert signal.getsignal(which) is mine
        with pytest.raises(ZeroDivisionError), listening():
            _ = 1 / 0
        assert signal.getsignal(which) is mine
    finally:
        signal.signal(which, before)


def test_outside_the_main_thread_nothing_is_heard():
    found = []

    def body():
        with listening() as told:
            found.append((told.leave.is_set(), told.save.is_set()))

    before = [signal.getsignal(each) for each in SIGNALS]
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(False, False)]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_to_save_is_asked_once_and_to_leave_for_good():
    told = Told()
    told.agree(1)
    assert (told.leaving, told.saving) == (False, False)
    told.save.set()
    told.agree(2)
    assert (told.leaving, told.saving) == (False, True)
    told.leave.set()
    for number in (3, 4):
        told.agree(number)
        assert (told.leaving, told.saving) == (True, False)


def test_what_one_process_hears_all_do(monkeypatch):
    """After an update at which they ask each other, and no other."""
    one, other = Told(), Told()
    other.save.set()
    heard = iter([False, True] * 2)  # leave, save: of either process
    monkeypatch.setattr(told_module.jax, "process_count", lambda: 2)
    monkeypatch.setattr(told_module.distributed, "anywhere", lambda flag: next(heard))
    for number in range(1, AGREE_EVERY):
        one.agree(number)
        assert not one.saving
    one.agree(AGREE_EVERY)
    other.agree(AGREE_EVERY)
    assert (one.saving, other.saving, other.save.is_set()) == (True, True, False)
