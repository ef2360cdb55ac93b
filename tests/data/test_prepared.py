"""A prepared corpus equals features computed one utterance at a time, however it was broken off and went on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from jaxssl.data import corpora, features, prepared
from jaxssl.data.audio import read
from jaxssl.data.demo import utterances
from jaxssl.data.logmel import collect, load_stats, logmel, normalize, stack
from jaxssl.data.manifest import Manifest, Segment, Utterance, split
from jaxssl.data.prepared import frame_count, load, write_labels
from jaxssl.data.study import read_study
from tests.together import run_together

OLD = {"storage": "float16", "grids": 1, "done": 1}
LENGTHS = (400, 559, 560, 8000, 16000, 31999, 40000, 90000)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, noise = tmp_path_factory.mktemp("audio"), np.random.default_rng(1)
    for i, n in enumerate(LENGTHS):
        samples = np.resize(utterances(1, seed=i)[0], n) + 1e-4 * noise.normal(size=n)
        soundfile.write(folder / f"{i}.flac", samples, 16000)
    return split(corpora.read(folder), valid=0.25, seed=0)


@pytest.fixture
def small_grids(monkeypatch):
    """Grids of 2 × 1.5 s, so that a few seconds of speech fill many and utterances are cut."""
    monkeypatch.setattr(features, "ROWS", 2)
    monkeypatch.setattr(features, "SAMPLES", 24000)


@pytest.fixture
def folder(corpus, tmp_path):
    features.prepare(corpus, tmp_path / "prepared")
    return tmp_path / "prepared"


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@jax.jit
def padded_logmel(samples):
    return logmel(samples)[0]


def alone(utterance):
    samples = read(utterance.path).samples
    padded = np.pad(samples, (0, max(LENGTHS) - len(samples)))
    return np.asarray(padded_logmel(jnp.asarray(padded[None])))[: frame_count(len(samples))]


@pytest.mark.parametrize(("storage", "tolerance"), [("float32", 1e-3), ("float16", 0.0085)])
def test_features_are_those_of_each_utterance_alone(corpus, tmp_path, small_grids, storage, tolerance):
    """Float16 rounds by half of 2⁻⁶ at 16 to 32."""
    planned = features.plan(corpus, storage=storage)
    ticks = []
    features.prepare(corpus, tmp_path / "out", storage=storage, tick=lambda: ticks.append(1))
    found = load(tmp_path / "out")
    assert len(ticks) == len(list(planned.grids(0))) > 3
    assert (tmp_path / "out/features.npy").stat().st_size == planned.bytes + 128
    assert found.manifest == corpus
    assert not found.normalized
    for i, u in enumerate(corpus.utterances):
        expected = alone(u)
        assert found.features(i).shape == expected.shape == (found.lengths[i], 40)
        assert found.features(i).dtype == np.float32
        np.testing.assert_allclose(found.features(i), expected, atol=tolerance, rtol=0)
    of_all = collect(found.features(i) for i in range(len(found)))
    np.testing.assert_array_equal(found.stats.mean, of_all.mean)
    np.testing.assert_array_equal(found.stats.std, of_all.std)
    np.testing.assert_array_equal(found.stats.std, load_stats(tmp_path / "out/stats.npy").std)


def test_inputs_are_what_upstream_computes(corpus, folder):
    found = load(folder)
    for i in (1, 2, 5):
        normal = normalize(jnp.asarray(found.features(i)[None]), found.stats)
        for n in (1, 2, 3):
            expected = np.asarray(stack(normal, n=n)[0][0])
            np.testing.assert_allclose(found.inputs(i, stack=n), expected, atol=1e-6, rtol=0)
    other = dataclasses.replace(found.stats, mean=found.stats.mean + 1)
    np.testing.assert_allclose(found.inputs(3, stats=other), found.inputs(3) - 1 / found.stats.std, atol=1e-5)


def test_normalised_storage_gives_the_same_inputs(folder):
    raw = load(folder)
    done = dataclasses.replace(raw, normalized=True, rows=[raw.inputs(i) for i in range(len(raw))])
    other = dataclasses.replace(raw.stats, mean=raw.stats.mean * 0.9)
    for given in (None, other):
        np.testing.assert_allclose(done.inputs(4, stack=2, stats=given), raw.inputs(4, stack=2, stats=given), atol=1e-4)


@pytest.mark.parametrize("lengths", [[1], [998], [999], [996, 1, 1], [400] * 60, [20_000, 3, 7000]])
def test_grids_hold_every_frame_once_and_none_twice(lengths):
    manifest = Manifest(tuple(Utterance(f"{i}", f"{i}", 400 + 160 * (n - 1)) for i, n in enumerate(lengths)))
    planned = features.plan(manifest)
    seen = [np.zeros(n, int) for n in lengths]
    for grid in planned.grids(0):
        used = np.zeros((features.ROWS, features.SAMPLES // 160 + 3), int)
        for p in grid:
            seen[p.utterance][p.first : p.first + p.frames] += 1
            used[p.row, p.at : p.at + p.frames + features.SEAM] += 1
            assert (p.at + p.frames - 1) * 160 + 400 <= features.SAMPLES
        assert used.max() == 1
    assert all((s == 1).all() for s in seen)
    assert [frame_count(u.samples) for u in manifest.utterances] == np.diff(planned.offsets).tolist() == lengths


SHARD = 300  # frames; the corpus has 1,167, in five shards then, because the last utterance is half of it


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_the_number_of_processes_changes_no_byte(corpus, tmp_path, small_grids, processes):
    features.prepare(corpus, tmp_path / "one", shard_frames=SHARD)
    run_together(processes, lambda team: features.prepare(corpus, tmp_path / "many", shard_frames=SHARD, team=team))
    shards = sorted(path.name for path in (tmp_path / "one/features").iterdir())
    assert shards == [f"0000{i}.npy" for i in range(len(shards))]
    assert len(shards) > 2
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_shards_are_read_as_one(corpus, folder, tmp_path, small_grids):
    features.prepare(corpus, tmp_path / "shards", shard_frames=SHARD)
    whole, found = load(folder), load(tmp_path / "shards")
    assert found.lengths.tolist() == whole.lengths.tolist()
    for i in (7, 0, 3, 6):
        np.testing.assert_allclose(found.features(i), whole.features(i), atol=2**-6, rtol=0)
    with pytest.raises(IndexError):
        found.features(len(LENGTHS))


class Killed(Exception):
    pass


@pytest.mark.parametrize("stops", [(0,), (1,), (3,), (2, 2, 1)])
def test_a_resumed_preparation_equals_an_unbroken_one(corpus, tmp_path, small_grids, stops):
    """Whoever goes on, alone or in twos."""
    features.prepare(corpus, tmp_path / "whole", shard_frames=SHARD)
    for stop in stops:
        left = [stop]

        def tick(left=left):
            if not left[0]:
                raise Killed
            left[0] -= 1

        with pytest.raises(Killed):
            features.prepare(corpus, tmp_path / "broken", shard_frames=SHARD, tick=tick)
        with pytest.raises(InputError, match="not finished; run the same"):
            load(tmp_path / "broken")
    run_together(2, lambda team: features.prepare(corpus, tmp_path / "broken", team=team))
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_what_is_done_is_not_done_again(corpus, tmp_path, small_grids, monkeypatch):
    read_, names = features.read, []
    monkeypatch.setattr(features, "read", lambda path: names.append(path.name) or read_(path))
    features.prepare(corpus, tmp_path, shard_frames=SHARD)
    before = files(tmp_path)
    names.clear()
    features.prepare(corpus, tmp_path)
    assert not names
    lost = sorted((tmp_path / "features").iterdir())[1]
    lost.unlink()
    features.prepare(corpus, tmp_path)
    first = np.load(tmp_path / "shards.npy")
    assert sorted(names) == [f"{i}.flac" for i in range(first[1], first[2])]
    assert files(tmp_path) == before


def test_folders_of_before_shards_stay_one_file(corpus, folder, monkeypatch):
    before = files(folder)
    (folder / ".features.json").write_text(json.dumps(OLD | {"corpus": features._fingerprint(corpus)}))
    monkeypatch.setattr(features, "SHARD", SHARD)
    features.prepare(corpus, folder)
    assert {name: x for name, x in files(folder).items() if name != ".features.json"} == {
        name: x for name, x in before.items() if name != ".features.json"
    }
    with pytest.raises(InputError, match="holds features in one file, not of 0.05; leave out --shard"):
        features.prepare(corpus, folder, shard_frames=SHARD)


def test_a_prepared_corpus_is_read_without_its_audio(corpus, folder):
    table = (folder / "manifest.tsv").read_text()
    (folder / "manifest.tsv").write_text(table.replace(str(corpus.utterances[0].path.parent), "/gone"))
    found = load(folder)
    assert [u.id for u in found.manifest.utterances] == [u.id for u in corpus.utterances]
    assert not found.manifest.utterances[0].path.exists()
    assert np.isfinite(found.inputs(3)).all()
    with pytest.raises(InputError, match="8 of 8 files are missing"):
        corpora.read(folder)


def test_new_splits_and_phones_need_no_new_features(corpus, folder):
    before = (folder / "features.npy").stat().st_mtime_ns
    write_labels(folder, "a", [np.zeros(n, int) for n in LENGTHS], clusters=2, period_ms=20, info={})
    phones = (Segment(0.0, 1.0, "A"),)
    changed = Manifest(tuple(dataclasses.replace(u, split="train", phones=phones) for u in corpus.utterances))
    features.prepare(changed, folder)
    assert load(folder).manifest == changed
    assert (folder / "features.npy").stat().st_mtime_ns == before
    assert list(load(folder).sets) == ["a"]


def test_what_a_write_left_that_was_killed_is_no_stranger(corpus, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "..features.json.part").write_text("{")
    features.prepare(corpus, other)
    assert (other / "features.npy").read_bytes() == (folder / "features.npy").read_bytes()


def test_folders_that_hold_something_else_are_left_alone(corpus, folder, tmp_path):
    before = files(folder)
    with pytest.raises(InputError, match="holds another corpus"):
        features.prepare(Manifest(corpus.utterances[1:]), folder)
    with pytest.raises(InputError, match="holds float16 features, not this float32 one"):
        features.prepare(corpus, folder, storage="float32")
    assert files(folder) == before
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(InputError, match="holds files but no prepared corpus"):
        features.prepare(corpus, tmp_path)


def test_wrong_lengths_short_files_and_full_disks_are_told_first(corpus, tmp_path, monkeypatch):
    wrong = dataclasses.replace(corpus.utterances[3], samples=8160)
    with pytest.raises(InputError, match="3.flac: 8000 samples at 16 kHz, the manifest says 8160"):
        features.prepare(Manifest((wrong,)), tmp_path / "a")
    short = dataclasses.replace(corpus.utterances[0], samples=399)
    with pytest.raises(InputError, match="1 of 1 utterances are shorter .*/0.flac with 399"):
        features.prepare(Manifest((short,)), tmp_path / "b")
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="need [0-9.]+ MB, 0.0 MB are free"):
        features.prepare(corpus, tmp_path / "c")
    assert not (tmp_path / "b").exists()


def test_labels_come_back(folder):
    rows = [np.arange(n) % 40_000 for n in (1, 1, 2, 50, 0, 60, 70, 80_000)]
    write_labels(folder, "big", rows, clusters=40_000, period_ms=20, info={"source": "test", "pnmi": None})
    write_labels(folder, "few", [row % 7 for row in rows], clusters=7, period_ms=10, info={}, centres=np.zeros((7, 3)))
    found = load(folder)
    assert sorted(found.sets) == ["big", "few"]
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(found.labels("big")[i], row)
        np.testing.assert_array_equal(found.labels("few")[i], row % 7)
        assert found.labels("few")[i].dtype == np.int32
    assert found.labels("few").lengths.tolist() == list(map(len, rows))
    assert (found.labels("big").clusters, found.labels("big").period_ms) == (40_000, 20)
    assert found.labels("big").info == {"source": "test", "pnmi": None}
    with pytest.raises(InputError, match="there are 2 sets: big, few"):
        found.labels()
    (folder / "labels/few.json").unlink()
    assert load(folder).labels().name == "big"


def test_labels_that_cannot_be_are_refused(folder):
    rows = [np.zeros(2, int)] * len(LENGTHS)
    for name in ("", "../up", ".hidden"):
        with pytest.raises(InputError, match="cannot be called"):
            write_labels(folder, name, rows, clusters=2, period_ms=10, info={})
    with pytest.raises(InputError, match=f"7 utterances for {len(LENGTHS)}"):
        write_labels(folder, "a", rows[1:], clusters=2, period_ms=10, info={})
    with pytest.raises(InputError, match="2 to 2 for 2 clusters; use 0 to 1"):
        write_labels(folder, "a", [*rows[1:], np.array([2])], clusters=2, period_ms=10, info={})
    with pytest.raises(InputError, match="0 sets: none"):
        load(folder).labels()


def damage(folder, name):
    write_labels(folder, "a", [np.zeros(2, int)] * len(LENGTHS), clusters=2, period_ms=10, info={})
    match name:
        case "features.npy":
            (folder / name).write_bytes((folder / name).read_bytes()[:-100])
        case "offsets.npy" | "labels/a.offsets.npy":
            np.save(folder / name, np.arange(len(LENGTHS) + 1))
        case "stats.npy":
            np.save(folder / name, np.ones((2, 41)))
        case "manifest.tsv":
            lines = (folder / name).read_text().splitlines(keepends=True)
            (folder / name).write_text("".join(lines[:-1]))
        case "labels/a.json":
            (folder / name).write_text(json.dumps({"clusters": 2}))
        case "labels/a.npy":
            np.save(folder / name, np.zeros(2 * len(LENGTHS)))


@pytest.mark.parametrize(
    "name",
    [
        "features.npy",
        "offsets.npy",
        "stats.npy",
        "manifest.tsv",
        "labels/a.json",
        "labels/a.npy",
        "labels/a.offsets.npy",
    ],
)
def test_damage_is_named(folder, name):
    damage(folder, name)
    with pytest.raises(InputError, match=str(folder)):
        load(folder)


def test_damage_of_shards_is_named(corpus, tmp_path, small_grids):
    """A shard when it is opened, the table of them at once."""
    features.prepare(corpus, tmp_path, shard_frames=SHARD)
    shard, table = tmp_path / "features/00001.npy", tmp_path / "shards.npy"
    np.save(shard, np.load(shard)[:-1])
    found, first = load(tmp_path), np.load(table)
    assert found.features(0).shape == (1, 40)
    with pytest.raises(InputError, match=r"00001.npy: \d+ frames, its utterances have \d+"):
        found.features(int(first[1]))
    np.save(table, first[[0, 2, 1, 3]])
    with pytest.raises(InputError, match=f"shards.npy: not the first of {len(LENGTHS)} utterances in each shard"):
        load(tmp_path)


def test_pickles_are_not_opened(folder):
    np.save(folder / "offsets.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="offsets.npy: not a readable"):
        load(folder)


def test_parts_are_listed(folder, corpus):
    found = load(folder)
    train, valid = found.indices("train"), found.indices("valid")
    assert sorted([*train, *valid]) == list(range(len(corpus.utterances)))
    assert len(valid) == 2
    with pytest.raises(InputError, match="'test'; splits: train, valid"):
        found.indices("test")


@pytest.mark.parametrize("period", [10, 20])
def test_the_study_s_form(shared, period):
    """Its stored batches are the features stacked; undoing its normalisation gives log-Mel of the audio."""
    folder = shared / "melhubert/mini"
    found = read_study(folder / f"mini-stg2-{period}ms.csv")
    golden = np.load(folder / f"batches-{period}ms-bs2.npz")
    labels = found.labels()
    assert (found.normalized, labels.period_ms, labels.clusters) == (True, period, 32)
    ids = [u.id for u in found.manifest.utterances]
    for row, name in enumerate(golden["files_0"]):
        i = ids.index(name.rsplit("/", 1)[1].removesuffix(".npy"))
        inputs = found.inputs(i, stack=period // 10)
        np.testing.assert_allclose(inputs, golden["x_0"][row, : len(inputs)], atol=1e-6)
        np.testing.assert_array_equal(labels[i], golden["y_0"][row, : len(labels[i])])
    audio = np.asarray(logmel(jnp.asarray(read(folder / "100-121669-0000.flac").samples[None])))[0]
    i = ids.index("100-121669-0000")
    np.testing.assert_allclose(found.features(i) * found.stats.std + found.stats.mean, audio, atol=2e-3)


def study(folder, *, frames=5, labels=5, length=None, header="file_path,label_path,length"):
    np.save(folder / "f.npy", np.zeros((frames, 40)))
    np.save(folder / "l.npy", np.zeros(labels, int))
    np.save(folder / "mean-std.npy", np.ones((2, 40)))
    (folder / "a.csv").write_text(f"{header}\nf.npy,l.npy,{labels if length is None else length}\n")
    return folder / "a.csv"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": 4}, "line 2: 4 labels for 5 frames of 10 ms"),
        ({"labels": 5, "length": 4}, "line 2: 5 labels in .*l.npy, length 4"),
        ({"length": "many"}, "not a table of the study"),
        ({"header": "a,b,c"}, "must name the columns"),
    ],
)
def test_bad_tables_of_the_study(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_study(study(tmp_path, **change))


def test_the_study_s_files_must_be_there(tmp_path):
    path = study(tmp_path)
    assert read_study(path).labels().period_ms == 10
    (tmp_path / "mean-std.npy").unlink()
    with pytest.raises(InputError, match="mean-std.npy"):
        read_study(path)
    with pytest.raises(InputError, match="gone/f.npy"):
        read_study(path, root=tmp_path / "gone")
    with pytest.raises(InputError, match="not prepared"):
        load(tmp_path)
    assert prepared.PERIOD_MS == 10
