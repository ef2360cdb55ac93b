"""The corpus that any machine makes for itself: the same every time, whole or absent, phone times beyond doubt."""

import hashlib
import itertools
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from jaxssl.data import embedded, espeak
from jaxssl.data.manifest import Segment
from jaxssl.data.sentences import SENTENCES
from jaxssl.data.voices import PHONES, SPEAKERS, segments

MINUTES = 0.1  # asks for the least there is: two utterances of every speaker
VOWELS = {"AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"}
VOICELESS = {"S", "SH", "F", "K", "T", "P"}

loader = pytest.importorskip("espeakng_loader")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded") / "corpus"
    embedded.make(folder, minutes=MINUTES)
    return folder


@pytest.fixture
def corpus(folder):
    return embedded.load(folder)


@pytest.fixture
def few(monkeypatch):
    """A corpus of three speakers, where it is its files that matter and not what is said in them."""
    monkeypatch.setattr(embedded, "SPEAKERS", SPEAKERS[:3])


@pytest.fixture(scope="module")
def spoken():
    """Every sentence in every accent, fast."""
    speakers = {speaker.accent: replace(speaker, rate=320) for speaker in SPEAKERS}.values()
    requests = [_request(text, speaker) for speaker in speakers for text in SENTENCES]
    return list(espeak.speak(requests, library=loader.get_library_path(), data=loader.get_data_path()))


def _request(text, speaker, seed=1):
    voice = f"{speaker.accent}+{speaker.tract}"
    return espeak.Request(text, voice, speaker.rate, speaker.pitch, speaker.range, volume=65, seed=seed)


def _digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _pieces(corpus):
    """Yield every phone and its samples."""
    for utterance in corpus.utterances:
        samples = soundfile.read(utterance.path)[0]
        for phone in utterance.phones:
            yield phone.label, samples[round(phone.start * 16000) : round(phone.end * 16000)]


def test_the_same_bytes_every_time(folder, tmp_path):
    embedded.make(tmp_path / "again", minutes=MINUTES)
    assert _digests(tmp_path / "again") == _digests(folder)


def test_another_seed_is_another_corpus(corpus, tmp_path):
    other = embedded.make(tmp_path / "other", seed=1, minutes=MINUTES)
    assert [u.id for u in other.utterances] == [u.id for u in corpus.utterances]
    same = sum(a.text == b.text for a, b in zip(other.utterances, corpus.utterances, strict=True))
    assert same < len(corpus.utterances) / 4
    assert all(
        a.samples != b.samples for a, b in zip(other.utterances, corpus.utterances, strict=True) if a.text != b.text
    )


def test_audio_is_what_the_manifest_says(folder, corpus):
    assert len(corpus.utterances) == embedded.count(MINUTES) == 2 * len(SPEAKERS)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {u.speaker for u in corpus.utterances}
    for utterance in corpus.utterances:
        info = soundfile.info(utterance.path)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16000, 1, "PCM_16", "FLAC")
        assert info.frames == utterance.samples
        assert utterance.path == folder / utterance.speaker / f"{utterance.id}.flac"
        assert utterance.text in SENTENCES
        assert 0.01 < np.abs(soundfile.read(utterance.path)[0]).max() < 0.9  # far from distortion
    assert str(folder) not in (folder / "manifest.tsv").read_text()


def test_length_is_about_what_was_asked(tmp_path):
    corpus = embedded.make(tmp_path / "four", minutes=4)
    assert len(corpus.utterances) == embedded.count(4)
    assert corpus.seconds == pytest.approx(240, rel=0.1)
    assert 0.1 < sum(u.split == "valid" for u in corpus.utterances) / len(corpus.utterances) < 0.4


def test_splits_share_speakers_and_no_sentence(corpus):
    parts = {split: [u for u in corpus.utterances if u.split == split] for split in ("train", "valid")}
    assert sum(map(len, parts.values())) == len(corpus.utterances)
    assert not {u.text for u in parts["train"]} & {u.text for u in parts["valid"]}
    everyone = {speaker.name for speaker in SPEAKERS}
    assert len(everyone) >= 16
    assert {u.speaker for u in parts["train"]} == {u.speaker for u in parts["valid"]} == everyone


def test_a_long_corpus_keeps_sentences_apart_and_repeats_none_early():
    plan = embedded._plan(0, 200.0)  # every speaker goes through all the sentences
    assert not {line.request.text for line in plan if line.split == "train"} & {
        line.request.text for line in plan if line.split == "valid"
    }
    assert len({line.id for line in plan}) == len(plan)
    said = Counter((line.speaker, line.request.text) for line in plan if line.split == "train")
    assert max(said.values()) - min(said.values()) <= 1
    assert {line.request.text for line in plan} == set(SENTENCES)
    assert len({line.request.rate for line in plan}) > 20


