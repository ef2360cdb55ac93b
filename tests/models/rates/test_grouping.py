"""Sequences made shorter by a fixed ratio, and brought back: the golden arrays of poolings, and laws."""

from dataclasses import replace
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from compress.plan import Shorter
from jaxssl.models.arch import AveragePooling, KeyMerging, Repeat, StridedConvolution, TransposedConvolution
from jaxssl.models.keys import Keys
from jaxssl.models.rates.track import Track
from jaxssl.models.shorten import arch_by_step, by_step, shortened
from tests.archs import ARCHS, MEL, REUSING, beside_noise, forward, noise, weights

PLAIN = replace(MEL, layers=MEL.layers[:2])
HALVED = (MEL.layers[0], replace(MEL.layers[1], shortening=AveragePooling(2)))


def pooled(part, x, lengths=None, width=None):
    return part.build(width or x.shape[-1], rngs=Keys(jax.random.key(0)))(jnp.asarray(x), lengths)


@pytest.mark.parametrize("ratio", [2, 3, 4, 8])
def test_pooling_is_that_of_the_original(shared, ratio):
    arrays = np.load(shared / "encoders/sequence_compression/cif_ofa.npz")
    np.testing.assert_allclose(
        pooled(AveragePooling(ratio), arrays["x"]).x, arrays[f"fixed/avg_pool_{ratio}"], atol=1e-6
    )


def test_a_last_partial_group_is_none(shared):
    arrays = np.load(shared / "encoders/sequence_compression/cif_ofa.npz")
    short = pooled(AveragePooling(4), arrays["x"][:, :47], jnp.array([47, 8, 3]))
    np.testing.assert_allclose(short.x, arrays["fixed/avg_pool_4_of_47_frames"], atol=1e-6)
    assert short.lengths.tolist() == [11, 2, 0]


@pytest.mark.parametrize("part", [AveragePooling, StridedConvolution])
def test_each_frame_is_found_again_in_its_own_group_or_the_last(part):
    x = np.random.default_rng(0).standard_normal((2, 11, 6)).astype(np.float32)
    lengths = jnp.array([11, 5])
    track = Track(jnp.asarray(x), lengths)
    first = track.then(pooled(part(2), track.x, track.lengths))
    second = first.then(pooled(part(2), first.x, first.lengths))
    assert second.x.shape == (2, 2, 6)
    groups = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1], [0] * 11])  # of the second row only one group is valid
    np.testing.assert_array_equal(second.restored(), np.take_along_axis(np.asarray(second.x), groups[..., None], 1))


def test_what_is_made_of_a_hidden_frame_is_hidden():
    short = pooled(AveragePooling(3), np.zeros((1, 10, 2), np.float32))
    mask = np.zeros((1, 10), bool)
    mask[0, [4, 9]] = True
    assert short.hide(jnp.asarray(mask)).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("change", "ratio"),
    [
        ({"shortening": AveragePooling(3)}, 3),
        ({"shortening": StridedConvolution(2), "layers": HALVED}, 4),
        ({"layers": (replace(MEL.layers[0], shortening=StridedConvolution(5)), HALVED[1])}, 10),
    ],
)
@pytest.mark.parametrize("learned", [False, True])
def test_a_model_begins_with_means_and_repetition(change, ratio, learned):
    """Learned or not, a model made shorter computes the same at first, one frame of the output for each before."""
    arch, params = shortened(PLAIN, weights(PLAIN), change.get("shortening"), parts(change), learned=learned)
    assert arch.grouped == ratio
    assert arch.upsampling == (TransposedConvolution(ratio) if learned else Repeat())
    plain, means = shortened(PLAIN, weights(PLAIN), *as_means(change), learned=False)
    inputs, lengths = noise(MEL, 0), np.array([30, 20], np.int32)
    one, two = forward(arch, params, inputs, lengths), forward(plain, means, inputs, lengths)
    assert one.last.shape == (2, 30, 16)
    assert one.last_lengths.tolist() == [30, 20]
    np.testing.assert_allclose(one.logits, two.logits, atol=1e-4)
    whole = np.asarray(two.last)[0, : 30 - 30 % ratio].reshape(-1, ratio, 16)
    np.testing.assert_array_equal(whole, np.broadcast_to(whole[:, :1], whole.shape))


def parts(change):
    return {i: layer.shortening for i, layer in enumerate(change.get("layers", ())) if layer.shortening}


