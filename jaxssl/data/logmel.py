"""MelHuBERT's features: Kaldi-compatible log-Mel, normalised by corpus statistics, stacked to longer frames."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError
from jaxssl.data.arrays import read_array

WINDOW, SHIFT, FFT = 400, 160, 512  # samples: 25 ms, 10 ms, the next power of two
LOW_HZ, HIGH_HZ = 20.0, 8000.0
FLOOR = float(np.finfo(np.float32).eps)
LEAST_VARIANCE = 1e-10  # above float64's rounding of E[x²] − E[x]² for log energies, far below any speech


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stats:
    """Corpus mean and standard deviation of each Mel bin, both (bins,) float32; a pytree."""

    mean: np.ndarray
    std: np.ndarray


def logmel(samples: Array, *, bins: int = 40) -> Array:
    """Compute log-Mel energies as Kaldi does, without dither.

    Waveform × 2¹⁵, frames of 25 ms each 10 ms (none reaches over the end), mean removed, pre-emphasis 0.97, Hamming
    window, power spectrum of 512 points, triangles evenly spaced on the Mel scale from 20 Hz to 8 kHz, natural log.

    Args:
        samples: (batch, samples) in [-1, 1] at 16 kHz, at least 400 of them.
        bins: Mel bins.

    Returns:
        (batch, 1 + (samples − 400) // 160, bins), float32. A row with n valid samples has 1 + (n − 400) // 160 valid
        frames, and they do not depend on what pads the row.

    Raises:
        InputError: not two axes, or less than one frame of samples.
    """
    if samples.ndim != 2 or samples.shape[1] < WINDOW:
        raise InputError(f"log-Mel needs (batch, at least {WINDOW} samples), not an array of shape {samples.shape}")
    starts = jnp.arange(1 + (samples.shape[1] - WINDOW) // SHIFT) * SHIFT  # of an exported program's unknown length too
    frames = samples[:, starts[:, None] + jnp.arange(WINDOW)[None, :]] * 2.0**15
    frames = _centre(_centre(frames))  # twice: beside a large offset the rounded first mean hides a quiet frame
    before = jnp.concatenate([frames[..., :1], frames[..., :-1]], -1)
    # Against float64 on speech, rfft is off by 5e-5 and a DFT by matmul by 1.4e-4, in 1.5 times the time on a CPU.
    spectrum = jnp.fft.rfft((frames - 0.97 * before) * hamming()[None, None], n=FFT)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energies = jnp.matmul(power, jnp.asarray(triangles(bins)), precision=jax.lax.Precision.HIGHEST)
    return jnp.log(jnp.maximum(energies, FLOOR))


def windows(samples: Any) -> Any:
    """Count the 10 ms frames of `samples` samples (an int or an array of ints), as `logmel` gives them."""
    return 1 + (samples - WINDOW) // SHIFT


def normalize(features: Array, stats: Stats) -> Array:
    """Bring `features: (batch, frames, bins)` to zero mean and unit variance over the corpus."""
    if features.shape[-1] != len(stats.mean):
        raise InputError(f"the statistics have {len(stats.mean)} bins, the features {features.shape[-1]}")
    mean, std = jnp.asarray(stats.mean, jnp.float32), jnp.asarray(stats.std, jnp.float32)
    return (features - mean[None, None]) / std[None, None]


def stack(features: Array, lengths: Array | None = None, *, n: int = 2) -> tuple[Array, Array | None]:
    """Join each `n` frames into one; a last group that is short is filled with zeros.

    Call it on normalised features, so that zero is the corpus mean.

    Args:
        features: (batch, frames, bins).
        lengths: (batch,), valid frames of each row; those beyond count as zeros. None: all are valid.
        n: frames joined.

    Returns:
        (batch, ceil(frames / n), n · bins), and the valid ones of each row.
    """
    batch, frames, bins = features.shape
    if lengths is not None:
        valid = jnp.arange(frames)[None, :] < lengths[:, None]
        features = jnp.where(valid[..., None], features, jnp.zeros_like(features))
        lengths = -(-lengths // n)
    count = -(-frames // n)
    features = jnp.pad(features, ((0, 0), (0, count * n - frames), (0, 0)))
    return features.reshape(batch, count, n * bins), lengths


def collect(features: Iterable[np.ndarray]) -> Stats:
    """Accumulate corpus statistics over arrays (frames, bins): the mean, and sqrt(E[x²] − E[x]²), in float64.

    Raises:
        InputError: as `stats_of`.
    """
    total, count = np.zeros((2, 1)), 0
    for frames in features:
        total, count = total + sums(frames), count + len(frames)
    return stats_of(total, count)


def sums(frames: np.ndarray) -> np.ndarray:
    """Add up `frames: (count, bins)` and their squares, (2, bins) float64."""
    wide = np.asarray(frames, np.float64)
    return np.stack([wide.sum(0), np.square(wide).sum(0)])


def stats_of(total: np.ndarray, count: int) -> Stats:
    """Make statistics of the `sums` of `count` frames.

    Raises:
        InputError: there are no frames, or a bin never varies (digital silence) or is not finite.
    """
    if not count:
        raise InputError("no frames to take mean and standard deviation from")
    mean = total[0] / count
    variance = total[1] / count - mean**2
    if (useless := ~(variance > LEAST_VARIANCE)).any():  # also where it is NaN
        bins = np.flatnonzero(useless).tolist()
        raise InputError(f"bins {bins} never vary over {count} frames, or are not finite; give speech, and more of it")
    return Stats(np.asarray(mean, np.float32), np.asarray(np.sqrt(variance), np.float32))


def load_stats(path: str | Path) -> Stats:
    """Read mean and deviation from a .npy file, (2, bins).

    Raises:
        InputError: no such array, or values that cannot be statistics.
    """
    try:
        array = np.array(read_array(Path(path)), np.float32)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: not a .npy file of mean and std ({reason})") from error
    if array.ndim != 2 or len(array) != 2 or not array.size:
        raise InputError(f"{path}: mean and std have shape (2, bins), this has {array.shape}")
    if bad := int(np.count_nonzero(~np.isfinite(array))):
        raise InputError(f"{path}: {bad} of {array.size} values are not finite; compute the statistics again")
    if bad := int(np.count_nonzero(array[1] <= 0)):
        raise InputError(f"{path}: {bad} of {array.shape[1]} deviations are not positive; row 0 is mean, row 1 is std")
    return Stats(array[0], array[1])


def stats_bytes(stats: Stats) -> bytes:
    """Return the content of a file that `load_stats` reads."""
    file = io.BytesIO()
    np.save(file, np.stack([stats.mean, stats.std]))
    return file.getvalue()


def _centre(frames: Array) -> Array:
    return frames - frames.mean(-1, keepdims=True)


@lru_cache
def hamming() -> np.ndarray:
    """Return the window of a frame, (400,)."""
    return (0.54 - 0.46 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))).astype(np.float32)


@lru_cache
def triangles(bins: int) -> np.ndarray:
    """Return Mel filters, (FFT // 2 + 1, bins): triangles in Mel, so the slopes are straight there and not in Hz."""
    edges = np.linspace(_mel(LOW_HZ), _mel(HIGH_HZ), bins + 2)
    points = _mel(np.arange(FFT // 2 + 1) * (2 * HIGH_HZ / FFT))[:, None]
    low, centre, high = edges[:-2][None], edges[1:-1][None], edges[2:][None]
    rising, falling = (points - low) / (centre - low), (high - points) / (high - centre)
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


def _mel(hertz: float | np.ndarray) -> np.ndarray:
    return 1127.0 * np.log(1 + np.asarray(hertz) / 700.0)
