"""Dropout's random bits are even, independent of each other and of other keys', and drop what they should."""

import jax
import numpy as np
import pytest

from jaxssl.models.bits import bits, kept

SIZE = 1 << 20


def test_every_bit_is_even(key):
    ones = np.unpackbits(np.asarray(bits(key, (SIZE,))).view(np.uint8)).reshape(SIZE, 32).mean(0)
    np.testing.assert_allclose(ones, 0.5, atol=5 * 0.5 / SIZE**0.5)


def test_bytes_are_spread_evenly(key):
    """A chi-square of 255 degrees of freedom has mean 255 and deviation 22.6."""
    for byte in np.asarray(bits(key, (SIZE,))).view(np.uint8).reshape(SIZE, 4).T:
        counts = np.bincount(byte, minlength=256)
        assert abs(((counts - SIZE / 256) ** 2).sum() / (SIZE / 256) - 255) < 5 * 22.6


@pytest.mark.parametrize("shape", [(SIZE,), (1024, 1024), (4, 16, 128, 128)], ids=str)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_what_is_kept_does_not_know_its_neighbours(key, shape, rate):
    mask = np.asarray(kept(key, rate, shape), np.float64)
    assert mask.mean() == pytest.approx(1 - rate, abs=5 * (rate * (1 - rate) / SIZE) ** 0.5)
    for axis in range(mask.ndim):
        one, two = (np.take(mask, range(*ends), axis) for ends in ((0, shape[axis] - 1), (1, shape[axis])))
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 5 / SIZE**0.5


def test_keys_give_unrelated_bits():
    """Keys of a split, and keys that differ in one bit of one word."""
    key = jax.random.key(3, impl="threefry2x32")
    words = jax.random.key_data(key)
    near = [jax.random.wrap_key_data(words ^ np.array(flip, np.uint32)) for flip in ([1, 0], [0, 1], [1 << 31, 0])]
    masks = [np.asarray(kept(k, 0.5, (SIZE,)), np.float64) for k in (key, *near, *jax.random.split(key, 3))]
    related = np.corrcoef(masks) - np.eye(len(masks))
    assert np.abs(related).max() < 5 / SIZE**0.5


def test_the_key_decides(key):
    np.testing.assert_array_equal(bits(key, (3, 5)), bits(key, (3, 5)))
    assert kept(key, 0.0, (99,)).all()