def as_means(change):
    front = change.get("shortening")
    means = {i: AveragePooling(part.ratio) for i, part in parts(change).items()}
    return front and AveragePooling(front.ratio), means


def test_gradients_reach_all_that_is_learned():
    arch, params = shortened(PLAIN, weights(PLAIN), StridedConvolution(2), {1: AveragePooling(2)}, learned=True)
    inputs, lengths = noise(MEL, 0), np.array([30, 20], np.int32)

    def value(params):
        out = forward(arch, params, inputs, lengths)
        return jnp.square(out.logits[1, :20]).mean()

    found = flatten(jax.jit(jax.grad(value))(params))
    assert all(np.abs(gradient).max() > 0 for path, gradient in found.items() if "attention/k/bias" not in path)
    assert found["upsampling/kernel"].shape == (4, 16, 16)


def test_a_ratio_of_one_changes_nothing():
    params, inputs = weights(PLAIN), noise(MEL, 0)
    arch, same = shortened(PLAIN, params, AveragePooling(1), {1: AveragePooling(1)}, learned=False)
    np.testing.assert_allclose(forward(arch, same, inputs).logits, forward(PLAIN, params, inputs).logits, atol=1e-6)


def test_a_frame_of_silence_behind_whole_groups_is_none():
    """Two utterances of one batch, one of them a frame longer than its groups: padding is put into none."""
    arch = ARCHS["shortened"]
    alone, together, frames = beside_noise(arch, weights(arch), 0)
    assert frames == 20
    assert alone.lengths[-1].tolist() == [3]
    np.testing.assert_allclose(together.last[0, :20], alone.last[0], atol=1e-5, rtol=1e-4)
    for one, two in zip(together.aligned, alone.aligned, strict=True):
        np.testing.assert_allclose(one[0, :20], two[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (replace(MEL, shortening=AveragePooling(0)), "shortening: groups of 0 frames; give a ratio from 1 to 1000"),
        (
            replace(MEL, layers=(replace(MEL.layers[0], shortening=StridedConvolution(2000)),)),
            "layers/0: groups of 2000",
        ),
        (
            replace(MEL, upsampling=TransposedConvolution(2)),
            r"upsampling by 2 behind an encoder that makes 1 frame\(s\)",
        ),
        (
            replace(REUSING, layers=(REUSING.layers[0], replace(REUSING.layers[1], shortening=AveragePooling(2)))),
            "layers/1: it reuses attention maps of longer sequences; let the layer that has them shorten",
        ),
    ],
)
def test_what_cannot_be_shortened_is_refused(arch, message):
    with pytest.raises(InputError, match=message):
        weights(arch)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (replace(PLAIN, time_reduction=2), "one frame for 2 of the front end, which upsampling would change"),
        (ARCHS["shortened"], "a learned map for groups of 6, which would be lost"),
    ],
)
def test_what_upsampling_would_change_or_lose_is_refused(arch, message):
    with pytest.raises(InputError, match=message):
        shortened(arch, weights(arch), None, {0: AveragePooling(2)})


def test_a_plan_s_step_is_that_part_in_that_place():
    params = weights(PLAIN)
    for step, front, layers in (
        (Shorter(3), AveragePooling(3), {}),
        (Shorter(2, 1, "convolution"), None, {1: StridedConvolution(2)}),
        (Shorter(3, 0, "merge"), None, {0: KeyMerging(334)}),
        (Shorter(1.6, 0, "merge"), None, {0: KeyMerging(625)}),
    ):
        (arch, made), (same, wanted) = by_step(PLAIN, params, step), shortened(PLAIN, params, front, layers)
        assert arch == same == arch_by_step(PLAIN, step)
        assert all(map(np.array_equal, jax.tree.leaves(made), jax.tree.leaves(wanted)))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Shorter(2), Shorter(2)], "the features behind the front end are shortened already; name a layer"),
        ([Shorter(2, 1), Shorter(2, 1, "merge")], "layers/1: its input is shortened already; name another layer"),
        ([Shorter(2, 2)], "layers/2: the model has 2 layers; give 0 to 1"),
        ([Shorter(2, None, "merge")], "a front end has none; name a layer"),
    ],
)
def test_what_a_step_cannot_shorten_is_refused(steps, message):
    with pytest.raises(InputError, match=message):
        reduce(arch_by_step, steps, PLAIN)


def test_an_utterance_shorter_than_a_group_is_refused():
    arch = ARCHS["shortened"]
    with pytest.raises(InputError, match="5 frames"):
        forward(arch, weights(arch), noise(arch, 0, frames=5))
