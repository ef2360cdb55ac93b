"""HuBERT's first features to cluster: Kaldi's MFCC with first and second differences, 39 numbers each 10 ms."""

from functools import lru_cache

import numpy as np

from compress.errors import InputError
from jaxssl.data.logmel import FFT, FLOOR, SHIFT, WINDOW, triangles

CEPSTRA, BINS, LIFTER = 13, 23, 22.0
REACH = 2  # frames to either side that a difference sees


def mfcc(samples: np.ndarray) -> np.ndarray:
    """Compute what fairseq's dump_mfcc_feature.py does: 13 MFCC, their differences, and the differences of these.

    Kaldi's defaults (frames of 25 ms each 10 ms, mean removed, pre-emphasis 0.97, Povey window, power spectrum, 23
    Mel triangles from 20 Hz to 8 kHz, log, orthonormal DCT, lifter 22), no dither, c0 instead of energy, samples not
    scaled to 16 bit.

    Args:
        samples: (n,) in [-1, 1] at 16 kHz, at least 400.

    Returns:
        (1 + (n − 400) // 160, 39) float32.

    Raises:
        InputError: not one axis, or less than one frame of samples.
    """
    if samples.ndim != 1 or len(samples) < WINDOW:
        raise InputError(f"MFCC need (at least {WINDOW} samples,), not an array of shape {samples.shape}")
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float32), WINDOW)[::SHIFT]
    frames = frames - frames.mean(1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    spectrum = np.fft.rfft((frames - np.float32(0.97) * before) * _povey(), FFT)
    power = spectrum.real**2 + spectrum.imag**2
    energies = np.log(np.maximum(power @ triangles(BINS), FLOOR))
    cepstra = energies @ _cosines()
    first = differences(cepstra)
    return np.concatenate([cepstra, first, differences(first)], 1).astype(np.float32)


def differences(x: np.ndarray) -> np.ndarray:
    """Regress the slope over ±2 frames, `x: (frames, n)`: Σ k (x[t + k] − x[t − k]) / (2 Σ k²), edges repeated.

    The HTK book, equation 5.16.
    """
    padded = np.pad(x, ((REACH, REACH), (0, 0)), mode="edge")
    middle = len(x)
    slopes = sum(k * (padded[REACH + k :][:middle] - padded[REACH - k :][:middle]) for k in range(1, REACH + 1))
    return slopes / (2 * sum(k * k for k in range(1, REACH + 1)))


@lru_cache
def _povey() -> np.ndarray:
    """Kaldi's own window: Hann to the power of 0.85."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))
    return (hann**0.85).astype(np.float32)


@lru_cache
def _cosines() -> np.ndarray:
    """Orthonormal DCT-II times the lifter 1 + L/2 sin(π i / L), (BINS, CEPSTRA)."""
    order, band = np.arange(CEPSTRA)[None], np.arange(BINS)[:, None]
    basis = np.sqrt(2 / BINS) * np.cos(np.pi / BINS * (band + 0.5) * order)
    basis[:, 0] = np.sqrt(1 / BINS)
    return basis * (1 + LIFTER / 2 * np.sin(np.pi * order / LIFTER))
