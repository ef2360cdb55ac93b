"""What happens to long runs: spikes lead back to a checkpoint, machines are taken away, clocks jump.

A run that is broken off anywhere ends where an unbroken one does.
"""

import itertools
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.data.batches import Loader
from jaxssl.models import checkpoint
from jaxssl.runtime.cli import Preempted
from jaxssl.training import fit, resume, spikes
from jaxssl.training.corpus import load_data
from jaxssl.training.losses import MaskedPrediction
from jaxssl.training.resume import Checkpoints
from jaxssl.training.rollback import MOST, Rollback, anchor
from jaxssl.training.settings import Training
from jaxssl.training.step import start
from jaxssl.training.telemetry import read_journal
from tests.archs import MEL, weights
from tests.experiments.small import make
from tests.processes import start as launch
from tests.training.test_notices import serving

pytestmark = pytest.mark.usefixtures("one_device")
BAD = range(22, 28)  # batches, from 0, whose labels are all 0: updates 23 to 28
RATES = {"updates_per_s", "audio_s_per_s", "mfu"}
SETTINGS = Training(
    steps=40,
    batch=4,
    shortest=0.5,
    buckets=1,
    valid_every=20,
    save_every=10,
    log_every=5,
    spike_row=3,
)


@dataclass(frozen=True)
class Jumpy(MaskedPrediction):
    """Is a hundred times as large where no label differs."""

    def __call__(self, output, labels, mask):
        value, sums = super().__call__(output, labels, mask)
        factor = jnp.where((labels > 0).any(), jnp.float32(1), jnp.float32(100))
        return factor * value, {**sums, "loss": (factor * value, jnp.float32(1))}


LOSS = Jumpy((6,))


class Crash(Exception):
    """Ends a run as a kill does: nothing is saved."""


class At:
    """Does something once, after an update; `returns` tells the first time from that after going back."""

    def __init__(self, number, do, *, returns=0):
        self.number, self.do, self.returns = number, do, returns

    def __call__(self, number, state):
        if (number, int(state.spikes.returns)) == (self.number, self.returns):
            self.number = 0
            self.do()


def crash():
    raise Crash


def send(which):
    return lambda: os.kill(os.getpid(), which)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make(tmp_path_factory.mktemp("spiking"), layers=1, dropout=0.0)


@pytest.fixture(scope="module")
def subject(place):
    return opened(place.model, place.corpus)


def opened(model, corpus):
    arch, params = checkpoint.load(model)
    return arch, params, load_data(corpus, arch, labels=None, valid=None)


def spiking(folder, subject, *at, **changes):
    """Train on speech of which some batches spike, or go on there; each of `at` is called after updates."""
    read, look = Loader.__next__, Rollback.look

    def loud(self):
        where = self.state()
        batch = read(self)
        bad = where["epoch"] * self.steps + where["step"] in BAD
        return replace(batch, labels=np.minimum(batch.labels, 0)) if bad else batch

    def looking(self, number, state, sums):
        look(self, number, state, sums)
        for each in at if sums else ():
            each(number, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spikes, "ENOUGH", 8)
        patch.setattr(Loader, "__next__", loud)
        patch.setattr(Rollback, "look", looking)
        return fit.fit(folder, *subject, replace(SETTINGS, **changes), loss=LOSS).params


@pytest.fixture(scope="module")
def train(subject):
    return lambda folder, *at, **changes: flatten(spiking(folder, subject, *at, **changes))


