"""Any model is compressed by one command: targets, output layer and CTC layer come from the model itself."""

import json
import shlex
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import soundfile
import tyro

from compress.errors import InputError
from experiments import combine, distill, heads, int8, joint, lowrank, plan, rows, sequence, weights
from experiments.curves import evidence, job
from experiments.curves.recovery import Asked, ready, speech_with_targets
from experiments.curves.transcripts import open_transcripts
from jaxssl.data import prepared
from jaxssl.data.audio import read
from jaxssl.data.demo import synthesize
from jaxssl.data.masking import Spans
from jaxssl.inference.source import Model, load_model
from jaxssl.models import checkpoint
from jaxssl.models.arch import ClusterHead, Conv, Dropout, LengthAdapter, Waveform
from jaxssl.models.sites import axes
from jaxssl.runtime import files
from jaxssl.training import output_layer
from jaxssl.training.corpus import evaluate, hear, load_data
from jaxssl.training.ctc_layer import ARRAYS, SYMBOLS, ctc_losses, read_ctc
from jaxssl.training.lesson import check_teacher
from jaxssl.training.preparation import Preparation, prepare
from jaxssl.training.probe import regress
from jaxssl.training.settings import Training
from jaxssl.training.telemetry import read_journal
from tests.archs import LARGE, MEL, forward, transformer_layer
from tests.archs import weights as drawn

pytestmark = pytest.mark.usefixtures("one_device")
CONVS = (Conv(6, 10, 5), *(Conv(6, 3, 2),) * 4, *(Conv(6, 2, 2),) * 2)  # a frame each 20 ms
ARCH = replace(
    LARGE, front=Waveform(CONVS, norm="layer"), layers=(transformer_layer(4, 24),) * 2, dropout=Dropout(0, 0, 0, 0, 0)
)
TRAINING = Training(batch=2, crop=1.0, shortest=0.5, buckets=1)
QUICK = {"batch": 2, "crop": 1.0, "shortest": 0.5, "seconds": 0.5, "rounds": 1, "probes": False, "stack": "unroll"}
COMMANDS = {
    lowrank: {"rank": (4,), "steps": 1, "method": ("svd",)},
    heads: {"keep": (2,), "recover": "distil"},
    rows: {"keep": (12,), "recover": "distil"},
    weights: {"sparsity": (0.5,)},
    distill: {"layers": (1,)},
    combine: {"plan": ("rows=12:distil",)},
    joint: {"target": (0.3,)},
    plan: {"budget": ("params=80%",), "recover": "distil"},
}


class Reached(Exception):
    """A run begins."""


def begins(out, settings):
    raise Reached


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Three utterances with what is said in them."""
    folder = tmp_path_factory.mktemp("audio")
    for i in range(3):
        soundfile.write(folder / f"u{i}.flac", synthesize(1.0, seed=i), 16000)
    (folder / "u.trans.txt").write_text("".join(f"u{i} AT {word}\n" for i, word in enumerate(("TEA", "EAST", "SEAT"))))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model with codewords, one without any output layer."""
    folder = tmp_path_factory.mktemp("models")
    params = drawn(ARCH)
    checkpoint.save(folder / "codewords", ARCH, params)
    checkpoint.save(
        folder / "headless", replace(ARCH, head=None), {name: part for name, part in params.items() if name != "head"}
    )
    return folder


def learning(folder):
    """Return what a run reported of its updates, at least one."""
    rows = [row for row in read_journal(folder) if row["part"] == "train"]
    assert rows
    return rows


def asked(audio, **more):
    return Asked(audio=(str(audio),), **more)


