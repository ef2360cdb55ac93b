"""What no model can be, and what no model can be given."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from compress.address import flatten
from compress.errors import InputError
from jaxssl.models.arch import Arch, Waveform


def check_arch(arch: Arch) -> None:
    """Refuse an impossible arch.

    Raises:
        InputError: groups do not divide the width, a size is negative, features without a projection are of another
            width, a layer is both int8 and packed, or reuses attention maps that are not there.
    """
    if arch.width % arch.position_groups:
        raise InputError(f"width {arch.width} is not a multiple of the positional groups {arch.position_groups}")
    if not arch.project and (arch.front.size != arch.width or arch.project_rank is not None):
        have = f"features {arch.front.size} wide, width {arch.width}, project_rank {arch.project_rank}"
        raise InputError(f"project is false, with {have}; give both one width and no rank, or project")
    if arch.time_reduction < 1:
        raise InputError(f"time_reduction {arch.time_reduction} is no number of frames; use 1 or more")
    for i, layer in enumerate(arch.layers):
        if min(layer.heads, layer.ffn) < 0:
            raise InputError(f"layers/{i}: {layer.heads} heads and {layer.ffn} FFN units; neither may be negative")
        if layer.int8 and (packed := [name for name, blocks in vars(layer.packed).items() if blocks is not None]):
            raise InputError(f"layers/{i}: int8, with {len(packed)} maps packed ({packed[0]}); choose one of both")
        if layer.reuse:
            _check_reuse(arch, i)


def check_arrays(expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Compare a tree of arrays with the tree of shapes that it should have.

    Floats may be of any kind, but weights are int8 exactly where they should be: without scales, or with scales for
    what is no integer, they would be other weights.

    Raises:
        InputError: at the first path, in the order of `expected`, whose presence, shape or being int8 is another.
    """
    wanted, found = flatten(expected), flatten(given)
    for path, leaf in wanted.items():
        if path not in found:
            raise InputError(f"{path}: the arch wants shape {leaf.shape}, the parameters have no such array")
        if tuple(found[path].shape) != tuple(leaf.shape):
            raise InputError(f"{path}: the arch wants shape {leaf.shape}, the parameters have {found[path].shape}")
        if (found[path].dtype == jnp.int8) != (leaf.dtype == jnp.int8):
            raise InputError(f"{path}: the arch wants {leaf.dtype}, the parameters have {found[path].dtype}")
    if extra := sorted(found.keys() - wanted.keys()):
        raise InputError(f"{extra[0]}: the parameters have it, the arch does not ({len(extra)} such arrays)")


def checked(arch: Arch, inputs: Array) -> Array:
    """Return a model's inputs as an array.

    Raises:
        InputError: they are of another form, or too short for one frame.
    """
    inputs = jnp.asarray(inputs)
    if isinstance(arch.front, Waveform):
        if inputs.ndim != 2:
            raise InputError(f"a waveform model takes (batch, samples), not an array of shape {inputs.shape}")
        if arch.frames(inputs.shape[1]) < 1:
            raise InputError(f"{inputs.shape[1]} samples are too few for one frame; pad them")
    elif inputs.ndim != 3 or inputs.shape[2] != arch.front.size:
        raise InputError(f"a log-Mel model takes (batch, frames, {arch.front.size}), not an array of {inputs.shape}")
    elif inputs.shape[1] < arch.time_reduction:
        raise InputError(f"{inputs.shape[1]} frames are too few to make one of {arch.time_reduction}; pad them")
    return inputs


def _check_reuse(arch: Arch, index: int) -> None:
    layer = arch.layers[index]
    if index == 0:
        raise InputError("layers/0: reuses attention maps, and no layer is before it; keep the layer that makes them")
    if layer.heads != arch.layers[index - 1].heads:
        heads = f"{layer.heads} heads reuse the maps of {arch.layers[index - 1].heads} in layers/{index - 1}"
        raise InputError(f"layers/{index}: {heads}; cut both layers' heads together")
    if any(getattr(given, name) is not None for given in (layer.ranks, layer.packed) for name in ("q", "k")):
        raise InputError(f"layers/{index}: reuses attention maps, so it has no q and k to factorise or pack")
