"""From a folder of audio to features and labels by the command line's own function, again, and for other speech."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from experiments.prepare import Config, run
from jaxssl.data import kmeans
from jaxssl.data.audio import read
from jaxssl.data.demo import utterances
from jaxssl.data.logmel import stats_bytes
from jaxssl.data.mfcc import mfcc
from jaxssl.data.prepared import load
from jaxssl.inference.encode import Timing, encode, pieces
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from jaxssl.models.arch import Conv, LogMel
from jaxssl.models.model import shapes
from jaxssl.runtime.cli import command
from jaxssl.training import label_source, preparation_rates
from jaxssl.training.label_source import layer_source, model_source
from jaxssl.training.preparation import Preparation, prepare
from tests.archs import BASE, MEL
from tests.processes import finish


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    for i, samples in enumerate(utterances(6)):
        (folder / f"s{i % 2}").mkdir(exist_ok=True)
        soundfile.write(folder / f"s{i % 2}/u{i}.flac", samples[: 16000 + 777 * i], 16000)
    rows = [f"u{i}\t{0.2 * j:.1f}\t{0.2 * (j + 1):.1f}\t{'AB'[j % 2]}" for i in range(3) for j in range(4)]
    (folder / "times.tsv").write_text("\n".join(["id\tstart\tend\tlabel", *rows]) + "\n")
    return folder


def save(folder, arch, **words):
    """Save a model with random weights, drawn by NumPy: there `init` would compile for longer than all tests run."""
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes(arch))
    checkpoint.save(folder, arch, params, **words)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    convs = (Conv(8, 10, 5), *(Conv(8, 3, 2),) * 4, *(Conv(8, 2, 2),) * 2)  # 20 ms, as HuBERT
    save(folder / "mel", dataclasses.replace(MEL, front=LogMel(40, 2), layers=MEL.layers[:2]))
    save(folder / "base", dataclasses.replace(BASE, front=dataclasses.replace(BASE.front, convs=convs)))
    save(folder / "odd", BASE)
    return folder


@pytest.fixture(scope="module")
def done(audio, models, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "prepared"
    kinds = ("logmel", "mfcc", f"{models}/mel:1", f"{models}/base:2")
    prepare(Preparation(audio=(str(audio),), out=out, labels=kinds, clusters=6, phones=audio / "times.tsv", valid=0.3))
    return out


def test_everything_is_there(done):
    corpus = load(done)
    assert sorted(corpus.sets) == ["base-2-6", "logmel-6", "mel-1-6", "mfcc-6"]
    assert sorted(u.split for u in corpus.manifest.utterances) == ["train"] * 4 + ["valid"] * 2
    assert {u.speaker for u in corpus.manifest.utterances} == {"s0", "s1"}
    for labels in corpus.sets.values():
        assert labels.lengths.tolist() == (-(-corpus.lengths // 2)).tolist()
        every = np.concatenate([labels[i] for i in range(6)])
        assert (labels.clusters, labels.period_ms, every.min() >= 0, every.max() < 6) == (6, 20, True, True)
        assert labels.info["used"] == len(set(every.tolist()))
        assert 0 <= labels.info["pnmi"] <= 1
        assert 0.5 <= labels.info["phone_purity"] <= 1
        assert 3 * 38 <= labels.info["phone_frames"] <= 3 * 40


def states(model, samples, stats=None):
    arch, params = checkpoint.load(model)
    run_ = jax.jit(lambda params, samples: encode(arch, params, samples, stats=stats).hidden)
    return [np.asarray(x[0]) for x in run_(params, jnp.asarray(samples[None]))]


def test_labels_are_the_nearest_centres_of_what_they_say(done, models):
    corpus = load(done)
    samples = read(corpus.manifest.utterances[4].path).samples
    expected = {
        "logmel-6": corpus.inputs(4, stack=2),
        "mfcc-6": mfcc(samples)[::2],
        "base-2-6": states(models / "base", samples)[2],
        "mel-1-6": states(models / "mel", samples, corpus.stats)[1],
    }
    for name, vectors in expected.items():
        found, labels = (
            kmeans.assign(vectors, np.load(done / f"labels/{name}.centres.npy"))[0],
            corpus.labels(name),
        )
        assert len(found) == len(labels[4])
        least = 1.0 if name in ("logmel-6", "mfcc-6") else 0.95  # the others: float16 features, other padding
        assert np.mean(found == labels[4]) >= least


def test_repeating_makes_nothing_anew_and_asking_otherwise_does(done, audio, monkeypatch):
    def files():
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in (done / "labels").iterdir()}

    before = files()
    config = {"audio": (str(audio),), "out": done, "phones": audio / "times.tsv", "valid": 0.3}
    prepare(Preparation(**config, labels=("logmel", "mfcc"), clusters=6))
    assert files() == before
    prepare(Preparation(**config, labels=("logmel",), clusters=6, seed=1, name="other"))
    assert {p: x for p, x in files().items() if not p.name.startswith("other")} == before
    assert load(done).labels("other").info["seed"] == 1
    for path in (done / "labels").glob("other.*"):
        path.unlink()


def test_new_weights_or_phones_make_new_labels(audio, models, tmp_path):
    """A model or phone times that changed in place must not leave the old labels or their old quality."""

    def info(name="mel-1-3", **words):
        prepare(
            Preparation(audio=(str(audio),), out=tmp_path / "out", labels=(f"{tmp_path}/mel:1",), clusters=3, **words)
        )
        return load(tmp_path / "out").labels(name).info

    arch, params = checkpoint.load(models / "mel")
    checkpoint.save(tmp_path / "mel", arch, params)
    first = info()
    assert info() == first
    checkpoint.save(tmp_path / "mel", arch, jax.tree.map(lambda x: x * 0.7, params), overwrite=True)
    second = info()
    assert second["inertia"] != first["inertia"]
    third = info(phones=audio / "times.tsv")
    assert (second["pnmi"], third["inertia"]) == (None, second["inertia"])
    assert third["pnmi"] > 0


def test_other_speech_by_the_same_centres_and_statistics(done, tmp_path):
    """One's own audio, labelled as if it were another corpus, gets its own labels; part of it gets part of them."""
    corpus = load(done)
    chosen = [u.path for u in corpus.manifest.utterances[2:4]]
    prepare(Preparation(audio=tuple(map(str, chosen)), out=tmp_path / "part", clusters=6, like=done, valid=0))
    part = load(tmp_path / "part")
    assert not np.allclose(part.stats.mean, corpus.stats.mean)
    for i in range(2):
        np.testing.assert_array_equal(part.labels()[i], corpus.labels("logmel-6")[2 + i])
    assert part.labels().info["fitted"] == 0
    with pytest.raises(InputError, match="no centres of labels logmel-7"):
        prepare(Preparation(audio=tuple(map(str, chosen)), out=tmp_path / "part", clusters=7, like=done, valid=0))
    with pytest.raises(InputError, match="6 centres, --clusters 7"):
        prepare(
            Preparation(audio=tuple(map(str, chosen)), out=tmp_path / "part", clusters=7, like=done, name="logmel-6")
        )


