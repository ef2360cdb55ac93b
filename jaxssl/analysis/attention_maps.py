"""Where every head looks: its attention maps, and what is said of them.

With A[q, k] the share of its attention that frame q gives to frame k, of T frames without padding, and H an entropy in
nats:

distance                 mean over q of Σ_k |q − k| A[q, k], in frames
entropy, globalness      mean over q of H(A[q])        high: looks everywhere; one thing, Yang et al. 2020 [mem]
verticality              −H(mean over q of A[q])       high: all frames look at the same few; Yang et al. 2020 [mem]
diagonality              −(1/T²) Σ |q − k| A[q, k]     high: looks beside itself; Yang et al. 2020 [mem]
cumulative diagonality   ∫₀¹ (1/T) Σ_q Σ_{|q−k| ≤ r(T−1)} A[q, k] dr, Shim et al. 2022 [mem]

Yang et al. is "Understanding self-attention of self-supervised audio Transformers", Shim et al. "Understanding the role
of self-attention for efficient speech recognition"; [mem]: a formula from memory, not checked against the paper. On one
map diagonality and cumulative diagonality are the distance on two other scales, −distance / T and 1 − distance / (T −
1); over utterances of unequal length their means differ.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError
from jaxssl.models.arch import Arch, Attention, GatedAttention
from jaxssl.models.attend import visible
from jaxssl.models.inner_maps import map_inputs
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Params

EVEN = 1e-3  # how far from 1 a row of a map may sum


def attention_maps(
    arch: Arch, params: Params, inputs: Array, lengths: Array | None = None
) -> tuple[dict[int, Array], dict[int, Array]]:
    """Compute the attention of every layer that has heads, as `apply` computes it without dropout; others have none.

    Args:
        arch: what `params` is; without packed or int8 maps (`jaxssl.inference.specialise.unpacked`, `dequantized`).
        params: the model.
        inputs: as `apply` takes them.
        lengths: (batch,), valid samples or frames of each row; None: all.

    Returns:
        By layer, (batch, heads, time, time): row q sums to 1 over the keys it looks at, padded ones get 0. A layer that
        reuses maps has what the layer that made them lends. And by layer the valid frames of each row, (batch,); what
        rows beyond them hold means nothing.

    Raises:
        InputError: a layer is int8.
    """
    looking = {i: layer for i, layer in enumerate(arch.layers) if isinstance(layer.mixer, Attention | GatedAttention)}
    if int8 := [i for i, layer in looking.items() if layer.attention.v.int8]:
        raise InputError(f"layers/{int8[0]}: int8; dequantize the model first (inference.specialise.dequantized)")
    heard, valid_frames = map_inputs(arch, params, inputs, lengths)
    found: dict[int, Array] = {}
    counts: dict[int, Array] = {}
    for i, layer in looking.items():
        if not layer.attention.heads:
            continue
        x = heard[f"layers/{i}/attention/v"]
        counts[i] = valid_frames[f"layers/{i}/attention/v"]
        maker = arch.layers[i - 1].attention if layer.mixer.carries else layer.attention
        seen = visible(x.shape[1], frame_mask(counts[i], x.shape[1]), maker.context)
        if layer.mixer.carries:
            found[i] = _softened(found[i - 1], seen) if maker.softened else found[i - 1]
        else:
            arrays = params["layers"][str(i)]["attention"]
            found[i] = _maps(layer.attention, arrays, x, seen, _relative(arch, params, x.shape[1]))
    return found, counts


def measure(maps: np.ndarray) -> dict[str, np.ndarray]:
    """Measure what each head's map is like.

    Args:
        maps: (heads, frames, frames), padding left out.

    Returns:
        `distance`, `entropy`, `globalness` (the same), `verticality`, `diagonality` and `cumulative_diagonality`, each
        (heads,), float64.

    Raises:
        InputError: a row does not sum to 1: padding was not left out, or the model's weights are not finite.
    """
    maps = np.asarray(maps, np.float64)
    if not (sums := maps.sum(-1)).size or not (np.abs(sums - 1) <= EVEN).all():
        worst = sums.flat[np.abs(sums - 1).argmax()] if sums.size else 0.0
        raise InputError(
            f"a row of attention over {maps.shape[-1]} frames sums to {worst:.3g}, not 1; cut padding off, or see "
            "whether the model's weights are finite"
        )
    far, wide = distance(maps), entropy(maps).mean(-1)
    return {
        "distance": far,
        "entropy": wide,
        "globalness": wide,
        "verticality": -entropy(maps.mean(-2)),
        "diagonality": -far / maps.shape[-1],
        "cumulative_diagonality": cumulative_diagonality(maps),
    }


def distance(maps: np.ndarray) -> np.ndarray:
    """Average |q − k| over what `maps: (…, frames, frames)` look at; in frames, (…)."""
    frames = np.arange(maps.shape[-1])
    return np.einsum("...qk,qk->...", maps, np.abs(frames[:, None] - frames[None]), dtype=np.float64) / len(frames)


def entropy(shares: np.ndarray) -> np.ndarray:
    """Return the entropy of distributions `shares: (…, n)`, in nats, (…); at most log n."""
    return -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1)


def cumulative_diagonality(maps: np.ndarray) -> np.ndarray:
    """Integrate over r in [0, 1] the share of attention within r(T − 1) frames of the diagonal; (…).

    A key at distance d is within from r = d / (T − 1) on, so it adds its share times 1 − d / (T − 1), and the area is
    exactly 1 − distance / (T − 1).
    """
    return 1 - distance(maps) / max(maps.shape[-1] - 1, 1)


def resample(maps: np.ndarray, size: int) -> np.ndarray:
    """Bring `maps: (…, frames, frames)` to (…, size, size), so that utterances of any length can be averaged.

    Frames are stretches of time, and so are the new ones: a new row is the mean of the rows it covers, weighed by how
    much it covers of them, and a new column gets what the keys in it got. Rows still sum to 1.
    """
    edges, frames = np.arange(size + 1) / size, maps.shape[-1]
    bounds = np.arange(frames + 1) / frames
    low = np.maximum(edges[:-1, None], bounds[None, :-1])
    high = np.minimum(edges[1:, None], bounds[None, 1:])
    common = np.maximum(high - low, 0)  # (size, frames), in utterances
    return (common * size) @ maps @ (common * frames).T


def _relative(arch: Arch, params: Params, frames: int) -> Array | None:
    """Lay out the relative positions that all layers share, (heads, frames, frames); None where there are none."""
    return None if arch.relative is None else arch.relative.scores(params["relative"]["table"], frames)


def _maps(mixer: Attention | GatedAttention, block: Any, x: Array, seen: Array, relative: Array | None) -> Array:
    q, k = (_dense(block[name], x) for name in ("q", "k"))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * mixer.head_dim**-0.5
    if mixer.kind == "gated_attention" and relative is not None:
        gates, bias = mixer.added(block["gate"], x, relative)
        scores += gates.transpose(0, 2, 1)[..., None] * bias[None]
    return jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min))


def _softened(maps: Array, seen: Array) -> Array:
    return jax.nn.softmax(jnp.where(seen, maps, -jnp.inf))


def _dense(dense: Any, x: Array) -> Array:
    y = x @ dense["down"] if "down" in dense else x
    kernel = dense["up"] if "up" in dense else dense["kernel"]
    y = jnp.einsum("bti,ihd->bthd", y, kernel)
    return y + dense["bias"][None, None] if "bias" in dense else y
