"""A rate of firing learned for a task: it moves to where the task is learned better, and nothing else moves."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.errors import InputError
from experiments import probe
from experiments.probes import amounts, questions
from experiments.probes.listening import Heard, program
from experiments.probes.questions import CHARACTERS, SPEAKERS, ask
from jaxssl.data.logmel import Stats, stats_bytes
from jaxssl.data.manifest import Manifest
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from jaxssl.models.arch import IntegrateAndFire, Repeat
from jaxssl.models.model import init
from tests.experiments.test_card import ARCH, HUMS, speak, utterance

FIRES = replace(ARCH, shortening=IntegrateAndFire(3), upsampling=Repeat())
STATS = Stats(np.zeros(40, np.float32), np.full(40, 5, np.float32))
WORDS = ("abcacb", "cabbac", "bcacab", "acbcba")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fires")
    extra = {"stats.npy": stats_bytes(STATS)}
    checkpoint.save(folder / "model", FIRES, init(FIRES, jax.random.key(5, impl="rbg")), extra=extra)
    return folder


def test_a_task_whose_symbols_are_hardly_longer_than_what_fires_learns_to_fire_more(place):
    """Symbols of 0.15 s, of frames of 40 ms of which two become one; the model stays as it was, but for an amount."""
    model = load_model(str(place / "model"), seed=0)
    before = jax.tree.map(np.array, model.params)
    signals = [speak(word, hum, i) for i, word in enumerate(WORDS) for hum in HUMS.values()]
    labels = [np.array(["_abc".index(c) for c in word], np.int32) for word in WORDS for _ in HUMS]
    given = amounts.Lessons(signals, labels, 4, written=True)
    found, losses = amounts.learned(model, given, updates=40, batch=6, seed=0)
    assert 0 <= found < 0.9
    assert losses[-1] < 0.5 * losses[0]
    tight = replace(model, arch=model.arch.refired(IntegrateAndFire(3, most=30)))  # more fires while it learns
    assert found == amounts.learned(tight, given, updates=40, batch=6, seed=0)[0]
    assert amounts.at(model, found).arch == FIRES.refired(IntegrateAndFire(3, amount=found))
    jax.tree.map(np.testing.assert_array_equal, model.params, before)
    broken = replace(given, signals=[signal * np.nan for signal in signals])
    with pytest.raises(InputError, match="model: the loss of update 0 of its amount is nan"):
        amounts.learned(model, broken, updates=2, batch=6, seed=0)


def test_lessons_are_short_enough_and_have_frames_for_what_is_written(place, tmp_path):
    us = [utterance(tmp_path, f"{s}-{w}", w[: 3 + i], speaker=s, text=w) for i, w in enumerate(WORDS) for s in HUMS]
    signals = tuple(probe.read(u.path).samples for u in us)
    model, settings = load_model(str(place / "model"), seed=0), probe.Config(longest=0.75)
    for task, first in ((CHARACTERS, 1), (SPEAKERS, 0)):
        question = ask(task, us, lexicon=None, limit=12, seed=0)
        bench, full = probe.Bench(settings, (question,), tuple(us), signals), question.train[0]
        frames = np.where(np.arange(len(us)) == full, 5, 7)  # six symbols, and a blank between two that are alike
        heard = Heard(model, program(model), signals, frames, np.zeros(0), np.zeros(0), {})
        rows = bench.trains(question, heard)
        assert rows.tolist() == [i for i in question.train if len(signals[i]) <= 12000 and (not first or i != full)]
        given = amounts.lessons(question, signals, rows)
        assert list(map(len, given.signals)) == [len(signals[i]) for i in rows]
        assert min(row.min() for row in given.answers) == first
        assert max(row.max() for row in given.answers) < given.classes == len(question.symbols) + first
        assert given.written == bool(first)
        if first:
            with pytest.raises(InputError, match="characters: .*model has fewer frames than symbols"):
                bench.trains(question, replace(heard, frames=np.full(len(us), 5)))


@pytest.mark.slow
def test_each_task_is_asked_at_its_own_rate(place, tmp_path, capsys, monkeypatch):
    corpus = Manifest(tuple(utterance(tmp_path, f"{s}-{w}", w, speaker=s, text=w.upper()) for w in WORDS for s in HUMS))
    monkeypatch.setattr(questions, "spoken", lambda: corpus)
    quick = {"updates": 4, "batch": 4, "frames": 60, "amount_updates": 3, "task": ("phones", "speakers")}
    probe.run(probe.Config(models=(str(place / "model"),), out=tmp_path / "run", amount="learned", **quick))
    told, notes = capsys.readouterr().out, json.loads((tmp_path / "run" / "report.json").read_text())["notes"]
    for task in quick["task"]:
        (note,) = (each for each in notes if each.startswith(f"{task}: model learned to mix by "))
        assert f"note: {note}" in told
