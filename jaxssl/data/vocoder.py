"""Another voice for the same words: pitch, formants and speed of speech changed by the WORLD vocoder.

WORLD (Morise et al. 2016; PyPI pyworld, the extra `speech`) parts speech into pitch, spectral envelope and
aperiodicity, each 5 ms, and puts them together again. Between the two, pitch is multiplied, the envelope is stretched
along frequency (formants stand at multiples of where they stood: a shorter vocal tract for more than 1), and the frames
come faster.
"""

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.data.audio import SAMPLE_RATE

FRAME_MS = 5.0
LOWEST = 71.0  # Hz of the pitch; below it WORLD needs a longer transform at 16 kHz


@dataclass(frozen=True)
class Voice:
    """Factors of pitch, of the formants' frequencies, and of speed; 1 leaves them."""

    pitch: float = 1.0
    formants: float = 1.0
    speed: float = 1.0


def change(samples: np.ndarray, voice: Voice) -> np.ndarray:
    """Give speech another voice.

    Args:
        samples: (n,) at 16 kHz.
        voice: the factors.

    Returns:
        (about n / speed,) float32.

    Raises:
        InputError: pyworld is not installed.
    """
    world = _world()
    wave = np.ascontiguousarray(samples, np.float64)
    pitch, times = world.dio(wave, SAMPLE_RATE, f0_floor=LOWEST, frame_period=FRAME_MS)
    pitch = world.stonemask(wave, pitch, times, SAMPLE_RATE)
    envelope = world.cheaptrick(wave, pitch, times, SAMPLE_RATE, f0_floor=LOWEST)
    noise = world.d4c(wave, pitch, times, SAMPLE_RATE)
    envelope, noise = (_stretched(spectrum, voice.formants) for spectrum in (envelope, noise))
    found = world.synthesize(pitch * voice.pitch, envelope, noise, SAMPLE_RATE, FRAME_MS / voice.speed)
    return np.asarray(found, np.float32)


def _stretched(spectrum: np.ndarray, factor: float) -> np.ndarray:
    """Move what is at frequency f, `spectrum: (frames, bins)`, to factor · f; beyond the end the last bin stays."""
    bins = spectrum.shape[1]
    at = np.minimum(np.arange(bins) / factor, bins - 1)
    low = np.minimum(at.astype(int), bins - 2)
    share = (at - low)[None]
    return np.ascontiguousarray(spectrum[:, low] * (1 - share) + spectrum[:, low + 1] * share)


def _world() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports pkg_resources, which says that it will go
            return importlib.import_module("pyworld")
    except ImportError as error:
        raise InputError(f"other voices need pyworld, which is not here ({error}); pip install '.[speech]'") from None
