"""Our kernels for training give the plain formulation's values and gradients, and drop what it drops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.models.attend import _at_once, _one_by_one
from jaxssl.models.bits import words
from jaxssl.models.layers import convolve, frame_mask
from jaxssl.runtime.native import gradients
from tests.runtime.test_native import _compiler, kernels, normal  # noqa: F401

RTOL = {"float32": 1e-5, "bfloat16": 0.02}


def apart(found, wanted):
    """Return how far two arrays are from each other, as a share of the second one's norm."""
    found, wanted = (np.asarray(each, np.float64) for each in (found, wanted))
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30)


def words_of(key, count, *, together):
    return words(jnp.broadcast_to(key, count) if together else jax.random.split(key, count))


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(("batch", "time", "heads", "size"), [(1, 1, 1, 1), (2, 61, 3, 20), (2, 130, 2, 80)])
def test_attention(kernels, batch, time, heads, size, rate, dtype):  # noqa: F811
    q, k, v, given = (normal(i, batch, time, heads, size, scale=0.6) for i in range(4))
    valid, key = frame_mask(jnp.asarray([time, time // 2 + 1][:batch]), time), jax.random.key(7)
    for together, way in ((True, _at_once), (False, _one_by_one)):
        drawn = words_of(key, batch * heads, together=together)

        def plain(q, k, v, way=way):
            y = way(q, k, v, valid, rate, key if rate else None)
            return (y * given).sum(), y

        def ours(q, k, v, together=together, drawn=drawn):
            drop = {"rate": rate, "keys": drawn if rate else None, "together": together}
            y = gradients.attention(*(x.astype(dtype) for x in (q, k, v)), valid, **drop, prefix=kernels)
            return (y.astype(jnp.float32) * given).sum(), y

        wanted, y = jax.jit(jax.grad(plain, (0, 1, 2), has_aux=True))(q, k, v)
        found, z = jax.jit(jax.grad(ours, (0, 1, 2), has_aux=True))(q, k, v)
        assert z.dtype == dtype
        assert apart(z, y) < RTOL[dtype]
        for one, two in zip(found, wanted, strict=True):
            if time > 1:  # the only frame is all that it sees: nothing reaches its query and its key
                assert apart(one, two) < RTOL[dtype]


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 2, 2), (7, 30, 34), (300, 256, 128), (1543, 130, 514)])
def test_linear(kernels, rows, inputs, outputs, dtype):  # noqa: F811
    x, given = normal(0, rows, inputs), normal(1, rows, outputs)
    kernel, bias = normal(2, inputs, outputs, scale=inputs**-0.5), normal(3, outputs)

    def plain(x, kernel, bias):
        y = x @ kernel + bias[None]
        return (y * given).sum(), y

    def ours(x, kernel, bias):
        y = gradients.linear(x.astype(dtype), kernel, bias, prefix=kernels)
        return (y.astype(jnp.float32) * given).sum(), y

    wanted, y = jax.jit(jax.grad(plain, (0, 1, 2), has_aux=True))(x, kernel, bias)
    found, z = jax.jit(jax.grad(ours, (0, 1, 2), has_aux=True))(x, kernel, bias)
    assert (z.dtype, found[1].dtype) == (dtype, jnp.float32)
    assert apart(z, y) < RTOL[dtype]
    for one, two in zip(found, wanted, strict=True):
        assert apart(one, two) < RTOL[dtype]


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize(
    ("taps", "stride", "inputs", "time"), [(3, 2, 48, 331), (2, 2, 34, 40), (3, 1, 6, 3), (5, 2, 2, 30), (1, 3, 4, 20)]
)
def test_convolution(kernels, taps, stride, inputs, time, dtype):  # noqa: F811
    x, kernel = normal(0, 2, time, inputs), normal(1, taps, inputs, 72, scale=(taps * inputs) ** -0.5)
    bias = normal(2, 72)
    given = normal(3, 2, (time - taps) // stride + 1, 72)

    def plain(x, kernel, bias):
        y = convolve(x, kernel, stride=stride) + bias[None, None]
        return (y * given).sum(), y

    def ours(x, kernel, bias):
        y = gradients.convolution(x.astype(dtype), kernel, bias, stride=stride, prefix=kernels)
        return (y.astype(jnp.float32) * given).sum(), y

    wanted, y = jax.jit(jax.grad(plain, (0, 1, 2), has_aux=True))(x, kernel, bias)
    found, z = jax.jit(jax.grad(ours, (0, 1, 2), has_aux=True))(x, kernel, bias)
    assert z.dtype == dtype
    assert apart(z, y) < RTOL[dtype]
    for one, two in zip(found, wanted, strict=True):
        assert apart(one, two) < RTOL[dtype]


def test_nobody_gives_nothing(kernels):  # noqa: F811
    nobody = jnp.zeros((0, 9, 2, 16))
    assert jax.grad(lambda q: gradients.attention(q, q, q, None, prefix=kernels).sum())(nobody).shape == nobody.shape
    kernel, bias = normal(0, 16, 48), normal(1, 48)
    found = jax.grad(lambda kernel: gradients.linear(jnp.zeros((0, 16)), kernel, bias, prefix=kernels).sum())(kernel)
    np.testing.assert_array_equal(found, np.zeros((16, 48)))
