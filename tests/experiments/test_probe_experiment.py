"""Who trains and who tests, what is right, and the whole command on tones and on real speech."""

import json
import shutil
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.errors import InputError
from experiments import probe
from experiments.probes import listening, questions, untrained
from experiments.probes.questions import CHARACTERS, DIGITS, PHONES, SPEAKERS, ask, digit, narrow, spelled
from jaxssl.analysis.similarity import cka
from jaxssl.data.logmel import Stats, stats_bytes
from jaxssl.data.manifest import Manifest, Segment, Utterance
from jaxssl.models import checkpoint
from jaxssl.models.arch import LogMel
from jaxssl.models.model import init
from jaxssl.runtime.cli import main
from jaxssl.training.probe import Examples
from tests.archs import ARCHS, BASE, STUDENT
from tests.experiments.test_card import ARCH, HUMS, utterance

STATS = Stats(np.zeros(40, np.float32), np.full(40, 5, np.float32))
SYSTEMS = ("hears", "deaf", "log-Mel", "random weights")
TASKS = ("phones", "speakers", "characters")
WORDS = ["abcacb", "cabbac", "bcacab", "acbcba", "cbabca", "bacabc", "abacbc", "cbcaba", "bcbaca", "cacbab"]


def some(count, **words):
    """Utterances of four speakers in two sessions each, taking turns."""
    made = []
    for i in range(count):
        speaker, session = f"s{i % 4}", f"c{i // 4 % 2}"
        path = questions.Path(f"/speech/{speaker}/{session}/u{i:03d}.flac")
        made.append(Utterance(f"u{i:03d}", path, 16000, speaker, f"SENTENCE {chr(65 + i % 26)}"))
    return tuple(replace(u, **words) for u in made)


def pose(task, utterances, limit=1000, lexicon=None, seed=0):
    return ask(task, utterances, lexicon=lexicon, limit=limit, seed=seed)


def speakers(utterances, rows):
    return {utterances[i].speaker for i in rows}


def test_what_is_said_is_tested_on_voices_that_never_trained():
    found = pose(CHARACTERS, us := some(24))
    assert not speakers(us, found.train) & speakers(us, found.test)
    assert sorted([*found.train, *found.test]) == list(range(24))
    assert found.notes == ("characters: 1 of 4 speakers test, none of them trained",)


def test_who_speaks_is_tested_on_sessions_that_never_trained():
    found = pose(SPEAKERS, us := some(24))
    folders = [{us[i].path.parent for i in rows} for rows in (found.train, found.test)]
    assert not folders[0] & folders[1]
    assert speakers(us, found.train) == speakers(us, found.test) == {"s0", "s1", "s2", "s3"}
    flat = tuple(replace(u, path=u.path.parents[1] / u.path.name) for u in us)
    found = pose(SPEAKERS, flat)
    assert "4 of 4 speakers have one session" in found.notes[0]
    assert speakers(flat, found.test) == speakers(flat, found.train)
    assert not set(found.train) & set(found.test)


