"""Products with shifted frames are the convolution of each channel alone, and so are their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.models import choice
from jaxssl.models.layers import depthwise

RTOL = {"float32": 1e-5, "bfloat16": 0.02}


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize(
    ("taps", "frames", "padding"), [(4, 9, (3, 0)), (4, 4, (0, 0)), (5, 1, (2, 2)), (1, 6, (0, 0))]
)
def test_shifted_products_are_the_convolution(taps, frames, padding, dtype, monkeypatch):
    draw = np.random.default_rng(taps)
    x, kernel = draw.standard_normal((2, frames, 3), np.float32), draw.standard_normal((taps, 1, 3), np.float32)
    found = []
    for way in ("convolution", "shifted"):
        monkeypatch.setattr(choice, "depthwise", lambda _, way=way: way)

        def run(x, kernel):
            y = depthwise(x.astype(dtype), kernel, padding=padding)
            return (y.astype(jnp.float32) ** 2).sum(), y

        found.append(jax.grad(run, (0, 1), has_aux=True)(jnp.asarray(x), jnp.asarray(kernel)))
    assert found[1][1].dtype == dtype
    for wanted, one in zip(*map(jax.tree.leaves, found), strict=True):
        wanted, one = (np.asarray(each, np.float32) for each in (wanted, one))
        np.testing.assert_allclose(one, wanted, rtol=RTOL[dtype], atol=RTOL[dtype] * np.abs(wanted).max())


def test_a_kernel_of_many_taps_stays_a_convolution():
    many = choice.FEW + 1
    program = jax.make_jaxpr(lambda x, kernel: depthwise(x, kernel, padding=(many - 1, 0)))
    assert "conv_general_dilated" in str(program(jnp.zeros((1, 5, 2)), jnp.zeros((many, 1, 2))))
