"""What a stream holds back: the last frames that came, with which the next ones are computed.

A part that streams has a memory, a dict of arrays of which the first axis is the batch's; those that would be empty are
left out. With every chunk come as many frames as there come in, by `ahead` later: those that the part waited for.
"""

from math import prod

import jax.numpy as jnp
from jax import Array

from compress.errors import InputError

Memory = dict[str, Array]
MOST = 2**20  # frames that a part holds at most: six hours of 20 ms


def check_held(where: str, frames: int) -> None:
    """Refuse to hold more frames than any stream needs.

    Raises:
        InputError: they are more than `MOST`.
    """
    if frames > MOST:
        raise InputError(f"{where}: a stream would hold {frames} frames; give a context of at most {MOST}")


def nothing(batch: int, **shapes: tuple[int, ...]) -> Memory:
    """Return the memory before the first frame: zeros of these shapes, batch left out; `valid` is false throughout."""
    kinds = {"valid": jnp.bool_}
    return {
        name: jnp.zeros((batch, *shape), kinds.get(name, jnp.float32)) for name, shape in shapes.items() if prod(shape)
    }


def joined(memory: Memory, name: str, x: Array) -> tuple[Array, Memory]:
    """Put what is held in front of `x: (batch, frames, …)`; return both, and as much of the end, to be held."""
    if name not in memory:
        return x, {}
    whole = jnp.concatenate([memory[name].astype(x.dtype), x], axis=1)
    return whole, {name: whole[:, x.shape[1] :].astype(memory[name].dtype)}


def delayed(memory: Memory, **arrays: Array) -> tuple[tuple[Array, ...], Memory]:
    """Return as many frames as come in, each array's as much earlier as are held of it, and the memory."""
    found, held = [], Memory()
    for name, array in arrays.items():
        whole, rest = joined(memory, name, array)
        found.append(whole[:, : array.shape[1]])
        held |= rest
    return tuple(found), held
