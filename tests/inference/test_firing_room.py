"""Fired frames with no more room than they need give what the whole model gives, by programs of fewer frames."""

from dataclasses import replace
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.inference.encode import encode, encode_all, hear_fired
from jaxssl.inference.firing_room import ROOMS, held, released, roomed
from jaxssl.models.arch import AveragePooling, IntegrateAndFire
from tests.archs import ARCHS, forward, noise, weights

INSIDE = ARCHS["firing-inside"].refired(IntegrateAndFire(3))
FRONT = replace(ARCHS["firing"], shortening=IntegrateAndFire(3))
MORE = replace(INSIDE, norm_first=True, shortening=AveragePooling(2))
PLACES = pytest.mark.parametrize("arch", [FRONT, INSIDE, MORE], ids=["front", "inside", "behind means, pre-LN"])
LENGTHS = np.array([30, 21], np.int32)


def at(arch, amount):
    return arch.refired(replace(arch.firing, amount=amount))


@PLACES
@pytest.mark.parametrize("amount", [0.0, 0.8, 1.6])
def test_what_has_room_gives_what_the_whole_model_gives(key, arch, amount):
    arch = at(arch, amount)
    params, inputs = weights(arch), noise(arch, key)
    whole, before = forward(arch, params, inputs, LENGTHS), held(arch, params, inputs, LENGTHS, jnp.float32)
    assert int(before.needed) >= max(100 * whole.lengths[-1] / LENGTHS)
    small = roomed(arch, int(before.needed))
    assert (small.firing.most < 100) == (amount > 0)
    for layers, wanted in (("last", whole.last), ("logits", whole.logits)):
        found, counts = released(small, params, before, layers)
        assert counts.tolist() == whole.last_lengths.tolist() == LENGTHS.tolist()
        for row, count in enumerate(LENGTHS):
            np.testing.assert_allclose(found[row, :count], wanted[row, :count], atol=1e-5)


def test_the_room_is_the_smallest_that_holds_what_fires_and_never_more_than_the_arch_s():
    assert [roomed(INSIDE, needed).firing.most for needed in (1, 4, 5, 81, 100, 130)] == [4, 4, 5, 100, 100, 100]
    tight = INSIDE.refired(IntegrateAndFire(3, most=50))
    assert [roomed(tight, needed).firing.most for needed in (34, 40, 43, 99)] == [34, 42, 50, 50]
    assert all(small < large <= 1.34 * small for small, large in pairwise(ROOMS))


def test_utterances_are_encoded_so_whatever_else_is_in_their_batch(key):
    arch = at(MORE, 1.0)
    params, x = weights(arch), np.asarray(noise(arch, key))
    found = dict(encode_all(arch, params, [x[0], x[1, :21], x[0, :9]], batch=2, programs=1))
    for number, utterance in enumerate((x[0], x[1, :21], x[0, :9])):
        wanted = encode(arch, params, jnp.asarray(utterance[None])).last[0]
        np.testing.assert_allclose(found[number], wanted, atol=1e-5)


def test_samples_are_heard_too(key):
    arch = at(INSIDE, 1.2)
    samples, counts = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6400), np.float32)), jnp.array([6400])
    found, frames = hear_fired(arch, weights(arch), None, samples, counts)
    wanted = encode(arch, weights(arch), samples, counts)
    np.testing.assert_allclose(found, wanted.last, atol=1e-5)
    assert frames.tolist() == wanted.last_lengths.tolist()


def test_logits_of_a_model_without_an_output_layer_are_refused(key):
    arch = replace(INSIDE, head=None)
    with pytest.raises(InputError, match="no output layer"):
        list(encode_all(arch, weights(arch), list(np.asarray(noise(arch, key))), layers="logits", prepare=False))
