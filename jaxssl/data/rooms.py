"""A recording of speech: a room, a microphone, noise and a level, drawn anew for each utterance.

The room's response is the direct sound and a tail of noise that decays exponentially (Polack 1988), from 2 ms on, so
that phone times stay; the microphone's a smooth curve of a few dB; the noise's spectrum falls with frequency.
"""

from dataclasses import dataclass

import numpy as np

from jaxssl.data.audio import SAMPLE_RATE

FIRST = 32  # samples until the tail begins
POINTS = 8  # of a microphone's curve, evenly spaced in Hz


@dataclass(frozen=True)
class Room:
    """What a recording adds.

    Attributes:
        decay: seconds in which the tail falls by 60 dB; 0: no tail.
        direct: dB that the direct sound is above the whole tail.
        curve: dB of the microphone at evenly spaced frequencies from 0 to 8 kHz.
        noise: dB that speech is above the noise.
        colour: exponent by which the noise's power falls with frequency: 0 is white, 1 pink.
        peak: largest sample of the recording, of full scale.
    """

    decay: float
    direct: float
    curve: tuple[float, ...]
    noise: float
    colour: float
    peak: float


def draw(rng: np.random.Generator) -> Room:
    """Draw a room: half of them without a tail, noise 12 to 45 dB below speech, levels 22 dB apart at most."""
    decay = float(rng.uniform(0.1, 0.5)) if rng.random() < 0.5 else 0.0
    return Room(
        decay,
        direct=float(rng.uniform(0, 12)),
        curve=tuple(rng.normal(0, 3, POINTS).tolist()),
        noise=float(rng.uniform(12, 45)),
        colour=float(rng.uniform(0, 1.5)),
        peak=float(10 ** rng.uniform(-1.15, -0.05)),
    )


def record(samples: np.ndarray, room: Room, rng: np.random.Generator) -> np.ndarray:
    """Record speech in a room: `samples: (n,)` at 16 kHz become (n,) float32; `rng` draws tail and noise."""
    size = len(samples) + SAMPLE_RATE  # room for the tail to end in, instead of coming round to the start
    frequencies = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    curve = np.interp(frequencies, np.linspace(0, SAMPLE_RATE / 2, len(room.curve)), room.curve)
    response = np.fft.rfft(_response(room, rng), size) * 10 ** (curve / 20)
    heard = np.fft.irfft(np.fft.rfft(samples, size) * response, size)[: len(samples)]
    noise = _coloured(rng.standard_normal(len(samples)), room.colour)
    loudness = np.sqrt(np.mean(np.square(heard))) or 1.0
    heard = heard + noise * (loudness * 10 ** (-room.noise / 20))
    return (heard * (room.peak / np.abs(heard).max(initial=1e-9))).astype(np.float32)


def _response(room: Room, rng: np.random.Generator) -> np.ndarray:
    if not room.decay:
        return np.ones(1)
    times = np.arange(round(room.decay * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / room.decay)
    tail *= 10 ** (-room.direct / 20) / np.sqrt(np.square(tail).sum())
    return np.concatenate([[1.0], np.zeros(FIRST - 1), tail])


def _coloured(noise: np.ndarray, exponent: float) -> np.ndarray:
    """Make the power of white noise fall as f^−exponent above 50 Hz, and its variance 1."""
    spectrum = np.fft.rfft(noise)
    frequencies = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    shaped = np.fft.irfft(spectrum * np.maximum(frequencies, 50.0) ** (-exponent / 2), len(noise))
    return shaped / shaped.std()
