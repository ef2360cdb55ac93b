"""A supernet's update hears the largest, the smallest and random subnets, each as it would learn alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.models.arch import Dropout, PositionalConvolution, melhubert_mini
from jaxssl.models.subnets import LIGHTHUBERT, PUBLISHED, Space, named, space_of
from jaxssl.models.supernet import Subnet, check_subnet, layers_kept, sizes, sliced, stacked
from jaxssl.training.distillation import HEADS, TAUGHT, SoftLabels, distilling, joined, split, teach
from jaxssl.training.hidden_states import lighthubert
from jaxssl.training.sandwich import SUBNETS, drawing, sandwich
from tests.archs import MEL, noise, transformer_layer, weights

ARCH = replace(
    MEL, layers=(transformer_layer(4, 48),) * 3, position=PositionalConvolution(8, 2), dropout=Dropout(0.0, 0.0)
)
SPACE = space_of(ARCH)


SOFT, HIDDEN = SoftLabels((ARCH.head.clusters,), masked=True), lighthubert(ARCH, ARCH, (1, 3))
BARE = replace(ARCH, head=None)


def batch(loss):
    inputs, draw = noise(ARCH, 0), np.random.default_rng(0)
    found = {
        "inputs": inputs,
        "lengths": jnp.asarray([30, 21]),
        "labels": jnp.asarray(draw.integers(0, ARCH.head.clusters, (2, 30)), jnp.int32),
        "mask": jnp.asarray(draw.random((2, 30)) < 0.5),
    }
    return {**found, TAUGHT: teach(ARCH, loss.wanted)(weights(ARCH, 1), found, None)}


def learn(goal, tree, heard):
    (value, sums), found = jax.jit(jax.value_and_grad(goal, has_aux=True))(tree, (), heard, None)
    return float(value), sums, found


def cut_out(tree, subnet):
    """A subnet's parameters, or their gradients, and the rows of the heads that are its own."""
    net, heads = split(tree)
    arch, cut = sliced(ARCH if "head" in net else BARE, net, subnet)
    rows = {
        i: {"outer": {**h["outer"], "kernel": np.asarray(h["outer"]["kernel"])[: subnet.width]}}
        for i, h in heads.items()
    }
    return arch, joined(cut, rows)


@pytest.mark.parametrize("loss", [HIDDEN, pytest.param(SOFT, marks=pytest.mark.slow)], ids=["hidden", "soft"])
def test_an_update_is_the_mean_of_what_each_subnet_learns_alone(loss):
    """Of the largest subnet that is what the dense model would learn."""
    subnets, inputs = (SPACE.largest, SPACE.smallest), batch(loss)
    tree = joined(weights(ARCH), loss.heads(ARCH, ARCH, jax.random.key(0)))
    heard = {**inputs, SUBNETS: stacked([sizes(ARCH, subnet) for subnet in subnets])}
    value, sums, found = learn(sandwich(ARCH, loss, stack="scan"), tree, heard)
    alone = []
    for subnet in subnets:
        small, cut = cut_out(tree, subnet)
        mine = loss if loss is SOFT else lighthubert(small, ARCH, (1, 3))
        alone.append(learn(distilling(small, mine, stack="scan"), cut, inputs))
    np.testing.assert_allclose(value, np.mean([each[0] for each in alone]), rtol=1e-5)
    losses = [float(each[1]["loss"][0]) for each in alone]
    np.testing.assert_allclose([float(sums[name][0]) for name in ("largest", "smallest")], losses, rtol=1e-5)
    whole, small = (flatten(each[2]) for each in alone)
    kept = layers_kept(len(subnets[1].heads), 3)
    paths = {f"layers/{old}/attention/q/kernel": f"layers/{new}/attention/q/kernel" for new, old in enumerate(kept)}
    paths |= {path: path for path in whole if path.startswith(HEADS) or path.startswith("head")}
    for mine, theirs in paths.items():
        expected, part = np.array(whole[mine]), small[theirs]
        expected[tuple(map(slice, part.shape))] += part
        np.testing.assert_allclose(
            flatten(found)[mine], expected / 2, atol=1e-5 * np.abs(expected).max() + 1e-8, err_msg=mine
        )


