"""Measures of attention on maps whose answers are known, and maps that padding does not change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.analysis.attention_maps import attention_maps, measure, resample
from jaxssl.models.arch import Waveform
from jaxssl.models.model import shapes
from tests.archs import ARCHS, noise

FRAMES = 9
ITSELF = np.eye(FRAMES)
EVERYWHERE = np.full((FRAMES, FRAMES), 1 / FRAMES)
ONE = np.eye(FRAMES)[np.full(FRAMES, 2)]  # all frames look at frame 2
BY_HAND = np.array([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])


def drawn(seed, *, heads=4, frames=FRAMES):
    """Maps of heads that look anywhere."""
    scores = np.exp(3 * np.random.default_rng(seed).normal(size=(heads, frames, frames)))
    return scores / scores.sum(-1, keepdims=True)


def test_extreme_maps_have_the_extreme_values():
    found = measure(np.stack([ITSELF, EVERYWHERE, ONE]))
    log = np.log(FRAMES)
    far = (FRAMES**2 - 1) / (3 * FRAMES)  # mean |q − k| over all pairs
    expected = {
        "distance": [0, far, np.abs(np.arange(FRAMES) - 2).mean()],
        "entropy": [0, log, 0],
        "globalness": [0, log, 0],
        "verticality": [-log, -log, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-12, err_msg=name)
    assert (found["diagonality"][0], found["cumulative_diagonality"][0]) == (0, 1)
    np.testing.assert_allclose(found["diagonality"][1:], -found["distance"][1:] / FRAMES)


def test_a_map_by_hand():
    found = {name: values[0] for name, values in measure(BY_HAND[None]).items()}
    mean = np.array([0.25, 1 / 3, 5 / 12])
    assert found["distance"] == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert found["entropy"] == found["globalness"] == pytest.approx((np.log(2) + 1.5 * np.log(2)) / 3)
    assert found["verticality"] == pytest.approx((mean * np.log(mean)).sum())
    assert found["diagonality"] == pytest.approx(-1 / 9)
    assert found["cumulative_diagonality"] == pytest.approx(0.5 * (2 / 3 + 1))  # C(r): 2/3 below r = 1/2, then 1


@pytest.mark.parametrize("seed", range(3))
def test_no_map_is_beyond_the_extremes(seed):
    """0 ≤ globalness ≤ −verticality ≤ log T, by concavity; and nothing is more diagonal than the diagonal."""
    found = measure(drawn(seed))
    assert (found["globalness"] > 0).all()
    assert (found["globalness"] <= -found["verticality"]).all()
    assert (-found["verticality"] <= np.log(FRAMES)).all()
    assert (found["diagonality"] < 0).all()
    assert ((found["cumulative_diagonality"] > 0) & (found["cumulative_diagonality"] < 1)).all()


def test_cumulative_diagonality_is_the_area_that_defines_it():
    maps, frames = drawn(5), np.arange(FRAMES)
    apart = np.abs(frames[:, None] - frames)
    rs = (np.arange(4000) + 0.5) / 4000
    within = [np.where(apart <= r * (FRAMES - 1), maps, 0).sum((1, 2)) / FRAMES for r in rs]
    np.testing.assert_allclose(measure(maps)["cumulative_diagonality"], np.mean(within, axis=0), atol=1e-9)


def test_one_frame_is_measured():
    assert {name: values.tolist() for name, values in measure(np.ones((2, 1, 1))).items()} == {
        **{key: [0, 0] for key in ("distance", "entropy", "globalness", "verticality", "diagonality")},
        "cumulative_diagonality": [1, 1],
    }


@pytest.mark.parametrize("maps", [np.pad(BY_HAND, (0, 2))[None], np.full((1, 3, 3), np.nan), np.zeros((1, 0, 0))])
def test_what_is_no_attention_is_refused(maps):
    with pytest.raises(InputError, match=f"attention over {maps.shape[-1]} frames sums to"):
        measure(maps)


def test_resampled_rows_still_sum_to_one():
    for size in (1, 4, FRAMES, 20):
        found = resample(drawn(1), size)
        assert found.shape == (4, size, size)
        np.testing.assert_allclose(found.sum(-1), 1)


def test_finer_and_back_is_the_identity():
    """resample(resample(m, n T), T) == m == resample(m, T)."""
    maps = drawn(2)
    for finer in (1, 2, 5):
        np.testing.assert_allclose(resample(resample(maps, finer * FRAMES), FRAMES), maps)


def test_coarser_maps_keep_what_they_show():
    np.testing.assert_allclose(resample(np.eye(12), 4), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(resample(ONE, 3), np.eye(3)[[0, 0, 0]], atol=1e-12)  # frame 2 of 9 is in the first third
    np.testing.assert_allclose(resample(BY_HAND, 1), [[1]])
    half = resample(BY_HAND, 2)  # the middle frame is half on either side, as a row and as a column
    rows = np.array([BY_HAND[0] * 2 + BY_HAND[1], BY_HAND[1] + BY_HAND[2] * 2]) / 3
    np.testing.assert_allclose(half, np.stack([rows[:, 0] + rows[:, 1] / 2, rows[:, 1] / 2 + rows[:, 2]], axis=1))


@pytest.mark.parametrize("name", ["reusing", "student"])
def test_padding_changes_nothing(name):
    """What stands behind an utterance is neither looked at nor seen in how its own frames look."""
    arch, rng = ARCHS[name], np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), shapes(arch))
    inputs, short = noise(arch, jax.random.key(1), batch=2, frames=16), 340 if isinstance(arch.front, Waveform) else 10
    run = jax.jit(partial(attention_maps, arch))
    padded, frames = run(params, inputs, jnp.array([inputs.shape[1], short]))
    alone, counts = run(params, inputs[1:, :short])
    assert list(padded) == list(alone) == list(range(len(arch.layers)))
    for layer, maps in padded.items():
        (count,) = counts[layer]
        assert frames[layer][1] == count < frames[layer][0]
        np.testing.assert_allclose(maps[1, :, :count, :count], alone[layer][0], rtol=1e-4, atol=1e-6)
        assert not np.asarray(maps[1, :, :, count:]).any()


def test_layers_without_heads_have_no_maps_and_reused_ones_are_their_makers():
    """Nothing is computed here: shapes tell."""
    found = {}
    for name in ("uneven", "reusing"):
        arch = ARCHS[name]
        maps, _ = jax.eval_shape(partial(attention_maps, arch), shapes(arch), jnp.zeros((2, 6, arch.front.size)))
        found[name] = {layer: leaf.shape for layer, leaf in maps.items()}
    assert found["uneven"] == {0: (2, 3, 6, 6), 2: (2, 2, 6, 6)}
    assert found["reusing"] == dict.fromkeys(range(3), (2, 2, 6, 6))
