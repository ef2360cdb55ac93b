"""Frames that fire before a layer: no compression is the plain model, equal weights are means, counts are exact."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from compress.errors import InputError
from compress.plan import Shorter
from jaxssl.models import cost
from jaxssl.models.arch import IntegrateAndFire
from jaxssl.models.model import apply, shapes
from jaxssl.models.shorten import by_step
from tests.archs import ARCHS, MEL, forward, noise, weights

ARCH = ARCHS["firing-inside"]
ROOMY = ARCH.refired(IntegrateAndFire(3))
PLAIN = replace(MEL, layers=MEL.layers[:2])
LENGTHS = np.array([30, 21], np.int32)


@partial(jax.jit, static_argnums=0)
def mixing(arch, params, inputs, lengths, amount):
    return apply(arch, params, inputs, lengths, amount=amount)


def test_weights_of_one_are_no_compression(key):
    params, inputs = weights(ROOMY), noise(ROOMY, key)
    plain = {i: {name: part for name, part in params["layers"][i].items() if name != "shortening"} for i in "01"}
    out = mixing(ROOMY, params, inputs, LENGTHS, np.float32(0))
    wanted = forward(PLAIN, {**params, "layers": plain}, inputs, LENGTHS)
    assert [each.tolist() for each in out.lengths] == [LENGTHS.tolist()] * 3
    for row, count in enumerate(LENGTHS):
        np.testing.assert_allclose(out.logits[row, :count], wanted.logits[row, :count], atol=1e-5)


def test_frames_are_counted_where_they_fire(key):
    params, inputs = weights(ROOMY), noise(ROOMY, key)
    out = forward(ROOMY, params, inputs, LENGTHS)
    mixed = 0.2 + 0.8 * np.asarray(out.weights)  # the net hears what the layer hears
    assert out.weights.shape == (2, 30)
    fewer = mixing(ROOMY, params, inputs, LENGTHS, np.float32(0.8))
    counts = [int(np.floor(mixed[row, :count].sum())) for row, count in enumerate(LENGTHS)]
    assert [each.tolist() for each in fewer.lengths] == [LENGTHS.tolist(), LENGTHS.tolist(), counts]
    assert (fewer.last_lengths.tolist(), fewer.last.shape[1]) == (LENGTHS.tolist(), 30)
    assert [each.shape[1] for each in fewer.aligned] == [30] * 3


@pytest.mark.parametrize("at", [None, 1])
@pytest.mark.parametrize("ratio", [2, 3, 8])
def test_a_step_of_a_plan_begins_as_means(key, at, ratio):
    params, inputs = weights(PLAIN), noise(PLAIN, key)
    fires, means = (by_step(PLAIN, params, Shorter(ratio, at, way)) for way in ("fire", "mean"))
    assert jax.tree.structure(fires[1]) == jax.tree.structure(shapes(fires[0]))
    assert fires[0].fires_at == at
    out, wanted = forward(*fires, inputs, LENGTHS), forward(*means, inputs, LENGTHS)
    assert out.lengths[-1].tolist() == wanted.lengths[-1].tolist()
    for row, count in enumerate(LENGTHS):
        np.testing.assert_allclose(out.last[row, :count], wanted.last[row, :count], atol=1e-4)


def test_its_work_is_that_of_the_room_there_is():
    half = ARCH.refired(IntegrateAndFire(3, most=50))
    frames, width = half.frames(160_000, layer=0), half.width
    fired = half.frames(160_000, layer=1)
    assert fired == -(-frames // 2)
    net, there_and_back = frames * (3 * width**2 + width), 2 * frames * fired * width
    assert cost.macs(half, 160_000).reduction == net + there_and_back


def test_training_draws_an_amount_there_too(key):
    arch = ARCH.refired(IntegrateAndFire(3, drawn="uniform"))
    params, inputs = weights(arch), noise(arch, key)
    run = jax.jit(lambda key: apply(arch, params, inputs, LENGTHS, key=key).lengths[-1])
    assert len({tuple(run(jax.random.key(seed)).tolist()) for seed in range(8)}) > 3


def test_frames_fire_once():
    with pytest.raises(InputError, match="frames fire in 2 places, and what fired is counted once; keep one of them"):
        shapes(replace(ARCH, shortening=IntegrateAndFire(3)))
