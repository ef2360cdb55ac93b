"""A frame sees what its context lets it see: attention's, and that of positions."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.analysis.attention_maps import attention_maps
from jaxssl.convert import to_dphubert, to_huggingface
from jaxssl.models import attend as attending
from jaxssl.models.arch_json import from_json, to_json
from jaxssl.models.checks import check_arch
from jaxssl.models.describe import describe
from tests.archs import BASE, LIMITED, MEL, noise, transformer_layer, weights

CONTEXTS = [(3, 1), (None, 0), (0, None), (0, 0)]


def seen(frames, context):
    """The definition: true where query and key are that near."""
    left, right = (frames if side is None else side for side in context)
    apart = np.arange(frames)[None] - np.arange(frames)[:, None]
    return (-left <= apart) & (apart <= right)


@pytest.mark.parametrize("context", CONTEXTS)
def test_attention_is_the_definition_either_way(context):
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 9, 3, 4)).astype(np.float32)
    valid = np.arange(9)[None] < np.array([9, 6])[:, None]
    scores = np.einsum("bthd,bshd->bhts", q, k)
    scores = np.where(seen(9, context)[None, None] & valid[:, None, None], scores, -np.inf)[..., :6, :]
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhts,bshd->bthd", shares / shares.sum(-1, keepdims=True), v)
    for way in (attending._at_once, attending._one_by_one):
        found = jax.jit(way, static_argnames="context")(q, k, v, valid, context=context)
        np.testing.assert_allclose(found[:, :6], expected, atol=1e-5)


def test_maps_are_seen_within_their_context(key):
    maps, _ = attention_maps(LIMITED, weights(LIMITED), noise(LIMITED, key, frames=9))
    for i, context in enumerate([(3, 1), (None, 0), (None, 0)]):  # the last are those of the layer before
        outside = np.asarray(maps[i])[..., ~seen(9, context)]
        assert not outside.any()
        np.testing.assert_allclose(np.asarray(maps[i]).sum(-1), 1, atol=1e-5)


def test_shapes_do_not_tell_a_context():
    params = weights(LIMITED)
    assert describe(LIMITED, params) == LIMITED
    plain = describe(replace(LIMITED, layers=()), params)
    assert {layer.attention.context for layer in plain.layers} == {(None, None)}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((transformer_layer(4, 24, left=-1),), "layers/0: a context of -1 and None frames"),
        ((MEL.layers[0], transformer_layer(4, 24, reuse=True, right=0)), "layers/1: reuses .* leave left and right"),
    ],
)
def test_what_cannot_be_is_refused(layers, message):
    with pytest.raises(InputError, match=message):
        check_arch(replace(MEL, layers=layers))


def test_a_description_from_before_there_were_contexts_is_read():
    values = to_json(LIMITED)
    for layer in values["layers"]:
        del layer["mixer"]["left"], layer["mixer"]["right"]
    del values["position"]["causal"]
    assert {layer.attention.context for layer in from_json(values).layers} == {(None, None)}


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (replace(BASE, layers=(transformer_layer(4, 24, left=5),)), "limited context"),
        (replace(BASE, position=replace(BASE.position, causal=True)), "positions are causal"),
    ],
)
def test_formats_that_have_none_refuse(arch, reason):
    params = weights(arch)
    for write in (to_huggingface.folder, to_dphubert.state):
        with pytest.raises(InputError, match=reason):
            write(arch, params)
