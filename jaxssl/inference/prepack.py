"""Weights in the form that a forward pass on this device takes fastest, made once when a model is loaded.

apply(*prepared(arch, params, dtype=dtype), x, dtype=dtype) == apply(arch, params, x, dtype=dtype) but for rounding.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from compress.address import get, put
from jaxssl.models import choice
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params
from jaxssl.models.packed import packed_map
from jaxssl.models.sites import matrices

DTYPES = ("float32", "bfloat16")  # that weights are packed for
ROUNDED = ("kernel", "down", "up")  # what a forward pass rounds to its own dtype; norms and biases stay as they are


def prepared(arch: Arch, params: Params, *, dtype: Any = jnp.float32) -> tuple[Arch, Params]:
    """Return a model for running in `dtype` only: it is not to be trained, compressed, exported or saved any more.

    Kernels of convolutions and weights of dense maps take the form that `jaxssl.models.choice` says for this device:
    packed for our own kernels, where these run; else the positional kernel is transformed, and weights are rounded to
    `dtype` now instead of on every run. "auto" is the quicker dtype here (`choice.quickest`).
    """
    dtype = choice.resolved(dtype)
    unpackable = choice.packs() and dtype.name not in DTYPES
    if arch.prepared or choice.prepared_positions() is None or unpackable:
        return arch, params
    return replace(arch, prepared=True), _prepared(arch, params, dtype)


def _prepared(arch: Arch, params: Params, dtype: jnp.dtype) -> Params:
    """Prepare the parts that have a form for it, then round what is left."""
    ready = dict(params)
    if "front" in params:
        ready["front"] = arch.front.prepare(params["front"], dtype)
    if "position" in params:
        ready["position"] = arch.position.prepare(params["position"], dtype)
    for matrix in matrices(arch):
        ready = put(ready, matrix.path, packed_map(get(params, matrix.path), matrix, dtype))
    return ready if dtype == jnp.float32 else _rounded(ready, dtype=dtype)


@partial(jax.jit, static_argnames="dtype")  # one program, where that of every array would be compiled
def _rounded(params: Params, *, dtype: jnp.dtype) -> Params:
    """Round float32 weights to `dtype`."""

    def each(path: Any, leaf: jax.Array) -> jax.Array:
        weight = path[-1].key in ROUNDED and leaf.dtype == jnp.float32
        return leaf.astype(dtype) if weight else leaf

    return jax.tree_util.tree_map_with_path(each, params)
