"""Something to listen to when no speech is given.

These signals are no speech: pulses through moving resonances, hiss and pauses, enough to exercise the arithmetic and
the timing. Nothing measured on them says anything about quality.
"""

import numpy as np

from jaxssl.data.audio import SAMPLE_RATE

VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])  # Hz
BANDWIDTHS = np.array([80.0, 90.0, 120.0])  # Hz
RING = np.arange(640) / SAMPLE_RATE  # seconds; after 40 ms a resonance 80 Hz wide is down by 87 dB


def utterances(count: int = 6, *, seed: int = 0) -> list[np.ndarray]:
    """Return `count` signals of 3 to 6 s, each (n,) float32 at 16 kHz; the same for the same seed."""
    return [synthesize(3 + 3 * (i % 4) / 3, seed=seed + i) for i in range(count)]


def synthesize(seconds: float, *, seed: int) -> np.ndarray:
    """Make one signal of voiced, hissing and silent stretches, (n,) float32 at 16 kHz, below full scale."""
    rng = np.random.default_rng(seed)
    wanted = round(seconds * SAMPLE_RATE)
    pitch = rng.uniform(90, 220)
    vowel = VOWELS[0]
    signal = 1e-4 * rng.normal(size=wanted)
    start = 0
    while start < wanted:
        length = int(rng.uniform(0.06, 0.2) * SAMPLE_RATE)
        target = VOWELS[rng.integers(len(VOWELS))] * rng.uniform(0.9, 1.1)
        signal[start : start + length] += _piece(rng, pitch, (vowel, target), length)[: wanted - start]
        start, vowel = start + length, target
    return signal.astype(np.float32)


def _piece(rng: np.random.Generator, pitch: float, vowels: tuple[np.ndarray, np.ndarray], length: int) -> np.ndarray:
    """Make one stretch: silence, hiss, or a voice that glides from one vowel to the next."""
    kind = rng.uniform()
    if kind < 0.12:
        return np.zeros(length)
    if kind < 0.35:
        return 0.02 * np.diff(rng.normal(size=length + 1)) * np.hanning(length)
    begin, end = rng.uniform(0.85, 1.15, 2)
    melody = np.linspace(begin, end, length)
    voiced = _voice(pitch * melody, vowels)
    return 0.3 * voiced / np.abs(voiced).max() * np.hanning(length)


def _voice(pitch: np.ndarray, vowels: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Let every pulse of `pitch: (n,)` in Hz ring at the formants of its moment."""
    pulses = np.flatnonzero(np.diff(np.floor(np.cumsum(pitch) / SAMPLE_RATE), prepend=-1))
    voiced = np.zeros(len(pitch) + len(RING))
    for pulse in pulses:
        formants = vowels[0] + (vowels[1] - vowels[0]) * pulse / len(pitch)
        voiced[pulse : pulse + len(RING)] += _ring(formants)
    return voiced[: len(pitch)]


def _ring(formants: np.ndarray) -> np.ndarray:
    """Sum the formants' damped sines, the higher the weaker."""
    damped = np.exp(-np.pi * BANDWIDTHS[:, None] * RING) * np.sin(2 * np.pi * formants[:, None] * RING)
    return (damped / np.arange(1, 4)[:, None]).sum(0)
