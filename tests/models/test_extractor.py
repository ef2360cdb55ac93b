"""The first convolution and its norm in one product are the convolution and the norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.models.fronts.time_norm import TimeNorm
from jaxssl.models.layers import NORM_EPSILON, gelu
from jaxssl.runtime import native


def defined(x, kernel, stride, lengths, scale, bias):
    """Convolve, normalise and apply GELU in float64, row by row."""
    x, kernel = np.asarray(x, np.float64)[..., 0], np.asarray(kernel, np.float64)[:, 0]
    count = (x.shape[1] - len(kernel)) // stride + 1
    windows = x[:, np.arange(count)[:, None] * stride + np.arange(len(kernel))]
    rows = windows @ kernel
    for row, length in zip(rows, [count] * len(x) if lengths is None else lengths.tolist(), strict=True):
        valid = row[:length]
        row[:] = (row - valid.mean(0)) / np.sqrt(valid.var(0) + NORM_EPSILON)
    return np.asarray(gelu(jnp.asarray(rows * np.asarray(scale) + np.asarray(bias))))


@pytest.fixture(params=[False, True], ids=["plain", "packed"])
def packed(request):
    if request.param and not native.ready():
        pytest.skip("no C++ compiler")
    return request.param


def normed(key, channels, packed):
    norm = TimeNorm(channels, packed=packed)
    norm.scale[...], norm.bias[...] = 1 + 0.2 * jax.random.normal(key, (2, channels))
    return norm


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("taps", "stride"), [(10, 5), (4, 3), (3, 3), (1, 1)])
def test_it_is_the_definition(key, taps, stride, padded, packed):
    norm, x = normed(key, 6, packed), jax.random.normal(key, (2, 700, 1))
    kernel = jax.random.normal(key, (taps, 1, 6))
    lengths = jnp.array([(700 - taps) // stride + 1, 40]) if padded else None
    found = norm(x, kernel, stride, lengths)
    wanted = defined(x, kernel, stride, lengths, norm.scale[...], norm.bias[...])
    np.testing.assert_allclose(found[0], wanted[0], atol=2e-5)
    np.testing.assert_allclose(found[1, :40], wanted[1, :40], atol=2e-5)


def test_a_channel_that_hears_little_is_as_exact(key, packed):
    """Second differences of a slow wave beside an offset: a millionth of the samples' energy."""
    time = jnp.arange(16_000)
    x = (0.5 + jnp.sin(time / 30) + 1e-3 * jax.random.normal(key, time.shape))[None, :, None]
    kernel = jnp.zeros((10, 1, 1)).at[:3, 0, 0].set(jnp.array([1.0, -2.0, 1.0]))
    norm = TimeNorm(1, packed=packed)
    found = norm(x, kernel, 5, None)
    np.testing.assert_allclose(found, defined(x, kernel, 5, None, [1.0], [0.0]), atol=2e-3)


def test_what_stands_beside_a_row_does_not_matter(key, packed):
    norm, x, kernel = normed(key, 4, packed), jax.random.normal(key, (1, 500, 1)), jax.random.normal(key, (10, 1, 4))
    beside = jnp.concatenate([x, 9 * jnp.ones((1, 300, 1))], 1)
    alone = norm(x, kernel, 5, None)
    np.testing.assert_allclose(norm(beside, kernel, 5, jnp.array([99]))[:, :99], alone, atol=1e-5)
