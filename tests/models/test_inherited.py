"""Mamba-2 that begins with attention's maps: what it scans is SiLU of the attention's own queries, keys and values."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from compress.errors import InputError
from compress.lowrank import decompose_maps, factorise_maps
from jaxssl.models.arch import Dropout
from jaxssl.models.cost import parameters
from jaxssl.models.describe import describe
from jaxssl.models.exchange import exchanged, with_new_mixers
from jaxssl.models.inherited import inherited
from jaxssl.models.keys import OneKey
from jaxssl.models.sites import matrices
from tests.archs import MEL, forward, noise, transformer_layer, weights

LAYERS = (0, 2)
LESS = replace(MEL, layers=(transformer_layer(3, 20, key_bias=False), MEL.layers[0], transformer_layer(2, 7)))


def begun(arch, params):
    other = exchanged(arch, "mamba2", LAYERS)
    new = with_new_mixers(arch, params, other, LAYERS, seed=0)
    return other, new, inherited(arch, params, other, new, LAYERS)


def module(part, arrays, width):
    made = part.build(width, dropout=Dropout(), prepared=False, lends=False, rngs=OneKey())
    graph, state = nnx.split(made)
    nnx.replace_by_pure_dict(state, arrays)
    return nnx.merge(graph, state)


@pytest.mark.parametrize("arch", [MEL, LESS], ids=["mel", "cut"])
def test_queries_keys_and_values_are_the_attentions(arch):
    params = weights(arch)
    other, _, found = begun(arch, params)
    x = np.random.default_rng(0).standard_normal((2, 9, arch.width), np.float32)
    for i in LAYERS:
        attention = module(arch.layers[i].mixer, params["layers"][str(i)]["attention"], arch.width)
        mamba = module(other.layers[i].mixer, found["layers"][str(i)]["mamba2"], arch.width)
        q, k, v = (np.asarray(each(x)) for each in (attention.q, attention.k, attention.v))
        for side in ("", "back_"):
            selected, _ = getattr(mamba, f"{side}select_conv")(getattr(mamba, f"{side}select")(x), None, "")
            scanned, _ = getattr(mamba, f"{side}conv")(mamba.split("", x)[0], None, "")
            np.testing.assert_allclose(selected[:, :, 0], jax.nn.silu(k), atol=1e-6)
            np.testing.assert_allclose(selected[:, :, 1], jax.nn.silu(q), atol=1e-6)
            np.testing.assert_allclose(scanned[:, :, 0], jax.nn.silu(v), atol=1e-6)
        without = np.asarray(attention.out(v)) - params["layers"][str(i)]["attention"]["out"]["bias"]
        np.testing.assert_allclose(mamba.out(v[:, :, None]), without, atol=1e-6)


def test_the_rest_is_as_drawn_and_describes_itself():
    params = weights(MEL)
    other, new, found = begun(MEL, params)
    assert describe(other, found) == other
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, new)
    for name in ("step", "back_step", "scan", "back_scan", "norm"):
        assert found["layers"]["0"]["mamba2"][name] is new["layers"]["0"]["mamba2"][name]
    assert found["layers"]["1"] is new["layers"]["1"]
    np.testing.assert_array_equal(
        found["layers"]["0"]["mamba2"]["input"]["kernel"][..., 1],
        new["layers"]["0"]["mamba2"]["input"]["kernel"][..., 1],
    )
    assert np.isfinite(forward(other, found, noise(other, 0)).last).all()
    assert parameters(other) > parameters(MEL)


def test_low_rank_maps_begin_as_their_products():
    params = weights(MEL)
    paths = [matrix for matrix in matrices(MEL) if matrix.path.startswith("layers/0/attention/")]
    thin = factorise_maps(params, decompose_maps(params, paths), 3)
    low = describe(MEL, thin)
    _, _, found = begun(low, thin)
    q = thin["layers"]["0"]["attention"]["q"]
    np.testing.assert_allclose(
        found["layers"]["0"]["mamba2"]["select"]["kernel"][:, 1], np.tensordot(q["down"], q["up"], 1), atol=1e-6
    )


def test_what_has_another_shape_is_refused():
    params = weights(MEL)
    with pytest.raises(InputError, match="layer 0: mamba is not of the shape of attention; exchange it for mamba2"):
        inherited(MEL, params, exchanged(MEL, "mamba", LAYERS), params, LAYERS)
    empty = replace(MEL, layers=(transformer_layer(0, 7), *MEL.layers[1:]))
    with pytest.raises(InputError, match="layer 0 has 0 attention heads, and Mamba-2 a group for each"):
        exchanged(empty, "mamba2", (0,))
    blocks = {**params["layers"]["0"]["attention"], "q": {"blocks": 0}}
    stored = {**params, "layers": {**params["layers"], "0": {**params["layers"]["0"], "attention": blocks}}}
    with pytest.raises(InputError, match="layers/0/attention/q: a map in blocks"):
        inherited(MEL, stored, exchanged(MEL, "mamba2", LAYERS), params, LAYERS)
