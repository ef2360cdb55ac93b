"""What a model is, read off its arrays: the inverse of `init` on shapes.

For every arch, `describe(arch, init(arch, key)) == arch`.
"""

from collections.abc import Mapping
from dataclasses import replace

from compress.errors import InputError
from jaxssl.models.arch import Arch, Layer, LogMel, Packed, Ranks, Waveform
from jaxssl.models.model import Params, check_params


def describe(base: Arch, params: Params) -> Arch:
    """Read the arch back off the arrays' names and shapes; what these cannot tell (strides, dropout) comes from `base`.

    Raises:
        InputError: the arrays' names or shapes fit no model, or some of a layer's maps are int8 and others not.
    """
    try:
        count = len(params.get("layers", {}))
        arch = replace(
            base,
            front=_front(base.front, params),
            width=params["norm"]["scale"].shape[0],
            layers=tuple(_describe_layer(params["layers"][str(i)], f"layers/{i}") for i in range(count)),
            mask_embedding="mask_embedding" in params,
            project_rank=_rank(params.get("project", {})),
            head=base.head if "head" in params else None,
            project="project" in params,
            time_reduction=params["reduction"]["kernel"].shape[0] if "reduction" in params else 1,
            prepared="filters" in params["position"],
        )
    except (KeyError, IndexError) as error:
        raise InputError(f"these arrays are no model of ours: {error} is missing") from error
    check_params(arch, params)
    return arch


def _front(base: Waveform | LogMel, params: Params) -> Waveform | LogMel:
    if not isinstance(base, Waveform):
        return base
    kernels = [params["front"]["convs"][str(i)]["conv"]["kernel"] for i in range(len(base.convs))]
    convs = [replace(conv, channels=kernel.shape[2]) for conv, kernel in zip(base.convs, kernels, strict=True)]
    return replace(base, convs=tuple(convs), feature_norm="norm" in params["front"])


def _rank(dense: Params) -> int | None:
    return dense["up"].shape[0] if "up" in dense else None


def _blocks(dense: Params) -> tuple[int, int] | None:
    return (dense["blocks"].shape[2], dense["blocks"].shape[1]) if "blocks" in dense else None


def _int8(maps: Mapping[str, Params], where: str) -> bool:
    """Tell whether a layer's maps are int8, all or none."""
    found = [name for name, dense in maps.items() if "kernel_scale" in dense or "down_scale" in dense]
    if found and len(found) < len(maps):
        raise InputError(
            f"{where}: {len(found)} of its {len(maps)} maps are int8 ({found[0]}); quantise all of a layer's maps, or "
            "dequantize these (compress.quantize)"
        )
    return bool(found)


def _describe_layer(params: Params, where: str) -> Layer:
    attention, ffn = params["attention"], params["ffn"]
    maps = dict((*attention.items(), *ffn.items()))
    return Layer(
        heads=attention["v"]["bias"].shape[0],
        ffn=ffn["fc1"]["bias"].shape[0],
        ranks=Ranks(**{name: _rank(dense) for name, dense in maps.items()}),
        packed=Packed(**{name: _blocks(dense) for name, dense in maps.items()}),
        reuse="q" not in attention,
        int8=_int8(maps, where),
    )
