"""The shapes that are timed: a model, what compression makes of it, and models without one of their parts."""

from collections.abc import Callable
from dataclasses import replace

from jaxssl.models.arch import Arch, Layer, PositionalConvolution, Rank
from jaxssl.models.part import emptied, formed

RANK = 128


def compressed(arch: Arch) -> dict[str, Arch]:
    """Return the model and its forms: half the heads, a third of the units, rank 128, half the layers, all of these."""
    first = arch.layers[0]
    heads, units = first.attention.heads // 2, first.ffn.size // 3
    fewer_heads, fewer_units = first.mixer.resized("heads", heads), first.ffn.resized("hidden", units)
    thin = Layer(formed(fewer_heads, Rank(RANK)), formed(fewer_units, Rank(RANK)))
    forms: dict[str, Callable[[Layer], Layer]] = {
        "dense": lambda layer: layer,
        f"{heads} heads": lambda layer: replace(layer, mixer=fewer_heads),
        f"{units} units": lambda layer: replace(layer, ffn=fewer_units),
        f"rank {RANK}": lambda layer: Layer(formed(layer.mixer, Rank(RANK)), formed(layer.ffn, Rank(RANK))),
    }
    found = {name: _each(arch, form) for name, form in forms.items()}
    half = len(arch.layers) // 2
    found[f"{half} layers"] = replace(arch, layers=arch.layers[:half])
    found["all of these"] = replace(arch, layers=(thin,) * half)
    return found


def without(arch: Arch) -> dict[str, Arch]:
    """Return the model without some parts, so that differences of times are the parts' own."""
    return {
        "whole": arch,
        "no attention": _each(arch, lambda layer: replace(layer, mixer=emptied(layer.mixer))),
        "no feed-forward": _each(arch, lambda layer: replace(layer, ffn=emptied(layer.ffn))),
        "no blocks": _each(arch, lambda layer: Layer(emptied(layer.mixer), emptied(layer.ffn))),
        "no layers": replace(arch, layers=()),
        "no layers, no positions": replace(arch, layers=(), position=PositionalConvolution(kernel=1)),
    }


def parts(times: dict[str, float]) -> dict[str, float]:
    """Return the time of each part, from those of `without`'s models."""
    return {
        "front end": times["no layers, no positions"],
        "positions": times["no layers"] - times["no layers, no positions"],
        "attention": times["whole"] - times["no attention"],
        "feed-forward": times["whole"] - times["no feed-forward"],
        "norms": times["no blocks"] - times["no layers"],
    }


def _each(arch: Arch, change: Callable[[Layer], Layer]) -> Arch:
    return replace(arch, layers=tuple(map(change, arch.layers)))
