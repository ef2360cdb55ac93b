"""Probes for many models: the same questions, the same frames, one shape; and what a model knows shows in them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from compress.address import flatten, unflatten
from compress.errors import InputError
from experiments.probes import probing, tasks
from experiments.probes.probing import PHONES, VOICES, log_mel, open_probes
from jaxssl.data.logmel import Stats
from jaxssl.data.manifest import Manifest
from jaxssl.inference.encode import hear
from jaxssl.models.arch import LogMel
from tests.archs import fresh
from tests.experiments.test_card import ARCH, HUMS, utterance

STATS = Stats(np.zeros(40, np.float32), np.full(40, 5, np.float32))
FRONT = log_mel(ARCH)
WORDS = ["abcacb", "cabbac", "bcacab", "acbcba", "cbabca", "bacabc", "abacbc", "cbcaba", "bcbaca"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    return Manifest(tuple(utterance(folder, f"{s}-{w}", w, speaker=s, text=w.upper()) for w in WORDS for s in HUMS))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A manifest of three speakers, ten utterances each."""
    folder = tmp_path_factory.mktemp("people")
    made = [utterance(folder, f"{s}{i}", WORDS[i % 9][:5], speaker=s) for s in HUMS for i in range(10)]
    lines = ["path\tspeaker\ttext", *(f"{u.path.name}\t{u.speaker}\t" for u in made)]
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return folder


def recorded(people):
    return tasks.by_speaker(probing.corpora.read(people), FRONT, frames=200).signals


@pytest.fixture
def spoken(corpus, monkeypatch):
    monkeypatch.setattr(probing, "spoken", lambda: corpus)
    return corpus


@pytest.fixture
def silent(monkeypatch):
    """A machine without the synthesiser."""

    def refuse():
        raise InputError("the embedded speech needs espeakng-loader, which is not here")

    monkeypatch.setattr(probing, "spoken", refuse)


def test_a_model_that_hears_is_told_from_one_that_is_deaf(spoken):
    """Tones are found through random weights; where none of the input comes through only the most frequent label is."""
    probes = open_probes(FRONT, limit=21, frames=200)
    params = fresh(ARCH)
    deaf = unflatten({path: leaf * float(not path.startswith("project/")) for path, leaf in flatten(params).items()})
    before = hear._cache_size()
    found, deaf = (probes.measure(n, ARCH, p, STATS) for n, p in (("hears", params), ("deaf", deaf)))
    assert list(found) == [f"{what}_{end}" for what in ("phone", "speaker") for end in ("accuracy", "low", "high")]
    assert all(type(value) is float for value in found.values())
    for what, task in (("phone", PHONES), ("speaker", VOICES)):
        train, test = labels(probes.asked[0].corpus, task)
        chance = float((test == np.bincount(train).argmax()).mean())
        assert deaf[f"{what}_accuracy"] == pytest.approx(chance)
        assert found[f"{what}_accuracy"] > chance + 0.2
        assert found[f"{what}_low"] <= found[f"{what}_accuracy"] <= found[f"{what}_high"]
    assert probes.measure("again", ARCH, params, STATS) == found
    assert hear._cache_size() - before <= 1  # a shape that comes again does not compile again


def labels(corpus, task):
    rows = corpus.phones
    if task == VOICES:
        rows = [np.full(len(picks), speaker) for picks, speaker in zip(corpus.picks, corpus.speakers, strict=True)]
    return (np.concatenate([rows[i] for i in np.flatnonzero(side)]) for side in (corpus.train, ~corpus.train))


def test_speakers_that_are_named_take_the_place_of_the_voices(spoken, people, monkeypatch):
    probes = open_probes(FRONT, speakers=people, limit=21, frames=200)
    said, asked = probes.asked
    assert (said.columns, asked.columns) == ({PHONES: "phone"}, {VOICES: "speaker"})
    assert not asked.corpus.phones
    spectra = [[tasks._mean_logmel(s) for s in signals] for signals in (recorded(people), asked.corpus.signals)]
    before, after = (np.std(each, axis=0).mean() for each in spectra)
    assert after < before / 4  # equalised as they are heard
    monkeypatch.setattr(probing.corpora, "read", lambda place: Manifest(spoken.utterances[:10]))
    with pytest.raises(InputError, match="one has 4"):
        open_probes(FRONT, speakers=people)


def test_without_the_synthesiser_there_are_no_probes_and_a_note(silent, people, capsys):
    assert open_probes(FRONT) is None
    assert "note: no probes of the embedded corpus: the embedded speech needs espeakng" in capsys.readouterr().out
    (asked,) = open_probes(FRONT, speakers=people, frames=60).asked
    assert asked.columns == {VOICES: "speaker"}


def test_cut_utterances_keep_their_labels_and_all_batches_have_one_shape(spoken, monkeypatch):
    """What a frame is called does not depend on the cut; none lies beyond it."""
    monkeypatch.setattr(probing, "CUT", 9_600)
    (asked,) = open_probes(FRONT, limit=21, frames=150).asked
    whole = tasks.sentences(spoken, FRONT, limit=21, frames=10**6, seed=0)
    for i, (picks, phones) in enumerate(zip(asked.corpus.picks, asked.corpus.phones, strict=True)):
        known = dict(zip(whole.picks[i].tolist(), whole.phones[i].tolist(), strict=True))
        assert [known[pick] for pick in picks.tolist()] == phones.tolist()
        assert len(asked.corpus.signals[i]) == 9_600
        assert picks.max() < FRONT.frames(9_600)
    counts = [
        sum(len(asked.corpus.picks[i]) for i in np.flatnonzero(s)) for s in (asked.corpus.train, ~asked.corpus.train)
    ]
    assert counts == [150, 50]
    assert {samples.shape for _, (samples, _) in asked.heard} == {(probing.BATCH, 9_600)}
    assert np.concatenate([rows for rows, _ in asked.heard]).tolist() == list(range(len(asked.corpus.signals)))


@pytest.mark.parametrize("most", [1, 7, 30, 1000])
def test_thinning_spreads_evenly(most):
    places = [np.arange(n) for n in (10, 25, 3, 40, 12)]
    train = np.array([True, False, True, True, False])
    kept = probing._thin(places, train, most)
    for side, count in ((train, most), (~train, -(-most // 3))):
        rows = np.flatnonzero(side)
        total = sum(len(places[i]) for i in rows)
        assert sum(len(kept[i]) for i in rows) == min(count, total)
        for i in rows:
            assert abs(len(kept[i]) - len(places[i]) * min(count, total) / total) <= 1
            assert np.isin(kept[i], places[i]).all()


def test_features_do_not_depend_on_how_utterances_are_batched(spoken):
    """One shape or the card's buckets: the layers of every frame are the same."""
    (asked,) = open_probes(FRONT, limit=21, frames=200).asked
    system = probing.System("", FRONT, partial(hear, ARCH, fresh(ARCH), STATS))
    one = probing.examples(system, asked.corpus, asked.heard)
    two = probing.examples(system, asked.corpus, tasks.batches(asked.corpus.signals))
    assert list(one) == list(two) == [PHONES, VOICES]
    for task in one:
        for mine, other in zip(one[task], two[task], strict=True):
            np.testing.assert_allclose(mine.features, other.features, atol=2e-5)
            assert np.array_equal(mine.labels, other.labels)


def test_frames_of_another_length_are_refused(spoken):
    probes = open_probes(FRONT, limit=21, frames=200)
    with pytest.raises(InputError, match="frames of 10 ms, the probes' are of 20 ms"):
        probes.measure("other", replace(ARCH, front=LogMel(40, 1)), {}, None)