def test_phones_cover_the_audio(corpus):
    for utterance in corpus.utterances:
        assert utterance.phones[0] == Segment(0.0, utterance.phones[0].end, "SIL")
        assert utterance.phones[-1].end == utterance.samples / 16000
        assert all(a.end == b.start for a, b in itertools.pairwise(utterance.phones))
        assert all(a.start < a.end for a in utterance.phones)
        assert all((a.label, b.label) != ("SIL", "SIL") for a, b in itertools.pairwise(utterance.phones))
        spoken = [phone.end - phone.start for phone in utterance.phones if phone.label != "SIL"]
        assert max(spoken) < 0.6
        assert 0.06 < np.mean(spoken) < 0.13
        assert 0.1 <= utterance.phones[0].end < 0.4


def test_phones_are_where_they_sound(corpus):
    """Pauses are still, vowels loud, and hiss crosses zero more often than anything voiced."""
    pieces = [(label, piece) for label, piece in _pieces(corpus) if len(piece) > 160]
    power = {label: [np.mean(piece**2) for name, piece in pieces if name == label] for label in {n for n, _ in pieces}}
    vowels = np.concatenate([power[label] for label in VOWELS & set(power)])
    assert np.median(power["SIL"]) < 1e-4 * np.median(vowels)
    assert np.quantile(power["SIL"], 0.95) < np.quantile(vowels, 0.05)
    crossings = {
        kind: np.array([np.mean(np.diff(np.sign(piece)) != 0) for name, piece in pieces if name in kind])
        for kind in (("S", "Z", "SH"), tuple(VOWELS))
    }
    hiss, voice = crossings.values()
    assert np.median(hiss) > 2 * np.median(voice)


def test_times_fit_to_ten_milliseconds(corpus):
    """Where the voice begins, the power rises: nowhere else as much as at the times given."""
    shifts = np.arange(-480, 481, 80)  # 5 ms
    rise = np.zeros(len(shifts))
    for utterance in corpus.utterances:
        power = np.cumsum(np.pad(soundfile.read(utterance.path)[0] ** 2, (1, 0)))
        for before, phone in itertools.pairwise(utterance.phones):
            if before.label in VOICELESS and phone.label in VOWELS:
                middle = round(phone.start * 16000) + shifts
                after, ahead = power[middle + 320] - power[middle], power[middle] - power[middle - 320]
                rise += np.log((after + 1e-6) / (ahead + 1e-6))
    assert abs(shifts[rise.argmax()]) <= 160


def test_every_phone_of_every_accent_is_known(spoken):
    heard = Counter(s.label for s in itertools.chain(*(_segments(speech) for speech in spoken)))
    assert set(heard) == set(PHONES.values())
    assert len(heard) == 40
    assert min(heard.values()) >= 50


def _segments(speech):
    return segments(
        speech.phones, len(speech.samples), before=1600, samples=len(speech.samples) * 16000 // 22050 + 3200
    )


def test_every_speaker_has_a_voice_of_its_own():
    """eSpeak takes a variant that it does not have for none, without a word."""
    variants = {path.name for path in (Path(loader.get_data_path()) / "voices" / "!v").iterdir()}
    assert {speaker.tract for speaker in SPEAKERS} <= variants
    assert len({speaker.name for speaker in SPEAKERS}) == len({speaker.tract for speaker in SPEAKERS}) == len(SPEAKERS)


def test_noise_follows_the_seed():
    """Breath and flutter are random; left alone the library seeds them by the clock."""
    speaker = next(speaker for speaker in SPEAKERS if speaker.tract == "f2")
    paths = {"library": loader.get_library_path(), "data": loader.get_data_path()}
    one, other = ([*espeak.speak([_request(SENTENCES[0], speaker, seed)], **paths)] for seed in (1, 2))
    assert one[0].samples != other[0].samples
    assert one == [*espeak.speak([_request(SENTENCES[0], speaker, 1)], **paths)]


def test_segments_merge_silence_and_end_with_the_recording():
    phones = ((0, "'aI"), (2205, "_:"), (4410, "_"), (4410, "s"), (6615, "_"))
    found = segments(phones, 8820, before=1600, samples=1600 + 6400 + 1600)
    expected = [(0, 0.1, "SIL"), (0.1, 0.2, "AY"), (0.2, 0.3, "SIL"), (0.3, 0.4, "S"), (0.4, 0.6, "SIL")]
    assert [s.label for s in found] == [label for *_, label in expected]
    assert np.allclose([(s.start, s.end) for s in found], [times for *times, _ in expected], atol=1e-6)


def test_an_unknown_phone_is_named():
    with pytest.raises(InputError, match=r"its phone 'x\^' is not among the \d+ known; pip install"):
        segments([(0, "x^")], 100, before=0, samples=100)


