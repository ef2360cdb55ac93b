"""Integrate-and-fire: the matrix is the loop it stands for, the original's arrays, and the cases that are known."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.models.rates.firing import amount_for, frame_period, integrate, mixed, rescaled


@partial(jax.jit, static_argnames=("bound", "threshold", "tail"))
def fired(weights, lengths, x, **words):
    """Fire, and all that follows from it: matrix, counts, sums, durations, and the sums laid out again."""
    firing = integrate(weights, lengths, **words)
    z = firing.fire(x)
    valid = jnp.arange(weights.shape[1])[None] < lengths[:, None]
    return firing.shares, firing.lengths, z, firing.durations(jnp.where(valid, weights, 0.0)), firing.spread(z)


def in_a_loop(weights, x, *, threshold=1.0, tail="drop"):
    """The definition for one utterance: integrate frame by frame, fire whenever the threshold is reached."""
    charge, sums, out = 0.0, np.zeros(x.shape[1]), []
    for weight, frame in zip(weights.astype(np.float64), x, strict=True):
        while charge + weight >= threshold:
            out.append(sums + (threshold - charge) * frame)
            weight -= threshold - charge
            charge, sums = 0.0, np.zeros(x.shape[1])
        charge, sums = charge + weight, sums + weight * frame
    if tail == "round" and charge >= 0.5:
        out.append(sums * threshold / charge)
    return np.array(out).reshape(-1, x.shape[1])


@pytest.fixture(scope="module")
def golden(shared):
    arrays = dict(np.load(shared / "encoders/sequence_compression/cif_ofa.npz"))
    arrays |= {name: arrays[kept] for name, kept in json.loads(str(arrays.pop("aliases_json"))).items()}
    return {name: value.astype(np.int32) if value.dtype == np.int64 else value for name, value in arrays.items()}


def drawn(*, batch=3, frames=60, width=5, high=1.0, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((batch, frames, width)).astype(np.float32)
    return draw.uniform(0, high, (batch, frames)).astype(np.float32), x


def test_the_original_s_arrays(golden):
    """Every case that the original computed: mixing, masks, threshold, target lengths, tails, special weights."""
    cases = sorted({name.rpartition("/")[0] for name in golden if name.endswith("cif_lengths")})
    assert len(cases) == 32
    for case in cases:
        rows, frames = golden[f"{case}/alpha"].shape
        alpha = np.zeros((3, 60), np.float32)  # one shape, so that few programs are compiled
        alpha[:rows, :frames] = golden[f"{case}/alpha"]
        words = {
            "threshold": 0.8 if case.startswith("beta") else 1.0,
            "tail": "round" if f"{case}/tail_weights" in golden else "drop",
        }
        everything = fired(alpha, np.full(3, 60, np.int32), golden["x"], bound=60, **words)
        count, z, covered = (np.asarray(value)[:rows] for value in everything[1:4])
        np.testing.assert_array_equal(count, golden[f"{case}/cif_lengths"], err_msg=case)
        longest = golden[f"{case}/cif_out"].shape[1]
        there = np.arange(longest)[None, :, None] < count[:, None, None]  # behind, it has unfired tails
        expected = np.where(there, golden[f"{case}/cif_out"], 0)
        np.testing.assert_allclose(z[:, :longest], expected, atol=1e-4, err_msg=case)
        assert not z[:, longest:].any()
        if f"{case}/reverse_alpha" in golden:
            np.testing.assert_allclose(covered[:, :longest], golden[f"{case}/reverse_alpha"], atol=1e-4)


def test_the_original_s_mixing(golden):
    for amount in (0.0, 0.25, 0.5, 0.75, 1.0, 1.5):
        ours = mixed(golden["alpha"], np.float32(amount))
        np.testing.assert_allclose(ours, golden[f"lambda_{amount}/nomask_train/alpha"], atol=1e-6)


def test_the_original_s_target_lengths(golden):
    valid = np.arange(60)[None] < golden["lengths"][:, None]
    weights = np.where(valid, golden["alpha"], 0).astype(np.float32)
    for name, own in (("target_lengths", 0.0), ("target_lengths_gamma_0.3", 0.3)):
        ours = rescaled(weights, golden["target_lengths"], own=own)
        np.testing.assert_allclose(ours, golden[f"{name}/alpha"], atol=1e-6)


def test_the_original_s_gradients(golden):
    """Its shorter rows have their unfired tail behind their frames: here a silent frame makes that fire."""
    shape = golden["lambda_1.0/mask_train/cif_out"].shape
    valid = np.arange(60)[None] < golden["lengths"][:, None]

    def value(weights, x):
        weights = jnp.pad(jnp.where(valid, weights, 0.0), ((0, 0), (0, 1)), constant_values=1.0)
        z = integrate(weights, bound=shape[1]).fire(jnp.pad(x, ((0, 0), (0, 1), (0, 0))))
        return (z * golden["grad/probe"][:, : shape[1]]).sum()

    ours = jax.jit(jax.grad(value, (0, 1)))(golden["alpha"], golden["x"])
    for name, mine in zip(("alpha", "x"), ours, strict=True):
        wanted = golden[f"grad/{name}"]
        np.testing.assert_allclose(mine, wanted, atol=1e-4 * abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize(
    "words", [{}, {"tail": "round"}, {"threshold": 0.3}, {"threshold": 2.5, "tail": "round"}], ids=str
)
def test_the_matrix_is_the_loop(words):
    weights, x = drawn()
    weights[0, 10:40] = 0  # nothing is added for a while
    lengths = np.array([60, 47, 1], np.int32)
    bound = int(60 / words.get("threshold", 1.0)) + 1
    shares, count, z, _, _ = fired(weights, lengths, x, bound=bound, **words)
    assert (np.asarray(shares) >= 0).all()
    for row, length in enumerate(lengths):
        expected = in_a_loop(weights[row, :length], x[row, :length], **words)
        assert count[row] == len(expected)
        np.testing.assert_allclose(z[row, : len(expected)], expected, atol=1e-5)
        assert not np.asarray(z[row, len(expected) :]).any()
        assert not np.asarray(shares[row, :, length:]).any()
    np.testing.assert_allclose(shares.sum(2)[0, : count[0]], words.get("threshold", 1.0), rtol=1e-5)


def test_weights_of_one_are_no_compression():
    _, x = drawn()
    lengths = np.array([60, 47, 0], np.int32)
    _, count, z, covered, back = fired(np.ones((3, 60), np.float32), lengths, x, bound=60)
    valid = np.arange(60)[None] < lengths[:, None]
    np.testing.assert_array_equal(count, lengths)
    np.testing.assert_array_equal(z, x * valid[..., None])
    np.testing.assert_array_equal(covered, valid.astype(np.float32))
    np.testing.assert_array_equal(np.where(valid[..., None], back, 0), z)


def test_equal_weights_are_average_pooling():
    """Also of a ratio whose weight is rounded down, as that of 49: the last frame is there."""
    ratios = np.array([2, 3, 13, 49], np.int32)
    lengths = 600 // ratios * ratios
    _, x = drawn(batch=4, frames=600, width=2)
    weights = np.repeat(np.float32(1) / ratios[:, None].astype(np.float32), 600, axis=1)
    _, count, z, covered, _ = fired(weights, lengths, x, bound=301)
    np.testing.assert_array_equal(count, 600 // ratios)
    for row, (ratio, length) in enumerate(zip(ratios, lengths, strict=True)):
        pooled = x[row, :length].reshape(-1, ratio, 2).mean(1)
        np.testing.assert_allclose(z[row, : length // ratio], pooled, atol=1e-4)
        np.testing.assert_allclose(covered[row, : length // ratio], ratio, atol=1e-3)


def test_padding_and_what_it_holds_move_nothing():
    weights, x = drawn()
    short, z = fired(weights[:, :47], np.array([47, 31, 9], np.int32), x[:, :47], bound=50)[1:3]
    lengths = np.array([47, 31, 9], np.int32)
    padded = np.arange(60)[None] >= lengths[:, None]
    loud = np.where(padded[..., None], np.float32(1e6), x)
    weighty = np.where(padded, np.float32(0.9), weights)
    count, same = fired(weighty, lengths, loud, bound=50)[1:3]
    np.testing.assert_array_equal(count, short)
    np.testing.assert_allclose(same, z, atol=1e-6)


def test_fired_frames_are_laid_out_over_those_they_are_made_of():
    weights, x = drawn(batch=1)
    weights[0, 20:25] = 0
    shares, count, z, covered, back = map(np.asarray, fired(weights, np.array([60], np.int32), x, bound=60))
    total = shares[0].sum(0)
    last = np.flatnonzero(total > 1e-3)[-1]
    sums = np.cumsum(weights[0].astype(np.float64))
    for t in range(60):
        if total[t] > 1e-3:
            expected = (shares[0, :, t, None] * z[0]).sum(0) / total[t]
        else:  # nothing of it was fired: those without weight, and those behind the last firing
            expected = z[0, min(int(sums[t]), count[0] - 1)]
        np.testing.assert_allclose(back[0, t], expected, atol=1e-5)
    assert last < 59
    # Every frame up to the last firing is covered once, but for those without weight.
    assert last - 5 <= covered[0].sum() <= last + 1 - 5


def test_where_nothing_fires_all_is_zero():
    weights, x = drawn(batch=1, high=0.01)
    _, count, z, _, back = fired(weights, np.array([60], np.int32), x, bound=60)
    assert count[0] == 0
    assert not np.asarray(z).any()
    assert not np.asarray(back).any()


def test_more_than_the_bound_is_counted():
    weights, x = drawn(batch=1)
    _, all_of_them, z, _, _ = fired(weights, np.array([60], np.int32), x, bound=60)
    _, count, first, _, _ = fired(weights, np.array([60], np.int32), x, bound=9)
    assert count[0] == all_of_them[0] > 9
    np.testing.assert_allclose(first, z[:, :9], atol=1e-6)


def test_gradients_are_finite_everywhere():
    """At ones, at zeros, at rows that fire nothing, where a hair is left behind the last firing."""
    _, x = drawn(batch=5, frames=24)
    weights = np.stack([np.full(24, v, np.float32) for v in (1.0, 0.0, 0.01, 0.25, 0.25)])
    weights[4, -1] += 1e-6

    def value(weights, amount, x, tail):
        firing = integrate(mixed(weights, amount), bound=24, tail=tail)
        return jnp.square(firing.spread(firing.fire(x)) - x).sum() + firing.durations(weights).sum()

    for tail in ("drop", "round"):
        grads = jax.jit(jax.grad(value, (0, 1, 2)), static_argnums=3)
        for amount in (np.full(5, 1, np.float32), np.array([0, 0.5, 1.5, 2, 1], np.float32)):
            assert all(np.isfinite(grad).all() for grad in grads(weights, amount, x, tail))


def test_periods_and_amounts_are_inverses():
    """Also beyond 1, where fewer fire than the weights alone would; the weights' mean is what periods are of."""
    amounts = np.array([0, 0.25, 0.5, 0.75, 1, 1.5], np.float32)
    periods = frame_period(amounts, rate=2 / 9)
    np.testing.assert_allclose(periods, [20, 24.83, 32.73, 48, 90, 180], atol=0.01)
    np.testing.assert_allclose(amount_for(periods, rate=2 / 9), amounts, atol=1e-6)
    means = mixed(np.full((6, 1), 2 / 9, np.float32), amounts)[:, 0]
    np.testing.assert_allclose(periods, 20 / means, rtol=1e-5)


def test_a_row_without_weight_has_no_target():
    np.testing.assert_array_equal(rescaled(np.zeros((1, 5), np.float32), np.array([3], np.int32)), np.zeros((1, 5)))
