"""Our arrays as `tools/pytorch/standalone/model.py` names and lays them out."""

import re

import numpy as np
from jax import Array

from compress.address import flatten
from compress.errors import InputError
from jaxssl.data.logmel import Stats, hamming, triangles
from jaxssl.inference.specialise import dequantized, unpacked
from jaxssl.models.arch import Arch, LogMel
from jaxssl.models.model import Params

LEFT = re.compile(r"head/.*|mask_embedding")  # what only training uses
CONVOLUTION = re.compile(r"front/convs/\d+/conv/kernel|reduction/kernel")
SHORT = {"kernel": "weight", "scale": "weight"}
FRONTS = ("waveform", "logmel")  # kinds of fronts that the standalone module has
POSITIONS = ("convolution",)  # kinds of positions that the standalone module has


def state(arch: Arch, params: Params, stats: Stats | None) -> dict[str, np.ndarray]:
    """Return the standalone module's state: names with dots, linear maps as (out, in), one positional kernel.

    Raises:
        InputError: the weights are prepared, or the module has no such positions.
    """
    if arch.prepared:
        raise InputError(
            "the weights are prepared for running (jaxssl.inference.prepack); export the model before that"
        )
    if arch.position.kind not in POSITIONS:
        raise InputError(
            f"the PyTorch module has positions by {', '.join(POSITIONS)}, not by {arch.position.kind}; export stablehlo"
        )
    if arch.front.kind not in FRONTS:
        raise InputError(f"the PyTorch module has fronts {', '.join(FRONTS)}, not {arch.front.kind}; export stablehlo")
    if arch.length_adapter is not None:
        raise InputError("the PyTorch module has no length adapter behind the encoder; export stablehlo")
    if any(layer.adapter for layer in arch.layers) or not all(layer.mixer.key_bias for layer in arch.layers):
        raise InputError("the PyTorch module has no adapters, and no keys without a bias; export stablehlo")
    arch, params = dequantized(*unpacked(arch, params))
    flat = {path: leaf for path, leaf in flatten(params).items() if leaf.size and not LEFT.fullmatch(path)}
    flat = {path: leaf for path, leaf in flat.items() if not _idle(arch, path)}
    position = {name: np.asarray(flat.pop(f"position/{name}"), np.float64) for name in ("kernel", "gain")}
    if arch.relative is not None:  # the module's own row for every distance, so that it knows no buckets
        flat["relative/table"] = np.asarray(flat["relative/table"])[arch.relative.rows()]
    found = dict(_entry(path, leaf, factorised=f"{path.rpartition('/')[0]}/up" in flat) for path, leaf in flat.items())
    scale = position["gain"] / np.sqrt(np.square(position["kernel"]).sum((1, 2)))
    found["position.weight"] = (position["kernel"] * scale[:, None, None]).transpose(2, 1, 0)
    if isinstance(arch.front, LogMel):
        found |= {"front.window": hamming(), "front.mel": triangles(arch.front.bins)}
        found["front.mean"] = np.zeros(arch.front.bins) if stats is None else stats.mean
        found["front.std"] = np.ones(arch.front.bins) if stats is None else stats.std
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def _idle(arch: Arch, path: str) -> bool:
    """Tell whether an array belongs to a block without units, of which the bias alone counts."""
    match = re.fullmatch(r"layers/(\d+)/(attention|ffn)/(\w+)/(\w+)", path)
    if not match:
        return False
    layer, place, name, leaf = arch.layers[int(match[1])], *match.groups()[1:]
    empty = next(block.empty for block in layer.blocks if block.place == place)
    return empty and (name, leaf) not in (("out", "bias"), ("fc2", "bias"))


def _entry(path: str, leaf: Array, *, factorised: bool) -> tuple[str, np.ndarray]:
    array, name = np.asarray(leaf), path.partition("@")[0].replace("/", ".")
    parent, _, kind = name.rpartition(".")
    if CONVOLUTION.fullmatch(path):
        return f"{parent}.weight", array.transpose(2, 1, 0)
    if path == "relative/table":
        return "relative.weight", array
    if kind == "down":
        return f"{name}.weight", array.reshape(-1, array.shape[-1]).T
    if kind == "up":
        return f"{name}.weight", array.reshape(array.shape[0], -1).T
    if kind == "kernel":
        joined = parent.endswith("attention.out")  # (heads, head_dim, width); the others are (in, *out)
        return f"{parent}.weight", array.reshape((-1, array.shape[-1]) if joined else (array.shape[0], -1)).T
    return f"{parent}{'.up' * factorised}.{SHORT.get(kind, kind)}", array.reshape(-1)
