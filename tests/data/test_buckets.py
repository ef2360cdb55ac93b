"""Buckets: few, well placed, and every utterance in one batch."""

from itertools import combinations

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.buckets import Watch, choose, padding, plan

LENGTHS = np.random.default_rng(0).integers(30, 751, 203)


def counts(lengths, edges, size, seed):
    made = plan(lengths, edges, batch_size=size, rng=np.random.default_rng(seed))
    return np.bincount(made.buckets, minlength=len(edges)).tolist()


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_no_other_edges_pad_less(most):
    lengths = np.random.default_rng(most).integers(5, 60, 40)
    edges = choose(lengths, batch_size=4, most=most, waste=0.0)
    possible = sorted({int(n) for n in np.sort(lengths)[3::4]} - {int(lengths.max())})
    best = min(padding(lengths, (*few, int(lengths.max()))) for few in combinations(possible, most - 1))
    assert len(edges) <= most
    assert padding(lengths, edges) == pytest.approx(best)


@pytest.mark.parametrize("waste", [0.3, 0.1, 0.05])
def test_no_more_edges_than_the_waste_asks_for(waste):
    edges = choose(LENGTHS, batch_size=4, most=20, waste=waste)
    assert padding(LENGTHS, edges) <= waste
    assert padding(LENGTHS, choose(LENGTHS, batch_size=4, most=len(edges) - 1, waste=0.0)) > waste


def test_edges_end_with_the_longest_and_ascend():
    edges = choose(LENGTHS, batch_size=8, most=6, waste=0.0)
    assert edges[-1] == LENGTHS.max()
    assert list(edges) == sorted(set(edges))
    assert choose(np.full(9, 7), batch_size=4) == (7,)
    assert choose(np.array([3]), batch_size=4) == (3,)


@pytest.mark.parametrize("size", [1, 4, 32, 203])
@pytest.mark.parametrize("fill", [False, True])
def test_every_utterance_in_one_batch(size, fill):
    edges = choose(LENGTHS, batch_size=size)
    made = plan(LENGTHS, edges, batch_size=size, rng=np.random.default_rng(1), fill=fill)
    real = made.rows[made.rows >= 0]
    assert len(np.unique(real)) == len(real)
    assert len(real) == (203 if fill else 203 // size * size)
    assert (LENGTHS[made.rows] <= np.asarray(edges)[made.buckets][:, None]).all()
    assert (made.rows < 0).sum() == (-203 % size if fill else 0)


def test_a_length_that_is_an_edge_is_not_padded():
    lengths = np.array([5, 9, 5, 7, 9, 7])
    made = plan(lengths, (5, 7, 9), batch_size=2, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(lengths[made.rows], np.array([5, 7, 9])[made.buckets][:, None].repeat(2, 1))


def test_each_epoch_has_the_same_shapes():
    edges = choose(LENGTHS, batch_size=8)
    assert len({tuple(counts(LENGTHS, edges, 8, seed)) for seed in range(20)}) == 1


def test_shuffled_inside_buckets_and_across():
    edges = choose(LENGTHS, batch_size=8)
    a, b = (plan(LENGTHS, edges, batch_size=8, rng=np.random.default_rng(seed)) for seed in (0, 1))
    assert {tuple(sorted(row)) for row in a.rows} != {tuple(sorted(row)) for row in b.rows}
    assert a.buckets.tolist() != sorted(a.buckets.tolist())
    unshuffled = plan(LENGTHS, edges, batch_size=8, rng=None)
    assert unshuffled.rows.ravel().tolist() == np.argsort(LENGTHS, kind="stable")[:200].tolist()


def test_real_lengths(shared):
    table = (shared / "speech" / "librispeech_train_clean_251" / "manifest.tsv").read_text().splitlines()[1:]
    samples = np.array([int(line.split("\t")[1]) for line in table])
    frames = np.minimum(-(-(1 + (samples - 400) // 160) // 2), 750)
    frames = frames[frames >= 160]
    edges = choose(frames, batch_size=4)
    assert len(edges) == 3
    assert padding(frames, edges) < 0.1 < padding(frames, (750,))


def test_watch_tells_new_shapes_past_the_number():
    watch = Watch(2)
    assert [watch.see(shape) for shape in ((4, 10), (4, 20), (4, 10))] == [None] * 3
    assert "3 shapes so far, 2 announced" in (watch.see((4, 30)) or "")
    assert watch.see((4, 30)) is None
    assert len(watch.shapes) == 3


@pytest.mark.parametrize(("most", "waste"), [(0, 0.1), (3, 1.0), (3, -0.1)])
def test_bad_input(most, waste):
    with pytest.raises(InputError, match="at least 1 bucket"):
        choose(LENGTHS, batch_size=4, most=most, waste=waste)
