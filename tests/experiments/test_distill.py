"""Distillation as a run: students of every making, answers kept, resumed to the bit, and as recovery after pruning."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from experiments import distill, heads
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from jaxssl.models.arch import ClusterHead, melhubert_tiny
from jaxssl.training import corpus, fit
from jaxssl.training.corpus import hear, load_data
from jaxssl.training.distillation import TAUGHT
from jaxssl.training.lesson import Lesson, soft_labels
from jaxssl.training.losses import MaskedPrediction, means
from jaxssl.training.settings import Training
from tests.archs import forward
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device", "untimed")
QUICK = {"steps": 3, "batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "stack": "unroll", "shortest": 0.5}
QUICK |= {"control": False}
OTHERS = ("distilhubert", "fithubert", "armhubert", "starhubert")


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A teacher of two layers, without dropout."""
    return small.make(tmp_path_factory.mktemp("distil"), layers=2, dropout=0.0)


def config(place, out, **changes):
    return distill.Config(model=str(place.model), corpus=place.corpus, out=out, **{**QUICK, **changes})


def points(out):
    return json.loads((out / "report.json").read_text())["points"]


@pytest.fixture(scope="module")
def distilled(place, tmp_path_factory, one_device, untimed):
    out = tmp_path_factory.mktemp("runs") / "distil"
    distill.run(config(place, out, layers=(1,), heads=3, ffn=16, keep_answers=True))
    return out


def test_a_student_is_a_model_that_learned(distilled, place):
    (dense, row), (arch, params) = points(distilled), checkpoint.load(distilled / "models/distil-1")
    assert (row["heads"], row["units"], row["step"]) == ([3], [16], 3)
    assert row["valid_loss_low"] <= row["valid_loss"] <= row["valid_loss_high"]
    assert row["valid_loss"] != row["loss_before"]
    assert row["parameters"] < dense["parameters"]
    assert "distillation" not in params
    assert arch.head == ClusterHead(6)
    teacher = checkpoint.load(place.model)[1]
    apart = np.abs(params["layers"]["0"]["ffn"]["fc2"]["bias"] - teacher["layers"]["0"]["ffn"]["fc2"]["bias"])
    assert 0 < apart.max() < 0.01  # the teacher's weights, some small steps on


def test_what_the_teacher_said_is_kept_and_read(distilled, place, tmp_path, monkeypatch):
    """Another student of the same batches asks nothing; what is read equals what would be said."""
    kept = sorted((distilled.parent / "taught").rglob("*.npz"))
    assert len(kept) == 3
    model = load_model(str(place.model), seed=0)
    data = load_data(place.corpus, model.arch, labels=None, valid=None, stats=model.stats)
    training = config(place, distilled).settings(3, paper=False, log_every=1)
    lesson = Lesson(model.arch, model.params, soft_labels(data, temperature=1.0, alpha=1.0), training)
    with corpus.loader(data, training) as feed:
        position, batch = feed.state(), next(feed)
    arrays = {n: jnp.asarray(getattr(batch, n)) for n in ("inputs", "lengths", "labels", "mask")}
    said = lesson.give(model.arch, data)(arrays, position)[TAUGHT].plain.logits
    again = replace(lesson, kept=distilled.parent / "taught")
    monkeypatch.setattr("jaxssl.training.lesson._keep", lambda *_: pytest.fail("asked again"))
    np.testing.assert_allclose(again.give(model.arch, data)(arrays, position)[TAUGHT].plain.logits, said, atol=1e-5)
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        replace(again, dropout=True).give(model.arch, data)(arrays, position)
    broken = tmp_path / "taught"
    for path in kept:
        (broken / path.parent.name).mkdir(parents=True, exist_ok=True)
        (broken / path.parent.name / path.name).write_bytes(path.read_bytes()[:100])
    with pytest.raises(pytest.fail.Exception, match="asked again"):  # half an answer is none
        replace(again, kept=broken).give(model.arch, data)(arrays, position)


