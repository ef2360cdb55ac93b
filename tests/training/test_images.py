"""Pictures show what the model saw and the very weights it attended with."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxssl.analysis.attention_maps import attention_maps
from jaxssl.models.arch import FULL, Waveform
from jaxssl.models.inner_maps import map_inputs
from jaxssl.models.model import shapes
from jaxssl.training.images import attention, masked_features, tile
from tests.archs import ARCHS, noise

LAYERS = [
    (name, i)
    for name, arch in ARCHS.items()
    for i, layer in enumerate(arch.layers)
    if layer.heads and not layer.mixer.carries
]


@pytest.fixture(scope="module")
def heard():
    """By arch: parameters, inputs, what each dense map is given when the model itself runs, and all attention."""
    found = {}
    for name in {name for name, _ in LAYERS}:
        arch = ARCHS[name]
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda s, rng=rng: rng.normal(0, 0.5, s.shape).astype(s.dtype), shapes(arch))
        inputs = noise(arch, jax.random.key(1), batch=1, frames=12)
        (given, counts), (maps, _) = both(arch, params, inputs)
        given = {path: np.asarray(value[0, : counts[path][0]], np.float64) for path, value in given.items()}
        there = {i: slice(int(counts[f"layers/{i}/attention/v"][0])) for i in maps}
        found[name] = params, inputs, given, {i: np.asarray(maps[i][0, :, n, n]) for i, n in there.items()}
    return found


@partial(jax.jit, static_argnums=0)
def both(arch, params, inputs):
    """One program an arch for all its layers; `attention` has one for each."""
    return map_inputs(arch, params, inputs), attention_maps(arch, params, inputs)


def multiply(dense, x):
    """A dense map to heads, in double precision: (frames, width) to (frames, heads, head_dim)."""
    dense = {name: np.asarray(value, np.float64) for name, value in dense.items()}
    kernel = dense["kernel"] if "kernel" in dense else np.tensordot(dense["down"], dense["up"], 1)
    return np.tensordot(x, kernel, 1) + dense.get("bias", 0.0)


def reference(block, x, head_dim):
    """One head and one frame at a time."""
    q, k = (multiply(block[name], x) for name in "qk")
    maps = np.zeros((q.shape[1], len(x), len(x)))
    for head in range(q.shape[1]):
        for frame in range(len(x)):
            scores = k[:, head] @ q[frame, head] / np.sqrt(head_dim)
            maps[head, frame] = np.exp(scores) / np.exp(scores).sum()
    return maps


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_attention_is_what_the_model_does(heard, name, layer):
    """Equal to a reference, and the weighted sum of values is what the model hands to its output map."""
    arch, (params, _, maps, weights) = ARCHS[name], heard[name]
    block, path = params["layers"][str(layer)]["attention"], f"layers/{layer}/attention"
    found, frames = weights[layer], len(maps[f"{path}/q"])
    assert found.shape == (arch.layers[layer].mixer.heads, frames, frames)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
    if arch.relative is None:  # what WavLM adds to scores has a reference of its own
        expected = reference(block, maps[f"{path}/q"], arch.layers[layer].mixer.head_dim)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    context = np.einsum("hts,shd->thd", found, multiply(block["v"], maps[f"{path}/v"]))
    np.testing.assert_allclose(context, maps[f"{path}/out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "layer"), [("mel", 1), ("student", 0)])
def test_what_is_drawn_is_the_layers_attention(heard, name, layer):
    params, inputs, _, weights = heard[name]
    np.testing.assert_allclose(attention(ARCHS[name], params, inputs, layer), weights[layer], rtol=1e-5, atol=1e-7)


def test_a_reused_map_is_drawn_again(heard):
    (params, inputs, maps, _), arch = heard["reusing"], ARCHS["reusing"]
    found = attention(arch, params, inputs, 2)
    np.testing.assert_array_equal(found, attention(arch, params, inputs, 0))
    path = "layers/2/attention"
    context = np.einsum("hts,shd->thd", found, multiply(params["layers"]["2"]["attention"]["v"], maps[f"{path}/v"]))
    np.testing.assert_allclose(context, maps[f"{path}/out"], rtol=1e-4, atol=1e-5)


def test_the_cases_cover_factorised_maps_and_both_front_ends():
    mixers = [ARCHS[name].layers[i].mixer for name, i in LAYERS]
    assert any(mixer.q != FULL for mixer in mixers)
    assert any(mixer.v != FULL for mixer in mixers)
    assert {isinstance(ARCHS[name].front, Waveform) for name, _ in LAYERS} == {True, False}
    assert {ARCHS[name].norm_first for name, _ in LAYERS} == {True, False}


def test_features_have_low_bins_at_the_bottom_and_masked_frames_blank():
    features = np.tile(np.arange(5.0), (7, 1)) + 0.01 * np.arange(7.0)[:, None]
    mask = np.array([0, 0, 1, 1, 0, 0, 1], bool)
    pixels = masked_features(features, mask)
    assert pixels.shape == (5, 7)
    assert not pixels[:, mask].any()
    assert (np.diff(pixels[:, ~mask], axis=0) < 0).all()  # downwards, bins get lower and, here, quieter
    assert (pixels.min(), pixels.max().round(2)) == (0, 1)


def test_silence_is_drawn():
    assert not masked_features(np.full((3, 4), -7.0), np.zeros(3, bool)).any()


def test_heads_lie_side_by_side_each_as_bright_as_it_gets():
    maps = np.array([[[0.5, 0.5], [0.25, 0.75]], [[0.9, 0.1], [0.0, 1.0]]])
    picture = tile(maps)
    assert picture.shape == (2, 2 * (2 + 2))
    np.testing.assert_allclose(picture[:, :2], maps[0] / 0.75)
    np.testing.assert_allclose(picture[:, 4:6], maps[1])
    assert (picture[:, [2, 3, 6, 7]] == 1).all()
