"""A trained model on shorter sequences: what it computes at first is its layers' output for means of frames."""

from collections.abc import Mapping
from dataclasses import replace

from compress.errors import InputError
from jaxssl.models.arch import Arch, Inner, Repeat, Shortening, TransposedConvolution
from jaxssl.models.checks import check_arch
from jaxssl.models.model import Params


def shortened(
    arch: Arch,
    params: Params,
    front: Shortening | None,
    layers: Mapping[int, Inner],
    *,
    learned: bool = False,
) -> tuple[Arch, Params]:
    """Let a model hear shorter sequences and bring its output back to the frames it had.

    What has arrays begins as a mean, or as a repetition, so a model that is trained on goes on from one function; what
    fires begins with equal weights, which are means too.

    Args:
        arch: what `params` is; what it shortens already stays.
        params: the model.
        front: what makes the front end's features fewer; None: as it is.
        layers: by number, what makes a layer's input fewer, for it and all that follow.
        learned: upsample by a transposed convolution; False: by repetition.

    Returns:
        The arch, and its parameters.

    Raises:
        InputError: a layer cannot work on fewer frames, a ratio is out of range, or the output has fewer frames than
            the front end already, or gets them back by a learned map.
    """
    if arch.joined > 1:
        raise InputError(
            f"the output has one frame for {arch.joined} of the front end, which upsampling would change; shorten a "
            "model that keeps its frames"
        )
    if isinstance(arch.upsampling, TransposedConvolution):
        raise InputError(
            f"the output gets its frames back by a learned map for groups of {arch.upsampling.ratio}, which would be "
            "lost; shorten the model that it was made from, by all ratios"
        )
    changed = tuple(replace(layer, shortening=layers.get(i, layer.shortening)) for i, layer in enumerate(arch.layers))
    arch = replace(arch, shortening=front or arch.shortening, layers=changed, upsampling=Repeat())
    arch = replace(arch, upsampling=TransposedConvolution(arch.grouped)) if learned else arch
    check_arch(arch)
    found = {name: value for name, value in params.items() if name != "upsampling"}
    if front and (started := front.started(arch.front.size)):
        found["shortening"] = started
    inner = dict(params["layers"])
    for i, part in layers.items():
        plain = {name: value for name, value in inner[str(i)].items() if name != "shortening"}
        inner[str(i)] = plain | ({"shortening": started} if (started := part.started(arch.width)) else {})
    assert arch.upsampling is not None
    started = arch.upsampling.started(arch.width)
    return arch, {**found, "layers": inner, **({"upsampling": started} if started else {})}