def test_a_whole_corpus_is_reused(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ticks = []
    embedded.make(folder, minutes=MINUTES, tick=lambda: ticks.append(1))
    assert not ticks
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_default_place_is_the_users_cache(few, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ticks = []
    made = embedded.make(minutes=MINUTES, tick=lambda: ticks.append(1))
    assert len(ticks) == len(made.utterances)
    assert embedded.make(minutes=MINUTES, tick=pytest.fail) == made
    (place,) = tmp_path.glob("jaxssl/*")
    assert place.name.startswith("embedded-")
    assert embedded._cache(embedded._settings(1, MINUTES, "0.2.4")) != embedded._cache(
        embedded._settings(0, MINUTES, "0.2.4")
    )


def test_an_interrupted_build_leaves_nothing(few, tmp_path):
    ticks = iter(range(5))

    def tick():
        if next(ticks) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded.make(tmp_path / "corpus", minutes=MINUTES, tick=tick)
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_is_cleared_away(tmp_path):
    old, new = tmp_path / ".corpus.old", tmp_path / ".corpus.new"
    for left in (old, new):
        left.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    with embedded._staging(tmp_path / "corpus"):
        assert not old.exists()
        assert new.exists()  # perhaps another process at work


def test_who_builds_there_is_left_alone_when_the_clock_jumps(tmp_path, monkeypatch):
    """By a day, either way; what nobody works at is still cleared away."""
    now = time.time()
    with embedded._staging(tmp_path / "corpus") as mine:
        for days in (-1, 1):
            abandoned = tmp_path / ".corpus.abandoned"
            abandoned.mkdir(exist_ok=True)
            monkeypatch.setattr(embedded, "time", SimpleNamespace(time=partial(float, now + 86_400 * days)))
            with embedded._staging(tmp_path / "corpus"):
                assert mine.is_dir()
                assert abandoned.is_dir() == (days < 0)


def test_two_at_once_make_one(few, tmp_path):
    """While one builds, another does so from beginning to end; the first then takes what is there."""
    wanted, place = tmp_path / "alone", tmp_path / "together/corpus"
    embedded.make(wanted, minutes=MINUTES)
    place.parent.mkdir()
    inner = []

    def tick():
        if not inner:
            inner.append(None)
            inner[0] = embedded.make(place, minutes=MINUTES)

    assert embedded.make(place, minutes=MINUTES, tick=tick) == inner[0]
    assert _digests(place) == _digests(wanted)
    assert list(place.parent.iterdir()) == [place]


def test_a_damaged_corpus_is_made_again(few, tmp_path):
    place = tmp_path / "corpus"
    embedded.make(place, minutes=MINUTES)
    whole = _digests(place)
    victim = embedded.load(place).utterances[3].path
    victim.write_bytes(victim.read_bytes()[:1000])
    embedded.make(place, minutes=MINUTES)
    assert _digests(place) == whole
    assert list(tmp_path.iterdir()) == [place]


def test_other_content_stays(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already there and no embedded corpus; choose another folder"):
        embedded.make(tmp_path, minutes=MINUTES)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match=r"made with minutes 0.1, not 7.0; choose another folder"):
        embedded.make(folder, minutes=7)
    with pytest.raises(InputError, match=r"made with seed 0, not 3"):
        embedded.make(folder, seed=3, minutes=MINUTES)


@pytest.mark.parametrize("minutes", [0, -1, float("inf"), float("nan")])
def test_an_impossible_length_is_refused(minutes, tmp_path):
    with pytest.raises(InputError, match="minutes cannot be made"):
        embedded.make(tmp_path / "corpus", minutes=minutes)


def test_loading_what_is_no_corpus(tmp_path):
    with pytest.raises(InputError, match="no embedded corpus here"):
        embedded.load(tmp_path)


def test_without_the_package_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(
        InputError, match="needs espeakng-loader, which is not here; pip install espeakng-loader"
    ) as caught:
        embedded.make(tmp_path / "corpus")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["library", "data", "voice"])
def test_a_library_that_does_not_work(broken, tmp_path, monkeypatch):
    paths = {"library": loader.get_library_path(), "data": loader.get_data_path()}
    if broken == "voice":
        monkeypatch.setattr(embedded, "SPEAKERS", (replace(SPEAKERS[0], accent="xx-nowhere"),))
    else:
        paths[broken] = str(tmp_path)
    monkeypatch.setattr(embedded, "package", lambda: ("0.2.4", paths["library"], paths["data"]))
    with pytest.raises(InputError, match="does not work: .*exit code 1.*pip install --force-reinstall") as caught:
        embedded.make(tmp_path / "corpus", minutes=MINUTES)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_deep_folder_is_no_obstacle(tmp_path):
    """The library itself cuts paths after 160 bytes."""
    deep = tmp_path / ("a" * 120) / ("b" * 120)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(loader.get_data_path())
    request = _request(SENTENCES[0], SPEAKERS[0])
    (speech,) = espeak.speak([request], library=loader.get_library_path(), data=str(deep / "espeak-ng-data"))
    assert len(speech.samples) > 22050
