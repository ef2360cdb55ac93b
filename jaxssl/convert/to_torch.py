"""Our arrays as `tools/pytorch/standalone` names and lays them out."""

import re

import numpy as np
from jax import Array
from jax.typing import ArrayLike

from compress.address import flatten
from compress.errors import InputError
from jaxssl.data.logmel import Stats, hamming, triangles
from jaxssl.inference.specialise import dequantized, unpacked
from jaxssl.models.arch import Arch, ConvolvedMel, Front, LogMel, Mamba2, SummaryMixing, Whisper
from jaxssl.models.fronts.whisper_frames import hann, slaney_triangles
from jaxssl.models.model import Params

LEFT = re.compile(r"head/.*|mask_embedding")  # what only training uses
CONVOLUTION = re.compile(
    r"(?:front/convs|position/convs|length_adapter/layers)/\d+/(?:conv/)?kernel|(?:position|reduction|upsampling)/kernel"
    r"|(?:layers/\d+/)?shortening/kernel|layers/\d+/(?:mamba/(?:back_)?conv|convolution/conv)/kernel"
)
DEPTHWISE = re.compile(r"layers/\d+/mamba2/(?:back_)?(?:select_)?conv/kernel")  # of channels on several axes
JOINED = ("attention.out", "mamba2.out", "mamba2.back_out", "mixing.merge_local", "mixing.merge_summary")
INNER = {"position.weight": "position.conv.weight", "position.bias": "position.conv.bias"}
SHORT = {"kernel": "weight", "scale": "weight"}


def state(arch: Arch, params: Params, stats: Stats | None) -> dict[str, np.ndarray]:
    """Return the standalone module's state: names with dots, linear maps as (out, in), one positional kernel.

    Raises:
        InputError: the weights are prepared.
    """
    if arch.prepared:
        raise InputError(
            "the weights are prepared for running (jaxssl.inference.prepack); export the model before that"
        )
    arch, params = dequantized(*unpacked(arch, params))
    flat = {path: leaf for path, leaf in flatten(params).items() if leaf.size and not LEFT.fullmatch(path)}
    flat = {path: leaf for path, leaf in flat.items() if not _idle(arch, path)}
    if "position/gain" in flat:
        flat["position/kernel"] = _normalised(flat["position/kernel"], flat.pop("position/gain"))
    if arch.relative is not None:  # the module's own row for every distance, so that it knows no buckets
        flat["relative/table"] = np.asarray(flat["relative/table"])[arch.relative.rows()]
    found = dict(_entry(path, leaf, factorised=f"{path.rpartition('/')[0]}/up" in flat) for path, leaf in flat.items())
    found = {INNER.get(name, name): array for name, array in found.items()} | _constants(arch.front, stats)
    return {name: np.ascontiguousarray(array, np.float32) for name, array in found.items()}


def _constants(front: Front, stats: Stats | None) -> dict[str, np.ndarray]:
    """Return what a front end computes log-Mel energies with, which no training changes."""
    match front:
        case LogMel(bins=bins):
            mean, std = (np.zeros(bins), np.ones(bins)) if stats is None else (stats.mean, stats.std)
            return {"front.window": hamming(), "front.mel": triangles(bins), "front.mean": mean, "front.std": std}
        case Whisper(bins=bins) | ConvolvedMel(bins=bins):
            return {"front.window": hann(), "front.mel": slaney_triangles(bins)}
        case _:
            return {}


def _normalised(kernel: Array, gain: Array) -> np.ndarray:
    """Return the positional kernel as it runs, in float64."""
    wide, gains = np.asarray(kernel, np.float64), np.asarray(gain, np.float64)
    return wide * (gains / np.sqrt(np.square(wide).sum((1, 2))))[:, None, None]


def _idle(arch: Arch, path: str) -> bool:
    """Tell whether an array belongs to a block without units, of which the bias alone counts."""
    match = re.fullmatch(r"layers/(\d+)/(attention|ffn|macaron|convolution|mamba2|mixing)/(\w+)/(\w+)", path)
    if not match:
        return False
    layer, place, name, leaf = arch.layers[int(match[1])], *match.groups()[1:]
    if isinstance(layer.mixer, SummaryMixing) and place == "mixing":
        branch = "local" if "local" in name else "summary"
        return not getattr(layer.mixer, branch) and (name, leaf) != ("merge_summary", "bias")
    if isinstance(layer.mixer, Mamba2) and place == "mamba2":
        return not layer.mixer.inner("back_" if name.startswith("back_") else "")[0]
    empty = next(block.empty for block in layer.blocks if block.place == place)
    return empty and (name, leaf) not in (("out", "bias"), ("fc2", "bias"))


def _entry(path: str, leaf: ArrayLike, *, factorised: bool) -> tuple[str, np.ndarray]:
    array, name = np.asarray(leaf), path.partition("@")[0].replace("/", ".")
    parent, _, kind = name.rpartition(".")
    if CONVOLUTION.fullmatch(path):
        return f"{parent}.weight", array.transpose(2, 1, 0)
    if DEPTHWISE.fullmatch(path):
        return f"{parent}.weight", array.reshape(len(array), 1, -1).transpose(2, 1, 0)
    if path == "relative/table":
        return "relative.weight", array
    if kind == "down":
        return f"{name}.weight", array.reshape(-1, array.shape[-1]).T
    if kind == "up":
        return f"{name}.weight", array.reshape(array.shape[0], -1).T
    if kind == "kernel":
        if re.fullmatch(r"layers\.\d+\.mixing\.(local|summary)[12]", parent) and array.ndim == 3:
            return name, array  # of a part of the frame each
        # (heads, head_dim, width), (units, heads, width), …; the others are (in, *out)
        joined = parent.endswith(JOINED)
        return f"{parent}.weight", array.reshape((-1, array.shape[-1]) if joined else (array.shape[0], -1)).T
    if kind == "log_decay" or re.fullmatch(r"layers\.\d+\.mixing\.(local|summary)[12]", parent):
        return f"{parent}{'.up' * factorised}.{SHORT.get(kind, kind)}", array
    return f"{parent}{'.up' * factorised}.{SHORT.get(kind, kind)}", array.reshape(-1)