@pytest.fixture(scope="module")
def unbroken(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return folder, train(folder)


def told(folder):
    return [{name: value for name, value in row.items() if name not in RATES} for row in read_journal(folder)]


def saved(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def assert_same(found, expected, folder, other):
    assert [path for path in expected if found[path].tobytes() != expected[path].tobytes()] == []
    assert told(folder) == told(other)


def test_it_goes_back_behind_the_row_and_on_with_other_speech(unbroken, capsys, train, tmp_path):
    folder, params = unbroken
    rows = told(folder)
    (row,) = [row for row in rows if row["part"] == "rollback"]
    assert row == {"step": 21, "part": "rollback", "after": 30, "returns": 1, "step_size": 0.5}
    trained = {row["step"]: row for row in rows if row["part"] == "train"}
    assert list(trained) == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [trained[n]["spikes"] for n in (20, 25, 40)] == [0, 6, 6]
    assert trained[40]["skipped"] == 6
    assert trained[25]["loss"] < 3  # of batch 35, not of the loud 25
    assert trained[25]["learning_rate"] == pytest.approx(0.5 * 1e-3 * (40 - 24) / 36, rel=1e-5)
    assert saved(folder) == [20, 30, 40]
    skipped = train(tmp_path / "run", spikes="skip")
    assert "spikes in a row" not in capsys.readouterr().err
    assert told(tmp_path / "run")[-2]["spikes"] == 6
    assert any(skipped[path].tobytes() != params[path].tobytes() for path in params)


@pytest.mark.slow
def test_a_run_broken_off_anywhere_ends_the_same(unbroken, train, tmp_path, capsys):
    """Killed before, within and after the row, and after going back; what is saved besides is not gone back to."""
    folder = tmp_path / "run"
    kills = [At(15, crash), At(26, crash), At(30, crash), At(24, crash, returns=1), At(38, crash, returns=1)]
    asked = At(22, send(signal.SIGUSR1)), At(25, send(signal.SIGUSR1))  # heard one update later
    for kill in kills:
        with pytest.raises(Crash):
            train(folder, *asked, kill, keep=1)
    assert_same(train(folder, keep=1), unbroken[1], folder, unbroken[0])
    assert saved(folder) == [40]
    heard = capsys.readouterr()
    assert heard.err.count("saved, as SIGUSR1 asks") == 2
    after = [line.split()[-1] for line in heard.out.splitlines() if line.startswith("resuming after update ")]
    assert after == ["10", "26", "30", "20", "30"]


@pytest.mark.parametrize(
    ("number", "returns"),
    [(30, 0), pytest.param(27, 0, marks=pytest.mark.slow), pytest.param(22, 1, marks=pytest.mark.slow)],
)
def test_a_preempted_run_ends_the_same(unbroken, train, tmp_path, number, returns):
    """Also when it is to leave after the very update after which it is to go back."""
    folder = tmp_path / "run"
    with pytest.raises(Preempted):
        train(folder, At(number - 1, send(signal.SIGTERM), returns=returns))
    assert_same(train(folder), unbroken[1], folder, unbroken[0])


def test_without_a_checkpoint_of_before_it_goes_on_from_there(train, tmp_path, capsys):
    train(tmp_path / "run", save_every=100)
    assert "spikes in a row; goes on from there: nothing is saved yet, with 0.5 of the step" in capsys.readouterr().err
    (row,) = [row for row in told(tmp_path / "run") if row["part"] == "rollback"]
    assert (row["step"], row["after"]) == (31, 30)


ONE_OF_TWO = """
import sys
from pathlib import Path
from jaxssl.training import distributed
process, port, model, corpus, out = sys.argv[1:]
distributed.initialize(f"127.0.0.1:{port}", 2, int(process), timeout_s=60)
from tests.experiments.test_long_runs import opened, spiking
with distributed.guard():
    spiking(Path(out), opened(Path(model), Path(corpus)))
"""


@pytest.mark.slow
def test_two_processes_go_back_as_one(place, unbroken, tmp_path):
    """To the same checkpoint, which both read, after the same update; and go on as one process does, to rounding."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = (port, place.model, place.corpus, tmp_path / "run")
    both = [launch("-c", ONE_OF_TWO, i, *words) for i in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert all("3 spikes in a row; goes on from update 20" in each for each in errors)
    found, expected = told(tmp_path / "run"), told(unbroken[0])
    assert [row for row in found if row["part"] == "rollback"] == [row for row in expected if row["part"] == "rollback"]
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(row.get("loss", 0), other.get("loss", 0), rtol=1e-5, err_msg=str(row["step"]))
    assert saved(tmp_path / "run") == [20, 30, 40]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(train, tmp_path, capsys):
    folder = tmp_path / "run"

    def damage():
        while not (folder / "checkpoints/20").is_dir():  # it is written in the background
            time.sleep(0.01)
        file = max((folder / "checkpoints/20/state").rglob("d/*"), key=lambda path: path.stat().st_size)
        file.write_bytes(b"")

    train(folder, At(29, damage))
    heard = capsys.readouterr().err
    assert "note: checkpoint 20 is damaged, the one before it is used" in heard
    assert "goes on from update 10" in heard


def test_a_notice_of_gce_ends_a_run_as_sigterm_does(unbroken, train, tmp_path, monkeypatch, capsys):
    """One update after it came; the run then goes on where no metadata server is, and ends the same."""
    folder = tmp_path / "run"
    with serving() as metadata:
        monkeypatch.setenv("GCE_METADATA_HOST", metadata.host)

        def preempt():
            metadata.say("preempted", "TRUE")
            while any(each.name == "notice of preempted" for each in threading.enumerate()):
                time.sleep(0.01)

        with pytest.raises(Preempted, match="after update 14 of 40, saved"):
            train(folder, At(13, preempt))
    assert "note: preempted is TRUE, says GCE: this machine goes; saving, then leaving" in capsys.readouterr().err
    assert saved(folder) == [10, 14]
    monkeypatch.delenv("GCE_METADATA_HOST")
    assert_same(train(folder), unbroken[1], folder, unbroken[0])


@pytest.mark.parametrize("day", [-86_400, 86_400])
def test_a_clock_that_jumps_changes_nothing(unbroken, train, tmp_path, monkeypatch, day):
    """Set back or forward by a day between any two looks at it: intervals, rates and results are as before."""
    real, looks = (time.time, time.time_ns), itertools.count()
    monkeypatch.setattr(time, "time", lambda: real[0]() + day * (next(looks) % 2))
    monkeypatch.setattr(time, "time_ns", lambda: real[1]() + 10**9 * day * (next(looks) % 2))
    begun, folder = time.monotonic(), tmp_path / "run"
    found = train(folder)
    took = time.monotonic() - begun
    assert next(looks) > 40  # TensorBoard's file, at least, has the time of day; Orbax would have given up a save
    assert_same(found, unbroken[1], folder, unbroken[0])
    assert saved(folder) == saved(unbroken[0])
    rates = [row["updates_per_s"] for row in read_journal(folder) if row["part"] == "train"]
    assert min(rates) > 5 / took


def state(row=0, first=0, returns=0, step=30):
    one = replace(MEL, layers=MEL.layers[:1])
    begun = start(weights(one), fit.optimizer(SETTINGS).build(), seed=0)
    counts = {"row": jnp.int32(row), "first": jnp.int32(first), "returns": jnp.int32(returns)}
    return replace(begun, step=jnp.int32(step), spikes=replace(begun.spikes, **counts))


def test_a_run_that_went_back_too_often_ends(tmp_path):
    with Checkpoints(tmp_path / "c") as saves:
        back = Rollback(SETTINGS, saves, None, print)
        back.look(30, given := state(row=3, first=23, returns=MOST), {})
        with pytest.raises(InputError, match="went back 10 times, and 3 updates in a row are spikes again; lower"):
            back.settled(given)


def test_it_looks_now_and_then_and_only_where_it_may_go_back(tmp_path):
    with Checkpoints(tmp_path / "c") as saves:
        for number, how, due in ((30, {}, True), (31, {}, False), (40, {}, True), (30, {"spikes": "skip"}, False)):
            back = Rollback(replace(SETTINGS, **how), saves, None, print)
            back.look(number, state(row=3, first=23, step=number), {})
            assert back.due == due


@pytest.mark.parametrize(
    ("how", "number"),
    [({}, 30), ({"step": 37}, 30), ({"row": 2, "first": 31, "step": 32}, 30), ({"row": 2, "first": 30}, 20)],
)
def test_where_to_go_back_to_follows_from_numbers(how, number):
    assert anchor(SETTINGS, state(**how)) == number
    assert anchor(replace(SETTINGS, spikes="skip"), state(**how)) is None


def test_what_may_be_gone_back_to_stays_besides_the_newest(tmp_path):
    with Checkpoints(tmp_path / "c", keep=1) as saves:
        for number, kept in ((10, 10), (20, 20), (24, 20), (27, 20)):
            saves.save(number, state(), {}, anchor=kept)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["20", "27"]


def test_a_state_of_before_spikes_were_watched_is_gone_on_from(tmp_path, monkeypatch):
    given, named = state(row=2, first=20), resume._named
    with monkeypatch.context() as patch, Checkpoints(tmp_path / "c") as saves:
        patch.setattr(
            resume, "_named", lambda tree: {k: v for k, v in named(tree).items() if not k.startswith("spikes")}
        )
        saves.save(1, given, {})
    with Checkpoints(tmp_path / "c") as saves:
        found = saves.restore(1, state(step=0))
    assert int(found.step) == 30
    jax.tree.map(np.testing.assert_array_equal, found.spikes, spikes.none_yet())
