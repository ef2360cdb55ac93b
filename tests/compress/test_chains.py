"""Techniques follow one another in any order, on both families, and what is saved is what is loaded."""

import jax
import numpy as np
import pytest

from compress.address import flatten
from compress.plan import Heads, LowRank, Rows, Sites, Weights, run
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import FeedForward, Rank
from jaxssl.models.describe import describe
from jaxssl.models.sites import axes, matrices
from tests.archs import BASE, MEL, forward, noise, weights

LOW, HEADS, ROWS, WEIGHTS = LowRank("layers/*/ffn/*", 4), Heads(2), Rows(16), Weights(0.5)
ORDERS = {
    "factorise-heads-rows-weights": (LOW, HEADS, ROWS, WEIGHTS),
    "weights-rows-heads-factorise": (WEIGHTS, ROWS, HEADS, LOW),
    "heads-weights-factorise-rows": (HEADS, WEIGHTS, LOW, ROWS),
    "rows-factorise-weights-heads": (ROWS, LOW, WEIGHTS, HEADS),
}


@pytest.mark.parametrize("order", list(ORDERS.values()), ids=list(ORDERS))
@pytest.mark.parametrize("base", [BASE, MEL], ids=["hubert", "melhubert"])
def test_any_order_saved_and_loaded(base, order, key, tmp_path):
    def sites(params):
        return Sites(axes(describe(base, params)), matrices(describe(base, params)))

    params = run(order, weights(base), sites=sites)
    arch = describe(base, params)
    assert {layer.mixer.heads for layer in arch.layers} == {2}
    assert {layer.ffn for layer in arch.layers} == {FeedForward(16, Rank(4), Rank(4))}
    assert cost.parameters(arch) == sum(leaf.size for leaf in jax.tree.leaves(params))
    checkpoint.save(tmp_path / "model", arch, params)
    again, loaded = checkpoint.load(tmp_path / "model")
    assert again == arch
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, flatten(loaded)[path], err_msg=path)
    inputs = noise(base, key)
    np.testing.assert_array_equal(forward(arch, params, inputs).last, forward(again, loaded, inputs).last)
    if order[-1] == WEIGHTS:
        entries = [leaf for path, leaf in flatten(params["layers"]).items() if "norm" not in path]
        zeros = sum(int((np.asarray(leaf) == 0).sum()) for leaf in entries)
        assert zeros == round(0.5 * sum(leaf.size for leaf in entries))
