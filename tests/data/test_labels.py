"""k-means by its laws and fairseq's own results, quality on cases that can be worked out, rates that do not fit."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from compress.errors import InputError
from jaxssl.data import corpora, kmeans
from jaxssl.data.audio import read
from jaxssl.data.kmeans import assign, fit
from jaxssl.data.labels import Corpus, at_period, cluster
from jaxssl.data.manifest import Segment
from jaxssl.data.mfcc import differences, mfcc
from jaxssl.data.prepared import Labels
from jaxssl.data.quality import entropy, frame_phones, phone_names, phone_quality, quality
from tests.together import run_together

RNG = np.random.default_rng(0)


def blobs(count, *, clusters=5, size=3, seed=0):
    rng = np.random.default_rng(seed)
    centres = 20 * np.eye(clusters, size) + 5 * np.arange(clusters)[:, None]
    true = rng.integers(clusters, size=count)
    return (centres[true] + 0.1 * rng.normal(size=(count, size))).astype(np.float32), true


def labels(*rows, period=10, clusters=9, name="x"):
    return Labels(name, clusters, period, tuple(np.array(row, np.int16) for row in rows))


def corpus(*lengths, phones=()):
    utterances = [SimpleNamespace(id=f"u{i}", phones=p) for i, p in enumerate(phones or [()] * len(lengths))]
    return Fake(np.array(lengths), SimpleNamespace(utterances=utterances))


class Fake:
    """What `phone_quality` looks at."""

    period_ms = 10

    def __init__(self, lengths, manifest):
        self.lengths, self.manifest = lengths, manifest

    def __len__(self):
        return len(self.lengths)


def test_mfcc_is_fairseq_s(shared):
    folder = shared / "fairseq/kmeans"
    known = {u.id: u.path for u in corpora.read(shared / "speech/librispeech_train_clean_251").utterances}
    ids = [line.split(".flac")[0] for line in (folder / "valid.tsv").read_text().splitlines()[1:]]
    mine = [mfcc(read(known[i]).samples) for i in ids]
    assert [len(x) for x in mine] == [int(n) for n in (folder / "valid.mfcc39.len").read_text().split()]
    np.testing.assert_allclose(np.concatenate(mine), np.load(folder / "valid.mfcc39.npy"), atol=1e-3, rtol=0)
    found = assign(np.concatenate(mine), np.load(folder / "mfcc_km50.centers.npy"))[0]
    assert found.tolist() == [int(n) for n in (folder / "valid.mfcc_km50.km").read_text().split()]


@pytest.mark.parametrize("name", ["mfcc39:mfcc_km50", "hubL2:hubert_base_tiny_L2_km40"])
def test_assignment_is_fairseq_s(shared, name):
    folder, (features, centres) = shared / "fairseq/kmeans", name.split(":")
    golden = (folder / f"valid.{'mfcc_km50' if 'mfcc' in name else 'hubL2_km40'}.km").read_text().split()
    found, _ = assign(np.load(folder / f"valid.{features}.npy"), np.load(folder / f"{centres}.centers.npy"))
    assert found.tolist() == [int(n) for n in golden]


def test_differences_of_a_line_are_its_slope():
    x = 3 * np.arange(20.0)[:, None] + np.array([[1.0, 2.0]])
    np.testing.assert_allclose(differences(x)[2:-2], 3)
    np.testing.assert_allclose(differences(np.ones((4, 2))), 0)
    np.testing.assert_allclose(differences(x[:1]), 0)


def test_mfcc_frames_and_refusals():
    speech = RNG.normal(size=16000)
    assert mfcc(speech[:400]).shape == (1, 39)
    assert mfcc(speech[:560]).shape == (2, 39)
    for bad in (speech[:399], speech[None]):
        with pytest.raises(InputError, match="MFCC need"):
            mfcc(bad)


def test_assignment_is_the_nearest_centre():
    frames, centres = RNG.normal(size=(9000, 6)).astype(np.float32), RNG.normal(size=(11, 6)).astype(np.float32)
    found, distances = assign(frames, centres)
    every = np.square(frames[:, None].astype(np.float64) - centres[None]).sum(-1)
    np.testing.assert_array_equal(found, every.argmin(1))
    np.testing.assert_allclose(distances, every.min(1), rtol=1e-5)
    assert assign(centres, centres)[0].tolist() == list(range(11))
    assert assign(centres[:1], centres[[0, 0, 0]])[0].tolist() == [0]
    assert assign(frames[:0], centres)[0].shape == (0,)
    with pytest.raises(InputError, match="centres of 5"):
        assign(frames, centres[:, :5])


def of(rows, *, first=None, asked=None):
    """A corpus of these frames, in shards."""

    def vectors(numbers):
        for i in reversed(numbers):
            if asked is not None:
                asked.append(i)
            yield i, rows[i]

    return Corpus(vectors, np.array([len(row) for row in rows]), np.array(first or [0, len(rows)]))


def all_of(found):
    return np.concatenate([found.rows[i] for i in range(len(found.rows))])


def test_separate_groups_are_found_and_seeds_repeat(tmp_path):
    frames, true = blobs(3000)
    rows = np.split(frames, [100, 1000, 1500])
    found = cluster(of(rows), tmp_path / "a", clusters=5, seed=3)
    got = all_of(found)
    assert len({(a, b) for a, b in zip(true.tolist(), got.tolist(), strict=True)}) == 5
    assert found.inertia == pytest.approx(3 * 0.1**2, rel=0.1)
    assert found.fitted == 3000
    again = cluster(of(rows), tmp_path / "b", clusters=5, seed=3)
    np.testing.assert_array_equal(found.centres, again.centres)
    assert found.inertia == again.inertia


def test_inertia_is_of_all_frames_and_more_clusters_lower_it(tmp_path):
    frames = RNG.normal(size=(2000, 4)).astype(np.float32)
    rows = np.split(frames, 10)
    ends = []
    for k in (1, 4, 16, 64):
        found = cluster(of(rows), tmp_path / str(k), clusters=k, seed=0)
        far = frames - found.centres[all_of(found)]
        assert found.inertia == pytest.approx(np.square(far).sum(1).mean(), rel=1e-5)
        ends.append(found.inertia)
    assert ends == sorted(ends, reverse=True)
    assert ends[0] == pytest.approx(frames.var(0).sum(), rel=1e-3)
    assert ends[-1] < 0.4 * ends[0]


def test_the_sample_is_bounded_and_every_utterance_computed_once(tmp_path):
    rows, asked, ticks = [blobs(50, seed=i)[0] for i in range(20)], [], []
    found = cluster(of(rows, asked=asked), tmp_path, clusters=5, seed=0, limit=120, tick=lambda: ticks.append(1))
    assert found.fitted == 120
    assert sorted(asked) == list(range(20))
    assert len(ticks) == 20
    assert sorted(asked[:3]) != [0, 1, 2]
    assert [len(found.rows[i]) for i in range(20)] == [50] * 20


def test_given_centres_are_used_as_they_are(tmp_path):
    frames, _ = blobs(500)
    centres = fit(frames, clusters=5, seed=0)
    found = cluster(of([frames]), tmp_path, clusters=5, seed=9, centres=centres)
    assert found.fitted == 0
    np.testing.assert_array_equal(found.centres, centres)
    np.testing.assert_array_equal(found.rows[0], assign(frames, centres)[0])


def test_centres_are_scikit_learn_s(monkeypatch):
    monkeypatch.setattr(kmeans, "BATCH", 500)
    frames = RNG.normal(size=(1500, 4)).astype(np.float32)
    theirs = MiniBatchKMeans(
        20, batch_size=500, tol=0.0, max_no_improvement=100, n_init=2, reassignment_ratio=0.0, random_state=4
    )
    with threadpool_limits(1):
        expected = theirs.fit(frames).cluster_centers_
    np.testing.assert_allclose(fit(frames, clusters=20, seed=4, restarts=2), expected, atol=1e-3)


BOUNDS = [0, 3, 4, 11, 15, 20]


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_the_number_of_processes_changes_no_label(tmp_path, processes):
    """Nor a bit of the centres; the frames of the sample lie with all of them, and are more than a batch."""
    rows = [RNG.normal(size=(600 + 7 * i, 3)).astype(np.float32) for i in range(20)]
    settings = {"clusters": 9, "seed": 2, "limit": 10_500, "restarts": 2}
    alone = cluster(of(rows, first=BOUNDS), tmp_path / "one", **settings)
    given = of(rows, first=BOUNDS)
    many = run_together(processes, lambda team: cluster(given, tmp_path / "many", team=team, **settings))
    for found in many:
        np.testing.assert_array_equal(found.centres, alone.centres)
        assert (found.inertia, found.fitted) == (alone.inertia, 10_500)
    np.testing.assert_array_equal(all_of(many[0]), all_of(alone))


def test_expected_lengths_need_not_be_true(tmp_path):
    rows = [blobs(50, seed=i)[0] for i in range(20)]
    expected = of(rows, first=BOUNDS)
    found = [
        cluster(dataclasses.replace(expected, frames=frames), tmp_path / str(i), clusters=5, seed=0, limit=230)
        for i, frames in enumerate((expected.frames, expected.frames * 3, expected.frames // 7))
    ]
    for other in found[1:]:
        assert other.fitted == 230
        np.testing.assert_array_equal(other.centres, found[0].centres)


class Killed(Exception):
    pass


def test_labels_go_on_where_they_stopped(tmp_path):
    """After any number of shards, with as many processes as there are then; what is done is not done again."""
    rows = [RNG.normal(size=(40 + i, 3)).astype(np.float32) for i in range(20)]
    whole = cluster(of(rows, first=BOUNDS), tmp_path / "whole", clusters=5, seed=0, limit=300)
    for stop in (0, 4, 12):
        left, asked = iter(range(stop)), []

        def tick(left=left):
            if next(left, None) is None:
                raise Killed

        out = tmp_path / str(stop)
        with pytest.raises(Killed):
            cluster(of(rows, first=BOUNDS), out, clusters=5, seed=0, limit=300, tick=tick)
        there = sorted(path.name for path in out.glob("0*.npz"))
        given = of(rows, first=BOUNDS, asked=asked)
        found = run_together(2, lambda team, out=out, given=given: cluster(given, out, clusters=5, seed=0, team=team))
        np.testing.assert_array_equal(all_of(found[0]), all_of(whole))
        assert len(there) == {0: 0, 4: 2, 12: 3}[stop]
        assert sorted(asked) == list(range(BOUNDS[len(there)], 20))


def test_too_few_frames_and_bad_ones_are_told():
    with pytest.raises(InputError, match="5 clusters of 2 different frames"):
        fit(np.repeat(np.eye(2, dtype=np.float32), 30, 0), clusters=5, seed=0)
    with pytest.raises(InputError, match="0 clusters"):
        fit(np.eye(2), clusters=0, seed=0)
    with pytest.raises(InputError, match="1 of 4 values are not finite"):
        fit(np.array([[1.0, np.nan], [0, 1]]), clusters=1, seed=0)


def test_quality_of_a_case_worked_out():
    """Phones a a a a b b b b, clusters 0 0 0 1 1 1 2 2: p(y) is even, so H(y) = ln 2."""
    found = quality(np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 2, 2]))
    assert found.phone_purity == pytest.approx(3 / 8 + 2 / 8 + 2 / 8)
    assert found.purity == pytest.approx(3 / 8 + 2 / 8)
    conditional = 3 / 8 * (math.log(3) - 2 / 3 * math.log(2))  # H(y | z): only cluster 1 is mixed, 1 : 2
    assert found.pnmi == pytest.approx(1 - conditional / math.log(2))
    assert found.frames == 8


def test_quality_at_its_limits():
    phones = np.repeat(np.arange(4), 25)
    perfect = quality(phones, (phones * 7 + 3) % 11)
    assert (perfect.purity, perfect.phone_purity, perfect.pnmi) == pytest.approx((1, 1, 1))
    one = quality(phones, np.zeros(100, int))
    assert (one.purity, one.phone_purity, one.pnmi) == pytest.approx((1, 1 / 4, 0))
    each = quality(phones, np.arange(100))
    assert (each.purity, each.phone_purity, each.pnmi) == pytest.approx((4 / 100, 1, 1))
    independent = quality(np.tile(phones, 3), np.repeat(np.arange(3), 100))
    assert independent.pnmi == pytest.approx(0, abs=1e-12)
    assert quality(np.zeros(5, int), np.arange(5)).pnmi == 0


def test_quality_does_not_depend_on_names_or_unknown_frames():
    phones, clusters = RNG.integers(6, size=500), RNG.integers(9, size=500)
    clusters[:200] = phones[:200]
    base = quality(phones, clusters)
    renamed = quality(np.append(phones[::-1], [-1, 3]), np.append(RNG.permutation(9)[clusters[::-1]], [1, -1]))
    assert (renamed.purity, renamed.phone_purity) == (base.purity, base.phone_purity)
    assert renamed.pnmi == pytest.approx(base.pnmi)
    assert renamed.frames == 500
    assert 0 < base.pnmi < 1
    with pytest.raises(InputError, match="known in 0 of 2 frames"):
        quality(np.array([-1, -1]), np.array([0, 1]))
    with pytest.raises(InputError, match="3 phone frames, 2 cluster frames"):
        quality(np.zeros(3, int), np.zeros(2, int))


def test_entropy_of_even_and_certain():
    assert entropy(np.full(8, 5)) == pytest.approx(math.log(8))
    assert entropy(np.array([0, 7, 0])) == 0


def test_phones_of_frames_are_those_at_their_middle():
    """10 ms frames have their middles at 12.5, 22.5, … ms; 20 ms frames at 17.5, 37.5, … ms."""
    segments = (Segment(0.0, 0.0225, "A"), Segment(0.0225, 0.04, "B"), Segment(0.06, 0.09, "A"))
    names = phone_names([segments, (Segment(0, 1, "C"),)])
    assert names == ("A", "B", "C")
    assert frame_phones(segments, 9, period_ms=10, names=names).tolist() == [0, 1, 1, -1, -1, 0, 0, 0, -1]
    assert frame_phones(segments, 4, period_ms=20, names=names).tolist() == [0, 1, -1, 0]


def test_quality_of_a_corpus_uses_what_is_known():
    spoken = (Segment(0, 0.05, "A"), Segment(0.05, 0.2, "B"))
    perfect = labels([4, 4, 4, 4, 5, 5, 5], [1, 2, 3])
    found = phone_quality(corpus(7, 3, phones=(spoken, ())), perfect)
    assert (found.frames, found.pnmi) == (7, pytest.approx(1))
    assert phone_quality(corpus(7, 3), perfect) is None


def test_labels_are_thinned_only_when_asked():
    ten = labels([1, 2, 3, 4, 5], [6, 7])
    twenty = at_period(ten, 20)
    assert twenty.period_ms == 20
    assert [twenty[i].tolist() for i in range(2)] == [[1, 3, 5], [6]]
    assert twenty.lengths.tolist() == [3, 1]
    assert at_period(at_period(ten, 20), 40)[0].tolist() == [1, 5]
    assert at_period(ten, 10) is ten
    for period in (10, 30, 0):
        with pytest.raises(InputError, match=f"come each 20 ms, {period} ms are asked for"):
            at_period(twenty, period)
