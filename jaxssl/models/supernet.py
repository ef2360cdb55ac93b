"""Supernets: one model whose subnets are the first part of each of its arrays (LightHuBERT, Wang et al. 2022).

A subnet has the first `width` channels, the first heads and units of each layer that it keeps, and its own depth. In
training it is masked in the supernet's shapes, so that one program serves all subnets, whose sizes are arrays; in
deployment it is cut out, a model like any other. For every subnet both compute the same:

    masked(arch, params, sizes(arch, subnet), x).last[..., :width] == apply(*sliced(arch, params, subnet), x).last

Which parts are taken is LightHuBERT's rule, so that its files give the same subnets: units are a stretch of `width` for
each whole multiple of it, not a prefix; the positional kernel is cut after it was normalised, so that its groups hear
other channels than the supernet's; the last layers of blocks of a third of the depth go first, those of the last block
before those of the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from compress.address import flatten, unflatten
from compress.errors import InputError
from jaxssl.models.arch import Arch, Attention, FeedForward, Layer, PositionalConvolution
from jaxssl.models.checks import checked
from jaxssl.models.keys import Keys
from jaxssl.models.model import Model, Output, Params, check_params, restored
from jaxssl.models.part import FULL
from jaxssl.models.stack import Stack

BLOCKS = 3  # of layers, of which each lends its last ones first

# What each axis of an array counts; None: what all subnets have.
OUTER: Mapping[str, tuple[str | None, ...]] = {
    "project/kernel": (None, "width"),
    "project/bias": ("width",),
    "mask_embedding": ("width",),
    "position/bias": ("width",),
    "norm/scale": ("width",),
    "norm/bias": ("width",),
    "head/project/kernel": ("width", None),
}
LAYER: Mapping[str, tuple[str | None, ...]] = {
    **{f"attention/{name}/kernel": ("width", "heads", None) for name in "qkv"},
    **{f"attention/{name}/bias": ("heads", None) for name in "qkv"},
    "attention/out/kernel": ("heads", None, "width"),
    "attention/out/bias": ("width",),
    "ffn/fc1/kernel": ("width", "units"),
    "ffn/fc1/bias": ("units",),
    "ffn/fc2/kernel": ("units", "width"),
    "ffn/fc2/bias": ("width",),
    **{f"{norm}_norm/{name}": ("width",) for norm in ("attention", "ffn") for name in ("scale", "bias")},
}


@dataclass(frozen=True)
class Subnet:
    """The sizes of a subnet; heads and units are those of each layer kept."""

    width: int
    heads: tuple[int, ...]
    units: tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sizes:
    """A subnet as arrays, in the supernet's layers.

    Attributes:
        width: (), int32.
        heads: of each layer, (layers,) int32; of one that is left out, any.
        units: likewise.
        kept: which layers run, (layers,) bool.
    """

    width: Array
    heads: Array
    units: Array
    kept: Array


def largest(arch: Arch) -> Subnet:
    """Return the subnet that is the whole model."""
    heads = tuple(layer.attention.heads for layer in arch.layers)
    return Subnet(arch.width, heads, tuple(layer.ffn.size for layer in arch.layers))


def layers_kept(count: int, most: int) -> list[int]:
    """Name the layers, from 0, that a subnet of `count` of `most` layers has.

    >>> layers_kept(9, 12)
    [0, 1, 2, 4, 5, 6, 8, 9, 10]
    """
    return sorted(set(range(most)) - set(dropped(most)[: most - count]))


def dropped(most: int) -> list[int]:
    """List the layers that shallower subnets do without, in their order; half of them, at most, go.

    >>> dropped(12)
    [11, 7, 3, 10, 6, 2]
    """
    blocks = [list(map(int, block)) for block in np.array_split(np.arange(most), BLOCKS)]
    last = [block[-1 - turn] for turn in range(-(-most // BLOCKS)) for block in reversed(blocks) if turn < len(block)]
    return last[: most // 2]


def units_kept(units: int, width: int, most: int, widest: int) -> list[int]:
    """Name a subnet's hidden units: the supernet has one stretch of `widest` for each multiple of its width.

    >>> units_kept(6, 4, 16, 8)
    [0, 1, 2, 3, 8, 9]
    """
    stretches = [range(i * widest, i * widest + min(width, units - i * width)) for i in range(-(-units // width))]
    return list(range(most)) if units == most else [unit for stretch in stretches for unit in stretch]


def groups_of(arch: Arch) -> int:
    """Return the groups of the positional convolution, of which a subnet's width is a multiple.

    Raises:
        InputError: positions are others.
    """
    if not isinstance(arch.position, PositionalConvolution):
        raise InputError(f"positions of kind {arch.position.kind}: subnets need those of HuBERT (convolution)")
    return arch.position.groups


def check_supernet(arch: Arch) -> None:
    """Refuse models that have no such subnets.

    Raises:
        InputError: the message says which part has none.
    """
    groups_of(arch)
    int8 = any(each.int8 for each in arch.front.convolutions())
    odd = (arch.shortens, arch.upsampling, arch.relative, arch.length_adapter, arch.prepared, int8)
    if any(odd) or arch.project != FULL or not arch.layers:
        raise InputError(
            "subnets need a float32 front end, a dense projection and layers of plain attention that hear all frames; "
            "use another model"
        )
    for i, layer in enumerate(arch.layers):
        plain = isinstance(layer.mixer, Attention) and not layer.mixer.reuse and isinstance(layer.ffn, FeedForward)
        forms = [spec.form for block in layer.blocks for spec in block.maps(arch.width)]
        more = layer.adapter or layer.conformer or layer.ffn.activation != "gelu"
        if not plain or more or any(form != FULL for form in forms):
            raise InputError(
                f"layers/{i}: subnets need plain attention and a feed-forward block of dense float32 maps; unpack or "
                "dequantize the model, or use another"
            )
        if layer.ffn.size < 1 or layer.attention.heads < 1:
            raise InputError(f"layers/{i}: nothing is left of a block, so it has no subnets; use the model before")


def check_subnet(arch: Arch, subnet: Subnet) -> None:
    """Refuse a subnet that the supernet does not have.

    Raises:
        InputError: the message has both sizes.
    """
    most, depth, groups = largest(arch), len(subnet.heads), groups_of(arch)
    least = len(most.heads) - len(dropped(len(most.heads)))
    if len(subnet.units) != depth:
        raise InputError(f"heads of {depth} layers and units of {len(subnet.units)}; a subnet has both in each layer")
    if not least <= depth <= len(most.heads):
        raise InputError(f"{depth} layers: subnets of this supernet have {least} to {len(most.heads)}")
    if not 1 <= subnet.width <= most.width or subnet.width % groups:
        raise InputError(f"width {subnet.width}: this supernet has multiples of {groups} up to {most.width}")
    kept = layers_kept(depth, len(most.heads))
    heads, units = [most.heads[i] for i in kept], [most.units[i] * subnet.width // most.width for i in kept]
    for what, each, limits in (("heads", subnet.heads, heads), ("units", subnet.units, units)):
        for i, (number, limit) in enumerate(zip(each, limits, strict=True)):
            if not 1 <= number <= limit:
                raise InputError(f"{number} {what} in layer {i}: at width {subnet.width} 1 to {limit} are there")


def sliced(arch: Arch, params: Params, subnet: Subnet) -> tuple[Arch, Params]:
    """Cut a subnet out of a supernet.

    Raises:
        InputError: it has none, or no such one.
    """
    check_supernet(arch)
    check_subnet(arch, subnet)
    width, found = np.arange(subnet.width), dict[str, Any]()
    places = {old: new for new, old in enumerate(layers_kept(len(subnet.heads), len(arch.layers)))}
    for path, leaf in flatten(params).items():
        room, _, rest = path.partition("/")
        if room != "layers":
            found[path] = _taken(leaf, OUTER.get(path), {"width": width})
            continue
        old, _, name = rest.partition("/")
        if (new := places.get(int(old))) is not None:
            ffn = arch.layers[int(old)].ffn.size
            units = np.array(units_kept(subnet.units[new], subnet.width, ffn, arch.width))
            known = {"width": width, "heads": np.arange(subnet.heads[new]), "units": units}
            found[f"layers/{new}/{name}"] = _taken(leaf, LAYER.get(name), known)
    kernel: np.ndarray = np.asarray(params["position"]["kernel"])
    part = kernel[:, : subnet.width // groups_of(arch), : subnet.width]
    norms = [np.sqrt(np.square(each, dtype=np.float64).sum((1, 2))) for each in (part, kernel)]
    gain = np.asarray(params["position"]["gain"]) * (norms[0] / norms[1])
    found |= {"position/kernel": jnp.asarray(part), "position/gain": jnp.asarray(gain, jnp.float32)}
    layers = tuple(_layer(arch.layers[old], subnet.heads[new], subnet.units[new]) for old, new in places.items())
    return replace(arch, width=subnet.width, layers=layers), unflatten(found)


def sizes(arch: Arch, subnet: Subnet) -> Sizes:
    """Return a subnet as arrays, for `masked`."""
    kept = layers_kept(len(subnet.heads), len(arch.layers))
    most = largest(arch)
    heads, units = np.array(most.heads, np.int32), np.array(most.units, np.int32)
    heads[kept], units[kept] = subnet.heads, subnet.units
    runs = np.isin(np.arange(len(arch.layers)), kept)
    return Sizes(np.asarray(subnet.width, np.int32), heads, units, runs)  # type: ignore[arg-type]


def stacked(each: Sequence[Sizes]) -> Sizes:
    """Stack the sizes of several subnets, each array with an axis more, the first."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *each)


