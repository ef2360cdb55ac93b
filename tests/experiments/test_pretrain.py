"""A run that is broken off, however often and however roughly, ends where an unbroken one does."""

import json
import random
import signal
import socket
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from experiments.pretrain import Config
from jaxssl.data.batches import Loader
from jaxssl.data.feeds import MelCorpus
from jaxssl.models import checkpoint
from jaxssl.models.arch import Dropout
from jaxssl.training import fit as fit_module
from jaxssl.training import watching
from jaxssl.training.corpus import load_data, loader
from jaxssl.training.fit import fit
from jaxssl.training.lifeline import LOST
from jaxssl.training.settings import Training, claim, own
from jaxssl.training.telemetry import read_journal
from jaxssl.training.told import AGREE_EVERY
from tests.experiments.small import Small, make, reach

ROOT = Path(__file__).resolve().parents[2]
SAVE_EVERY = 3
SETTINGS = {
    "steps": 60,
    "batch": 4,
    "shortest": 0.5,
    "buckets": 1,
    "save_every": SAVE_EVERY,
    "log_every": 1,
    "valid_every": 20,
}
RATES = {"updates_per_s", "audio_s_per_s", "mfu"}
# The mean of attention's scores over the keys is lost in the softmax: this bias has a gradient of rounding only, which
# Adam brings to full size.
NO_GRADIENT = "/k/bias"


@dataclass(frozen=True)
class Place:
    """Runs of `experiments.pretrain` on the small corpus and model."""

    small: Small

    @property
    def corpus(self):
        return self.small.corpus

    @property
    def model(self):
        return self.small.model

    def start(self, out, *, devices=1, **changes):
        return self.small.start("experiments.pretrain", out, devices=devices, **{**SETTINGS, **changes})

    def finish(self, out, **changes):
        return self.small.finish("experiments.pretrain", out, **{**SETTINGS, **changes})

    def interrupt(self, out, number, how):
        return self.small.interrupt("experiments.pretrain", out, number, how, **SETTINGS)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return Place(make(tmp_path_factory.mktemp("pretrain"), layers=1))


