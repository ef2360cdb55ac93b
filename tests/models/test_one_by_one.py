"""A batch that goes row by row is the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.models import choice
from jaxssl.models.model import apply
from tests.archs import ARCHS, noise, weights


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["base", "large", "mel", "student", "reusing"])
def test_every_output_is_the_same(key, monkeypatch, name, padded):
    arch = ARCHS[name]
    params, x = weights(arch), noise(arch, key)
    lengths = jnp.array([x.shape[1], x.shape[1] * 2 // 3]) if padded else None
    mask = jax.random.bernoulli(key, 0.3, (2, arch.front.heard(x.shape[1])))

    def run(params):
        return apply(arch, params, x, lengths, mask=mask)

    monkeypatch.setattr(choice, "ROW", 10**9)
    together = jax.jit(run)(params)
    monkeypatch.setattr(choice, "ROW", 1)
    lowered = jax.jit(lambda p: run(p)).lower(params)
    assert "while" in lowered.as_text()
    apart = lowered.compile()(params)
    assert jax.tree.structure(together) == jax.tree.structure(apart)
    for one, two in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_only_long_rows_go_apart_and_only_on_processors(monkeypatch):
    assert choice.rows(4, choice.ROW) == "one by one"
    assert choice.rows(1, choice.ROW) == choice.rows(4, choice.ROW - 1) == "together"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choice.rows(4, choice.ROW) == "together"
