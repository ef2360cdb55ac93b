"""Samples in, chunk by chunk, give what the whole utterance gives, features included."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.logmel import Stats
from jaxssl.inference import sound
from jaxssl.inference.encode import encode
from jaxssl.models.arch import Attention, LogMel, PositionalConvolution, Sinusoids
from tests.archs import MEL, STUDENT, weights
from tests.inference.test_streaming import STREAMING

BINS = MEL.front.bins
STATS = Stats(np.linspace(-3, 3, BINS, dtype=np.float32), np.linspace(1, 2, BINS, dtype=np.float32))
BASE = replace(STREAMING["post-norm"], position=PositionalConvolution(4, 4))
MODELS = {
    "20 ms": BASE,
    "10 ms": replace(BASE, front=LogMel(BINS, 1)),
    "30 ms": replace(BASE, front=LogMel(BINS, 3), position=Sinusoids()),
    "scans": replace(STREAMING["causal"], front=LogMel(BINS, 1)),
    "waveform": STREAMING["student"],
}
SAMPLES = np.random.default_rng(0).normal(size=(2, 4_100)).astype(np.float32) / 10
LENGTHS = np.array([4_100, 2_000], np.int32)


def stats_of(arch):
    return STATS if arch.front.features else None


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_samples_give_what_the_whole_utterance_gives(name, chunk):
    arch = MODELS[name]
    stats = stats_of(arch)
    whole = jax.jit(lambda params, x, n: encode(arch, params, x, n, stats=stats))(weights(arch), SAMPLES, LENGTHS)
    found = sound.stream(arch, weights(arch), stats, SAMPLES, chunk * sound.unit(arch), LENGTHS)
    counts = np.asarray(whole.lengths[-1]).tolist()
    assert found.valid.sum(1).tolist() == counts
    assert found.last.shape == whole.last.shape
    for row, count in enumerate(counts):
        np.testing.assert_allclose(found.last[row, :count], whole.last[row, :count], atol=2e-5)


@pytest.mark.parametrize("name", ["20 ms", "10 ms", "30 ms", "scans"])
def test_features_come_no_later_than_their_windows_need(name):
    arch = MODELS[name]
    assert sound.late(arch) == {"20 ms": 1, "10 ms": 2, "30 ms": 1, "scans": 2 * arch.time_reduction}[name]


def test_a_row_is_given_to_a_new_stream():
    """What it held before, samples too, is not heard."""
    arch, params = MODELS["20 ms"], weights(MODELS["20 ms"])
    x = SAMPLES[:, : 9 * sound.unit(arch)]
    used, _ = sound.step(arch, params, STATS, sound.start(arch, 2), x)
    mixed = jax.tree.map(lambda old, new: jnp.stack([old[0], new[1]]), used, sound.start(arch, 2))
    _, again = sound.step(arch, params, STATS, mixed, x)
    _, first = sound.step(arch, params, STATS, sound.start(arch, 2), x)
    np.testing.assert_array_equal(again.last[1], first.last[1])
    assert np.abs(again.last[0] - first.last[0]).max() > 0.01


@pytest.mark.parametrize("shape", [(1, 300), (2, 0), (320,), (1, 320, 80)])
def test_samples_of_another_form_are_refused(shape):
    arch = MODELS["20 ms"]
    with pytest.raises(InputError, match=r"of a multiple of 320 samples, which make a frame"):
        sound.step(arch, weights(arch), STATS, sound.start(arch, 1), np.zeros(shape, np.float32))


def test_what_cannot_stream_is_refused():
    assert isinstance(MEL.layers[0].mixer, Attention)
    with pytest.raises(InputError, match="attention sees all frames before its own"):
        sound.start(MEL)
    with pytest.raises(InputError, match="front: a group norm over time needs the whole utterance"):
        sound.start(STUDENT)
