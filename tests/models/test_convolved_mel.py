"""The front end of log-Mel frames and convolutions: its frames, its normalisation, and what it refuses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.inference import streaming
from jaxssl.models.arch import MEL_CONVS, Conv, ConvolvedMel
from jaxssl.models.describe import describe
from jaxssl.models.fronts.convolved_mel import normalised
from jaxssl.models.model import apply, init
from tests.archs import CONFORMER, forward, weights

FRONT = CONFORMER.front


def wave(samples, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal((1, samples)).astype(np.float32)


def test_its_frames_are_those_of_20_ms():
    """The first needs seven log-Mel frames, whose middle is the fourth's; each next one 320 samples more."""
    front = ConvolvedMel()
    assert (front.hop, front.field, front.centre, front.size) == (320, 7 * 160, 3 * 160, 512)
    assert [front.frames(n) for n in (1119, 1120, 1439, 1440, 16_000)] == [0, 1, 1, 2, 47]
    assert front.macs(1440) == (4 * 3 * 80 * 512) + (2 * 3 * 512 * 512)


@pytest.mark.parametrize("samples", [1120, 1439, 1440, 5000])
def test_it_gives_as_many_as_it_says(samples):
    """Also of a row of a batch, whose padding stands beside it."""
    shape = jax.eval_shape(lambda x: apply(CONFORMER, weights(CONFORMER), x).last, wave(samples)).shape
    assert shape[1] == FRONT.frames(samples)
    padded = np.concatenate([wave(samples), wave(7000 - samples, 1)], 1)
    together = forward(CONFORMER, weights(CONFORMER), padded, np.array([samples], np.int32))
    assert together.last_lengths.tolist() == [shape[1]]


def test_each_bin_of_an_utterance_is_normalised():
    draw = np.random.default_rng(0)
    mel, valid = 3 + 2 * draw.standard_normal((2, 40, 5)).astype(np.float32), np.arange(40) < np.array([[40], [25]])
    found = np.asarray(normalised(jnp.asarray(mel), jnp.asarray(valid[..., None])))
    for row, count in zip(found, (40, 25), strict=True):
        np.testing.assert_allclose(row[:count].mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(row[:count].std(0), 1, atol=1e-4)
        assert not row[count:].any()


def test_loudness_is_not_heard():
    """Ten times as loud is a decade more in every frame, which the mean takes away."""
    params, x = weights(CONFORMER), wave(6000)
    quiet, loud = (forward(CONFORMER, params, each).last for each in (x, 10 * x))
    np.testing.assert_allclose(loud, quiet, atol=1e-3)


def test_strides_are_in_no_array(key):
    arch = replace(CONFORMER, front=replace(FRONT, convs=(Conv(10, 5, 2), Conv(12, 3, 3))))
    base = replace(arch, front=replace(arch.front, bins=9, convs=(Conv(3, 2, 2), Conv(4, 1, 3))))
    assert describe(base, jax.eval_shape(lambda: init(arch, key))) == arch


@pytest.mark.parametrize(
    ("front", "message"),
    [
        (ConvolvedMel(0), "front: bins is 0"),
        (ConvolvedMel(convs=()), "front: convs is 0"),
        (ConvolvedMel(convs=(*MEL_CONVS, Conv(12, 3, 0))), "front/convs/2: stride is 0"),
    ],
)
def test_what_cannot_be_is_refused(front, message, key):
    with pytest.raises(InputError, match=message):
        init(replace(CONFORMER, front=front), key)


def test_inputs_that_it_cannot_hear_are_refused():
    params = weights(CONFORMER)
    with pytest.raises(InputError, match="1119 samples are too few for one frame"):
        apply(CONFORMER, params, wave(1119))
    with pytest.raises(InputError, match=r"\(batch, samples\), not an array of shape \(1, 30, 6\)"):
        apply(CONFORMER, params, np.zeros((1, 30, 6), np.float32))
    with pytest.raises(InputError, match="front: this log-Mel is normalised by the whole utterance"):
        streaming.start(CONFORMER)
