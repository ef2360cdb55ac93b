"""From waveforms to hidden states, whichever front end the model has."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxssl.data.logmel import Stats, logmel, normalize, stack
from jaxssl.models.arch import Arch, LogMel
from jaxssl.models.model import Output, Params, apply


def encode(
    arch: Arch,
    params: Params,
    samples: Array,
    lengths: Array | None = None,
    *,
    stats: Stats | None = None,
    dtype: Any = jnp.float32,
) -> Output:
    """Run a model on `samples: (batch, samples)` at 16 kHz, `lengths: (batch,)` of them valid.

    Log-Mel models get normalised, stacked features; without `stats` (mean and deviation of each bin) the features
    stay as they are, which is enough for timing only.
    """
    if isinstance(arch.front, LogMel):
        samples, lengths = mel_inputs(arch.front, samples, lengths, stats)
    return apply(arch, params, samples, lengths, dtype=dtype)


def mel_inputs(front: LogMel, samples: Array, lengths: Array | None, stats: Stats | None) -> tuple[Array, Array | None]:
    """Turn waveforms into the log-Mel model's inputs, (batch, frames, bins × stack), and their valid frames."""
    features = logmel(samples, bins=front.bins)
    if stats is not None:
        features = normalize(features, stats)
    frames = None if lengths is None else 1 + (lengths - 400) // 160
    inputs, stacked = stack(features, frames, n=front.stack)
    return inputs, None if lengths is None else stacked
