"""What stays of a model whatever is pruned: all but its heads and feed-forward units."""

from dataclasses import replace
from functools import lru_cache

import jax.numpy as jnp

from compress.address import flatten, unflatten
from jaxssl.models.arch import Arch, KeyMerging, Layer
from jaxssl.models.model import Params, shapes
from jaxssl.models.part import emptied


@lru_cache(maxsize=4)
def bare_arch(arch: Arch) -> Arch:
    """Return the arch without any head or unit, and so without keys by which frames could merge."""
    return replace(arch, layers=tuple(map(_bare_layer, arch.layers)))


def _bare_layer(layer: Layer) -> Layer:
    empty = layer.changed(emptied)
    return replace(empty, shortening=None) if isinstance(layer.shortening, KeyMerging) else empty


def bare(arch: Arch, params: Params) -> tuple[Arch, Params]:
    """Return the model without any head or unit: what stays whatever is pruned."""
    left, flat = bare_arch(arch), flatten(params)
    arrays = {
        path: flat[path] if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)
        for path, leaf in flatten(shapes(left)).items()
    }
    return left, unflatten(arrays)
