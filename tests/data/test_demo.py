"""The signals that stand in for speech."""

import jax
import numpy as np
import pytest

from jaxssl.data.demo import synthesize, utterances
from jaxssl.data.logmel import collect, logmel


def test_they_are_the_same_every_time():
    one, two = utterances(3), utterances(3)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(utterances(1, seed=1)[0], one[0])


def test_they_are_audio():
    for signal in utterances(4):
        assert signal.dtype == np.float32
        assert 3 * 16000 <= len(signal) <= 6 * 16000
        assert 0.05 < np.abs(signal).max() < 1
    assert len(synthesize(0.025, seed=0)) == 400


@pytest.mark.slow
def test_every_mel_bin_varies_as_in_speech():
    """LibriSpeech's deviations are 3.4 to 4.8."""
    energies = jax.jit(logmel)
    stats = collect(np.asarray(energies(signal[None])[0]) for signal in utterances(4))
    assert stats.std.min() > 2.5
    assert stats.std.max() < 7