@pytest.mark.parametrize(("names", "tested"), [(("train", "valid"), 1), (("train", "valid", "test"), 2)])
def test_the_corpus_own_parts_come_first(names, tested):
    us = tuple(replace(u, split=names[i // 4 % len(names)]) for i, u in enumerate(some(24)))
    for task in (CHARACTERS, SPEAKERS):
        found = pose(task, us)
        assert {us[i].split for i in found.train} == {"train"}
        assert {us[i].split for i in found.test} == {names[tested]}


def test_a_limit_draws_a_part_and_a_third_of_it_for_tests():
    found, again, other = (pose(CHARACTERS, some(80), 9, seed=seed) for seed in (0, 0, 1))
    assert (len(found.train), len(found.test)) == (9, 3)
    assert np.array_equal(found.train, again.train)
    assert not np.array_equal(found.train, other.train)


def test_units_are_sentences_where_it_is_asked_what_is_said():
    us = some(24, text="THE SAME")
    assert len(set(pose(CHARACTERS, us).units.tolist())) == 1
    assert len(set(pose(SPEAKERS, us).units.tolist())) == 24


def test_digits_go_by_text_or_name_and_takes_0_to_4_test():
    paths = [questions.Path(f"/x/{d}_theo_{t}.wav") for d in range(10) for t in range(10)]
    us = tuple(Utterance(p.stem, p, 16000, "theo") for p in paths)
    found = pose(DIGITS, us)
    assert {us[i].path.stem[-1] for i in found.test} == set("01234")
    assert found.answers[75] == ("SEVEN",)
    assert len(found.symbols) == 10
    assert digit(replace(us[0], text="nine")) == digit(replace(us[0], text="9")) == ("NINE",)
    assert digit(replace(us[0], text="HELLO")) == ()


def test_silence_is_no_phone_and_punctuation_no_character():
    times = tuple(Segment(i, i + 1, label) for i, label in enumerate(("SIL", "A", "B", "sp", "A", "SIL")))
    assert pose(PHONES, some(8, phones=times)).answers[0] == ("A", "B", "A")
    assert "".join(spelled("Well-known,  isn't it? ")) == "WELL KNOWN ISN'T IT"


def test_a_lexicon_says_the_words_and_what_it_lacks_is_left_out_and_told():
    lexicon = {"SENTENCE": ("S", "N"), **{c: (c,) for c in "ABCDEFGH"}}
    found = pose(PHONES, some(12), lexicon=lexicon)
    assert found.answers[1] == ("S", "N", "B")
    assert sorted([*found.train, *found.test]) == list(range(8))
    assert "lacks 4 words (I, J, K, L); 4 of 12 utterances are left out" in found.notes[0]


def test_numbering_anew_changes_no_answer():
    us = some(24)
    asked = pose(CHARACTERS, us, 6), pose(SPEAKERS, us, 9)
    few, kept = narrow(asked, us)
    assert len(kept) < 24
    for before, after in zip(asked, few, strict=True):
        assert [us[i].id for i in before.train] == [kept[i].id for i in after.train]
        assert [before.answers[i] for i in before.test] == [after.answers[i] for i in after.test]
        assert len(after.units) == len(kept)


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        (PHONES, {}, "0 of 8 utterances have an answer; give phone times .* or texts and a --lexicon"),
        (CHARACTERS, {"text": ""}, "0 of 8 utterances have an answer; give texts"),
        (SPEAKERS, {"speaker": ""}, "0 of 8 utterances have an answer; give a folder for each speaker"),
        (SPEAKERS, {"speaker": "me"}, "1 answer in 8 utterances"),
        (DIGITS, {}, "give texts ZERO to NINE"),
        ("emotions", {}, "there are phones, characters, speakers, digits"),
    ],
)
def test_what_cannot_be_asked_is_refused(task, words, message):
    with pytest.raises(InputError, match=message):
        pose(task, some(8, **words))


def test_cka_is_1_with_oneself_with_a_rotation_and_with_a_scale_and_near_0_with_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)) * np.arange(1, 7)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, 3 * x @ rotation + 7) == pytest.approx(1)
    assert cka(x, rng.normal(size=(500, 9))) < 0.1
    centred = x - x.mean(0)
    kernel = centred @ centred.T
    y = rng.normal(size=(500, 4)) + x[:, :4]
    other = (y - y.mean(0)) @ (y - y.mean(0)).T
    by_kernels = (kernel * other).sum() / np.linalg.norm(kernel) / np.linalg.norm(other)
    assert cka(x, y) == pytest.approx(by_kernels)  # the example-space form
    with pytest.raises(InputError, match="500 and 499 frames"):
        cka(x, x[1:])
    with pytest.raises(InputError, match="does not vary"):
        cka(x, np.ones((500, 2)))


def test_layers_are_compared_at_equal_relative_depth():
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(5, 300, 4))
    assert untrained.alignment(teacher[[0, 2, 4]], teacher) == pytest.approx([1, 1, 1])
    assert untrained.alignment(teacher[[0, 1, 4]], teacher)[1] < 0.5


def test_clusters_that_are_phones_have_a_pnmi_of_1():
    labels = np.arange(200) % 4
    rng = np.random.default_rng(0)
    layers = np.stack([rng.normal(size=(200, 3)), 10 * np.eye(4)[labels][:, :3]]).astype(np.float32)
    rows = Examples(layers + 0.01 * rng.normal(size=layers.shape).astype(np.float32), labels, labels)
    noise, clear = untrained.cluster_quality(rows, rows, clusters=4, seed=0, title="")
    assert clear[0] == pytest.approx(1)
    assert max(noise[0], noise[1], clear[1]) < 0.2


