"""A length adapter behind the encoder: what it computes, how many frames it leaves, where it is refused."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert import to_dphubert, to_huggingface
from jaxssl.inference.encode import encode_all
from jaxssl.models.arch import LengthAdapter
from jaxssl.models.model import apply, shapes
from jaxssl.models.sites import axes, matrices
from tests.archs import ARCHS, LARGE, forward, noise, weights

ARCH = ARCHS["convolution-stack"]
PART = ARCH.length_adapter


def convolved(x, kernel, bias, stride):
    """The definition, frame by frame: a window's product, and a gate."""
    padded = np.pad(x, ((1, 1), (0, 0)))
    starts = range(0, len(padded) - len(kernel) + 1, stride)
    value, gate = np.split(
        np.stack([np.tensordot(padded[i : i + len(kernel)], kernel, 2) for i in starts]) + bias, 2, 1
    )
    return value / (1 + np.exp(-gate))


def test_it_is_gated_convolutions_of_the_normed_projection(key):
    params = weights(ARCH)
    out = forward(ARCH, params, noise(ARCH, key))
    mine = params["length_adapter"]
    x = np.asarray(out.last[0], np.float64) @ mine["project"]["kernel"] + mine["project"]["bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * mine["norm"]["scale"] + mine["norm"]["bias"]
    for layer in mine["layers"].values():
        x = convolved(x, layer["kernel"], layer["bias"], PART.stride)
    np.testing.assert_allclose(out.shortened[0], x, atol=1e-5)


@pytest.mark.parametrize(
    "part", [PART, *(LengthAdapter(8, 2, k, s) for k, s in ((1, 1), (2, 3), (5, 2), (4, 1)))], ids=str
)
def test_frames_are_those_of_the_convolutions_and_one_is_the_least(part):
    arch = replace(ARCH, length_adapter=part)
    for frames in (part.least, part.least + 1, 23):
        inputs = jax.ShapeDtypeStruct((1, frames, arch.front.size), np.float32)
        out = jax.eval_shape(lambda p, x, arch=arch: apply(arch, p, x).shortened, shapes(arch), inputs)
        assert out.shape == (1, part.frames(frames), part.width)
    assert part.frames(part.least) >= 1
    assert part.least == 1 or part.frames(part.least - 1) < 1


def test_too_few_frames_are_refused(key):
    arch = replace(ARCH, length_adapter=LengthAdapter(8, 2, 5, 2))
    few = noise(arch, key, frames=arch.least - 1)
    with pytest.raises(InputError, match="few"):
        forward(arch, weights(arch), few)


def test_pieces_of_a_long_utterance_have_as_many_frames_as_the_whole(key):
    features = np.asarray(noise(ARCH, key, batch=1, frames=203)[0])
    run = {"programs": 1, "batch": 1, "edges": [203], "prepare": False}
    whole = next(encode_all(ARCH, weights(ARCH), [features], **run))[1]
    pieces = next(encode_all(ARCH, weights(ARCH), [features], longest=1.1, **run))[1]
    assert whole.shape == pieces.shape == (PART.frames(203), PART.width)


def test_it_is_no_site():
    without = replace(ARCH, length_adapter=None)
    assert (matrices(ARCH), axes(ARCH)) == (matrices(without), axes(without))


def test_exports_without_it_refuse():
    arch = replace(LARGE, length_adapter=PART, head=None)  # frames are counted as HuBERT's class does, which has none
    for write in (to_huggingface.folder, to_dphubert.state):
        with pytest.raises(InputError, match="it has a length adapter"):
            write(arch, weights(arch))


def test_one_without_frames_is_refused():
    with pytest.raises(InputError, match="stride=0.*1 or more"):
        shapes(replace(ARCH, length_adapter=replace(PART, stride=0)))