def masked(
    arch: Arch,
    params: Params,
    subnet: Sizes,
    inputs: Array,
    lengths: Array | None = None,
    *,
    mask: Array | None = None,
    key: Array | None = None,
    dtype: Any = jnp.float32,
    stack: Stack = "unroll",
) -> Output:
    """Run a subnet in the supernet's shapes: one program for all subnets.

    Layers that are left out return their input, and channels that are left out are 0. Other arguments are as of
    `jaxssl.models.model.apply`. Gradients are those of the subnet, 0 for what it does not have; but of the positional
    kernel all has some, for it is divided by its whole norm.
    """
    check_supernet(arch)
    check_params(arch, params)
    model = restored(arch, _masked_params(arch, params, subnet))
    _narrow(model, jnp.arange(arch.width) < subnet.width, subnet.kept)
    return model(
        checked(arch, inputs),
        None if lengths is None else jnp.asarray(lengths),
        mask=mask,
        rngs=None if key is None else Keys(key),
        dtype=jnp.dtype(dtype),
        stack=stack,
    )


def _narrow(model: Model, channels: Array, kept: Array) -> None:
    """Let a model's norms and positions hear the first channels alone, (width,), and leave out layers, (layers,)."""
    for part in (model.norm, model.position):
        part.channels = nnx.Intermediate(channels)
    for i, layer in enumerate(model.layers):
        for norm in (layer.attention_norm, layer.ffn_norm):
            norm.channels = nnx.Intermediate(channels)
        layer.kept = nnx.Intermediate(kept[i])


