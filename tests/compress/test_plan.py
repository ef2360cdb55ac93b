"""Plans run in any order on any model, and say what they cannot do."""

import itertools
from functools import partial

import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from compress.lowrank import decompose_maps
from compress.plan import Evidence, Heads, Layers, LowRank, Rows, Shorter, Sites, Weights, run, simulate
from jaxssl.models import cost
from jaxssl.models.arch import FULL, Rank
from jaxssl.models.describe import describe
from jaxssl.models.model import apply
from jaxssl.models.sites import axes, matrices
from tests.archs import BASE, LARGE, MEL, fresh, noise

STEPS = (LowRank("layers/*/ffn/*", 3), Heads(3), Rows(10), Layers((0, 1)))


def sites_of(base):
    def sites(tree):
        arch = describe(base, tree)
        return Sites(axes(arch), matrices(arch))

    return sites


@pytest.mark.parametrize("arch", [BASE, LARGE, MEL])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_any_order_gives_a_model_of_the_same_shape(arch, order, key):
    params = run([STEPS[i] for i in order], fresh(arch), sites=sites_of(arch))
    small = describe(arch, params)
    assert [(layer.mixer.heads, layer.ffn.size, layer.ffn.fc1) for layer in small.layers] == [(3, 10, Rank(3))] * 2
    assert cost.parameters(small) < cost.parameters(arch)


def test_a_plan_in_parts_is_the_whole_plan(key):
    params, sites = fresh(MEL), sites_of(MEL)
    whole, parts = run(STEPS, params, sites=sites), run(STEPS[2:], run(STEPS[:2], params, sites=sites), sites=sites)
    for path, leaf in flatten(whole).items():
        np.testing.assert_array_equal(flatten(parts)[path], leaf)


def test_an_empty_plan_and_a_kept_all_plan_change_nothing(key):
    params, sites = fresh(MEL), sites_of(MEL)
    for plan in ((), (Heads(4), Rows(24), Layers((0, 1, 2)))):
        out = apply(MEL, run(plan, params, sites=sites), noise(MEL, key))
        np.testing.assert_array_equal(out.last, apply(MEL, params, noise(MEL, key)).last)


def test_what_would_grow_stays_dense(key):
    small = describe(MEL, run([LowRank("layers/0/*", 8)], fresh(MEL), sites=sites_of(MEL)))
    assert small.layers[0].mixer.q == FULL
    assert small.layers[0].ffn.fc1 == Rank(8)


def test_a_factorised_map_never_grows(key):
    """A later, greater rank leaves it as it is; a lesser one lowers it."""
    sites = sites_of(MEL)
    small = run([LowRank("layers/*/ffn/fc1", 4)], fresh(MEL), sites=sites)
    for rank, expected in ((8, 4), (4, 4), (2, 2)):
        again = describe(MEL, run([LowRank("layers/*/ffn/fc1", rank)], small, sites=sites))
        assert {layer.ffn.fc1 for layer in again.layers} == {Rank(expected)}


KNOWN = Evidence(
    scores=lambda tree, score, mine: {axis.name: np.arange(axis.size)[::-1] + 1.0 for axis in mine},
    decompositions=lambda tree, maps: decompose_maps(tree, maps, {m.path: np.eye(m.fan_in) for m in maps}),
    costs=lambda tree: {axis.name: 1.0 + ("ffn" in axis.name) for axis in axes(MEL)},
)


def test_what_is_simulated_is_what_is_run(key):
    """Steps that act each on maps of its own, in the shapes of before: one function."""
    params = fresh(MEL)
    plan = (
        Heads(2, where="layers/[01]/*", score="gradient", select="model"),
        Rows(24, where="layers/[01]/*", score="activation", select="budget", multiple=2),
        LowRank("layers/2/ffn/*", 3, aware=True),
        LowRank("project", 3),
        Weights(0.3, where="layers/2/attention/*"),
    )
    seen = simulate(plan, params, at=sites_of(MEL)(params), evidence=KNOWN)
    small = run(plan, params, sites=sites_of(MEL), evidence=KNOWN)
    arch, x = describe(MEL, small), noise(MEL, key)
    np.testing.assert_allclose(apply(MEL, seen, x).last, apply(arch, small, x).last, atol=2e-5)
    assert sum(layer.mixer.heads for layer in arch.layers[:2]) == 4
    assert sum(layer.ffn.size for layer in arch.layers[:2]) == 12  # two parameters each, of a budget of 24


def test_what_weights_do_not_tell_is_asked_for(key):
    params, at = fresh(MEL), sites_of(MEL)
    for step, words in (
        (Heads(2, score="activation"), "activation: weights do not tell this score"),
        (LowRank("layers/*", 3, aware=True), "need `evidence` with decompositions"),
        (Rows(9, select="budget"), "what a unit costs"),
    ):
        with pytest.raises(InputError, match=words):
            run([step], params, sites=at)
    for carry in (partial(run, sites=at), partial(simulate, at=at(params))):
        with pytest.raises(InputError, match="arrays do not tell which frames a model hears"):
            carry([Shorter(2)], params)
    with pytest.raises(InputError, match="do not simulate it"):
        simulate([Layers((0,))], params, at=at(params))
    with pytest.raises(InputError, match="takes 1.2 of every 4"):
        run([Weights(0.3, pattern="groups", size=4)], params, sites=at)


@pytest.mark.parametrize("select", ["model", "layer"])
def test_weights_have_a_threshold_each_or_together(select, key):
    tree = run([Weights(0.5, select=select, biases=False)], fresh(MEL), sites=sites_of(MEL))
    shares = {}
    for path, leaf in flatten(tree["layers"]).items():
        if path.endswith("/kernel"):
            shares.setdefault(path.split("/")[0], []).append(np.asarray(leaf).reshape(-1) == 0)
    found = [float(np.mean(np.concatenate(each))) for each in shares.values()]
    assert np.mean(found) == pytest.approx(0.5, abs=1e-3)
    assert (max(found) - min(found) < 1e-3) == (select == "layer")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Heads(5), "layers/0/attention/heads: cannot keep 5 of 4"),
        (Rows(-1), "layers/0/ffn/hidden: cannot keep -1 of 24"),
        (Rows(3, where="layer/*"), "near: layers/"),
        (LowRank("layers/*", 0), "rank 0"),
        (LowRank("head/*", 3), "near:"),
        (Layers((7,)), "0 … 2"),
    ],
)
def test_impossible_steps_are_named(step, message, key):
    with pytest.raises(InputError, match=message):
        run([step], fresh(MEL), sites=sites_of(MEL))
