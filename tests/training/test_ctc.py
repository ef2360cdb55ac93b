"""A probe that writes must write what is there; its LSTM must be PyTorch's; its rates must be jiwer's."""

from dataclasses import replace

import jiwer
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.training.ctc import (
    BLANK,
    Head,
    Recipe,
    Scale,
    bilstm,
    decode,
    fit,
    init,
    logits,
    needed,
    order,
    write,
)
from jaxssl.training.error_rates import Rate, error_rate, paired
from jaxssl.training.probe import Difference, interval

SYMBOLS, WIDTH, LONGEST = 5, 6, 24
SCALE = Scale(np.zeros((2, WIDTH), np.float32), np.ones((2, WIDTH), np.float32))
QUICK = Recipe(updates=150, batch=8, learning_rate=3e-2)


def spoken(seed, count=20, informative=1, noise=0.1):
    """Utterances in two layers; in one of them each symbol is three frames at a point of its own, noise around it."""
    rng, points = np.random.default_rng(seed), 3 * np.random.default_rng(99).normal(size=(SYMBOLS, WIDTH))
    labels = [rng.integers(1, SYMBOLS, rng.integers(3, 6)) for _ in range(count)]
    features = np.zeros((2, count, LONGEST, WIDTH), np.float32)
    frames = np.zeros(count, np.int32)
    for row, symbols in enumerate(labels):
        path = np.concatenate([[BLANK], *([s, s, s, BLANK] for s in symbols)])
        frames[row] = len(path)
        features[:, row, : len(path)] = noise * rng.normal(size=(2, len(path), WIDTH))
        features[informative, row, : len(path)] += points[path]
        features[:, row, len(path) :] = 1e3  # padding must not matter
    return labels, (lambda rows: (features[:, rows], frames[rows]))


def rate(labels, written):
    said, wrote = ([tuple(map(str, row)) for row in rows] for rows in (labels, written))
    return error_rate(said, wrote, np.arange(len(labels)), seed=0).value


@pytest.mark.parametrize("informative", [0, 1])
def test_what_is_linear_in_one_layer_is_written_without_an_error_and_the_layer_is_found(informative):
    labels, source = spoken(0, informative=informative)
    found = fit(source, labels, classes=SYMBOLS, scale=SCALE, recipe=QUICK)
    tests, unseen = spoken(1, 11, informative)
    assert rate(tests, write(found, unseen, 11)) == 0
    assert found.shares.argmax() == informative
    assert found.shares.sum() == pytest.approx(1, abs=1e-6)
    assert found.losses.shape == (150,)
    assert found.losses[-1] < 0.1 < found.losses[0]


def test_where_nothing_is_said_nothing_is_found():
    labels, source = spoken(0)
    shuffled = [labels[i] for i in np.random.default_rng(5).permutation(20)]
    short = [row[: min(len(row), len(said))] for row, said in zip(shuffled, labels, strict=True)]
    found = fit(source, short, classes=SYMBOLS, scale=SCALE, recipe=QUICK)
    tests, unseen = spoken(1, 11)
    assert rate(tests, write(found, unseen, 11)) > 0.4


def test_a_bilstm_after_a_projection_writes_too():
    labels, source = spoken(0)
    recipe = replace(QUICK, head=Head(4, 1, 8), learning_rate=1e-2, updates=250)
    found = fit(source, labels, classes=SYMBOLS, scale=SCALE, recipe=recipe)
    tests, unseen = spoken(1, 11)
    assert rate(tests, write(found, unseen, 11)) < 0.15
    assert set(found.weights) == {"layers", "project", "lstm-0", "output"}
    assert init(2, WIDTH, SYMBOLS, Head(4, 2, 8), seed=0)["lstm-1"]["input"].shape == (2, 16, 32)


def test_a_run_repeats_to_the_bit_and_its_seed_matters():
    labels, source = spoken(0)
    recipe = replace(QUICK, updates=3)
    one, again, other = (
        fit(source, labels, classes=SYMBOLS, scale=SCALE, recipe=replace(recipe, seed=seed)) for seed in (0, 0, 1)
    )
    assert np.array_equal(one.losses, again.losses)
    assert not np.array_equal(one.losses, other.losses)


