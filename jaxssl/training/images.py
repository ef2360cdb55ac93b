"""What a model was shown and where it looks, as pictures: arrays in [0, 1] with time to the right."""

import jax
import numpy as np
from jax import Array

from jaxssl.analysis.attention_maps import attention_maps
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params


def masked_features(features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw log-Mel `features: (frames, bins)`, low bins at the bottom, masked frames blank; (bins, frames)."""
    low, high = np.percentile(features, (1, 99))
    pixels = np.clip((features - low) / max(high - low, 1e-6), 0, 1)
    return np.where(mask[:, None], 0.0, pixels).T[::-1]


def attention(arch: Arch, params: Params, inputs: Array, layer: int) -> np.ndarray:
    """Compute one layer's attention weights on one utterance.

    Args:
        arch: what `params` is.
        params: the model.
        inputs: (1, samples) or (1, frames, size), none of it padded.
        layer: counted from 0; it must have heads. One that reuses maps has those of the layer that made them.

    Returns:
        (heads, frames, frames): row q sums to 1 over the keys it looks at.
    """
    return np.asarray(jax.jit(_attention, static_argnums=(0, 3))(arch, params, inputs, layer))


def tile(maps: np.ndarray) -> np.ndarray:
    """Put `maps: (heads, frames, frames)` side by side, each brightened to its own maximum."""
    maps = maps / maps.max((1, 2), keepdims=True)
    return np.concatenate([np.pad(each, ((0, 0), (0, 2)), constant_values=1.0) for each in maps], 1)


def _attention(arch: Arch, params: Params, inputs: Array, layer: int) -> Array:
    return attention_maps(arch, params, inputs)[0][layer][0]
