"""Gates: what they count, what they draw, that closed ones are a cut, and that the target is reached."""

from dataclasses import replace
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.edit import cut, mask
from jaxssl.models import cost
from jaxssl.models.arch import Dropout
from jaxssl.models.describe import describe
from jaxssl.models.sites import axes, channels
from jaxssl.training import gates
from jaxssl.training.distillation import TAUGHT, joined, teach
from jaxssl.training.hidden_states import dphubert
from jaxssl.training.losses import means
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.step import compile_step, start
from tests.archs import ARCHS, BASE, LARGE, MEL, forward, noise, transformer_layer, weights

STILL = replace(MEL, layers=MEL.layers[:2], dropout=Dropout(0.0, 0.0))
FREE = replace(BASE, front=replace(BASE.front, feature_norm=False, bias=True))


@pytest.mark.parametrize("arch", [BASE, FREE], ids=["base", "no feature norm"])
def test_masked_channels_are_cut_channels(arch, key):
    """On every convolution at once, and `describe` reads the smaller extractor back."""
    params, x, found = weights(arch), noise(arch, key), channels(arch)
    assert len(found) == len(arch.front.convs) - arch.front.feature_norm
    keeps = {axis.name: tuple(range(i % 2, axis.size, 2)) for i, axis in enumerate(found)}
    masked = reduce(lambda tree, axis: mask(tree, axis, keeps[axis.name]), found, params)
    slim = reduce(lambda tree, axis: cut(tree, axis, keeps[axis.name]), found, params)
    small = describe(arch, slim)
    assert [conv.channels for conv in small.front.convs] == [6] * len(found) + [12] * arch.front.feature_norm
    np.testing.assert_allclose(forward(arch, masked, x).last, forward(small, slim, x).last, atol=1e-5)


def test_channels_that_others_depend_on_are_not_offered():
    assert channels(LARGE) == ()
    assert channels(MEL) == ()


@pytest.mark.parametrize("name", ARCHS)
def test_size_is_what_a_cut_model_has(name):
    """Of axes that share tensors, too: a convolution's weights go with both its sides."""
    arch = ARCHS[name]
    found = (*channels(arch), *(axis for axis in axes(arch) if axis.size))
    assert gates.size(arch, found, {axis.name: axis.size for axis in found}) == cost.parameters(arch)
    counts = {axis.name: max(axis.size // 2, 1) for axis in found}
    slim = jax.eval_shape(
        lambda: reduce(lambda tree, axis: cut(tree, axis, range(counts[axis.name])), found, weights(arch))
    )
    assert gates.size(arch, found, counts) == sum(leaf.size for leaf in jax.tree.leaves(slim))


WIDE = replace(BASE, layers=(transformer_layer(4, 200),) * 3)


def test_draws_open_as_often_as_expected():
    """Over many draws; as many settle open as are expected to be."""
    logits = jnp.array([-6.0, -1.0, 0.0, 2.0, 6.0])
    z = jax.vmap(lambda key: gates.drawn(logits, key))(jax.random.split(jax.random.key(0), 20_000))
    assert float(z.min()) == 0.0
    assert float(z.max()) == 1.0
    np.testing.assert_allclose((z > 0).mean(0), gates.chance(logits), atol=0.012)
    z = gates.settled(logits)
    assert int((z == 0).sum()) == 5 - round(float(gates.chance(logits).sum()))
    np.testing.assert_allclose(z[-1], 1 / (1 + np.exp(-0.8 / (2 / 3) * 6.0)), rtol=1e-6)
    hand = 1 / (1 + np.exp(-(2.0 - 2 / 3 * np.log(0.1 / 1.1))))
    np.testing.assert_allclose(gates.chance(jnp.array([2.0])), hand, rtol=1e-6)


@pytest.mark.parametrize("target", [0.05, 0.3, 0.6])
def test_what_is_chosen_meets_the_target(target):
    """Whatever the gates learned, those that stay are the most open ones, and the size is the target's."""
    found, draw = axes(WIDE), np.random.default_rng(0)
    logits = {axis.name: draw.normal(0, 3, axis.size) for axis in found}
    keep = gates.chosen(WIDE, found, logits, target)
    counts = {name: int(row.sum()) for name, row in keep.items()}
    full = gates.size(WIDE, found, {axis.name: axis.size for axis in found})
    assert 1 - gates.size(WIDE, found, counts) / full == pytest.approx(target, abs=0.01)
    assert min(logits[n][row].min(initial=9) for n, row in keep.items()) > max(
        logits[n][~row].max(initial=-99) for n, row in keep.items()
    )


def test_closed_gates_are_a_mask(key):
    """Gates of 0 and 1 on every kind of unit."""
    params, x = weights(BASE), noise(BASE, key)
    found = (*channels(BASE), *axes(BASE))
    keeps = {axis.name: tuple(range(1, axis.size, 2)) for axis in found}
    z = {axis.name: np.isin(np.arange(axis.size), keeps[axis.name]).astype(np.float32) for axis in found}
    masked = reduce(lambda tree, axis: mask(tree, axis, keeps[axis.name]), found, params)
    seen = gates.gated(params, found, z)
    np.testing.assert_allclose(forward(BASE, seen, x).last, forward(BASE, masked, x).last, atol=1e-5)


@pytest.mark.slow
def test_the_lagrangian_reaches_the_target():
    """In 105 updates, the target rising over the first half, a third closes; the weights learn at their own rate."""
    params, found = weights(STILL, 1), axes(STILL)
    mask_ = jax.random.bernoulli(jax.random.key(1), 0.5, (2, 30))
    batch = {"inputs": noise(STILL, jax.random.key(1)), "lengths": jnp.array([30, 30]), "mask": mask_}
    batch |= {"labels": jnp.zeros((2, 30), int)}
    loss = dphubert(STILL, STILL)
    batch |= {TAUGHT: teach(STILL, loss.wanted)(params, batch, None)}
    heads = loss.heads(STILL, STILL, jax.random.key(2))
    optimizer = Optimizer(learning_rate=1e-4, rates=((gates.GATES, 0.2),)).build()
    state = start({**joined(params, heads), gates.GATES: gates.fresh(found)}, optimizer, seed=0)
    step, told = compile_step(gates.gating(STILL, loss, found), optimizer), []
    for number in range(105):
        state, sums = step(state, [batch | {gates.TARGET: jnp.float32(0.33 * min(number / 52, 1.0))}])
        told.append(means(sums))
    assert told[0]["gone"] < 0.02
    assert told[-1]["gone"] == pytest.approx(0.33, abs=0.06)
    moved = np.abs(state.params["layers"]["0"]["ffn"]["fc2"]["bias"] - params["layers"]["0"]["ffn"]["fc2"]["bias"])
    assert 0 < moved.max() < 105 * 1.5e-4  # the gates' rate is theirs alone
    assert (
        float(state.params[gates.GATES]["multipliers"][1]) > gates.STIFF
    )  # it climbs, whatever the sign of what is off
