"""A probe must find what is there, find nothing where nothing is, and know how sure it is."""

from dataclasses import replace

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.training.probe import Difference, Examples, Score, difference, frame_probe, interval, pool, utterance_probe

CLASSES, WIDTH = 4, 6


def planted(seed, *, rows=240, layers=3, layer=1, units=40, noise=0.1, classes=CLASSES):
    """Rows whose label is the nearest of `classes` random directions in one layer; the other layers are noise."""
    centres = np.random.default_rng(99).normal(size=(classes, WIDTH))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    features = rng.normal(size=(layers, rows, WIDTH))
    features[layer] = centres[labels] + noise * rng.normal(size=(rows, WIDTH))
    return Examples(features.astype(np.float32), labels, np.arange(rows) * units // rows)


@pytest.fixture(scope="module")
def pair():
    return planted(0), planted(1)


@pytest.mark.parametrize("probe", [frame_probe, utterance_probe])
def test_planted_structure_and_its_layer_are_found(pair, probe):
    found = probe(*pair, classes=CLASSES, seed=0)
    assert found.accuracy > 0.98
    assert found.weights.argmax() == 1
    assert found.weights[1] > 0.8
    assert found.weights.sum() == pytest.approx(1, abs=1e-6)
    assert found.low <= found.accuracy <= found.high


@pytest.mark.parametrize("probe", [frame_probe, utterance_probe])
def test_shuffled_labels_give_chance(pair, probe):
    train, test = pair
    shuffled = replace(train, labels=np.random.default_rng(3).permutation(train.labels))
    found = probe(shuffled, test, classes=CLASSES, seed=0)
    assert found.low <= 1 / CLASSES + 0.05
    assert found.high < 0.5


def test_one_layer_is_itself_and_units_of_measure_do_not_matter(pair):
    train, test = (replace(rows, features=rows.features[1:2]) for rows in pair)
    found = frame_probe(train, test, classes=CLASSES, seed=0)
    assert found.weights.tolist() == [1]
    scale, shift = np.float32([0.01, 1, 7, 100, 3, 2]), np.float32([5, 0, -3, 1, 2, 0])
    moved = [replace(rows, features=rows.features * scale + shift) for rows in (train, test)]
    assert np.array_equal(frame_probe(*moved, classes=CLASSES, seed=0).correct, found.correct)


def test_it_agrees_with_scikit_learn(pair):
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, test = (replace(planted(s, noise=2.5), features=planted(s, noise=2.5).features[1:2]) for s in (0, 1))
    found = frame_probe(train, test, classes=CLASSES, seed=0, l2=(1e-3,), iterations=300)
    mean, std = train.features[0].mean(0), train.features[0].std(0)
    theirs = linear_model.LogisticRegression(C=1 / (1e-3 * 240), tol=1e-8, max_iter=2000)
    theirs.fit((train.features[0] - mean) / std, train.labels)
    right = theirs.predict((test.features[0] - mean) / std) == test.labels
    assert abs(np.bincount(test.units, right) - found.correct).sum() <= 1
    assert 0.3 < found.accuracy < 0.9


def test_a_run_repeats_to_the_bit_and_rows_in_another_order_change_no_count(pair):
    one, again = (frame_probe(*pair, classes=CLASSES, seed=4) for _ in range(2))
    assert np.array_equal(one.weights, again.weights)
    assert (one.low, one.high, one.l2) == (again.low, again.high, again.l2)
    order = np.random.default_rng(0).permutation(240)
    test = Examples(pair[1].features[:, order], pair[1].labels[order], pair[1].units[order])
    assert np.array_equal(frame_probe(pair[0], test, classes=CLASSES, seed=4).correct, one.correct)


def test_folds_follow_what_there_is():
    """A speaker with one utterance that trains teaches in every fold, and stops no one."""
    train, test = planted(0, noise=0.3), planted(1, noise=0.3)
    rows = np.concatenate([np.flatnonzero(train.labels == i)[:count] for i, count in enumerate((1, 2, 9, 1))])
    few = Examples(train.features[:, rows], train.labels[rows], train.units[rows])
    assert utterance_probe(few, test, classes=CLASSES, seed=0).accuracy > 0.6


def test_l2_is_chosen_without_the_test(pair):
    train = planted(0, rows=30, noise=1.5)
    tests = planted(1, rows=30, noise=1.5), planted(2, rows=30, noise=9.0)
    chosen = {frame_probe(train, test, classes=CLASSES, seed=0, l2=(1.0, 1e-2, 1e-6)).l2 for test in tests}
    assert len(chosen) == 1
    assert chosen != {1e-6}  # 30 rows of 6 + 3 noisy dimensions: hardly any regularisation must lose


def test_seven_utterances_of_ten_speakers_are_enough():
    train, test = planted(0, classes=10, noise=0.3, units=240), planted(1, classes=10, noise=0.3)
    rows = np.concatenate([np.flatnonzero(train.labels == speaker)[:7] for speaker in range(10)])
    few = Examples(train.features[:, rows], train.labels[rows], train.units[rows])
    assert utterance_probe(few, test, classes=10, seed=0).accuracy > 0.95


def test_a_constant_dimension_is_ignored(pair):
    train, test = (replace(rows, features=rows.features.copy()) for rows in pair)
    train.features[:, :, 0], test.features[:, :, 0] = 3, 1e6
    assert frame_probe(train, test, classes=CLASSES, seed=0).accuracy > 0.8


def test_pooling_commutes_with_linear_maps():
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(3, 9, 5)), rng.normal(size=(5, 2))
    assert pool(hidden).shape == (3, 5)
    np.testing.assert_allclose(pool(hidden) @ kernel, pool(hidden @ kernel), rtol=1e-12)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """80 units of 10 rows whose rates differ: 95 % intervals must hold the mean rate about 95 times of 100."""
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(300):
        correct = rng.binomial(10, rng.beta(6, 4, 80))
        low, high = interval(correct, np.full(80, 10), seed=seed, resamples=400)
        covered.append(low <= 0.6 <= high)
    assert 0.90 <= np.mean(covered) <= 0.98