@pytest.fixture(scope="session")
def unbroken(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    output, errors = place.finish(out)
    assert "compile again" not in output + errors
    return out


def told(folder):
    """What `metrics.jsonl` says, but for how fast it went."""
    return [{name: value for name, value in row.items() if name not in RATES} for row in read_journal(folder)]


def final(folder):
    return flatten(checkpoint.load(folder / "models/final")[1])


def assert_same(folder, expected):
    assert told(folder) == told(expected)
    assert {path: leaf.tobytes() for path, leaf in final(folder).items()} == {
        path: leaf.tobytes() for path, leaf in final(expected).items()
    }
    assert json.loads((folder / "report.json").read_text()) == json.loads((expected / "report.json").read_text())
    left_over = [p.name for p in (*folder.iterdir(), *(folder / "models").iterdir()) if p.name.startswith(".")]
    assert left_over == []


def saved(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def resumed(output):
    """The update after which a run went on, as it said."""
    (line,) = [line for line in output.splitlines() if line.startswith("resuming after update ")]
    return int(line.split()[-1])


@pytest.mark.slow
def test_it_learned(unbroken):
    rows = told(unbroken)
    assert [row["step"] for row in rows if row["part"] == "train"] == list(range(1, 61))
    losses = [row["loss"] for row in rows if row["part"] == "valid"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert saved(unbroken) == [54, 57, 60]


@pytest.mark.slow
def test_a_run_broken_off_in_every_way_ends_the_same(place, unbroken, tmp_path):
    """Killed twice, interrupted, preempted, its newest checkpoint truncated: to the bit, with dropout on."""
    out, rng = tmp_path / "run", random.Random(3)
    first, second = rng.randrange(5, 12), rng.randrange(16, 22)
    code, _, _ = place.interrupt(out, first, signal.SIGKILL)
    assert code == -signal.SIGKILL
    code, output, _ = place.interrupt(out, second, signal.SIGKILL)
    assert code == -signal.SIGKILL
    code, output, errors = place.interrupt(out, 26, signal.SIGINT)
    assert resumed(output) >= second - 2 * SAVE_EVERY  # one may have been on its way to the disk
    assert code == 130
    assert errors.splitlines()[-1] == "interrupted: finished models are whole, unfinished ones were removed"

    code, output, errors = place.interrupt(out, 32, signal.SIGTERM)
    assert code == 75
    (line,) = [line for line in errors.splitlines() if not line.startswith("training ")]
    newest = saved(out)[-1]
    assert line == f"stopped: after update {newest} of 60, saved; the same command goes on"
    assert newest >= 32
    largest = max((out / f"checkpoints/{newest}/state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    before = saved(out)[-2]

    output, _ = place.finish(out)
    (note,) = [line for line in output.splitlines() if line.startswith("note: ")]
    assert note.startswith(f"note: checkpoint {newest} is damaged, the one before it is used: ")
    assert largest.name in note
    assert resumed(output) == before
    assert_same(out, unbroken)
    names = {path.name for path in (out / "checkpoints").iterdir()}
    assert names == {"54", "57", "60", f"damaged-{newest}"}


@pytest.mark.slow
def test_five_kills_at_random_moments(place, unbroken, tmp_path):
    """At any time, start and compilation included; nothing but the time they come at is chosen."""
    out, rng = tmp_path / "run", random.Random(0)
    for _ in range(5):
        with place.start(out) as process:
            time.sleep(rng.uniform(0.5, 7))
            process.kill()
            process.communicate()
    place.finish(out)
    assert_same(out, unbroken)


@pytest.mark.slow
def test_a_training_run_does_not_depend_on_the_devices(place, unbroken, tmp_path):
    """The same global batches on four devices, parameters spread over two, as on one."""
    arch, params = checkpoint.load(place.model)
    data = load_data(place.corpus, arch, labels=None, valid=None)
    assert jax.device_count() == 4
    settings = {**SETTINGS, "save_every": 60, "steps": 60}
    fitted = fit(tmp_path, arch, params, data, Training(**settings, fsdp=2))
    for row, expected in zip(told(tmp_path), told(unbroken), strict=True):
        for name in ("loss", "step"):
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-5, err_msg=str(expected["step"]))
    assert_close(flatten(fitted.params), final(unbroken), atol=1e-4)


def assert_close(found, expected, *, atol):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        if not path.endswith(NO_GRADIENT):
            np.testing.assert_allclose(found[path], leaf, rtol=1e-5, atol=atol, err_msg=path)


class NotFinite(MelCorpus):
    """Speech that turned into NaN."""

    def inputs(self, i):
        return np.full_like(super().inputs(i), np.nan)


def test_hopeless_gradients_end_the_run(place, tmp_path, monkeypatch):
    """Speech that is not a number teaches nothing, which is said in one line."""
    one = fit_module.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(fit_module, "make_mesh", lambda fsdp: one)
    monkeypatch.setattr(watching, "HOPELESS", 4)
    arch, params = checkpoint.load(place.model)
    arch = replace(arch, dropout=Dropout(0, 0, 0, 0, 0))  # its random bits would take longest to compile
    data = load_data(place.corpus, arch, labels=None, valid=None)
    broken = NotFinite(**{field.name: getattr(data.train[0], field.name) for field in fields(MelCorpus)})
    data = replace(data, train=(broken, data.train[1]))
    settings = Training(**{**SETTINGS, "valid_every": 50, "save_every": 50})
    with pytest.raises(InputError) as caught:
        fit(tmp_path, arch, params, data, settings)
    assert str(caught.value).startswith("update 4: the last 4 gradients were not finite (limit 4); lower --learning-r")
    assert "\n" not in str(caught.value)
    assert [row["skipped"] for row in read_journal(tmp_path)] == [1, 2, 3]


def test_more_shapes_than_announced_are_told(place, monkeypatch, capsys):
    arch, _ = checkpoint.load(place.model)
    data = load_data(place.corpus, arch, labels=None, valid=None)
    mesh = fit_module.make_mesh(devices=jax.devices()[:1])

    def notes(announced):
        settings = Training(**{**SETTINGS, "batch": 2, "buckets": 3})
        with loader(data, settings) as feed:
            shapes = feed.shapes()
            assert len(shapes) > 1
            run = SimpleNamespace(data=data, training=settings, mesh=mesh, feed=feed, meter=fit_module.Meter(peak=1.0))
            with monkeypatch.context() as patch:
                patch.setattr(Loader, "shapes", lambda self: shapes[:announced])
                stream = fit_module._stream(
                    run, SimpleNamespace(arch=arch, lesson=None, give=lambda batch, place: batch)
                )
                for _ in range(2 * feed.steps):
                    next(stream)
        lines = capsys.readouterr().out.splitlines()
        return len(shapes), [line for line in lines if "compile again" in line]

    assert notes(9)[1] == []
    count, lines = notes(1)
    assert len(lines) == count - 1
    assert lines[0].startswith("note: batches of shape (2, ")


def test_a_folder_belongs_to_one_run(tmp_path):
    claim(tmp_path / "a", Config(out=tmp_path / "a", learning_rate=0.5))
    own(tmp_path / "a", Config(out=tmp_path / "a", learning_rate=0.5))
    with pytest.raises(InputError) as caught:
        claim(tmp_path / "a", Config(out=tmp_path / "a", learning_rate=0.25, seed=3))
    assert str(caught.value) == (
        f"{tmp_path / 'a'}: a run with --learning-rate 0.5 is there, this one has 0.25; choose another --out"
    )
    claim(tmp_path / "a", Config(out=tmp_path / "a", learning_rate=0.5, log_every=7, keep=9, processes=2))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a run folder of ours"):
        claim(tmp_path / "b", Config(out=tmp_path / "b"))
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["thesis.tex"]


@pytest.fixture
def pair(place):
    """Start two processes of one run; whatever happens, none stays behind."""
    started = []

    def start(out, **changes):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{free.getsockname()[1]}"
        words = {"coordinator": where, "processes": 2, "timeout": 60, **changes}
        started[:] = [place.start(out, process=i, **words) for i in range(2)]
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_processes_train_as_one(place, pair, unbroken, tmp_path):
    both = pair(tmp_path / "run")
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert ["wrote" in output for output, _ in outputs] == [True, False]
    for row, expected in zip(told(tmp_path / "run"), told(unbroken), strict=True):
        np.testing.assert_allclose(row["loss"], expected["loss"], rtol=1e-5, err_msg=str(expected["step"]))
    assert_close(final(tmp_path / "run"), final(unbroken), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_one_process_resumes_what_two_saved(place, pair, unbroken, tmp_path, how):
    """One of two is killed: the other stops and names it. One of two is preempted: both save and stop."""
    both = pair(tmp_path / "run")
    reach(both[0], 20)
    both[1].send_signal(how)
    (_, errors), _ = (process.communicate(timeout=300) for process in both)
    if how == signal.SIGKILL:
        assert both[0].returncode == LOST
        assert "error: process 0 of 2 stops: process 1 on " in errors.splitlines()[-1]
    else:
        assert [process.returncode for process in both] == [75, 75], errors
        assert errors.splitlines()[-1].startswith("stopped: after update ")
    output, _ = place.finish(tmp_path / "run")
    assert resumed(output) >= 20 - 2 * SAVE_EVERY
    for row, expected in zip(told(tmp_path / "run"), told(unbroken), strict=True):
        np.testing.assert_allclose(row["loss"], expected["loss"], rtol=1e-5, err_msg=str(expected["step"]))
    assert_close(final(tmp_path / "run"), final(unbroken), atol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices(place, unbroken, tmp_path):
    """Begun on one, gone on with on four with parameters spread over two, ended on two: the same batches."""
    out = tmp_path / "run"
    code, _, _ = place.interrupt(out, 11, signal.SIGKILL)
    assert code == -signal.SIGKILL
    with place.start(out, devices=4, fsdp=2) as process:
        reach(process, 32)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    assert resumed(output) >= 11 - 2 * SAVE_EVERY
    output, _ = place.finish(out, devices=2)
    assert resumed(output) >= 32
    for row, expected in zip(told(out), told(unbroken), strict=True):
        np.testing.assert_allclose(row["loss"], expected["loss"], rtol=1e-5, err_msg=str(expected["step"]))
    assert_close(final(out), final(unbroken), atol=1e-4)


@pytest.mark.slow
def test_sigusr1_saves_now(place, unbroken, tmp_path):
    """What a run is killed after is then lost no more; it goes on meanwhile, and ends the same."""
    out = tmp_path / "run"
    with place.start(out, save_every=1000) as process:
        reach(process, 20)
        process.send_signal(signal.SIGUSR1)
        number = asked_for(process, out)
        process.kill()
        process.communicate()
    output, _ = place.finish(out, save_every=1000)
    assert resumed(output) == number >= 20
    assert_same(out, unbroken)


def asked_for(process, out):
    """Wait until what SIGUSR1 asked for is saved; return its number."""
    told_of = (line.split()[1].partition("/")[0] for line in process.stderr if "saved, as SIGUSR1 asks" in line)
    number = int(next(told_of))
    while number not in saved(out):  # it is written in the background
        time.sleep(0.01)
    return number


@pytest.mark.slow
def test_sigusr1_to_one_process_saves_in_all(place, pair, unbroken, tmp_path):
    """After the same update, the next at which they ask each other; one alone then goes on from what both saved."""
    both = pair(out := tmp_path / "run", save_every=1000)
    reach(both[0], 20)
    both[1].send_signal(signal.SIGUSR1)
    assert (number := asked_for(both[0], out)) >= 20
    assert number % AGREE_EVERY == 0
    for process in both:
        process.kill()
        process.communicate()
    assert resumed(place.finish(out, save_every=1000)[0]) == number
    assert_close(final(out), final(unbroken), atol=1e-5)


@pytest.mark.slow
def test_a_run_that_goes_back_ends_the_same_however_often_it_is_killed(place, tmp_path):
    """Where nearly every batch counts as a spike: rows of them come, and lead back to checkpoints."""
    words = {"steps": 110, "spike_far": 0.4, "spike_row": 3, "save_every": 15, "keep": 1}
    _, errors = place.finish(tmp_path / "unbroken", **words)
    assert "spikes in a row; goes on from update" in errors
    out, rng, went_back = tmp_path / "run", random.Random(5), 0
    for number in (20, 70, 84, 92, 100):
        with place.start(out, **words) as process:
            reach(process, number)
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL if number != 92 else signal.SIGTERM)
            _, errors = process.communicate(timeout=300)
        went_back += "spikes in a row" in errors
    _, errors = place.finish(out, **words)
    assert went_back + ("spikes in a row" in errors) > 0
    assert_same(out, tmp_path / "unbroken")