def test_a_model_s_own_statistics_are_used(done, models, tmp_path):
    corpus = load(done)
    arch, params = checkpoint.load(models / "mel")
    other = type(corpus.stats)(corpus.stats.mean + 1, corpus.stats.std * 2)
    checkpoint.save(tmp_path / "own", arch, params, extra={"stats.npy": stats_bytes(other)})
    found, bare = layer_source(f"{tmp_path}/own:0", corpus), layer_source(f"{models}/mel:0", corpus)
    assert [len(found.notes), len(bare.notes)] == [0, 1]
    expected = states(models / "mel", read(corpus.manifest.utterances[0].path).samples, other)[0]
    np.testing.assert_allclose(found.of(0), expected, atol=0.05)
    assert np.abs(bare.of(0) - expected).max() > 0.2


@pytest.mark.parametrize("name", ["mel", "base"])
def test_long_utterances_are_cut_without_losing_frames(done, models, monkeypatch, name):
    corpus = load(done)
    whole = layer_source(f"{models}/{name}:1", corpus).of(5)
    monkeypatch.setattr(label_source, "LONGEST", 1)
    cut = layer_source(f"{models}/{name}:1", corpus).of(5)
    assert cut.shape == whole.shape
    assert not np.allclose(cut, whole)


@pytest.mark.parametrize(("hop", "field", "rate"), [(1, 1, 50), (320, 400, 16000), (2, 5, 10)])
@pytest.mark.parametrize("seconds", [0.1, 29.99, 30.0, 30.01, 95.3])
def test_pieces_together_are_the_whole(hop, field, rate, seconds):
    front, x = Timing(hop, field, rate), np.arange(max(round(seconds * rate), field))
    frames = [[tuple(p[k * hop : k * hop + field][[0, -1]]) for k in range(n)] for p, n in pieces(x, front)]
    starts = range(0, len(x) - field + 1, hop)
    assert [f for part in frames for f in part] == [(s, s + field - 1) for s in starts]
    assert all(len(p) <= 30 * rate for p, _ in pieces(x, front))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"labels": ("log-mel",)}, "--labels log-mel: not logmel, mfcc, MODEL:LAYER"),
        ({"labels": ("mel:9",)}, "--labels .*mel:9: the model has layers 1 to 2"),
        ({"labels": ("odd:1",)}, "400 frames a second are not one each whole ms"),
        ({"labels": ("gone:1",)}, "gone"),
        ({"labels": ("logmel", "mfcc"), "name": "x"}, "--name names one set of labels, --labels asks for 2"),
        ({"period": 15}, "--period 15"),
        ({"labels": ("mel:1",), "period": 10}, "come each 20 ms, 10 ms are asked for"),
        ({"clusters": 0}, "--clusters 0: give 1 to"),
        ({"clusters": 10_000}, "10000 clusters of"),
        ({"name": "../up"}, "cannot be called"),
        ({"like": "nowhere"}, "nowhere: no such file or folder"),
        ({"like": "no\0where"}, "no.x00where: no such file or folder"),
        ({"audio": ("gone.wav",)}, "no such file"),
        ({"valid": 1.0}, "--valid 1.0: give 0 to below 1"),
    ],
)
def test_what_cannot_be_is_refused(audio, models, done, tmp_path, words, message):
    words = dict(words)
    if "labels" in words:
        words["labels"] = tuple(str(models / w) if ":" in w and "gone" not in w else w for w in words["labels"])
    if "like" in words:
        words["like"] = tmp_path / words["like"]
    config = {"audio": (str(audio),), "out": tmp_path / "out", "clusters": 4, **words}
    with pytest.raises(InputError, match=message) as found:
        prepare(Preparation(**config))
    assert "\n" not in str(found.value)
    assert not list((tmp_path / "out").glob("labels/*.json"))
    if "asked for" in message and "period" in words:
        assert not (tmp_path / "out/labels").exists()  # before any work


