"""WavLM's gated relative positions against the formula by hand; heads keep their numbers; what cannot be is refused."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compress.address import flatten
from compress.depth import keep_layers
from compress.edit import cut
from compress.errors import InputError
from jaxssl.analysis.attention_maps import attention_maps
from jaxssl.models import choice
from jaxssl.models.arch import GatedAttention, RelativeBias
from jaxssl.models.attend import attend
from jaxssl.models.describe import describe
from jaxssl.models.inner_maps import map_inputs
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import init
from jaxssl.models.sites import axes, entries
from jaxssl.training.losses import MaskedPrediction
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.step import change, make_step, start
from tests.archs import MEL, WAVLM, forward, gated_layer, noise, transformer_layer, weights


def bucket(part, apart):
    """The table's row, one distance at a time."""
    half = part.buckets // 2
    exact, far = half // 2, abs(apart)
    if far >= exact:
        grown = math.log(far / exact) / math.log(part.max_distance / exact) * (half - exact)
        far = min(exact + math.floor(grown), half - 1)
    return far + half * (apart > 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def added(arch, params, layer, x):
    """What is added to the scores of `x: (frames, width)`: one head, query and key at a time; (heads, query, key)."""
    mixer, gate = arch.layers[layer].mixer, params["layers"][str(layer)]["attention"]["gate"]
    table, constant = params["relative"]["table"], gate[mixer.constant]
    found = np.zeros((mixer.heads, len(x), len(x)))
    for i, number in enumerate(mixer.remaining):
        for q in range(len(x)):
            heard = x[q, number * mixer.head_dim : (number + 1) * mixer.head_dim]
            alpha, gamma = sigmoid((heard @ gate["kernel"] + gate["bias"]).reshape(2, 4).sum(1))
            share = alpha * (gamma * constant[i] - 1) + 2
            found[i, q] = [share * table[bucket(arch.relative, k - q), number] for k in range(len(x))]
    return found


@pytest.fixture(scope="module")
def heard():
    """Parameters of some size, and what each map is given when the model runs on 30 frames, of which a row has 11."""
    params = jax.tree.map(lambda leaf: 3 * leaf, weights(WAVLM))
    x, lengths = noise(WAVLM, 1), jnp.array([11, 30])
    maps, _ = jax.jit(lambda p, x, n: map_inputs(WAVLM, p, x, n))(params, x, lengths)
    shown, _ = jax.jit(lambda p, x, n: attention_maps(WAVLM, p, x, n))(params, x, lengths)
    return params, {path: np.asarray(value, np.float64) for path, value in maps.items()}, shown


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("row", "frames"), [(0, 11), (1, 30)])
def test_it_is_the_formula(heard, layer, row, frames):
    """Also of layer 1, whose heads are the second and the fourth, and beyond the greatest distance."""
    params, maps, shown = heard
    block, at = params["layers"][str(layer)]["attention"], f"layers/{layer}/attention"
    x = maps[f"{at}/q"][row, :frames]
    q, k, v = (dense(block[name], x) for name in "qkv")
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1]) + added(WAVLM, params, layer, x)
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    context = np.einsum("hts,shd->thd", expected, v)
    np.testing.assert_allclose(maps[f"{at}/out"][row, :frames], context, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown[layer][row, :, :frames, :frames], expected, rtol=1e-4, atol=1e-6)


def dense(block, x):
    block = {name: np.asarray(array, np.float64) for name, array in block.items()}
    kernel = block["kernel"] if "kernel" in block else np.tensordot(block["down"], block["up"], 1)
    return np.tensordot(x, kernel, 1) + block["bias"]


@pytest.mark.parametrize(
    "part", [RelativeBias(12), RelativeBias(2, 18, 21), RelativeBias(1, 4, 2), RelativeBias(1, 33, 9)]
)
def test_every_distance_has_its_bucket(part):
    far = range(-part.max_distance, part.max_distance + 1)
    assert part.rows().tolist() == [bucket(part, apart) for apart in far]
    assert bucket(part, -10 * part.max_distance) == part.rows()[0]


def test_heads_keep_their_numbers_when_others_go():
    """Cut after cut: the names tell which are left."""
    tree, arch = weights(WAVLM), WAVLM
    for keep in ((0, 2, 3), (1, 2)):
        tree = cut(tree, axes(arch)[0], keep)
        arch = describe(arch, tree)
    assert arch.layers[0].mixer == GatedAttention((2, 3), 4)
    assert sorted(tree["layers"]["0"]["attention"]["gate"]) == ["bias", "constant@2.3", "kernel"]
    np.testing.assert_array_equal(
        tree["layers"]["0"]["attention"]["gate"]["constant@2.3"],
        weights(WAVLM)["layers"]["0"]["attention"]["gate"]["constant@0.1.2.3"][2:],
    )
    again = arch.layers[0].mixer
    assert (again.resized("heads", 1).remaining, again.resized("heads", 3).remaining) == ((2,), (0, 2, 3))


def test_without_its_first_layer_the_table_is_still_there():
    tree = keep_layers(weights(WAVLM), (1,))
    arch = describe(WAVLM, tree)
    assert (arch.layers, arch.relative) == (WAVLM.layers[1:2], WAVLM.relative)
    assert np.isfinite(forward(arch, tree, noise(arch, 0)).last).all()


