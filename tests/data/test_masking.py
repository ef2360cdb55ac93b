"""Span masks: fairseq's rules hold for every row, and the statistics are those of the study's own masks."""

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.masking import HUBERT, MELHUBERT_10MS, MELHUBERT_20MS, Spans, spans

PRESETS = {"melhubert 20 ms": MELHUBERT_20MS, "melhubert 10 ms": MELHUBERT_10MS, "hubert": HUBERT}


def draw(kind, lengths, frames=None, seed=0):
    rng = np.random.default_rng(seed)
    return spans(rng, lengths, frames or max(lengths), probability=kind.probability, span=kind.span)


def runs(mask):
    """Lengths of the masked stretches."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return edges[1::2] - edges[::2]


def expected(kind, length, draws=20_000):
    """Share of frames masked, by drawing starts as sets and counting: no code in common."""
    rng, total = np.random.default_rng(9), 0
    for _ in range(draws // length):
        count = int(np.floor(kind.probability * length / kind.span + rng.random()))
        starts = rng.permutation(length - kind.span)[:count]
        total += len({int(s) + k for s in starts for k in range(kind.span)})
    return total / (draws // length * length)


@pytest.mark.parametrize("kind", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("length", [60, 151, 750])
def test_share_of_masked_frames(kind, length):
    share = draw(kind, [length] * 400).mean()
    assert share == pytest.approx(expected(kind, length, 200_000), abs=0.008)


def test_the_known_shares():
    assert draw(MELHUBERT_20MS, [750] * 300).mean() == pytest.approx(0.530, abs=0.004)
    assert draw(HUBERT, [750] * 300).mean() == pytest.approx(0.567, abs=0.004)


@pytest.mark.parametrize("kind", PRESETS.values(), ids=PRESETS)
def test_every_row_obeys_the_rules(kind):
    lengths = [20, 33, 97, 240] * 50
    masks = draw(kind, lengths, 256)
    assert masks.shape == (200, 256)
    for mask, length in zip(masks, lengths, strict=True):
        stretches = runs(mask)
        most = int(kind.probability * length / kind.span) + 1
        assert not mask[length - 1 :].any(), "padding and the last valid frame are never masked"
        assert (stretches >= kind.span).all()
        assert kind.span + 1 <= mask.sum() <= max(2, most) * kind.span


def test_more_spans_than_places():
    """50 spans in 49 places: fairseq then draws from 51, one of which lies outside."""
    masks = draw(Spans(1.0, 1), [50] * 300)
    assert set(masks.sum(1).tolist()) == {49, 50}


@pytest.mark.parametrize("length", range(1, 12))
def test_short_rows_stay_inside(length):
    masks = draw(MELHUBERT_10MS, [length] * 200, 16)
    assert not masks[:, length:].any()
    if length >= 2:
        assert masks.any(1).all()


def test_the_generator_decides():
    a, b, c = (draw(HUBERT, [300, 200], seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_rows_draw_one_after_another():
    rng = np.random.default_rng(4)
    apart = [spans(rng, [n], 90, probability=0.7, span=5)[0] for n in (90, 70)]
    np.testing.assert_array_equal(draw(MELHUBERT_20MS, [90, 70], seed=4), apart)


def test_at_least():
    masks = spans(np.random.default_rng(0), [100] * 100, 100, probability=0.01, span=5, least=3)
    assert masks.sum(1).min() >= 7  # three different starts
    assert masks.sum(1).max() == 15


def test_statistics_of_the_study(shared):
    """The study's masks and ours for the same lengths: share, spread, and length of stretches."""
    stored = np.load(shared / "melhubert" / "pretrain20" / "masks.npz")
    batches = np.load(shared / "melhubert" / "mini" / "batches-20ms-bs2.npz")
    lengths = {batches[f"x_{i}"].shape[1]: batches[f"len_{i}"].tolist() for i in range(4)}
    masks = [(mask, n) for m in stored.values() for mask, n in zip(m, lengths[m.shape[1]], strict=True)]
    assert all(not mask[n - 1 :].any() and (runs(mask) >= 5).all() for mask, n in masks)
    valid = [n for _, n in masks]
    theirs = sum(int(mask.sum()) for mask, _ in masks) / sum(valid)
    ours = np.array([draw(MELHUBERT_20MS, valid, seed=seed).sum() / sum(valid) for seed in range(200)])
    assert ours.mean() == pytest.approx(0.533, abs=0.003)  # short rows lie a little above 0.530
    assert abs(theirs - ours.mean()) < 3 * ours.std()
    mean_run = np.mean([r for mask, _ in masks for r in runs(mask)])
    drawn = [np.mean([r for m in draw(MELHUBERT_20MS, valid, seed=s) for r in runs(m)]) for s in range(200)]
    assert abs(mean_run - np.mean(drawn)) < 3 * np.std(drawn)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Spans(0.0, 5), "mask probability 0 is not in (0, 1]"),
        (lambda: Spans(1.1, 5), "mask probability 1.1"),
        (lambda: Spans(0.7, 0), "span of 0 frames"),
        (lambda: draw(HUBERT, [0, 5]), "rows of 0 to 5 frames do not fit a mask of 5"),
        (lambda: draw(HUBERT, [9, 5], 8), "rows of 5 to 9 frames do not fit a mask of 8"),
    ],
)
def test_bad_input(wrong, message):
    with pytest.raises(InputError) as error:
        wrong()
    assert message in str(error.value)
