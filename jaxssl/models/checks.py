"""What no model can be, and what no model can be given."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.address import flatten
from compress.errors import InputError
from jaxssl.models.arch import Arch, IntegrateAndFire, KeyMerging, Layer
from jaxssl.models.part import Blocks, check_counts


def check_arch(arch: Arch) -> None:
    """Refuse an impossible arch: what its parts refuse, and what does not fit together.

    Raises:
        InputError: groups do not divide the width, a size is negative, features without a projection are of another
            width, a layer is both int8 and packed, or takes attention maps or relative positions that are not there.
    """
    check_counts("the model", width=arch.width)
    arch.front.check()
    arch.position.check(arch.width)
    if arch.head is not None:
        arch.head.check()
    for name, share in dataclasses.asdict(arch.dropout).items():
        if not 0 <= share <= 1:
            raise InputError(f"dropout/{name} is {share}; a probability is from 0 to 1")
    if arch.project is None and arch.front.size != arch.width:
        have = f"features {arch.front.size} wide, width {arch.width}"
        raise InputError(f"there is no projection, with {have}; give both one width, or project")
    if arch.time_reduction < 1:
        raise InputError(f"time_reduction {arch.time_reduction} is no number of frames; use 1 or more")
    if arch.shortening is not None:
        arch.shortening.check("shortening")
    if arch.upsampling is not None:
        arch.upsampling.check(arch.grouped if arch.regular else None)
    elif not arch.regular:
        which = next(part for part in arch.rates if not part.regular)
        what = "what fires has" if isinstance(which, IntegrateAndFire) else "frames that merge have"
        raise InputError(f"{what} no fixed number of frames a second; give the arch an upsampling, Repeat()")
    if (count := sum(isinstance(part, IntegrateAndFire) for part in arch.rates)) > 1:
        raise InputError(f"frames fire in {count} places, and what fired is counted once; keep one of them")
    if arch.length_adapter is not None:
        arch.length_adapter.check()
    if arch.relative is not None:
        arch.relative.check(arch.width, [layer.mixer for layer in arch.layers])
    for i, layer in enumerate(arch.layers):
        layer.mixer.check(f"layers/{i}", arch.layers[i - 1].mixer if i else arch.relative)
        layer.ffn.check(f"layers/{i}")
        for block in (layer.macaron, layer.convolution):
            if block is not None:
                block.check(f"layers/{i}")
        if layer.conformer and not arch.norm_first:
            raise InputError(f"layers/{i}: a Conformer's blocks have their norms before them; set norm_first")
        if layer.adapter:
            layer.adapter.check(f"layers/{i}")
        if layer.shortening:
            _check_shortening(layer, i)
        _check_one_dtype(layer, f"layers/{i}")


def _check_shortening(layer: Layer, index: int) -> None:
    where = f"layers/{index}"
    assert layer.shortening is not None
    layer.shortening.check(where)
    if layer.mixer.carries and layer.heads:
        raise InputError(f"{where}: it reuses attention maps of longer sequences; let the layer that has them shorten")
    if isinstance(layer.shortening, KeyMerging) and not layer.heads:
        raise InputError(f"{where}: frames merge by its keys, and it has no heads that have some; name another layer")


def _check_one_dtype(layer: Layer, where: str) -> None:
    """Refuse a layer whose maps are in part int8: all of them are, or none."""
    found = [(spec.name, spec.form) for block in layer.blocks for spec in block.maps(1)]
    int8 = [name for name, form in found if form.int8]
    packed = [name for name, form in found if isinstance(form, Blocks)]
    if int8 and packed:
        raise InputError(f"{where}: int8, with {len(packed)} maps packed ({packed[0]}); choose one of both")
    if int8 and len(int8) < len(found):
        raise InputError(
            f"{where}: {len(int8)} of its {len(found)} maps are int8 ({int8[0]}); quantise all of a layer's maps, or "
            "dequantize these (compress.quantize)"
        )


def check_pieces(arch: Arch, given: Mapping[str, Any]) -> None:
    """Refuse an arch of more pieces than there are arrays, before anything is made of each.

    Raises:
        InputError: layers, convolutions and what else is numbered are more than `given` holds, or fewer layers.
    """
    found = len(given.get("layers", {}))
    if len(arch.layers) != found:
        raise InputError(f"the arch has {len(arch.layers)} layers, the parameters have {found}")
    behind = 0 if arch.length_adapter is None else arch.length_adapter.layers
    claimed, arrays = arch.front.pieces + arch.position.pieces + behind, len(flatten(given))
    if claimed > arrays:
        raise InputError(
            f"the arch has {claimed} convolutions, the parameters {arrays} arrays; one has more than these"
        )


def check_finite(given: Mapping[str, Any], where: str) -> None:
    """Refuse weights that are no numbers; `where` says whose they are.

    Raises:
        InputError: at the first array that holds NaN or infinities.
    """
    for path, leaf in flatten(given).items():
        array = np.asarray(leaf)
        if array.dtype != np.int8 and (bad := array.size - int(np.count_nonzero(np.isfinite(array)))):
            raise InputError(
                f"{where}: {path}: {bad} of {array.size} weights are NaN or infinite; train or convert it again"
            )


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
    arch.front.check_inputs(inputs, arch.least)
    return inputs