def test_features_are_standardised_as_the_scale_says():
    """Moved and stretched features under their own scale are the same; a constant dimension does not matter."""
    (_, source), rng = spoken(0), np.random.default_rng(3)
    features, frames = source(np.arange(4))
    weights = init(2, WIDTH, SYMBOLS, Head(), seed=0)
    mean, std = rng.normal(size=(2, WIDTH)).astype(np.float32), np.full((2, WIDTH), 7, np.float32)
    plain = logits(weights, features, frames, SCALE.mean, SCALE.std)
    moved = logits(weights, features * 7 + mean[:, None, None], frames, mean, std)
    np.testing.assert_allclose(moved[:, :10], plain[:, :10], atol=2e-5)
    std[:, 2], features[..., 2] = 0, 1e4
    assert np.isfinite(logits(weights, features, frames, mean, std)).all()


@pytest.mark.parametrize(
    ("best", "written"),
    [
        ([], []),
        ([0, 0, 0], []),
        ([2], [2]),
        ([2, 2, 2], [2]),
        ([2, 0, 2], [2, 2]),
        ([0, 1, 1, 3, 3, 0, 0, 3], [1, 3, 3]),
        ([1, 2, 1], [1, 2, 1]),
    ],
)
def test_repeats_are_joined_and_blanks_left_out(best, written):
    assert decode(np.array(best, int)).tolist() == written


def test_a_symbol_needs_a_frame_and_equal_neighbours_a_blank():
    assert [needed(np.array(row)) for row in ([1], [1, 2], [1, 1], [1, 1, 1, 2])] == [1, 2, 3, 6]


def test_every_utterance_comes_once_before_any_comes_twice():
    rows = np.concatenate(list(order(7, 3, 7, seed=0)))
    assert rows.shape == (21,)
    assert all(sorted(rows[i : i + 7].tolist()) == list(range(7)) for i in (0, 7, 14))


def by_hand(both, side, x):
    """An LSTM over x: (time, width), step by step in float64, as PyTorch's manual writes it."""
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    weights = {name: leaf[side] for name, leaf in both.items()}
    size = len(weights["hidden"])
    h, c, out = np.zeros(size), np.zeros(size), []
    for row in x:
        z = row @ weights["input"] + h @ weights["hidden"] + weights["bias"]
        i, f, g, o = (z[k * size : (k + 1) * size] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.array(out)


LSTM = init(1, 3, 2, Head(0, 1, 4), seed=1)["lstm-0"]
X, LENGTHS = np.random.default_rng(0).normal(size=(3, 7, 3)).astype(np.float32), (7, 4, 1)
VALID = np.arange(7)[None] < np.array(LENGTHS)[:, None]


def test_the_lstm_is_what_the_formula_says_and_starts_backwards_at_the_last_valid_frame():
    found = np.asarray(bilstm(LSTM, X, VALID))
    for row, count in enumerate(LENGTHS):
        there, back = by_hand(LSTM, 0, X[row, :count]), by_hand(LSTM, 1, X[row, :count][::-1])[::-1]
        np.testing.assert_allclose(found[row, :count], np.concatenate([there, back], 1), atol=2e-6)


def test_the_lstm_is_pytorchs(torch):
    theirs = torch.nn.LSTM(3, 4, batch_first=True, bidirectional=True)
    for side, end in enumerate(("", "_reverse")):
        for name, values in (("weight_ih_l0", LSTM["input"][side].T), ("weight_hh_l0", LSTM["hidden"][side].T)):
            getattr(theirs, name + end).data = torch.from_numpy(np.ascontiguousarray(values))
        getattr(theirs, "bias_ih_l0" + end).data = torch.from_numpy(LSTM["bias"][side])
        getattr(theirs, "bias_hh_l0" + end).data.zero_()
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(X), LENGTHS, batch_first=True)
    with torch.no_grad():
        out = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)[0].numpy()
    found = np.asarray(bilstm(LSTM, X, VALID))
    np.testing.assert_allclose(np.where(VALID[..., None], found, 0), out, atol=2e-6)


