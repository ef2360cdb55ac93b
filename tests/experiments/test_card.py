"""The comparison end to end on tones that can be told apart, and the law that no sentence is on both sides."""

import csv
import json
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from experiments import card
from experiments.probes import tasks
from experiments.probes.probing import PHONES, SPEAKERS, VOICES, log_mel
from jaxssl.data.logmel import Stats, logmel, stats_bytes
from jaxssl.data.manifest import Manifest, Segment, Utterance
from jaxssl.models import checkpoint
from jaxssl.models.arch import LogMel, hubert_base
from jaxssl.models.model import init
from jaxssl.runtime.cli import main
from jaxssl.training.probe import Score, together
from tests.archs import BASE, MEL

HERTZ = {"a": 300.0, "b": 900.0, "c": 2500.0}
HUMS = {"one": 120, "two": 4200, "three": 6500}  # Hz; as many as phones, so that probes share their programs
ARCH = replace(MEL, front=LogMel(40, 2))


def speak(phones, pitch, seed):
    """One tone a phone, 0.15 s each, over a speaker's hum, with hiss."""
    time = np.arange(2400) / 16000
    tones = [0.2 * np.sin(2 * np.pi * HERTZ[p] * time) for p in phones]
    signal = np.concatenate(tones) + 0.05 * np.sin(2 * np.pi * pitch * np.arange(2400 * len(phones)) / 16000)
    return (signal + 0.01 * np.random.default_rng(seed).normal(size=len(signal))).astype(np.float32)


def utterance(folder, name, phones, *, speaker, text="", split=""):
    path = folder / f"{name}.wav"
    soundfile.write(path, speak(phones, HUMS[speaker], len(list(folder.iterdir()))), 16000, subtype="FLOAT")
    times = tuple(Segment(0.15 * i, 0.15 * (i + 1), p) for i, p in enumerate(phones))
    return Utterance(name, path, 2400 * len(phones), speaker, text, split, times)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    words = ["abcacb", "cabbac", "bcacab", "acbcba", "cbabca", "bacabc", "abacbc", "cbcaba", "bcbaca"]
    return Manifest(tuple(utterance(folder, f"{s}-{w}", w, speaker=s, text=w.upper()) for w in words for s in HUMS))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A manifest of three speakers, ten utterances each."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    made = [
        utterance(folder, f"{s}{i}", "".join(rng.choice(list("abc"), 5)), speaker=s) for s in HUMS for i in range(10)
    ]
    lines = ["path\tspeaker\ttext", *(f"{u.path.name}\t{u.speaker}\t" for u in made)]
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mel"
    stats = Stats(np.zeros(40, np.float32), np.full(40, 5, np.float32))
    checkpoint.save(folder, ARCH, init(ARCH, jax.random.key(5)), extra={"stats.npy": stats_bytes(stats)})
    return folder


@pytest.fixture(scope="module")
def finished(model, corpus, speech, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "card"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "spoken", lambda: corpus)
        card.run(card.Config(model=str(model), speakers=speech, limit=21, frames=200, out=out))
    return json.loads((out / "report.json").read_text()), out