def test_the_interval_of_rows_that_belong_together_is_wider():
    """A unit whose ten rows stand or fall together counts once, not ten times."""
    fate = np.random.default_rng(0).binomial(1, 0.6, 60)
    low, high = interval(fate * 10, np.full(60, 10), seed=0)
    separate = interval(np.repeat(fate, 10), np.ones(600, int), seed=0)
    assert 2.5 < (high - low) / (separate[1] - separate[0]) < 3.9  # √10 in the limit


def score(correct, total):
    return Score(correct.sum() / total.sum(), 0, 1, correct, total, np.ones(1), 1.0)


def test_a_paired_difference_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(0)
    total = np.full(50, 100)
    one = rng.binomial(100, rng.beta(3, 3, 50))
    better, same = score(np.minimum(one + rng.integers(0, 6, 50), 100), total), score(one, total)
    found = difference(better, same, seed=0)
    assert 0.015 < found.low < found.mean < found.high < 0.035
    assert interval(better.correct, total, seed=0)[0] < same.accuracy  # unpaired they overlap
    assert difference(same, same, seed=0) == Difference(0.0, 0.0, 0.0)
    mirror = difference(same, better, seed=0)
    assert (mirror.mean, mirror.low, mirror.high) == pytest.approx((-found.mean, -found.high, -found.low))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"labels": np.full(240, 7)}, "train labels go from 7 to 7, outside 0 to 3"),
        ({"labels": np.zeros(5, int)}, "240 rows"),
        ({"features": np.zeros((3, 0, 6), np.float32)}, "none of them 0"),
        ({"features": np.full((3, 240, 6), np.nan, np.float32)}, "4320 of 4320 train features are not finite"),
        ({"features": np.zeros((3, 240, 5), np.float32)}, "3 × 5 features in train, 3 × 6 in test"),
        ({"units": np.zeros(240, int)}, "1 training unit"),
    ],
)
def test_what_cannot_be_is_refused(pair, words, message):
    with pytest.raises(InputError, match=message):
        frame_probe(replace(pair[0], **words), pair[1], classes=CLASSES, seed=0)


def test_impossible_settings_are_refused(pair):
    with pytest.raises(InputError, match="l2 \\(\\)"):
        frame_probe(*pair, classes=CLASSES, seed=0, l2=())
    lonely = replace(pair[0], features=pair[0].features[:, :4], labels=np.arange(4), units=np.arange(4))
    with pytest.raises(InputError, match="4 training utterances of 4 classes in 4 folds; give 2 utterances or more"):
        utterance_probe(lonely, pair[1], classes=CLASSES, seed=0)
    with pytest.raises(InputError, match="same rows"):
        difference(score(np.ones(2, int), np.ones(2, int)), score(np.ones(3, int), np.ones(3, int)), seed=0)
    with pytest.raises(InputError, match="0 counts for 0 units"):
        interval(np.zeros(0), np.zeros(0), seed=0)