@pytest.mark.parametrize("kind", ["codewords", "headless", "foreign"])
def test_every_command_takes_any_model(models, audio, request, tmp_path, monkeypatch, capsys, kind):
    """Each is stopped when nothing can be refused any more."""
    model, more = models / kind, {} if kind == "codewords" else {"clusters": 4}
    if kind == "foreign":
        model = request.getfixturevalue("shared") / "encoders/hf_wav2vec2_base"
    monkeypatch.setattr(files, "own", begins)
    said = "its own 9 codewords" if kind == "codewords" else "4 clusters of its own layer 1 of"
    for module, words in COMMANDS.items():
        config = module.Config(
            model=str(model), audio=(str(audio),), out=tmp_path / module.__name__, **QUICK, **words, **more
        )
        with pytest.raises(Reached):
            module.run(config)
        output = capsys.readouterr().out
        assert f"note: targets: {said}" in output, module
        assert ("an output layer of 4 clusters was fitted" in output) == (kind != "codewords"), module
        assert ("it was converted for this run" in output) == (kind == "foreign"), module
    speech = list(tmp_path.glob("speech-*"))
    assert len(speech) == 1  # prepared and labelled once for all


def test_what_is_stored_in_fewer_bits_has_the_output_layer_too(models, audio, tmp_path, monkeypatch):
    found = {}

    class Bench:
        def point(self, name, subject, **_):
            found[name] = subject

        def rows(self):
            return [{"name": "dense"}]

    monkeypatch.setattr(int8, "draw", lambda job, points, **_: points(Bench()))
    int8.run(int8.Config(model=str(models / "headless"), audio=(str(audio),), out=tmp_path / "r", clusters=4, **QUICK))
    assert {name: subject.arch.head for name, subject in found.items()} == dict.fromkeys(
        ("bfloat16", "int8", "int8-convolutions"), ClusterHead(4)
    )


def test_a_models_codewords_are_what_it_answers_where_nothing_is_hidden(models, audio, tmp_path):
    model = load_model(str(models / "codewords"), seed=0)
    found = speech_with_targets(model, asked(audio), out=tmp_path)
    assert found.codewords == str((models / "codewords").resolve())
    (folder,) = tmp_path.glob("speech-*")
    corpus = prepared.load(folder)
    for i, utterance in enumerate(corpus.manifest.utterances):
        samples = read(utterance.path).samples
        logits = forward(model.arch, model.params, samples[None]).logits[0]
        np.testing.assert_array_equal(corpus.labels()[i], np.argmax(logits, -1))
    assert not list((folder / "labels").glob("*.centres.npy"))


def test_a_compressed_model_goes_on_with_the_codewords_of_the_model_it_was_made_from(models, audio, tmp_path):
    arch, params = checkpoint.load(models / "codewords")
    place = str(models / "codewords")
    other = {**params, "head": drawn(ARCH, seed=5)["head"]}
    for name, origin in (("there", place), ("gone", str(tmp_path / "nowhere"))):
        checkpoint.save(tmp_path / name, arch, other, provenance={"codewords": origin})
    found = speech_with_targets(load_model(str(tmp_path / "there"), seed=0), asked(audio), out=tmp_path / "out")
    assert found.told == f"targets: the 9 codewords of {place}, which it was made from"
    assert found.codewords == place
    found = speech_with_targets(load_model(str(tmp_path / "gone"), seed=0), asked(audio), out=tmp_path / "out")
    assert "its own 9 codewords" in found.told
    assert "nowhere, whose codewords they were, is not there any more" in found.told


def test_an_output_layer_is_fitted_once_and_knows_something(models, audio, tmp_path, monkeypatch):
    model = load_model(str(models / "headless"), seed=0)
    found, data = ready(model, asked(audio, clusters=4), TRAINING, out=tmp_path)
    assert found.arch.head == ClusterHead(4)
    assert evaluate(found.arch, found.params, data, TRAINING)["unmasked_accuracy"] > 0.5
    monkeypatch.setattr(output_layer, "regress", None)
    again, _ = ready(model, asked(audio, clusters=4), TRAINING, out=tmp_path)
    for name, leaf in found.params["head"]["project"].items():
        np.testing.assert_array_equal(again.params["head"]["project"][name], leaf)