@pytest.mark.parametrize(
    ("labels", "words", "message"),
    [
        ([], {}, "0 of 0 utterances have no symbols"),
        ([np.array([1]), np.array([], int)], {}, "1 of 2 utterances have no symbols"),
        ([np.array([1, 5])], {}, "labels go from 1 to 5, outside 1 to 4"),
        ([np.array([0, 1])], {}, "labels go from 0 to 1"),
        ([np.array([1])], {"updates": 0}, "0 updates of 8 utterances"),
        ([np.array([1])], {"learning_rate": 0.0}, "a rate above 0"),
        ([np.array([1])], {"head": Head(0, 1, 0)}, "1 LSTM layers of 0"),
        ([np.full(30, 1)], {}, "30 symbols of utterance 0 do not fit"),
    ],
)
def test_what_cannot_be_trained_is_refused(labels, words, message):
    _, source = spoken(0)
    with pytest.raises(InputError, match=message):
        fit(source, labels, classes=SYMBOLS, scale=SCALE, recipe=replace(QUICK, **words))


def test_a_loss_that_is_not_finite_is_told():
    labels, source = spoken(0)
    broken = lambda rows: (np.full_like(source(rows)[0], np.nan), source(rows)[1])  # noqa: E731
    with pytest.raises(InputError, match="the loss of update 0 is nan"):
        fit(broken, labels, classes=SYMBOLS, scale=SCALE, recipe=replace(QUICK, updates=2))


def sentences(seed, count, wrong):
    """References, and hypotheses with a share of their words changed, left out or said twice."""
    rng = np.random.default_rng(seed)
    said = [tuple(rng.choice(list("abcdefg"), rng.integers(2, 12))) for _ in range(count)]
    kinds = [(), ("x",), ("y", "z")]
    heard = [
        tuple(p for word in line for p in (kinds[rng.integers(3)] if rng.random() < wrong else (word,)))
        for line in said
    ]
    return said, heard


def test_rates_are_jiwers():
    said, heard = sentences(0, 40, 0.3)
    found = error_rate(said, heard, np.arange(40), seed=0)
    theirs = jiwer.process_words([" ".join(line) for line in said], [" ".join(line) for line in heard])
    assert found.value == pytest.approx(theirs.wer)
    assert found.low <= found.value <= found.high
    parts = found.substitutions, found.deletions, found.insertions
    assert parts == (theirs.substitutions, theirs.deletions, theirs.insertions)
    assert found.errors.sum() == sum(parts)
    texts, written = ("the cat sat", "on a mat"), ("the cats at", "on a mt")
    found = error_rate(list(map(tuple, texts)), list(map(tuple, written)), np.arange(2), seed=0)
    assert found.value == pytest.approx(jiwer.cer(list(texts), list(written)))  # spaces are symbols there


def test_the_same_sentences_are_one_unit():
    said, heard = sentences(1, 12, 0.3)
    one, other = (error_rate(said, heard, units, seed=0) for units in (np.arange(12), np.arange(12) // 3))
    assert (one.value, len(one.errors), len(other.errors)) == (other.value, 12, 4)
    assert other.errors.tolist() == one.errors.reshape(4, 3).sum(1).tolist()


def test_a_paired_interval_is_narrower_than_the_unpaired_ones():
    rng = np.random.default_rng(0)
    total, errors = np.full(60, 20), rng.binomial(20, rng.beta(2, 4, 60))
    better = np.maximum(errors - rng.integers(0, 2, 60), 0)
    one, other = (Rate(e.sum() / 1200, *interval(e, total, seed=0), e, total, 0, 0, 0) for e in (errors, better))
    found = paired(one, other, seed=0)
    assert found.mean == pytest.approx(one.value - other.value)
    assert 0 < found.low < found.mean < found.high
    assert found.high - found.low < (one.high - one.low) / 3
    assert paired(one, one, seed=0) == Difference(0.0, 0.0, 0.0)


def test_rates_of_nothing_are_refused():
    with pytest.raises(InputError, match="0 references, 0 hypotheses"):
        error_rate([], [], np.arange(0), seed=0)
    with pytest.raises(InputError, match="1 of 2 references are empty"):
        error_rate([("a",), ()], [("a",), ("b",)], np.arange(2), seed=0)
    one, other = (error_rate([("a",) * n], [("a",)], np.arange(1), seed=0) for n in (1, 2))
    with pytest.raises(InputError, match="same utterances"):
        paired(one, other, seed=0)
