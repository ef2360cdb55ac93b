"""Prepared models compute what they were made from, and say what they are."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.quantize import bfloat16
from jaxssl.models.arch import from_json, to_json
from jaxssl.models.describe import describe
from jaxssl.models.model import apply, init
from jaxssl.prepare import prepared
from tests.archs import ARCHS, noise


@pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS.keys())
def test_the_function_stays(arch, key):
    params, x = init(arch, key), noise(arch, key)
    params["position"]["gain"] = params["position"]["gain"] * 1.5
    ready, arrays = prepared(arch, params)
    assert ready == replace(arch, prepared=True)
    assert "kernel" not in arrays["position"]
    for one, two in zip(apply(arch, params, x).hidden, apply(ready, arrays, x).hidden, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)
    assert prepared(ready, arrays)[1] is arrays  # once is enough


def test_weights_in_bfloat16_are_the_numbers_they_are(key):
    arch = ARCHS["base"]
    params, x = bfloat16(init(arch, key)), noise(arch, key)
    ready, arrays = prepared(arch, params)
    np.testing.assert_allclose(apply(arch, params, x).last, apply(ready, arrays, x).last, atol=2e-5)


def test_it_is_an_arch_like_others(key):
    arch = replace(ARCHS["mel"], prepared=True)
    params = init(arch, key)
    assert describe(arch, params) == arch == from_json(to_json(arch))
    assert describe(replace(arch, prepared=False), params) == arch


def test_other_devices_keep_the_kernel(key, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    params = init(ARCHS["mel"], key)
    assert prepared(ARCHS["mel"], params) == (ARCHS["mel"], params)