def test_a_model_that_joins_frames_has_a_target_for_each_joined_one(audio, tmp_path):
    """Whole frames are hidden, and it hears and predicts at its own rate; probes have no such frames, and say so."""
    arch = replace(ARCH, time_reduction=2, head=None, layers=ARCH.layers[:1])
    checkpoint.save(tmp_path / "model", arch, drawn(arch))
    model = load_model(str(tmp_path / "model"), seed=0)
    found, data = ready(model, asked(audio, clusters=4), TRAINING, out=tmp_path)
    corpus, _ = data.train
    assert [len(corpus.labels(i)) for i in range(3)] == [arch.frames(int(n)) for n in corpus.lengths]
    assert data.spans == Spans(0.8, 5)
    told = hear(found.arch, found.params, data, TRAINING)
    assert 0 < told.frames.sum() <= 25
    felt = evidence.Labelled(data, TRAINING, count=1)
    step = evidence.evidence(found.arch, None, None, labelled=felt)
    scores = step.scores(found.params, "gradient", [axis for axis in axes(found.arch) if axis.name.endswith("/heads")])
    assert all((values > 0).all() for values in scores.values())
    probes, why = job._probes(rows.Config(), arch)
    assert probes is None
    assert "not probed for phones and speakers: 2 frames become one" in why
    with pytest.raises(InputError, match="2 log-Mel frames become one"):
        load_data(next(tmp_path.glob("speech-*")), replace(MEL, time_reduction=2), labels=None, valid=None)


def test_a_student_that_joins_frames_is_none_of_a_teacher_that_does_not():
    archs = (ARCH, replace(ARCH, time_reduction=2))
    teacher, student = (Model(name, arch, {}, None, True) for name, arch in zip("ts", archs, strict=True))
    with pytest.raises(InputError, match="t hears waveform, 499 frames of 10 s, the student s waveform, 249 frames"):
        check_teacher(teacher, student, None, logits=False)


def test_what_no_transcript_is_known_of_is_not_written_down(models, audio, tmp_path):
    model = load_model(str(models / "codewords"), seed=0)
    data = speech_with_targets(model, asked(audio), out=tmp_path).data
    layer = {ARRAYS: safetensors.numpy.save({"kernel": np.ones((16, 3), np.float32)})}
    model = replace(model, ctc={**layer, SYMBOLS: json.dumps({"symbols": ["<pad>", "x", "T"]}).encode()})
    found, why = open_transcripts(model, data)
    assert found is None
    assert "0 of 1 held-out utterances have a transcript in the symbols of the CTC layer" in why
    assert "0 of all 3 utterances there have one, the first other text is 'AT TEA' and the symbols are 'xT'" in why
    assert "name transcribed speech with --held-out" in why


def test_held_out_speech_has_the_same_clusters(models, audio, tmp_path):
    model = load_model(str(models / "headless"), seed=0)
    known = asked(audio, clusters=4, held_out=(str(audio / "u0.flac"),))
    data = speech_with_targets(model, known, out=tmp_path).data
    np.testing.assert_array_equal(data.train[0].labels(0), data.valid[0].labels(0))


def test_regression_tells_what_is_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = (rng.normal(size=(60, 5)) + 7 * np.eye(5)[labels] + 100).astype(np.float32)
    kernel, bias = regress(features, labels, classes=3)
    np.testing.assert_array_equal((features @ kernel + bias).argmax(1), labels)


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("codewords", {"clusters": 5}, "has targets of its own"),
        ("headless", {"clusters": 1}, "give 2 or more"),
        ("headless", {"clusters": 5000}, "use fewer, or more speech"),
    ],
)
def test_clusters_that_cannot_be(models, audio, tmp_path, kind, words, message):
    with pytest.raises(InputError, match=message):
        speech_with_targets(load_model(str(models / kind), seed=0), asked(audio, **words), out=tmp_path)


