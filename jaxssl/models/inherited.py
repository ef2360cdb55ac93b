"""Mamba-2 that begins with the maps of the attention in whose place it stands, so that it learns less anew."""

from collections.abc import Collection

import jax.numpy as jnp
from jax import Array

from compress.errors import InputError
from jaxssl.models.arch import Arch, Attention, Mamba2
from jaxssl.models.exchange import dual
from jaxssl.models.model import Params
from jaxssl.models.part import Arrays


def inherited(arch: Arch, params: Params, other: Arch, new: Params, layers: Collection[int]) -> Params:
    """Let new Mamba-2 mixers begin with the maps of the attention before them.

    Queries become C, keys B and values x, and the map back is the same: without softmax and with a decay, Mamba-2 is
    attention (Wang et al. 2024, The Mamba in the Llama, arXiv 2408.15237). Convolutions begin as the identity (Bick et
    al. 2024, arXiv 2408.10189) with the biases of q, k and v, so that SiLU of these is what is scanned. The second
    direction begins with the same. Gates, steps, decays, skips and norms stay as they were drawn, and the bias of the
    map back, which Mamba-2 has none of, is left out.

    Args:
        arch: of the model with attention.
        params: its parameters.
        other: of the model whose layers have `exchange.exchanged(arch, "mamba2", layers)`.
        new: its parameters, as `exchange.with_new_mixers` has them; they stay as they are.
        layers: whose mixers begin so, from 0.

    Returns:
        The parameters of `other`.

    Raises:
        InputError: a mixer is not of the attention's shape, or a map of the attention is stored in blocks.
    """
    inner = dict(new["layers"])
    for i in layers:
        before, mixer = arch.layers[i].mixer, other.layers[i].mixer
        if not isinstance(before, Attention) or mixer != dual(before):
            raise InputError(f"layer {i}: {mixer.kind} is not of the shape of {before.kind}; exchange it for mamba2")
        attention, there = params["layers"][str(i)][before.place], inner[str(i)]
        maps = {name: _kernel(attention[name], f"layers/{i}/{before.place}/{name}") for name in ("q", "k", "v", "out")}
        biases = {name: attention[name].get("bias", jnp.zeros((before.heads, before.head_dim))) for name in "qkv"}
        inner[str(i)] = {**there, mixer.place: _begun(mixer, there[mixer.place], maps, biases)}
    return {**new, "layers": inner}


def _begun(mixer: Mamba2, new: Arrays, maps: dict[str, Array], biases: dict[str, Array]) -> Params:
    """Return a mixer's arrays with the maps of attention, (width, heads, head_dim) and back, in their places."""
    arrays = dict(new)
    arrays["input"] = {"kernel": jnp.asarray(new["input"]["kernel"]).at[..., 0].set(maps["v"][:, None])}
    arrays["out"] = {"kernel": maps["out"][None]}
    for side in mixer.sides:
        arrays[f"{side}select"] = {"kernel": jnp.stack([maps["k"], maps["q"]], 1)}
        arrays[f"{side}select_conv"] = _passing(mixer.taps, jnp.stack([biases["k"], biases["q"]]))
        arrays[f"{side}conv"] = _passing(mixer.taps, biases["v"][None])
    return arrays


def _passing(taps: int, bias: Array) -> Params:
    """Return a causal convolution that adds a bias and no other frame."""
    return {"kernel": jnp.zeros((taps, *bias.shape), bias.dtype).at[-1].set(1), "bias": bias}


def _kernel(arrays: Arrays, path: str) -> Array:
    """Return a map's weights as one kernel."""
    if "blocks" in arrays:
        raise InputError(f"{path}: a map in blocks is none that Mamba-2 begins with; name layers with whole maps")
    if "up" in arrays:
        return jnp.tensordot(jnp.asarray(arrays["down"]), jnp.asarray(arrays["up"]), 1)
    return jnp.asarray(arrays["kernel"])