def test_hidden_layers_reach_nothing_but_the_subnet_s_own_parts():
    """And need no output layer. Of the positional kernel all has a gradient, for it is divided by its whole norm."""
    tree = joined(weights(BARE), HIDDEN.heads(BARE, BARE, jax.random.key(0)))
    heard = {**batch(HIDDEN), SUBNETS: stacked([sizes(BARE, SPACE.smallest)])}
    _, sums, found = learn(sandwich(BARE, HIDDEN, stack="scan"), tree, heard)
    assert float(sums["largest"][0]) == float(sums["smallest"][0]) == float(sums["loss"][0])
    kept, reached = layers_kept(len(SPACE.smallest.heads), 3), {}
    for path, gradient in flatten(cut_out(found, SPACE.smallest)[1]).items():
        room, *rest = path.split("/")
        rest = [str(kept[int(rest[0])]), *rest[1:]] if room == "layers" else rest
        reached["/".join((room, *rest))] = float(np.abs(gradient).sum())
    for path, gradient in flatten(found).items():
        if not path.startswith("position"):
            np.testing.assert_allclose(float(np.abs(gradient).sum()), reached.get(path, 0), rtol=1e-5, err_msg=path)
    assert all(value > 0 for path, value in reached.items() if not path.endswith("k/bias"))


def test_subnets_of_an_update_depend_on_its_place_alone():
    give = drawing(lambda batch, position: batch, ARCH, SPACE, count=2, seed=3)
    one, same, other = (give({}, {"epoch": 0, "step": step})[SUBNETS] for step in (4, 4, 5))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    np.testing.assert_array_equal(one.width[:2], [16, 8])
    assert one.heads.shape == (4, 3)
    first = drawing(lambda batch, position: batch, ARCH, SPACE, count=None, seed=3)({}, {"epoch": 0, "step": 4})
    for a, b in zip(jax.tree.leaves(first[SUBNETS]), jax.tree.leaves(sizes(ARCH, SPACE.largest)), strict=True):
        np.testing.assert_array_equal(a, b[None])


def test_what_is_drawn_is_in_the_space():
    rng = np.random.default_rng(0)
    drawn = [SPACE.draw(rng) for _ in range(200)]
    for subnet in drawn:
        check_subnet(ARCH, subnet)
        assert set(subnet.heads) <= set(SPACE.heads)
    assert {subnet.width for subnet in drawn} == set(SPACE.widths)
    assert {len(subnet.heads) for subnet in drawn} == set(SPACE.depths)


def test_the_spaces_of_lighthubert_have_as_many_subnets_as_published():
    assert LIGHTHUBERT["base"].count == pytest.approx(6.53e9, rel=1e-3)
    assert LIGHTHUBERT["small"].count == pytest.approx(9.52e11, rel=1e-3)
    base, small = PUBLISHED["lighthubert-base"], PUBLISHED["lighthubert-small"]
    assert base == LIGHTHUBERT["base"].uniform(640, 10, 4.0, 12)
    assert small == LIGHTHUBERT["small"].uniform(384, 6, 4.0, 12)


def test_a_space_is_all_three_quarters_and_half_unless_it_is_said():
    space = space_of(melhubert_mini())
    assert space == Space((256, 192, 128), (8, 6, 4), (4.0, 3.0, 2.0), (6, 5, 4))
    assert space_of(melhubert_mini(), widths=(256, 64), depths=(6,)).widths == (256, 64)
    assert named(space.largest, melhubert_mini()) == "w256-l6-h8-u1024"
    assert named(Subnet(16, (1, 2, 1), (3, 3, 3)), ARCH) == "w16-l3-h1.33333-u3-0.1.3_1.2.3_2.1.3"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"widths": (8, 4)},
            "the largest subnet has width 8, .* the model has width 16, 4 heads, 48 units and 3 layers",
        ),
        ({"widths": (16, 7)}, "width 7: this supernet has multiples of 2 up to 16"),
        ({"heads": (1, 4)}, "heads 1, 4: give one or more, falling"),
        ({"depths": (3, 1)}, "1 layers: subnets of this supernet have 2 to 3"),
        ({"ratios": (3.0, 0.01)}, "0 units in layer 0: at width 16 1 to 48 are there"),
    ],
)
def test_impossible_choices_are_refused(choices, message):
    with pytest.raises(InputError, match=message) as caught:
        space_of(ARCH, **choices)
    assert "\n" not in str(caught.value)


def test_layers_that_differ_are_refused():
    with pytest.raises(InputError, match="layers of 2 sizes: a supernet's are alike"):
        space_of(replace(ARCH, layers=(transformer_layer(4, 48), transformer_layer(2, 48))))
