"""What a model is, read off its arrays: the inverse of `init` on shapes.

For every arch, `describe(arch, init(arch, key)) == arch`.
"""

from dataclasses import replace
from typing import Any

from compress.errors import InputError
from jaxssl.models.arch import (
    Adapter,
    Arch,
    Attention,
    ConvolutionModule,
    FeedForward,
    GatedAttention,
    Inner,
    IntegrateAndFire,
    KeyMerging,
    Layer,
    LengthAdapter,
    Macaron,
    Mamba,
    Mamba2,
    NoFeedForward,
    RelativeBias,
    Shortening,
    StridedConvolution,
    SummaryMixing,
    TransposedConvolution,
    Upsampling,
)
from jaxssl.models.model import Params, check_params
from jaxssl.models.part import form_of

# What a layer is read as where the base has none like it.
PLAIN = tuple(
    Layer(mixer, FeedForward(0))
    for mixer in (Attention(0, 0), GatedAttention((), 0), SummaryMixing(1, 0, 0), Mamba(0), Mamba2(0))
)
MORE: dict[str, Any] = {part.place: part for part in (Macaron(0), ConvolutionModule(0))}


def describe(base: Arch, params: Params) -> Arch:
    """Read the arch back off the arrays' names and shapes; what these cannot tell (strides, dropout) comes from `base`.

    Of a prepared model, whose arrays tell little, that is all: it was described before.

    Raises:
        InputError: the arrays' names or shapes fit no model, or some of a layer's maps are int8 and others not.
    """
    if base.prepared:
        check_params(base, params)
        return base
    try:
        position = params.get("position", {})
        arch = replace(
            base,
            front=base.front.read(params.get("front", {})),
            width=params["norm"]["scale"].shape[0],
            layers=_layers(base, params.get("layers", {})),
            position=base.position.read(position),
            mask_embedding="mask_embedding" in params,
            project=form_of(params["project"]) if "project" in params else None,
            head=base.head if "head" in params else None,
            time_reduction=params["reduction"]["kernel"].shape[0] if "reduction" in params else 1,
            relative=(base.relative or RelativeBias(0)).read(params["relative"]) if "relative" in params else None,
            length_adapter=_length_adapter(base, params),
            shortening=_outer(base, params),
            upsampling=_upsampling(base, params),
        )
    except (KeyError, IndexError) as error:
        raise InputError(f"these arrays are no model of ours: {error} is missing") from error
    check_params(arch, params)
    return arch


def _length_adapter(base: Arch, params: Params) -> LengthAdapter | None:
    part = base.length_adapter or LengthAdapter(0)
    return part.read(params["length_adapter"]) if "length_adapter" in params else None


def _outer(base: Arch, arrays: Params) -> Shortening | None:
    """Read what makes the features a shorter sequence."""
    found = _shortening(base.shortening, base.firing, arrays)
    assert not isinstance(found, KeyMerging)  # which the front end has no keys for
    return found


def _shortening(base: Inner | None, fires: IntegrateAndFire | None, arrays: Params) -> Inner | None:
    """Read what fires, groups or merges frames; a mean has no arrays, and is what the base says.

    Frames fire in one place alone. Where that is the arrays tell, and how often `fires` does, of wherever the base has
    it.
    """
    mine = arrays.get("shortening", {})
    if IntegrateAndFire.fits(mine):
        return (fires or IntegrateAndFire()).read(mine)
    part = None if isinstance(base, IntegrateAndFire) else base
    part = part or (StridedConvolution(1) if "shortening" in arrays else None)
    return part and part.read(mine)


def _upsampling(base: Arch, params: Params) -> Upsampling | None:
    part = base.upsampling or (TransposedConvolution(1) if "upsampling" in params else None)
    return part and part.read(params.get("upsampling", {}))


def _layers(base: Arch, params: Params) -> tuple[Layer, ...]:
    each = ((_alike(base, i, params[str(i)]), params[str(i)]) for i in range(len(params)))
    return tuple(_layer(layer, base.firing, arrays) for layer, arrays in each)


def _there(base: Arch, index: int) -> Inner | None:
    """Return what shortens before a layer of that number: it stays there when layers below it go."""
    return base.layers[index].shortening if index < len(base.layers) else None


def _alike(base: Arch, index: int, arrays: Params) -> Layer:
    """Choose what a layer is read as: the base's layer there, or the first whose mixer has such arrays."""
    there = base.layers[index : index + 1]
    found = next((layer for layer in (*there, *base.layers, *PLAIN) if layer.mixer.fits(arrays)), PLAIN[0])
    return replace(found, shortening=_there(base, index))


def _layer(base: Layer, fires: IntegrateAndFire | None, arrays: Params) -> Layer:
    adapter = Adapter(0).read(arrays[Adapter.place]) if Adapter.place in arrays else None
    mixer, shortening = base.mixer.read(arrays[base.mixer.place]), _shortening(base.shortening, fires, arrays)
    more: dict[str, Any] = {
        name: (getattr(base, name) or part).read(arrays[name]) for name, part in MORE.items() if name in arrays
    }
    if "ffn" not in arrays:
        return Layer(mixer, NoFeedForward(), adapter, shortening, **more)
    base_ffn = base.ffn if isinstance(base.ffn, FeedForward) else FeedForward(0)
    return Layer(mixer, base_ffn.read(arrays["ffn"]), adapter, shortening, **more)
