"""A teacher that takes waveforms and a student that takes log-Mel, or the other way round, on the same speech."""

import json
from dataclasses import replace

import numpy as np
import pytest

from compress.errors import InputError
from experiments import distill, heads
from jaxssl.data.feeds import MelCorpus
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from jaxssl.models.arch import ClusterHead, Conv, Dropout, LogMel, Waveform
from jaxssl.training.corpus import hearing, held_out, load_data
from jaxssl.training.settings import Training
from jaxssl.training.two_fronts import for_both
from tests.archs import LARGE, transformer_layer
from tests.archs import weights as drawn
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device", "untimed")
CONVS = (Conv(6, 10, 5), *(Conv(6, 3, 2),) * 4, *(Conv(6, 2, 2),) * 2)  # a frame each 20 ms
WAVE = replace(
    LARGE,
    front=Waveform(CONVS, norm="layer"),
    layers=(transformer_layer(4, 24),) * 2,
    dropout=Dropout(0, 0, 0, 0, 0),
    head=ClusterHead(6),
)
QUICK = {"steps": 3, "batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "stack": "unroll", "shortest": 0.5}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("speech"), layers=2, dropout=0.0)


@pytest.fixture(scope="module")
def waves(place):
    """A model that takes waveforms, of as many clusters."""
    folder = place.model.parent / "waves"
    checkpoint.save(folder, WAVE, drawn(WAVE))
    return folder


def loaded(folder):
    return load_model(str(folder), seed=0)


def speech(place, teacher):
    return load_data(place.corpus, teacher.arch, labels=None, valid=None, stats=teacher.stats)


def test_both_hear_the_same_speech(place, waves):
    """Log-Mel made of a batch of waveforms is the corpus's own, frame for frame, with its labels."""
    mel, wave = loaded(place.model), loaded(waves)
    given = speech(place, mel)
    data = for_both(given, mel, wave)
    again = for_both(speech(place, wave), wave, mel)
    corpus, among = given.valid
    assert isinstance(corpus, MelCorpus)
    seen = set()
    for batch, other in zip(
        *(held_out(each, Training(batch=2, crop=9.0, shortest=0.5)) for each in (data, again)), strict=True
    ):
        heard = hearing(mel.arch, data)(vars(batch))
        assert hearing(wave.arch, data)(vars(batch))["inputs"] is batch.inputs
        np.testing.assert_array_equal(heard["inputs"], hearing(mel.arch, again)(vars(other))["inputs"])
        for row, i in enumerate(batch.index.tolist()):
            if i >= 0:
                features, length = corpus.inputs(i), int(heard["lengths"][row])
                np.testing.assert_allclose(heard["inputs"][row, :length], features, atol=2e-3)
                np.testing.assert_array_equal(batch.labels[row, :length], corpus.labels(i))
                seen.add(i)
    assert seen == set(among.tolist())


@pytest.mark.parametrize("student", ["log-Mel", "waveforms"])
def test_one_teaches_the_other(place, waves, tmp_path, student):
    """Points, their control and their differences are of the same frames; a log-Mel student keeps its statistics."""
    teacher, learner = (waves, place.model) if student == "log-Mel" else (place.model, waves)
    out = tmp_path / "run"
    asked = {"model": str(teacher), "student": str(learner), "corpus": place.corpus, "out": out}
    distill.run(distill.Config(**asked, **QUICK))
    _, row = json.loads((out / "report.json").read_text())["points"]
    assert row["valid_loss"] - row["control_loss"] == pytest.approx(row["loss_difference"], abs=1e-6)
    learned = loaded(out / "models/distil-2")
    assert learned.arch == loaded(learner).arch
    if student == "log-Mel":
        np.testing.assert_array_equal(learned.stats.mean, speech(place, learned).stats.mean)
    else:
        assert learned.stats is None
        assert not (out / "models/distil-2/stats.npy").exists()
    apart = [
        np.abs(np.asarray(params["head"]["project"]["bias"])) for params in (learned.params, loaded(learner).params)
    ]
    assert 0 < np.abs(apart[0] - apart[1]).max() < 0.01  # three small steps


@pytest.mark.slow
def test_a_pruned_log_mel_model_recovers_by_a_teacher_of_waveforms(place, waves, tmp_path):
    out = tmp_path / "run"
    asked = {"model": str(place.model), "teacher": str(waves), "corpus": place.corpus, "out": out}
    quick = {name: value for name, value in QUICK.items() if name != "steps"}
    heads.run(heads.Config(**asked, recover="distil", keep=(3,), every=2, score="gradient", **quick))
    dense, row = json.loads((out / "report.json").read_text())["points"]
    assert np.isfinite(row["loss_difference"])
    assert row["parameters"] < dense["parameters"]


def test_frames_of_other_lengths_are_refused(place, waves, tmp_path):
    """10 ms and 20 ms frames have no common labels; the message says which is which."""
    arch = replace(loaded(place.model).arch, front=LogMel(40, 1))
    checkpoint.save(tmp_path / "fast", arch, drawn(arch))
    asked = {"model": str(waves), "student": str(tmp_path / "fast"), "corpus": place.corpus}
    with pytest.raises(InputError, match="499 frames of 10 s.*998 frames of 10 s.*same pieces of speech"):
        distill.run(distill.Config(**asked, out=tmp_path / "run", **QUICK))


def test_other_bins_without_statistics_are_refused(place, waves):
    mel, wave = loaded(place.model), loaded(waves)
    other = replace(mel, arch=replace(mel.arch, front=LogMel(23, 2)), stats=None)
    with pytest.raises(InputError, match="takes 23 Mel bins and came without statistics.*those of 40"):
        for_both(speech(place, wave), wave, other)