@pytest.mark.parametrize("name", ["mel", "base"])
def test_what_is_heard_together_is_what_is_heard_alone(done, models, name):
    """Utterances padded to one length in batches of 4, the last of which is filled."""
    corpus = load(done)
    found, numbers = load_model(str(models / name), seed=0), range(6)
    alone, batched = (model_source(found, 1, corpus, place=name, together=n) for n in (1, 4))
    rows = dict(batched.vectors(numbers))
    assert sorted(rows) == list(range(6))
    for i in range(6):
        expected = alone.of(i)
        assert rows[i].shape == expected.shape
        np.testing.assert_allclose(rows[i], expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_a_plan_prints_and_writes_nothing(audio, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preparation_rates, "LEAST_S", 0.0)
    words = ["--audio", str(audio), "--out", str(tmp_path / "out"), "--clusters", "5", "--plan", "--processes", "4"]
    assert command(run, Config, "", args=words) == 0
    told = capsys.readouterr().out
    assert "4 processes, each as fast as this one" in told
    assert all(word in told for word in ("labels logmel-5", "k-means of logmel-5", "time of 60,000 h", "1,728.000"))
    assert not (tmp_path / "out").exists()


def test_what_follows_from_rates():
    """960 h in shards of an hour are 120 for each of 8 processes; half an hour is one shard."""
    each = preparation_rates.SetRate("x-100", 100, 80, 20, hear=300.0, assign=600.0, begin_s=10, batch_s=0.8, move_s=1)
    rates = preparation_rates.Rates(0.5, 720.0, (each,))
    found = {row["what"]: row for row in preparation_rates.rows(rates, Preparation(processes=8))}
    assert (found["features, float16"]["rate"], found["features, float16"]["time1"]) == (12.0, "10 min")
    assert found["features, float16"]["gb1"] == pytest.approx(960 * 3600 * 100 * 40 * 2 / 1e9)
    assert found["features, float32"]["gb2"] == pytest.approx(60_000 * 3600 * 100 * 40 * 4 / 1e9)
    assert found["labels x-100"]["gb1"] == pytest.approx(960 * 3600 * 50 * 2 / 1e9)
    assert found["labels x-100"]["time1"] == "36 min"  # 300 and 600 are 200 together
    assert found["labels x-100"]["time0"] == "9 s"  # one shard, one process
    assert found["k-means of x-100"]["time1"] == found["k-means of x-100"]["time2"] == "4.75 min"
    assert found["all"]["time1"] == "50.8 min"


def test_the_command_line(audio, tmp_path):
    words = ["--audio", audio, "--out", tmp_path / "out", "--clusters", "5", "--period", "10", "--split-by", "speaker"]
    found = finish("-m", "experiments.prepare", *words)
    assert found.returncode == 0, found.stderr
    assert "features: 0.1 MB" in found.stdout
    assert "inertia" in found.stdout
    assert "phones unknown: no purity, no PNMI" in found.stdout
    info = json.loads((tmp_path / "out/labels/logmel-5.json").read_text())
    assert (info["clusters"], info["period_ms"], info["size"], info["pnmi"]) == (5, 10, 40, None)
    assert load(tmp_path / "out").labels().lengths.tolist() == load(tmp_path / "out").lengths.tolist()


def test_what_the_command_line_cannot_use_is_one_line(tmp_path, capsys):
    words = ["--audio", "gone", "--out", str(tmp_path / "out")]
    assert command(prepare, Preparation, "", args=words) == 2
    assert capsys.readouterr().err.strip() == "error: --audio gone: no such file or folder"
