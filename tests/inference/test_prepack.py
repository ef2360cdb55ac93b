"""Prepared models compute what they were made from, and say what they are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from compress.errors import InputError
from compress.quantize import bfloat16
from jaxssl.inference.prepack import prepared
from jaxssl.models import choice
from jaxssl.models.arch_json import from_json, to_json
from jaxssl.models.describe import describe
from jaxssl.models.layers import convolve, gelu
from jaxssl.models.model import _layer_shapes, _outer_shapes, _skeleton, apply, shapes
from jaxssl.models.positions.filters import Filters, forms
from jaxssl.runtime import native
from tests.archs import ARCHS, forward, noise, weights


def shallow(arch):
    return replace(arch, layers=arch.layers[:1])


@pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS.keys())
def test_the_function_stays(arch, key):
    params, x = weights(arch), noise(arch, key)
    if "gain" in params.get("position", {}):
        params["position"]["gain"] = params["position"]["gain"] * 1.5
    ready, arrays = prepared(arch, params)
    assert ready == replace(arch, prepared=True)
    assert "kernel" not in arrays.get("position", {})
    for one, two in zip(forward(arch, params, x).hidden, forward(ready, arrays, x).hidden, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)
    assert prepared(ready, arrays)[1] is arrays  # once is enough


def test_weights_in_bfloat16_are_the_numbers_they_are(key):
    arch = shallow(ARCHS["base"])
    params, x = bfloat16(weights(arch)), noise(arch, key)
    ready, arrays = prepared(arch, params)
    np.testing.assert_allclose(forward(arch, params, x).last, forward(ready, arrays, x).last, atol=2e-5)


def test_it_is_an_arch_like_others(key):
    arch, params = prepared(ARCHS["mel"], weights(ARCHS["mel"]))
    assert describe(arch, params) == arch == from_json(to_json(arch))
    with pytest.raises(InputError, match="layers/0/attention/k/kernel"):
        describe(replace(arch, prepared=False), params)


def test_other_devices_keep_the_kernel(key, monkeypatch):
    monkeypatch.setattr(choice, "prepared_positions", lambda: None)
    params = weights(ARCHS["mel"])
    assert prepared(ARCHS["mel"], params) == (ARCHS["mel"], params)


@pytest.mark.parametrize("name", ["base", "mel", "uneven"])
def test_in_bfloat16_weights_are_rounded_once_and_norms_are_not(key, name):
    arch = shallow(ARCHS[name])
    params, x = weights(arch), noise(arch, key)
    ready, arrays = prepared(arch, params, dtype=jnp.bfloat16)
    layer = arrays["layers"]["0"]
    bits = layer["ffn"]["fc1"]["down" if "down" in layer["ffn"]["fc1"] else "kernel"]
    packed = jnp.int16 if native.whole_bfloat16() else jnp.uint16
    assert bits.dtype == (packed if choice.packs() else jnp.bfloat16)
    assert layer["ffn_norm"]["scale"].dtype == layer["ffn"]["fc1"]["bias"].dtype == jnp.float32
    exact = np.asarray(forward(arch, params, x).last)
    one, two = (
        float(np.sqrt(np.square(np.asarray(forward(*each, x, dtype=jnp.bfloat16).last, np.float32) - exact).mean()))
        for each in ((arch, params), (ready, arrays))
    )
    assert two < 1.3 * one < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphics_cards_take_the_kernel_as_bands(key, monkeypatch, dtype):
    arch = ARCHS["mel"]
    params, x = weights(arch), noise(arch, key)
    plain = apply(arch, params, x).last
    for name in ("positions", "prepared_positions"):
        monkeypatch.setattr(choice, name, lambda *_: "banded")
    forget()
    try:
        ready, arrays = prepared(arch, params, dtype=dtype)
        assert arrays["position"]["filters"]["bands"].dtype == dtype
        atol = {"float32": 2e-5, "bfloat16": 0.05}[dtype]
        for found in (apply(arch, params, x, dtype=dtype).last, apply(ready, arrays, x, dtype=dtype).last):
            np.testing.assert_allclose(found.astype(jnp.float32), plain, atol=atol)
    finally:
        forget()


@pytest.mark.skipif(not choice.packs(), reason="no compiler")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kernel", "groups", "width", "pads"), [(8, 4, 16, (4, 3)), (7, 2, 10, (6, 0)), (5, 3, 9, (0, 0))]
)
def test_positions_are_the_same_by_a_product_and_by_a_transform(kernel, groups, width, pads, dtype, monkeypatch):
    draw = np.random.default_rng(0)
    weight, bias = draw.normal(size=(kernel, width // groups, width)).astype(np.float32), jnp.arange(width) / width
    x = draw.normal(size=(2, 30, width)).astype(np.float32)
    wanted = gelu(convolve(jnp.pad(x, ((0, 0), pads, (0, 0))), weight, groups=groups) + bias[None, None])
    filters = Filters(jnp.asarray(weight), groups=groups)
    filters.packed = nnx.Param(forms(jnp.asarray(weight), groups=groups, dtype=dtype)["packed"])
    asked = []
    for short in (True, False):
        monkeypatch.setattr(choice, "short", lambda *what, short=short: asked.append(what) or short)
        found = filters(jnp.asarray(x, dtype), bias, pads)
        assert (found.dtype, found.shape) == (dtype, wanted.shape)
        atol = 1e-4 if dtype == "float32" else 0.1
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=atol)
    assert asked == [(wanted.shape[1], jnp.dtype(dtype))] * 2


@pytest.mark.skipif(not choice.packs(), reason="no compiler")
@pytest.mark.parametrize(
    ("frames", "dtype", "product"), [(49, "float32", 1), (249, "float32", 0), (149, "bfloat16", 1)]
)
def test_few_frames_have_their_positions_by_our_kernel(frames, dtype, product):
    arch = replace(ARCHS["mel"], layers=(), project=None, width=10)
    ready, arrays = prepared(arch, weights(arch), dtype=dtype)
    program = str(jax.make_jaxpr(lambda x: apply(ready, arrays, x, dtype=dtype).last)(noise(arch, 0, frames=frames)))
    assert program.count("jaxssl_product") == product


def forget():
    """Let nothing stay that was traced for another device."""
    for cache in (shapes, _outer_shapes, _layer_shapes, _skeleton):
        cache.cache_clear()
    jax.clear_caches()
