"""Laws of cutting and masking, over every small model and over an optimiser's state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compress.address import Axis, flatten
from compress.depth import keep_layers
from compress.edit import cut, mask
from compress.errors import InputError
from compress.score import magnitude
from compress.select import highest, highest_overall
from jaxssl.models import cost
from jaxssl.models.describe import describe
from jaxssl.models.sites import axes
from tests.archs import ARCHS, MEL, forward, noise, weights

every_arch = pytest.mark.parametrize("arch", list(ARCHS.values()), ids=list(ARCHS))


def equal(one, two):
    one, two = flatten(one), flatten(two)
    assert one.keys() == two.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], two[path], err_msg=path)


def half(size, seed):
    """Half of the units, at random, ascending."""
    return tuple(sorted(np.random.default_rng(seed).permutation(size)[: size // 2].tolist()))


@every_arch
@pytest.mark.parametrize("seed", [0, 1])
def test_mask_equals_cut(arch, seed):
    """f(mask(p, a, k)) == f(cut(p, a, k)) for every axis at once, and the cut model describes itself."""
    masked = slim = weights(arch, seed)
    for axis in axes(arch):
        keep = half(axis.size, seed)
        masked, slim = mask(masked, axis, keep), cut(slim, axis, keep)
    small = describe(arch, slim)
    inputs = noise(arch, seed)
    for one, two in zip(forward(arch, masked, inputs).hidden, forward(small, slim, inputs).hidden, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5, rtol=1e-4)
    assert cost.parameters(small) == sum(leaf.size for leaf in jax.tree.leaves(slim))
    assert cost.macs(small, 16000).total < cost.macs(arch, 16000).total


@every_arch
def test_all_units_may_go(arch, key):
    masked = slim = weights(arch)
    for axis in axes(arch):
        masked, slim = mask(masked, axis, ()), cut(slim, axis, ())
    small, inputs = describe(arch, slim), noise(arch, key)
    assert all(block.empty for layer in small.layers for block in layer.blocks)
    np.testing.assert_allclose(
        forward(arch, masked, inputs).last, forward(small, slim, inputs).last, atol=2e-5, rtol=1e-4
    )


@every_arch
def test_keeping_all_is_the_identity(arch, key):
    params = weights(arch)
    for axis in axes(arch):
        equal(cut(params, axis, range(axis.size)), params)
        equal(mask(params, axis, range(axis.size)), params)


def test_cut_after_cut_is_the_cut_of_both(key):
    params, first, second = weights(MEL), (0, 2, 3, 7, 9, 11), (1, 2, 5)
    axis = next(a for a in axes(MEL) if a.name == "layers/1/ffn/hidden")
    once = cut(params, axis, first)
    again = next(a for a in axes(describe(MEL, once)) if a.name == axis.name)
    equal(cut(once, again, second), cut(params, axis, [first[i] for i in second]))


def test_cuts_of_different_axes_commute(key):
    params, (one, two, *_) = weights(MEL), axes(MEL)
    equal(cut(cut(params, one, (0, 3)), two, (1, 5)), cut(cut(params, two, (1, 5)), one, (0, 3)))


def test_moments_are_cut_with_the_parameters(key):
    """Anything with the parameters' paths can be cut: here Adam's moments, after a step."""
    params = weights(MEL)
    optimizer = optax.adam(1e-3)
    with jax.numpy_dtype_promotion("standard"):  # optax's bias correction mixes int32 and float
        state = optimizer.update(params, optimizer.init(params), params)[1]
    axis, keep = axes(MEL)[0], (1, 2)
    moments = cut(state[0].mu, axis, keep)
    assert {p: x.shape for p, x in flatten(moments).items()} == {
        p: x.shape for p, x in flatten(cut(params, axis, keep)).items()
    }
    np.testing.assert_array_equal(
        moments["layers"]["0"]["attention"]["q"]["kernel"],
        state[0].mu["layers"]["0"]["attention"]["q"]["kernel"][:, jnp.array(keep)],
    )


def test_layers_are_kept_and_renumbered(key):
    params = weights(MEL)
    kept = keep_layers(params, (0, 2))
    small = describe(MEL, kept)
    assert len(small.layers) == 2
    equal(kept["layers"]["1"], params["layers"]["2"])
    full = forward(MEL, keep_layers(params, (0, 1, 2)), noise(MEL, key))
    np.testing.assert_array_equal(full.last, forward(MEL, params, noise(MEL, key)).last)
    for wrong in ((0, 3), (1, 0), (1, 1), (-1,)):
        with pytest.raises(InputError, match="layers"):
            keep_layers(params, wrong)


def test_scores_by_hand(key):
    params = weights(MEL)
    heads, rows = axes(MEL)[:2]
    attention, ffn = params["layers"]["0"]["attention"], params["layers"]["0"]["ffn"]
    by_hand = sum(np.abs(np.asarray(attention[n]["kernel"])).sum((0, 2)) for n in "qkv")
    by_hand = by_hand + sum(np.abs(np.asarray(attention[n]["bias"])).sum(1) for n in "qkv")
    np.testing.assert_allclose(magnitude(params, heads, leaves="*/[qkv]/*"), by_hand, rtol=1e-6)
    by_hand = np.abs(np.asarray(ffn["fc1"]["kernel"])).sum(0) + np.abs(np.asarray(ffn["fc1"]["bias"]))
    by_hand = by_hand + np.abs(np.asarray(ffn["fc2"]["kernel"])).sum(1)
    np.testing.assert_allclose(magnitude(params, rows), by_hand, rtol=1e-6)
    assert magnitude(params, rows, order=2).sum() < magnitude(params, rows).sum()
    with pytest.raises(InputError, match="nothing"):
        magnitude(params, rows, leaves="nothing/*")


def test_selection_is_deterministic_on_ties():
    assert highest(np.array([1.0, 1.0, 1.0]), 2) == (0, 1)
    assert highest(np.array([1.0]), 0) == ()
    assert highest_overall({"a": np.array([1.0, 1.0]), "b": np.array([1.0, 1.0])}, 2) == {"a": (0,), "b": (0,)}
    for wrong in (3, -1):
        with pytest.raises(InputError, match=f"cannot keep {wrong} of 2"):
            highest(np.array([1.0, 2.0]), wrong)
    with pytest.raises(InputError, match="cannot drop 3"):
        highest_overall({"a": np.array([1.0, 1.0]), "b": np.array([1.0, 1.0])}, 3)


@pytest.mark.parametrize("seed", range(3))
def test_one_order_over_one_axis_or_over_all(seed):
    """highest_overall({a: s}, d)[a] == highest(s, n − d), ties included; between axes the one named first stays."""
    scores = np.random.default_rng(seed).integers(0, 3, 9).astype(float)
    for drop in range(9):
        assert highest_overall({"a": scores}, drop)["a"] == highest(scores, 9 - drop)
    assert highest_overall({"a": np.ones(3), "b": np.ones(3)}, 3) == {"a": (0, 1), "b": (0,)}


def test_scores_that_are_not_numbers_are_refused():
    broken = np.array([1.0, np.nan])
    with pytest.raises(InputError, match="1 of 2 scores"):
        highest(broken, 1)
    with pytest.raises(InputError, match="b: 1 of 2 scores"):
        highest_overall({"a": np.ones(2), "b": broken}, 1)
    with pytest.raises(InputError, match="protect -1"):
        highest_overall({"a": np.ones(2)}, 1, protect=-1)


@pytest.mark.parametrize("keep", [[False, True], np.array([True, False, True, True]), [0.5, 1.7]])
@pytest.mark.parametrize("act", [cut, mask])
def test_only_indices_are_indices(act, keep, key):
    """A cast to integers would keep units 0 and 1 for [False, True]."""
    with pytest.raises(InputError, match="layers/0/attention/heads: keep takes indices"):
        act(weights(MEL), axes(MEL)[0], keep)


@pytest.mark.parametrize("keep", [(0, 4), (-1,), (1, 1), (2, 1)])
def test_impossible_indices_name_the_axis(keep, key):
    with pytest.raises(InputError, match="layers/0/attention/heads"):
        cut(weights(MEL), axes(MEL)[0], keep)


def test_an_axis_of_another_model_is_refused(key):
    axis = Axis("layers/0/ffn/hidden", 23, (("layers/0/ffn/fc1/kernel", 1),))
    with pytest.raises(InputError, match=r"layers/0/ffn/fc1/kernel.*24.*23"):
        cut(weights(MEL), axis, (0,))
    with pytest.raises(InputError, match="no such path"):
        mask(weights(MEL), Axis("x", 24, (("layers/9/fc1", 1),)), (0,))
    for path, at in (("layers/0/ffn/fc1", 0), ("norm/scale", 1)):  # a branch; an array of fewer axes
        with pytest.raises(InputError, match=rf"{path}: axis {at} of shape .* is not the 24 units of x"):
            cut(weights(MEL), Axis("x", 24, ((path, at),)), (0,))
    with pytest.raises(InputError, match="layers: no such path"):
        keep_layers({"norm": jnp.zeros(3)}, (0,))
