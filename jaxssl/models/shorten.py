"""A trained model on shorter sequences: what it computes at first is its layers' output for means of frames."""

import math
from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp

from compress.errors import InputError
from compress.plan import Shorter, Way
from jaxssl.models.arch import (
    Arch,
    AveragePooling,
    Inner,
    IntegrateAndFire,
    KeyMerging,
    Repeat,
    Shortening,
    StridedConvolution,
    TransposedConvolution,
)
from jaxssl.models.checks import check_arch
from jaxssl.models.model import Params
from jaxssl.models.rates.firing import amount_for
from jaxssl.models.rates.integrate_and_fire import START
from jaxssl.models.rates.merging import WHOLE

ROUNDING = 1e-9  # of a share in 1000: 1000 / 1.6 is 625, whatever the last bit says


def part_of(way: Way, ratio: float) -> Inner:
    """Return what makes one frame of `ratio`; what fires does so by weights of `rates.integrate_and_fire.START`.

    Raises:
        InputError: it would make no frames fewer, or groups of no whole number.
    """
    if way == "merge" and ratio > 1:
        return KeyMerging(math.ceil(WHOLE / ratio - ROUNDING))
    if way == "fire" and ratio > 1:
        return IntegrateAndFire(amount=float(amount_for(jnp.float32(ratio), rate=START, period=1.0)))
    if ratio < 2 or ratio != int(ratio):
        any_ratio = "a whole number from 2, or merge frames or let them fire, by any number above 1"
        more = "more than 1" if way in ("merge", "fire") else any_ratio
        raise InputError(f"one frame of {ratio:g}: give {more}")
    return AveragePooling(int(ratio)) if way == "mean" else StridedConvolution(int(ratio))


def by_step(arch: Arch, params: Params, step: Shorter, *, learned: bool = False) -> tuple[Arch, Params]:
    """Carry out a plan's step; errors as `shortened`, and of frames that would merge where no keys are."""
    return shortened(arch, params, *_places(step), learned=learned)


def arch_by_step(arch: Arch, step: Shorter) -> Arch:
    """Return the arch alone, for what must be known before long work; errors as `by_step`."""
    return shortened_arch(arch, *_places(step))


def _places(step: Shorter) -> tuple[Shortening | None, dict[int, Inner]]:
    part = part_of(step.way, step.ratio)
    if step.at is not None:
        return None, {step.at: part}
    if isinstance(part, KeyMerging):
        raise InputError("frames merge by the keys of a layer, and a front end has none; name a layer")
    return part, {}


def shortened_arch(arch: Arch, front: Shortening | None, layers: Mapping[int, Inner], *, learned: bool = False) -> Arch:
    """Return the arch alone; arguments and errors as `shortened`."""
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
    if front is not None and arch.shortening is not None:
        raise InputError("the features behind the front end are shortened already; name a layer")
    for i in layers:
        if not 0 <= i < len(arch.layers):
            raise InputError(f"layers/{i}: the model has {len(arch.layers)} layers; give 0 to {len(arch.layers) - 1}")
        if arch.layers[i].shortening is not None:
            raise InputError(f"layers/{i}: its input is shortened already; name another layer")
    changed = tuple(replace(layer, shortening=layers.get(i, layer.shortening)) for i, layer in enumerate(arch.layers))
    arch = replace(arch, shortening=front or arch.shortening, layers=changed, upsampling=Repeat())
    arch = replace(arch, upsampling=TransposedConvolution(arch.grouped)) if learned else arch
    check_arch(arch)
    return arch


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
        InputError: a layer is not there, cannot work on fewer frames or hears fewer already, a ratio is out of range,
            or the output has fewer frames than the front end already, or gets them back by a learned map.
    """
    arch = shortened_arch(arch, front, layers, learned=learned)
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
