"""What an adapter keeps out of, since it is no part of what is compressed."""

from dataclasses import replace

import pytest

from compress.errors import InputError
from jaxssl.models.arch import Adapter
from jaxssl.models.sites import axes, matrices
from tests.archs import ARCHS, LARGE

ADAPTED = replace(LARGE, layers=tuple(replace(layer, adapter=Adapter(3)) for layer in LARGE.layers), head=None)


def test_its_maps_are_no_sites():
    assert matrices(ADAPTED) == matrices(LARGE)
    assert axes(ADAPTED) == axes(LARGE)
    assert any(layer.adapter for arch in ARCHS.values() for layer in arch.layers), "no law is tried on one"


def test_one_without_units_is_refused():
    with pytest.raises(InputError, match="layers/1: an adapter of 0 units"):
        Adapter(0).check("layers/1")
