"""A model on one chunk of a stream: what `Model.__call__` is of a whole utterance.

Frames come out as they come in, `delay` frames later: of each chunk as many as it brings, those at a stream's beginning
and end, which are none, told from the others by a mask. So shapes depend on the chunk's size alone.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from compress.errors import InputError
from jaxssl.models.arch import Arch
from jaxssl.models.held import delayed, nothing
from jaxssl.models.model import Model
from jaxssl.models.strides import Stride

State = dict[str, Any]  # arrays in dicts, the batch always their first axis


def check_stream(arch: Arch) -> None:
    """Refuse a model that cannot stream.

    Raises:
        InputError: the message names the part and the remedy.
    """
    if arch.shortens and (arch.upsampling or arch.grouped != arch.time_reduction):
        raise InputError(
            "sequences are made shorter in this model, which a stream does not do; use time_reduction, or a model "
            "that hears all frames"
        )
    arch.front.check_stream()
    for i, layer in enumerate(arch.layers):
        layer.mixer.check_stream(f"layers/{i}")
        if layer.conformer:
            raise InputError(f"layers/{i}: a Conformer's convolution hears to both sides; use layers without to stream")
    if arch.length_adapter is not None:
        arch.length_adapter.check_stream()


def reduction(arch: Arch) -> Stride:
    """Return what makes fewer frames before the first layer, as late as front end and positions make it."""
    return Stride(arch.time_reduction, arch.time_reduction, arch.front.ahead + arch.position.ahead)


def delay(arch: Arch) -> int:
    """Count the frames by which a model's output comes late."""
    return reduction(arch).delay + sum(layer.mixer.ahead for layer in arch.layers)


def memory(arch: Arch, batch: int) -> State:
    """Return what every part holds before the first input."""
    width, waits = arch.width, arch.position.ahead
    layers = {
        str(i): {
            "mixer": layer.mixer.memory(batch, width),
            "waiting": nothing(batch, x=(layer.mixer.ahead, width), valid=(layer.mixer.ahead,)),
        }
        for i, layer in enumerate(arch.layers)
    }
    return {
        "front": arch.front.memory(batch),
        "position": arch.position.memory(batch, width),
        "waiting": nothing(batch, x=(waits, width), valid=(waits,)),
        "reduction": reduction(arch).memory(batch, width) if arch.time_reduction > 1 else {},
        "layers": layers,
    }


def stepped(model: Model, state: State, inputs: Array, valid: Array) -> tuple[Array, Array | None, Array, State]:
    """Run a chunk.

    Args:
        model: that can stream.
        state: what `memory` gave, or the chunk before.
        inputs: (batch, inputs, …), a multiple of what one frame of the output is made of.
        valid: (batch, inputs), true where there is an input: all up to a stream's end.

    Returns:
        The encoder's output, (batch, frames, width); logits, or None without a head; which frames are some,
        (batch, frames); the state.
    """
    arch, layers = model.arch, {}
    shown = valid.reshape(*valid.shape, *(1,) * (inputs.ndim - 2))
    inputs = jnp.where(shown, inputs, jnp.zeros_like(inputs))
    x, valid, front = model.front.stream(inputs, valid, state["front"])
    x = model.embed(x, valid, None, None)
    y, position = model.position.stream(x, valid, state["position"])
    (x, valid), waiting = delayed(state["waiting"], x=x, valid=valid)
    x = x + y if arch.norm_first else model.norm(x + y)
    held: State = {}
    if arch.time_reduction > 1:
        reduce = reduction(arch)
        x, valid, held = reduce.stream(lambda x: model.reduction(x, None).x, x, valid, state["reduction"])
    for i, layer in enumerate(model.layers):
        x, valid, layers[str(i)] = layer.stream(x, valid, state["layers"][str(i)])
    x = model.norm(x) if arch.norm_first else x
    logits = model.head(x) if arch.head else None
    after = {"front": front, "position": position, "waiting": waiting, "reduction": held, "layers": layers}
    return x, logits, valid, after
