"""A model in pieces is the model, and the model cut off behind each exit."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.inference.cascade import Cascade, check_exits, entropy, truncated
from jaxssl.inference.encode import encode
from jaxssl.models.arch import KeyMerging, Repeat
from tests.archs import ARCHS, WAVLM, weights

MERGED = replace(  # the second layer weighs frames by those that the first merged
    WAVLM, layers=tuple(replace(layer, shortening=KeyMerging(700)) for layer in WAVLM.layers[:2]), upsampling=Repeat()
)
UNRAISED = replace(ARCHS["shortened"], upsampling=None)
DEEP = {name: arch for name, arch in ARCHS.items() if not arch.length_adapter and len(arch.layers) > 1}
DEEP |= {"merging": MERGED, "not upsampled": UNRAISED}


def speech():
    """A padded utterance of noise, with what is loud behind its end."""
    samples = np.random.default_rng(0).standard_normal((1, 9000)).astype(np.float32)
    samples[0, 7000:] = 1e3
    return jnp.asarray(samples), jnp.asarray([7000])


def cascade(arch):
    draw = np.random.default_rng(1)
    regressions = {
        exit: {
            "kernel": jnp.asarray(draw.standard_normal((arch.width, 7)), jnp.float32),
            "bias": jnp.asarray(draw.standard_normal(7), jnp.float32),
        }
        for exit in range(1, len(arch.layers))
    }
    return Cascade(arch, weights(arch), tuple(range(1, len(arch.layers) + 1)), regressions)


def each(archs, *, slow):
    return [pytest.param(arch, id=name, marks=[pytest.mark.slow] * (name in slow)) for name, arch in archs.items()]


@pytest.mark.parametrize("arch", each(DEEP, slow=("conformer",)))
def test_each_piece_reaches_what_the_model_cut_off_there_gives(arch):
    made, (samples, lengths) = cascade(arch), speech()
    for exit, reached in made.pieces(samples, lengths):
        arch, params = truncated(made.arch, made.params, exit)
        alone = encode(arch, params, samples, lengths)
        frames = int(alone.last_lengths[0])
        np.testing.assert_array_equal(reached.lengths, alone.last_lengths)
        np.testing.assert_allclose(reached.last[:, :frames], alone.last[:, :frames], atol=2e-5)
        assert (reached.entropy is None) == (exit == len(made.arch.layers))


@pytest.mark.parametrize("name", ["mel", "large"])
def test_no_threshold_is_the_whole_model_and_an_infinite_one_the_first_exit(name):
    made, (samples, lengths) = cascade(ARCHS[name]).ready(), speech()
    depth = len(made.arch.layers)
    (_, first), *_, (_, last) = made.pieces(samples, lengths)
    exit, reached = made.leave(samples, lengths, threshold=0.0)
    assert exit == depth
    np.testing.assert_array_equal(reached.last, last.last)
    exit, reached = made.leave(samples, lengths, threshold=np.inf)
    assert exit == 1
    np.testing.assert_array_equal(reached.last, first.last)
    just = float(first.entropy[0])
    assert made.leave(samples, lengths, threshold=just)[0] > 1  # below it, not at it
    assert made.leave(samples, lengths, threshold=np.nextafter(just, np.inf))[0] == 1


def test_entropy_is_that_of_the_valid_frames():
    draw = np.random.default_rng(0)
    last, kernel = draw.standard_normal((2, 5, 3)).astype(np.float32), np.zeros((3, 8), np.float32)
    even = entropy(jnp.asarray(last), jnp.asarray([5, 2]), {"kernel": kernel, "bias": np.zeros(8, np.float32)})
    np.testing.assert_allclose(even, np.log(8), rtol=1e-6)
    kernel[0, 0] = 3
    found = entropy(jnp.asarray(last), jnp.asarray([5, 2]), {"kernel": kernel, "bias": np.zeros(8, np.float32)})
    shares = np.exp(last @ kernel)
    shares /= shares.sum(-1, keepdims=True)
    each = -(shares * np.log(shares)).sum(-1)
    np.testing.assert_allclose(found, [each[0].mean(), each[1, :2].mean()], rtol=1e-5)


def test_what_cannot_be_taken_apart_is_refused():
    arch = ARCHS["mel"]
    for exits in ((), (0, 3), (3, 1), (1,), (1, 1, 3), (1, 4)):
        with pytest.raises(InputError, match="give layers from 1 to 3, rising, 3 last"):
            check_exits(arch, exits)
    with pytest.raises(InputError, match="a length adapter stands behind the encoder"):
        check_exits(ARCHS["convolution-stack"], (1,))
    with pytest.raises(InputError, match="exit behind layer 1: no output layer"):
        Cascade(arch, {}, (1, 3), {})
    made = cascade(arch)
    with pytest.raises(InputError, match="2 utterances leave one by one"):
        made.leave(jnp.zeros((2, 9000)), jnp.asarray([9000, 9000]), threshold=1.0)
