"""A compressed model learns to write again what its CTC layer wrote."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.models.model import Output
from jaxssl.training.ctc_layer import CtcLayer
from jaxssl.training.ctc_recovery import Writing, script
from jaxssl.training.distillation import LAST, Said, Taught
from jaxssl.training.losses import means
from tests.archs import MEL

# Frames are logits: the layer is the identity.
LAYER = CtcLayer(np.eye(3, dtype=np.float32), np.zeros(3, np.float32), ("<pad>", "a", "b"))
ARCH = replace(MEL, width=3)
ONE, NONE = (np.array([[1, 0], [0, 0]]), np.array([1, 0])), (np.array([[0, 0]]), np.array([0]))


class Speech:
    """Five utterances, a label each two inputs."""

    lengths = np.array([8, 8, 8, 30, 2])
    stride, reach = 2, 2


def said(probabilities, frames):
    last = jnp.log(jnp.asarray(probabilities, jnp.float32))
    frames = jnp.asarray(frames)
    return Output(None, last, frames, (last,), last, None, (frames,), frames, (last,))


@partial(jax.jit, static_argnames="alpha")
def learn(output, theirs, symbols, counts, alpha=1.0):
    taught = Taught(Said(None, {LAST: theirs}), None, (symbols, counts))
    return Writing(LAYER, alpha)({}, output, taught, None, None)


def test_the_loss_is_ctc_and_the_divergence():
    """Two frames, one symbol: three ways to write it; a second utterance without a transcript, of one frame."""
    output = said([[[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]], [[0.2, 0.2, 0.6], [0.1, 0.1, 0.8]]], [2, 1])
    theirs = jnp.log(jnp.array([[[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]], [[0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]]))
    value, sums = learn(output, theirs, *ONE)
    ways = 0.5 * 0.4 + 0.3 * 0.4 + 0.3 * 0.4
    divergence = 0.6 * np.log(3) - 0.2 * np.log(3)
    told = means(sums)
    np.testing.assert_allclose(told["ctc"], -np.log(ways), rtol=1e-5)
    np.testing.assert_allclose(told["soft"], divergence / 3, rtol=1e-5)  # three frames are valid
    np.testing.assert_allclose(value, -np.log(ways) + divergence / 3, rtol=1e-5)
    alone, _ = learn(output, theirs, *ONE, alpha=0.0)
    np.testing.assert_allclose(alone, -np.log(ways), rtol=1e-5)


def test_a_batch_without_transcripts_hears_the_teacher_alone():
    output = said([[[0.5, 0.3, 0.2], [0.4, 0.4, 0.2]]], [2])
    value, sums = learn(output, output.last, *NONE)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert "ctc" not in means(sums)
    slope = jax.grad(lambda last: learn(replace(output, last=last), output.last, *NONE)[0])(output.last)
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_a_script_has_what_batches_have_whole():
    found = script(LAYER, ("ab", "", "abx", "ba", "bb"), Speech, np.array([0, 1, 2, 3, 4]), crop=10)
    assert found.counts.tolist() == [2, 0, 0, 0, 0]  # no text, no such symbol, a crop, too few frames
    symbols, counts = found.of(jnp.array([0, -1, 3]))
    assert counts.tolist() == [2, 0, 0]
    assert symbols[0].tolist() == [1, 2]


def test_what_cannot_be_written_is_refused():
    with pytest.raises(InputError, match="of 2 utterances to train on 1 have a transcript .* 0 of these are within"):
        script(LAYER, ("ab", "", "", "ba", ""), Speech, np.array([1, 3]), crop=10)
    with pytest.raises(InputError, match="frames 3 wide, student and teacher give 16 and 3"):
        Writing(LAYER).heads(MEL, ARCH, jax.random.key(0))
    with pytest.raises(InputError, match="alpha -1"):
        Writing(LAYER, alpha=-1.0).heads(ARCH, ARCH, jax.random.key(0))
    with pytest.raises(InputError, match="reduces time by 2"):
        Writing(LAYER).heads(replace(ARCH, time_reduction=2), ARCH, jax.random.key(0))
