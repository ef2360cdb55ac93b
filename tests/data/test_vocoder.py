"""The vocoder multiplies pitch, formants and speed, and nothing else."""

import librosa
import numpy as np
import pytest

from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.vocoder import Voice, _stretched, change


def vowel(pitch, formants, seconds=1.0):
    """Return pulses through resonances."""
    samples = np.zeros(int(seconds * SAMPLE_RATE))
    samples[:: round(SAMPLE_RATE / pitch)] = 1
    spectrum, hertz = np.fft.rfft(samples), np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    curve = sum(1 / (1 + ((hertz - formant) / 100) ** 2) for formant in formants)
    return (0.05 * np.fft.irfft(spectrum * curve)).astype(np.float32)


def loudest(samples):
    """Return the frequency with the most energy, smoothed beyond the pitch."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    smooth = np.convolve(spectrum, np.hanning(400), "same")
    return smooth.argmax() * SAMPLE_RATE / len(samples)


def test_stretching_moves_what_is_at_a_frequency():
    spectrum = np.zeros((1, 513))
    spectrum[0, 100] = 1
    assert _stretched(spectrum, 1.2)[0].argmax() == 120
    assert _stretched(spectrum, 0.8)[0].argmax() == 80
    np.testing.assert_array_equal(_stretched(spectrum, 1.0), spectrum)


def test_each_factor_does_what_it_says():
    pytest.importorskip("pyworld", reason="needs pyworld (the extra speech)")
    said = vowel(125, (1500,))
    for voice in (Voice(), Voice(pitch=1.6), Voice(formants=1.2), Voice(speed=1.25)):
        heard = change(said, voice)
        assert heard.dtype == np.float32
        assert len(heard) == pytest.approx(len(said) / voice.speed, rel=0.02)
        pitch = librosa.yin(heard, fmin=80, fmax=400, sr=SAMPLE_RATE, frame_length=1024)
        assert np.median(pitch) == pytest.approx(125 * voice.pitch, rel=0.03)
        assert loudest(heard) == pytest.approx(1500 * voice.formants, rel=0.08)
    np.testing.assert_array_equal(change(said, Voice(1.1, 1.1, 1.1)), change(said, Voice(1.1, 1.1, 1.1)))