def test_chance_tells_how_high_few_frames_read():
    """Clusters that know nothing of the phones: PNMI is what chance says, more of it with fewer frames."""
    rng, found = np.random.default_rng(0), []
    for count in (100, 1000):
        rows = Examples(rng.normal(size=(1, count, 3)).astype(np.float32), rng.integers(0, 8, count), np.arange(count))
        found += untrained.cluster_quality(rows, rows, clusters=10, seed=0, title="")
    for pnmi, chance in found:
        assert pnmi == pytest.approx(chance, abs=0.12)
    assert found[0][1] > 2 * found[1][1]


def test_frames_at_equal_times_whatever_the_period():
    lengths, rows = [16000, 32000, 8000], np.array([0, 1])
    slow, fast = (untrained.grid(replace(ARCH, front=LogMel(40, n)), lengths, rows) for n in (2, 1))
    assert [len(row) for row in slow] == [23, 48, 0]
    assert all(np.array_equal(2 * one, other) for one, other in zip(slow, fast, strict=True))
    assert untrained.grid(BASE, lengths, rows) is None  # a frame each 2.5 ms, of another window
    assert listening.period_ms(replace(ARCH, time_reduction=2)) == 40
    assert listening.period_ms(STUDENT) is None


def test_what_whisper_can_hear_is_not_padded_to_more():
    padded = next(length for length in listening.LENGTHS if length >= 30 * 16_000)
    replace(ARCHS["whisper"].front, longest=1500).check_inputs(np.zeros((1, padded), np.float32), 1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    return Manifest(tuple(utterance(folder, f"{s}-{w}", w, speaker=s, text=w.upper()) for w in WORDS for s in HUMS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models: random weights, and the same deaf to their input."""
    place = tmp_path_factory.mktemp("models")
    params = init(ARCH, jax.random.key(5, impl="rbg"))
    deaf = {**params, "project": jax.tree.map(np.zeros_like, params["project"])}
    broken = {**params, "project": jax.tree.map(lambda x: np.full_like(x, 3e38), params["project"])}
    for name, values in (("hears", params), ("deaf", deaf), ("broken", broken)):
        checkpoint.save(place / name, ARCH, values, extra={"stats.npy": stats_bytes(STATS)})
    return place


def test_frames_computed_anew_are_those_that_were_kept(corpus, folder):
    """Memory decides how features come, never what they are; moments are those of all frames."""
    model = probe.load_model(str(folder / "hears"), seed=0)
    signals = [probe.read(u.path).samples[: 9600 + 800 * i] for i, u in enumerate(corpus.utterances[:5])]
    whole, rows = np.ones(5, bool), np.array([4, 1, 2])
    kept, anew = (listening.listen(model, signals, {}, memory=m, whole=whole) for m in (1e9, 0))
    assert len(kept.kept) == 5
    assert not anew.kept
    (ours, counts), (theirs, again) = (heard.source(rows)(np.array([2, 0])) for heard in (kept, anew))
    assert counts.tolist() == np.asarray(again).tolist() == kept.frames[[2, 4]].tolist()
    for place, count in enumerate(counts):
        np.testing.assert_allclose(ours[:, place, :count], np.asarray(theirs)[:, place, :count], atol=2e-5)
    frames, scale = np.concatenate([kept.kept[i] for i in rows], axis=1), kept.scale(rows)
    np.testing.assert_allclose(scale.mean, frames.mean(1), atol=1e-5)
    np.testing.assert_allclose(scale.std, frames.std(1), atol=1e-5)


def config(folder, out, *names, **words):
    models = tuple(str(folder / name) for name in names)
    quick = {"updates": 150, "batch": 8, "rate": 3e-2, "frames": 300, "lstm_size": 8}
    return probe.Config(models=models, out=out, **{**quick, **words})


@pytest.fixture(scope="module")
def finished(folder, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "probe"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "spoken", lambda: corpus)
        probe.run(config(folder, out, "hears", "deaf", task=TASKS, measures=True, clusters=4, baselines=True))
    return json.loads((out / "report.json").read_text()), out


@pytest.mark.slow
def test_a_model_that_hears_beats_one_that_is_deaf(finished):
    told, out = finished
    rows = {(r["task"], r["measure"], r["model"]): r for r in told["probes"]}
    measures = [("phones", "PER"), ("phones", "frame accuracy"), ("speakers", "accuracy")]
    measures += [("characters", "WER"), ("characters", "CER")]
    order = [(*key, name) for task in TASKS for name in SYSTEMS for key in measures if key[0] == task]
    assert list(rows) == order
    for key in measures:
        one, other, plain, fresh = (rows[(*key, name)] for name in SYSTEMS)
        for row in (one, other, plain, fresh):
            assert row["low"] <= row["value"] <= row["high"]
            assert sum(row["layers"]) == pytest.approx(1, abs=1e-5)
            assert len(row["layers"]) == (1 if row is plain else 4)
        assert "difference" not in one
        assert other["difference"] == pytest.approx(other["value"] - one["value"])
        assert other["difference_low"] <= other["difference"] <= other["difference_high"]
    assert rows["phones", "PER", "hears"]["high"] < 0.75
    assert rows["phones", "PER", "log-Mel"]["value"] < rows["phones", "PER", "deaf"]["value"]
    assert rows["phones", "PER", "random weights"]["layers"] != rows["phones", "PER", "hears"]["layers"]
    assert rows["phones", "PER", "deaf"]["difference_low"] > 0.2
    assert rows["phones", "frame accuracy", "deaf"]["difference_high"] < -0.2
    assert (out / "probe.png").stat().st_size > 10_000
    assert len((out / "probe.csv").read_text().splitlines()) == 21


@pytest.mark.slow
def test_measures_need_no_training(finished):
    hears, deaf, plain, _ = finished[0]["measures"]
    assert 0 < plain["cka"][0] < 1  # of one layer: with what the teacher makes of the frames
    assert len(plain["cka"]) == 1
    assert "masked_accuracy" not in plain
    assert hears["cka"] == pytest.approx([1] * 4)
    assert hears["teacher"] == deaf["teacher"] == hears["model"]
    assert len(hears["pnmi"]) == 4
    assert max(hears["pnmi"]) > 0.3 > max(hears["pnmi_chance"])
    assert deaf["cka"] == deaf["pnmi"] == [None] * 4  # nothing varies


def test_a_model_that_gives_nan_is_one_line(folder, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(questions, "spoken", lambda: corpus)
    words = [str(folder / "broken"), "--task", "speakers", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["probe", *words])
    with pytest.raises(SystemExit) as left:
        main(probe.run, probe.Config, probe.__doc__)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: broken: ")
    assert "are NaN or infinite" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"task": ()}, "--task : there are phones"),
        ({"updates": 0, "limit": -1}, "--limit -1: give 1 to"),
        ({"clusters": 1, "measures": True}, "--clusters 1"),
        ({"task": ("speakers",), "lexicon": questions.Path(__file__)}, "--lexicon .*: it is for --task phones; add"),
        ({"stress": True}, "--stress True: it is for --lexicon; add that, or leave it out"),
        ({"teacher": "melhubert-tiny"}, "--teacher melhubert-tiny: it is for --measures"),
        ({"clusters": 20}, "--clusters 20: it is for --measures"),
        ({"amount_updates": 5}, "--amount-updates 5: it is for --amount learned"),
        ({"longest": 0.5}, "--longest 0.5: the shortest utterance that trains phones has .* s; give more"),
        ({"longest": 0.5, "task": ("speakers",), "amount": "learned"}, "--longest 0.5: .* trains speakers has"),
        ({"amount": "learned"}, "--amount learned: nothing fires in .*hears; leave it out"),
        ({"data": "/nowhere"}, "/nowhere: no such file or folder"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(folder, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        probe.run(config(folder, tmp_path / "out", "hears", **words))
    assert not (tmp_path / "out").exists()


def test_a_test_set_that_shares_speakers_is_refused_where_it_is_asked_what_is_said(people, monkeypatch):
    with pytest.raises(InputError, match="2 speakers of it train, the first is 1688; phones are tested"):
        questions.open_speech(str(people), test=people, split_file=None, phones=None, tasks=("speakers", "phones"))
    found, _ = questions.open_speech(str(people), test=people, split_file=None, phones=None, tasks=("speakers",))
    assert [u.split for u in found].count("test") == len(found) // 2


@pytest.fixture(scope="module")
def people(shared, tmp_path_factory):
    """Two LibriSpeech speakers of the shared speech, ten utterances each."""
    place = tmp_path_factory.mktemp("people")
    for speaker in ("1688", "1998"):
        shutil.copytree(shared / "speech/librispeech_test_other_10x10" / speaker, place / speaker)
    return place


def test_real_speech(shared, folder, tmp_path):
    data = str(shared / "speech/fsdd_600")
    probe.run(config(folder, tmp_path / "out", "hears", task=("speakers",), data=data, limit=90))
    (voices,) = json.loads((tmp_path / "out/report.json").read_text())["probes"]
    assert (voices["classes"], voices["train"], voices["test"]) == (6, 90, 30)
    assert voices["low"] > 1 / 6
