"""Another token mixer in place of attention, with as many parameters, so that models can be compared."""

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import jax

from compress.errors import InputError
from jaxssl.models.arch import Arch, Attention, Layer, Mamba, Mamba2, Mixer, SummaryMixing
from jaxssl.models.cost import parameters
from jaxssl.models.model import Params, init

Kind = Literal["attention", "summary_mixing", "mamba", "mamba2"]
STEP = 8  # units come in eights, which processors like


def exchanged(arch: Arch, kind: Kind, layers: Collection[int] | None = None) -> Arch:
    """Put another mixer in place of attention, of the size that changes the parameters least.

    SummaryMixing is the full one with one head, all of whose sizes are equal (arXiv 2307.07421). Mamba scans both ways
    inside (Vim v2, arXiv 2401.09417), with 16 numbers of state and steps made from a sixteenth of the width, as
    published for Mamba-1 (arXiv 2312.00752). Mamba-2, both ways inside too, is not of a size but of the attention's
    shape, a group of one head for each of its heads, so that it may begin with its maps (`models.inherited`): seven
    maps of them for four.

    Args:
        arch: a model whose layers have plain attention.
        kind: of the mixer; attention is what is there.
        layers: that get it, from 0; None: all.

    Raises:
        InputError: one of the layers is not there, mixes frames in another way already, shares attention maps with its
            neighbour, or has no head that Mamba-2 could have a group for.
    """
    depth = len(arch.layers)
    chosen = range(depth) if layers is None else sorted(set(layers))
    if absent := [i for i in chosen if not 0 <= i < depth]:
        raise InputError(f"layer {absent[0]} is not there; the model has 0 to {depth - 1}")
    for i in chosen:
        if not isinstance(mixer := arch.layers[i].mixer, Attention):
            raise InputError(f"layer {i} mixes frames by {mixer.kind}; name layers of attention")
        if mixer.reuse:
            raise InputError(
                f"layer {i} takes the attention maps of the layer below; name layers with maps of their own"
            )
        if i + 1 < depth and arch.layers[i + 1].mixer.carries:
            raise InputError(f"layer {i} lends its attention maps to the layer above; name layers that lend none")
        if kind == "mamba2" and mixer.empty:
            raise InputError(f"layer {i} has 0 attention heads, and Mamba-2 a group for each; name layers with heads")
    if kind == "attention":
        return arch
    others = {layer: _exchanged(arch, layer, kind) for layer in {arch.layers[i] for i in chosen}}
    return replace(arch, layers=tuple(others[each] if i in chosen else each for i, each in enumerate(arch.layers)))


def with_new_mixers(arch: Arch, params: Params, other: Arch, layers: Collection[int], *, seed: int) -> Params:
    """Give a trained model the mixers of another arch, with new weights; all else, norms too, stays as it is.

    Args:
        arch: what `params` is.
        params: the trained model.
        other: the same but for the mixers of `layers`, which may be the same mixers as well.
        layers: that get new weights, from 0.
        seed: of the weights.
    """
    fresh, inner = init(other, jax.random.key(seed))["layers"], dict(params["layers"])
    for i in layers:
        old, new = arch.layers[i].mixer.place, other.layers[i].mixer.place
        kept = {name: value for name, value in inner[str(i)].items() if name not in (old, f"{old}_norm")}
        norm = {f"{new}_norm": inner[str(i)][f"{old}_norm"]}
        inner[str(i)] = {**kept, **norm, new: fresh[str(i)][new]}
    return {**params, "layers": inner}


def _exchanged(arch: Arch, layer: Layer, kind: Kind) -> Layer:
    """Find the size whose layer has the number of parameters nearest to that of the layer that is given."""
    if kind == "mamba2":
        return replace(layer, mixer=dual(layer.mixer))

    def sized(size: int) -> Layer:
        return replace(layer, mixer=_mixer(kind, size, arch.width))

    def count(layer: Layer) -> int:
        return parameters(replace(arch, layers=(layer,)))

    sizes, wanted = range(STEP, 8 * arch.width, STEP), count(layer)
    after = bisect_left(sizes, wanted, key=lambda size: count(sized(size)))
    beside = sizes[max(after - 1, 0) : after + 1]
    return min(map(sized, beside), key=lambda found: abs(count(found) - wanted))


def dual(mixer: Mixer) -> Mamba2:
    """Return the Mamba-2 that has a group of one head for each head of attention, and its size as state."""
    assert isinstance(mixer, Attention)
    return Mamba2(1, mixer.head_dim, mixer.head_dim, groups=mixer.heads, directions="inner")


def _mixer(kind: Kind, size: int, width: int) -> SummaryMixing | Mamba:
    if kind == "summary_mixing":
        return SummaryMixing(1, size, size, size, size)
    return Mamba(size, rank=max(width // 16, 1), directions="inner")