@pytest.mark.parametrize("loss", ["dphubert", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_hidden_layers_teach_a_narrower_student(place, tmp_path, loss):
    """New weights of another width; the temporal Gram matrices need no projection, the others get one."""
    out = tmp_path / loss
    distill.run(config(place, out, layers=(1,), width=8, loss=loss, steps=1))
    arch, params = checkpoint.load(out / "models/distil-1")
    assert arch.width == 8
    assert set(params) == {"project", "position", "norm", "layers", "head"}
    assert np.isfinite(points(out)[1]["valid_loss"])


@pytest.mark.slow
def test_a_compressed_model_is_a_student(place, distilled, tmp_path):
    out = tmp_path / "again"
    distill.run(config(place, out, student=str(distilled / "models/distil-1"), masked=True, alpha=0.5, temperature=2.0))
    assert points(out)[1]["units"] == [16]


def test_layers_are_taken_as_asked(place):
    teacher = melhubert_tiny()
    six = replace(teacher, layers=teacher.layers[:1] * 6)
    plans = [distill.plan_of(config(place, None, take=take), six, 3) for take in ("first", "even")]
    assert [plan[0].keep for plan in plans] == [(0, 1, 2), (1, 3, 5)]
    assert distill.plan_of(config(place, None, given=(0, 4)), six, 2)[0].keep == (0, 4)
    assert distill.levels_of(config(place, None), six, None) == (5, 4, 3, 2, 1)


@pytest.mark.slow
def test_pruning_recovers_by_distillation(place, tmp_path):
    """The same events; what is learned between them is the teacher's."""
    quick = {key: value for key, value in QUICK.items() if key != "steps"} | {"every": 2, "keep": (3, 2)}
    found = {}
    for recover in ("predict", "distil"):
        out = tmp_path / recover / "heads"
        heads.run(heads.Config(model=str(place.model), corpus=place.corpus, out=out, recover=recover, **quick))
        found[recover] = points(out)[1:]
    assert [row["heads"] for row in found["distil"]] == [[3, 3], [2, 2]] == [row["heads"] for row in found["predict"]]
    assert found["distil"][1]["valid_loss"] != found["predict"][1]["valid_loss"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(place, distilled, tmp_path):
    """Broken off after the first of three updates: the model is the unbroken run's."""
    out = tmp_path / "runs" / "distil"
    changes = {"layers": (1,), "heads": 3, "ffn": 16, "keep_answers": True}
    real, calls = fit.Run.train, []

    def broken(self, programs, state, **given):
        calls.append(given["last"])
        return real(self, programs, state, **{**given, "last": 1})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit.Run, "train", broken)
        patch.setattr("experiments.curves.job.subject_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            distill.run(config(place, out, **changes))
    distill.run(config(place, out, **changes))
    one, two = (flatten(checkpoint.load(run / "models/distil-1")[1]) for run in (distilled, out))
    assert all(np.array_equal(one[path], two[path]) for path in one)
    assert calls == [3]


def test_utterances_add_up_to_the_loss(place):
    """Sums over utterances are those over batches; the interval holds them and is the same each time."""
    model = load_model(str(place.model), seed=0)
    data = load_data(place.corpus, model.arch, labels=None, valid=None, stats=model.stats)
    training = Training(batch=4, shortest=0.5)
    found, whole = (
        hear(model.arch, model.params, data, training),
        corpus.evaluate(model.arch, model.params, data, training),
    )
    summary = found.summary()
    np.testing.assert_allclose(summary["valid_loss"], whole["masked_loss"], rtol=1e-5)
    np.testing.assert_allclose(summary["masked_accuracy"], whole["masked_accuracy"], rtol=1e-6)
    assert summary == hear(model.arch, model.params, data, training).summary()
    batch = next(iter(corpus.held_out(data, training)))
    row = int(np.flatnonzero(batch.index == batch.index.max())[0])
    output = forward(model.arch, model.params, batch.inputs, batch.lengths, mask=batch.mask)
    only = batch.mask & (np.arange(len(batch.mask)) == row)[:, None]
    _, sums = MaskedPrediction((6,))(output, jnp.asarray(batch.labels), jnp.asarray(only))
    place_ = int(np.searchsorted(np.sort(data.valid[1]), batch.index[row]))
    np.testing.assert_allclose(found.losses[place_] / found.frames[place_], means(sums)["masked_loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": (3,)}, "falling numbers from 2 to 1"),
        ({"layers": (1, 1)}, "falling numbers"),
        ({"layers": (1,), "given": (0,)}, "--layers and --given"),
        ({"given": (5,)}, "cannot keep .5,. of 2"),
        ({"layers": (1,), "heads": 9}, "cannot keep 9 of 4"),
        ({"layers": (1,), "width": 7}, "width 7 is not a multiple"),
        ({"layers": (1,), "steps": 0}, "--steps 0"),
        ({"layers": (1,), "temperature": 0.0}, "temperature 0"),
        ({"student": "model", "layers": (1,)}, "--student names the model"),
    ],
)
def test_impossible_students_are_refused(place, tmp_path, changes, words):
    if "student" in changes:
        changes = {**changes, "student": str(place.model)}
    with pytest.raises(InputError, match=words):
        distill.run(config(place, tmp_path / "run", **changes))


@pytest.mark.slow
def test_a_teacher_that_hears_otherwise_is_refused(place, tmp_path):
    with pytest.raises(InputError, match="frames must be of the same pieces of speech"):
        distill.run(config(place, tmp_path / "run", student="melhubert-10ms"))