def test_labels_that_do_not_fit_are_refused_with_the_command_that_makes_such_as_do(models, audio, tmp_path):
    corpus, place = tmp_path / "cor pus", models / "codewords"
    prepare(Preparation(audio=(str(audio),), out=corpus, clusters=4, restarts=1, valid=0.3))
    model = load_model(str(place), seed=0)
    with pytest.raises(InputError, match="4 clusters, the output layer of .* tells 9 apart") as caught:
        speech_with_targets(model, Asked(corpus=corpus), out=tmp_path)
    assert "\n" not in str(caught.value)
    remedy = str(caught.value).partition("add --labels own: ")[2]
    assert remedy.startswith("python -m experiments.prepare --audio ")
    prepare(tyro.cli(Preparation, args=shlex.split(remedy)[3:]))
    data = speech_with_targets(model, Asked(corpus=corpus, labels="own"), out=tmp_path).data
    assert data.clusters == 9
    assert [len(part[1]) for part in (data.train, data.valid)] == [2, 1]  # parts are as they were


@pytest.mark.slow
def test_a_fine_tuned_model_of_another_program_becomes_a_curve(shared, audio, tmp_path):
    """From a folder of Hugging Face to small models that still have the CTC layer, with what it writes of speech."""
    place = shared / "encoders/hf_wav2vec2_base_ctc"
    words = {"clusters": 4, "recover": "ctc", "keep": (32,), "schedule": "once", "every": 1}
    config = rows.Config(model=str(place), audio=(str(audio),), out=tmp_path / "rows", **QUICK, **words)
    rows.run(config)
    told = json.loads((tmp_path / "rows/report.json").read_text())
    assert any("1 of 1 held-out utterances have a transcript" in note for note in told["notes"])
    dense, small = told["points"]
    original = load_model(str(place), seed=0)
    for row in (dense, small):
        assert row["ctc_loss"] > 0
        assert row["character_error_rate"] > 0
        point = load_model(str(tmp_path / "rows/models" / row["name"]), seed=0)
        assert dict(point.ctc) == dict(original.ctc)
        assert point.arch.head == ClusterHead(4)
    assert small["units"] == [32, 32]
    assert small["step"] == 1
    assert "control_ctc_loss" not in dense
    assert small["control_ctc_loss"] not in (dense["ctc_loss"], small["ctc_loss"])
    (control,) = tmp_path.glob("control-*")
    assert all("ctc" in row for row in learning(control))  # it learned to write as long, and not to predict


