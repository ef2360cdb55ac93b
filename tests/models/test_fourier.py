"""The convolution in the frequency domain, and that by bands, is the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.models.banded import by_bands
from jaxssl.models.fourier import overlap_save
from jaxssl.models.layers import convolve

CASES = [(1, 40, 8, 2, 7), (3, 70, 12, 4, 8), (2, 300, 16, 1, 128), (1, 5, 8, 8, 64), (2, 257, 6, 3, 1)]


@pytest.mark.parametrize("way", [overlap_save, by_bands])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_the_convolutions(case, way, key):
    batch, time, width, groups, taps = case
    x, kernel, weight = (
        jax.random.normal(k, shape)
        for k, shape in zip(
            jax.random.split(key, 3),
            [(batch, time, width), (taps, width // groups, width), (batch, time, width)],
            strict=True,
        )
    )
    pads = taps // 2, (taps - 1) // 2

    def value(run, x, kernel):
        y = run(x, kernel, padding=pads, groups=groups)
        return (y * weight).sum(), y

    both = [
        jax.jit(jax.value_and_grad(lambda x, w, run=run: value(run, x, w), argnums=(0, 1), has_aux=True))(x, kernel)
        for run in (convolve, way)
    ]
    for one, two in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * float(jnp.abs(one).max()) + 1e-5)


@pytest.mark.parametrize("way", [overlap_save, by_bands])
def test_bfloat16_stays_bfloat16(way, key):
    x = jax.random.normal(key, (1, 50, 8), jnp.bfloat16)
    y = way(x, jnp.ones((4, 4, 8)), padding=(2, 1), groups=2)
    assert y.dtype == jnp.bfloat16
    exact = convolve(x.astype(jnp.float32), jnp.ones((4, 4, 8)), padding=(2, 1), groups=2)
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=0.02, atol=0.05)