def _masked_params(arch: Arch, params: Params, subnet: Sizes) -> Params:
    """Zero what a subnet does not have, but of the positional kernel, whose groups are others."""
    width, found = jnp.arange(arch.width) < subnet.width, dict[str, Any]()
    for path, leaf in flatten(params).items():
        room, _, rest = path.partition("/")
        index, _, name = rest.partition("/")
        axes, known = OUTER.get(path), {"width": width}
        if room == "layers":
            layer, i = arch.layers[int(index)], int(index)
            stretch, place = map(jnp.asarray, np.divmod(np.arange(layer.ffn.size), arch.width))
            units = stretch * subnet.width + place < subnet.units[i]
            units &= place < subnet.width
            heads = jnp.arange(layer.attention.heads) < subnet.heads[i]
            axes, known = LAYER.get(name), {"width": width, "heads": heads, "units": units}
        for at, axis in enumerate(axes or ()):
            if axis:
                kept = known[axis].reshape([-1 if other == at else 1 for other in range(leaf.ndim)])
                leaf = jnp.where(kept, leaf, jnp.zeros_like(leaf))
        found[path] = leaf
    return unflatten(found)


def _taken(leaf: Any, axes: tuple[str | None, ...] | None, known: Mapping[str, np.ndarray]) -> Any:
    found = np.asarray(leaf)
    for at, axis in enumerate(axes or ()):
        found = found if axis is None else np.take(found, known[axis], axis=at)
    return jax.device_put(found)


def _layer(layer: Layer, heads: int, units: int) -> Layer:
    return replace(layer, mixer=layer.mixer.resized("heads", heads), ffn=layer.ffn.resized("hidden", units))