@pytest.mark.slow
def test_gates_are_learned_by_what_is_written(shared, audio, tmp_path):
    """Distilling and pruning at once through the CTC layer, and after the cut."""
    place = shared / "encoders/hf_wav2vec2_base_ctc"
    words = {"clusters": 4, "loss": "ctc", "target": (0.1,), "steps": 2, "after": 1, "gate_rate": 3.0, "ramp": 0.1}
    joint.run(joint.Config(model=str(place), audio=(str(audio),), out=tmp_path / "joint", **QUICK, **words))
    _, small = json.loads((tmp_path / "joint/report.json").read_text())["points"]
    assert small["gone"] == pytest.approx(0.1, abs=0.02)
    assert min(small["ctc_loss"], small["control_ctc_loss"]) > 0
    for part in ("gates", "after"):
        assert all("ctc" in row for row in learning(tmp_path / f"joint/{part}/joint-0.1"))


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        (rows, {"masked": True}, "--masked: it is for --recover distil, and predict is chosen"),
        (rows, {"masked": True, "recover": "ctc"}, "--masked: it is for --recover distil, and ctc is chosen"),
        (heads, {"teacher": "melhubert-tiny"}, "--teacher melhubert-tiny: it is for --recover distil"),
        (weights, {"alpha": 0.5}, "--alpha 0.5: it is for --recover distil and ctc, and"),
        (lowrank, {"masked": True}, "--masked: it is for --recover distil"),
        (plan, {"masked": True}, "--masked: it is for --recover distil"),
        (sequence, {"masked": True}, "--masked: it is for --recover distil"),
        (combine, {"masked": True, "plan": ("rows=12:ctc", "rows=8")}, "--masked: .* ctc, predict is chosen"),
        (distill, {"loss": "dphubert", "temperature": 2.0}, "--temperature 2.0: it is for --loss soft and ctc"),
        (distill, {"loss": "ctc", "masked": True}, "--masked: it is for --loss soft"),
        (joint, {"alpha": 0.5}, "--alpha 0.5: it is for --loss soft and ctc, and dphubert is chosen"),
    ],
)
def test_settings_that_nothing_looks_at_are_refused(models, tmp_path, command, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        command.run(command.Config(model=str(models / "codewords"), out=tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_length_adapter_and_the_ctc_layer_on_it_stay_as_they_are(audio, tmp_path):
    """Every second frame is written down of a model whose encoder alone is compressed and trained."""
    arch = replace(ARCH, head=None, length_adapter=LengthAdapter(10, 1))
    symbols = ["<pad>", "|", *"AETSI"]
    kernel = np.random.default_rng(0).normal(size=(10, len(symbols))).astype(np.float32)
    extra = {ARRAYS: safetensors.numpy.save({"kernel": kernel}), SYMBOLS: json.dumps({"symbols": symbols}).encode()}
    checkpoint.save(tmp_path / "model", arch, drawn(arch), extra=extra)
    words = {"clusters": 4, "recover": "distil", "keep": (12,), "schedule": "once", "every": 1, "control": False}
    rows.run(rows.Config(model=str(tmp_path / "model"), audio=(str(audio),), out=tmp_path / "rows", **QUICK, **words))
    dense, small = json.loads((tmp_path / "rows/report.json").read_text())["points"]
    original = load_model(str(tmp_path / "model"), seed=0)
    point = load_model(str(tmp_path / "rows/models" / small["name"]), seed=0)
    assert min(dense["ctc_loss"], small["ctc_loss"]) > 0
    assert point.arch.length_adapter == arch.length_adapter
    assert dict(point.ctc) == dict(original.ctc)
    jax.tree.map(np.testing.assert_array_equal, point.params["length_adapter"], original.params["length_adapter"])


def test_a_ctc_layer_is_read_with_its_blank_first():
    symbols = ["a", "b", "|", "<unk>", "[PAD]"]
    kernel, bias = np.arange(10, dtype=np.float32).reshape(2, 5), np.arange(5, dtype=np.float32)
    stored = {ARRAYS: safetensors.numpy.save({"kernel": kernel, "bias": bias})}
    layer = read_ctc({**stored, SYMBOLS: json.dumps({"symbols": symbols}).encode()})
    assert layer.symbols == ("[PAD]", "a", "b", "|", "<unk>")
    np.testing.assert_array_equal(layer.bias, [4, 0, 1, 2, 3])
    np.testing.assert_array_equal(layer.kernel, kernel[:, [4, 0, 1, 2, 3]])
    np.testing.assert_array_equal(layer.spell("AB b"), [1, 2, 3, 2])
    assert layer.spell("c") is None
    assert layer.spell(" ") is None
    assert layer.write(np.array([1, 4, 3])) == ["a", "|"]
    assert read_ctc({**stored, SYMBOLS: b'{"symbols": null}'}) is None
    assert read_ctc({}) is None
    fairseq = json.dumps({"symbols": ["<s>", "<pad>", "</s>", "|", "A"]}).encode()
    assert read_ctc({**stored, SYMBOLS: fairseq}).symbols[0] == "<s>"
    with pytest.raises(InputError, match="convert it again"):
        read_ctc({**stored, SYMBOLS: b"{"})


def test_the_ctc_loss_is_that_of_all_alignments():
    """Two frames, one symbol: −log of the three ways to write it."""
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]], np.float32))
    loss, best = ctc_losses(
        np.eye(3, dtype=np.float32), np.zeros(3, np.float32), logits[None], *map(jnp.asarray, ([2], [[1]], [1]))
    )
    np.testing.assert_allclose(loss, [-np.log(0.5 * 0.4 + 0.3 * 0.4 + 0.3 * 0.4)], rtol=1e-5)
    np.testing.assert_array_equal(best, [[0, 0]])