@pytest.mark.slow
def test_every_task_has_three_rows_and_the_gain_over_two(finished):
    report, out = finished
    rows = report["probes"]
    tasks_ = list(dict.fromkeys(row["task"] for row in rows))
    assert tasks_ == [
        *(f"{what}, embedded corpus" for what in (PHONES, VOICES, SPEAKERS)),
        *(f"{what}, as recorded" for what in (VOICES, SPEAKERS)),
        f"{VOICES}, equalised",
    ]
    for task in tasks_:
        mel, fresh, own = (row for row in rows if row["task"] == task)
        assert [r["system"] for r in (mel, fresh, own)] == ["log-Mel", "random weights", "model"]
        assert [len(r["layers"]) for r in (mel, fresh, own)] == [1, 4, 4]
        assert mel["total_by_unit"] == fresh["total_by_unit"] == own["total_by_unit"]
        for row in (mel, fresh):
            assert row["gain"] == pytest.approx(own["accuracy"] - row["accuracy"])
            assert row["gain_low"] <= row["gain"] + 1e-12
        assert "gain" not in own
        for row in (mel, fresh, own):
            assert row["accuracy"] == pytest.approx(sum(row["correct_by_unit"]) / row["test"])
    with (out / "card.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)


@pytest.mark.slow
def test_tones_are_found_in_log_mel(finished):
    rows = {(row["task"], row["system"]): row for row in finished[0]["probes"]}
    phones = rows["phones by frame, embedded corpus", "log-Mel"]
    assert phones["accuracy"] > 0.9
    assert (phones["classes"], phones["train"], phones["test"]) == (3, 200, 67)
    assert len(phones["total_by_unit"]) == 2  # of eight sentences every fourth
    speakers = rows["speakers by utterance, as recorded", "log-Mel"]
    assert speakers["accuracy"] == 1
    assert (speakers["train"], speakers["test"], speakers["chance"]) == (21, 9, pytest.approx(1 / 3))


@pytest.mark.slow
def test_a_run_repeats(finished, model, corpus, monkeypatch, tmp_path):
    monkeypatch.setattr(card, "spoken", lambda: corpus)
    card.run(card.Config(model=str(model), limit=21, frames=200, out=tmp_path / "again"))
    again = json.loads((tmp_path / "again/report.json").read_text())["probes"]
    assert again == finished[0]["probes"][: len(again)]


def test_no_sentence_trains_and_tests(corpus):
    for seed, limit in ((0, 4), (1, 8), (2, 100)):
        found = tasks.sentences(corpus, LogMel(40, 2), limit=limit, frames=100, seed=seed)
        assert not set(found.units[found.train]) & set(found.units[~found.train])
        assert found.train.sum() == min(limit, 21)
        assert (~found.train).sum() == min(-(-limit // 3), 6)
        counts = [sum(len(found.picks[i]) for i in np.flatnonzero(side)) for side in (found.train, ~found.train)]
        assert counts[0] <= 100
        assert counts[1] <= 34


def test_the_corpus_s_own_split_is_kept_and_what_it_shares_is_not_trained(corpus):
    first, second = corpus.utterances[0], corpus.utterances[1]
    assert first.text == second.text
    split = Manifest((replace(first, split="valid"), *(replace(u, split="train") for u in corpus.utterances[1:])))
    found = tasks.sentences(split, LogMel(40, 2), limit=100, frames=100, seed=0)
    assert (~found.train).sum() == 3  # the sentence in every voice


@pytest.mark.parametrize("stack", [1, 2])
def test_frames_get_the_phone_at_their_centre(corpus, stack):
    """Frames labelled `c` are louder than others in the Mel bin of the tone of `c`, and so for every phone."""
    front = LogMel(40, stack)
    found = tasks.sentences(corpus, front, limit=100, frames=100_000, seed=0)
    signal, picks, phones = found.signals[0], found.picks[0], found.phones[0]
    energy = np.asarray(logmel(jnp.asarray(signal[None])))[0]
    centres = 160 * (picks * stack + (stack - 1) / 2) + 200
    assert np.array_equal(np.unique(phones), [0, 1, 2])
    inside = np.abs(centres % 2400 - 1200) < 700  # whole windows inside a tone
    bins = energy[np.minimum(picks * stack, len(energy) - 1)][inside]
    for phone in range(3):
        mine, others = bins[phones[inside] == phone].mean(0), bins[phones[inside] != phone].mean(0)
        peak = int((mine - others).argmax())
        mel = 1127 * np.log1p(HERTZ["abc"[phone]] / 700)
        low, high = 1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700)
        assert abs(peak - ((mel - low) / (high - low) * 41 - 1)) < 1.5


def spectra(corpus):
    return np.stack([tasks._mean_logmel(signal) for signal in corpus.signals])


def hiss(seed, kernel):
    signal = np.random.default_rng(seed).normal(size=32000)
    return np.convolve(signal, kernel)[:32000].astype(np.float32) / 10


def test_equalising_takes_a_channel_away():
    """Noise through unlike filters comes out with one spectrum: the mean of those that train, the others' not."""
    kernels = [[1.0], [0.9, -0.5, 0.2], [0.3, 0.2], [1, 0.8]]
    ones = np.ones(4, int)
    plain = tasks.Corpus("", tuple(map(hiss, range(4), kernels)), np.array([1, 1, 1, 0], bool), ones, ones, ())
    before, after = spectra(plain), spectra(tasks.equalised(plain))
    wanted = before[:3].mean(0)
    assert np.abs(before - wanted[None]).mean() > 0.5
    assert np.abs(after - wanted[None]).mean() < 0.05
    assert np.abs(after - wanted[None]).max() < 0.3


def test_equalising_keeps_what_moves():
    """Loud and soft halves stay as far apart as they were."""
    halves = hiss(0, [1.0, 0.3]) * np.repeat(np.float32([1, 0.1]), 16000)
    ones = np.ones(2, int)
    plain = tasks.Corpus("", (halves, hiss(1, [0.4])), np.ones(2, bool), ones, ones, ())
    heard = tasks.equalised(plain).signals[0]
    ratio = np.std(heard[:16000]) / np.std(heard[16000:])
    assert ratio == pytest.approx(10, rel=0.05)


def test_batches_hold_every_signal_once_and_few_shapes():
    rng = np.random.default_rng(0)
    signals = [rng.normal(size=n).astype(np.float32) for n in rng.integers(8000, 256000, 18)]
    seen, shapes = [], set()
    for rows, (samples, lengths) in tasks.batches(signals):
        shapes.add(samples.shape)
        for place, row in enumerate(rows):
            assert np.array_equal(np.asarray(samples[place, : lengths[place]]), signals[row])
            seen.append(row)
    assert sorted(seen) == list(range(18))
    assert len(shapes) <= 4


def test_waveform_models_are_met_by_log_mel_of_their_rate():
    arch = hubert_base()
    front = log_mel(arch)
    assert front == LogMel(stack=2)
    for samples in (400, 719, 720, 16000, 16079, 16080, 100_001):
        assert front.frames(samples) == arch.front.frames(samples)
    with pytest.raises(InputError, match="frames of 60 samples each 40"):
        log_mel(BASE)


def test_turns_test_other_utterances_and_count_together(speech):
    manifest = card.corpora.read(speech)
    turns = [tasks.by_speaker(manifest, LogMel(40, 2), frames=300, turn=turn) for turn in range(tasks.TURNS)]
    tested = np.stack([~corpus.train for corpus in turns])
    assert tested.sum(0).max() == 1
    assert (tested.sum(1) == 3 * len(np.unique(turns[0].speakers))).all()
    scores = [Score(0.5, 0, 1, np.array([n]), np.array([2 * n]), np.array([1.0]), 0.1) for n in (1, 3)]
    found = together(scores, seed=0)
    assert found.accuracy == 0.5
    np.testing.assert_array_equal(found.total, [2, 6])
    assert together(scores[:1], seed=0) is scores[0]
    with pytest.raises(InputError, match="--turns 4: of ten utterances three test at a time; give 3 or fewer"):
        card.run(card.Config(turns=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda us: us[:-1], "three has 9"),
        (lambda us: [replace(u, speaker="") for u in us], "0 known speaker"),
        (lambda us: us[:10], "1 known speaker"),
    ],
)
def test_speakers_that_do_not_do_are_named(speech, change, message):
    from jaxssl.data import corpora

    manifest = Manifest(tuple(change(list(corpora.read(speech).utterances))))
    with pytest.raises(InputError, match=message):
        tasks.by_speaker(manifest, LogMel(40, 2), frames=100)


def test_one_sentence_is_not_enough(corpus):
    with pytest.raises(InputError, match="1 sentence"):
        tasks.sentences(Manifest(corpus.utterances[:2]), LogMel(40, 2), limit=9, frames=100, seed=0)


def test_the_command_line_says_what_is_wrong(model, tmp_path, monkeypatch, capsys):
    words = ["card", "--model", str(model), "--limit", "2", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        main(card.run, card.Config, "")
    assert left.value.code == 2
    assert "--limit 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