def test_it_starts_as_wavlm_does(key):
    """N(0, 0.02) and zeros and ones, by fairseq's `init_bert_params` and the published module."""
    gate = (tree := init(replace(WAVLM, layers=WAVLM.layers[:1]), key))["layers"]["0"]["attention"]["gate"]
    assert (gate["constant@0.1.2.3"] == 1).all()
    assert (gate["bias"] == 0).all()
    for drawn in (gate["kernel"], tree["relative"]["table"]):
        assert 0.012 < float(jnp.std(drawn)) < 0.028


def test_a_training_step_reaches_everything_and_a_cut_the_moments_too(key):
    arch = replace(WAVLM, layers=WAVLM.layers[:1], head=MEL.head)
    x, labels = noise(arch, key, frames=9), jax.random.randint(key, (2, 9), 0, 11)
    batch = {
        "inputs": x,
        "lengths": jnp.array([9, 7]),
        "labels": labels,
        "mask": jnp.arange(9)[None] > jnp.array([[4], [2]]),
    }
    optimizer, before = Optimizer().build(), weights(arch)
    step = make_step(arch, MaskedPrediction((11,)), optimizer)
    state, _ = step(start(before, optimizer, seed=0), [batch])
    still = [path for path, leaf in flatten(state.params).items() if np.array_equal(leaf, flatten(before)[path])]
    assert still == []
    axis = axes(arch)[0]
    state = change(state, lambda tree: cut(tree, axis, (1, 3)))
    for tree in (state.params, optax.tree.get(state.optimizer, "mu"), optax.tree.get(state.optimizer, "nu")):
        assert describe(arch, tree).layers[0].mixer == GatedAttention((1, 3), 4)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_one_by_one_is_at_once(key, monkeypatch, rate):
    """Values, and gradients of what is added; with dropout in the mean over many draws."""
    q, k, v = jax.random.normal(key, (3, 2, 7, 3, 4))
    gates, scores = jax.random.normal(key, (2, 7, 3)), jax.random.normal(key, (3, 7, 7))
    valid = frame_mask(jnp.array([7, 4]), 7)

    def value(extra, key):
        found = attend(q, k, v, valid, rate=rate, key=key if rate else None, added=extra)
        return jnp.sin(found).sum(), found

    found = {}
    for way in ("one by one", "at once"):
        monkeypatch.setattr(choice, "attention", lambda *_, way=way, **__: way)
        run = jax.jit(jax.vmap(jax.grad(value, has_aux=True), in_axes=(None, 0)))
        found[way] = run((gates, scores), jax.random.split(key, 4000 if rate else 1))
    for one, two in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(one.mean(0), two.mean(0), atol=0.12 if rate else 1e-5)
    if not rate:
        logits = np.einsum("bthd,bshd->bhts", q, k) + gates.transpose(0, 2, 1)[..., None] * scores[None]
        shares = np.exp(np.where(valid[:, None, None], logits, -np.inf))
        expected = np.einsum("bhts,bshd->bthd", shares / shares.sum(-1, keepdims=True), v)
        np.testing.assert_allclose(found["at once"][1][0], expected, atol=1e-5)


def test_kernels_that_add_nothing_are_not_chosen(monkeypatch):
    monkeypatch.setattr(choice, "kernels", lambda: "native")
    assert choice.attention(9, 64, jnp.float32, prepared=True) == "native"
    assert choice.attention(9, 64, jnp.float32, prepared=True, plain=False) == "at once"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choice.attention(2000, 64, jnp.bfloat16) == "pallas"
    assert choice.attention(2000, 64, jnp.bfloat16, plain=False) == "at once"


def test_weight_pruning_leaves_gates_alone():
    assert not any("gate" in path or "relative" in path for group in entries(WAVLM) for path in group)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"relative": None}, "layers/0: gated attention, and no relative positions reach it"),
        ({"relative": RelativeBias(5, 12, 20)}, "relative: 5 heads do not divide the width 16"),
        ({"relative": RelativeBias(2, 12, 20)}, r"layers/0: heads \[0, 1, 2, 3\] of 4, beside a table of 2 heads"),
        ({"relative": RelativeBias(4, 2, 20)}, "relative: 2 buckets up to distance 20"),
        ({"relative": RelativeBias(4, 12, 3)}, "relative: 12 buckets up to distance 3"),
        ({"layers": (gated_layer((0, 4), 3),)}, r"layers/0: heads \[0, 4\] of 4"),
        ({"layers": (gated_layer((2, 1), 3),)}, r"layers/0: heads \[2, 1\] of 4; numbers must ascend"),
        ({"layers": (*WAVLM.layers, transformer_layer(4, 3))}, "layers/3: passes no relative positions on"),
        ({"width": 20, "position": replace(WAVLM.position, groups=4)}, "in a width of 20"),
    ],
)
def test_an_impossible_arch_is_refused(change, message, key):
    with pytest.raises(InputError, match=message):
        init(replace(WAVLM, **change), key)
