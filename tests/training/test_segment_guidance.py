"""Guidance: the original's losses and gradients, and that padding is in none."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.segment_ends import ends_of_labels, even_weights
from jaxssl.models.rates.firing import integrate, mixed
from jaxssl.training.losses import MaskedPrediction, means
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.segment_guidance import (
    GuidedPrediction,
    SegmentGuidance,
    count_loss,
    frame_loss,
    label_runs,
    segment_loss,
)
from jaxssl.training.step import make_step, start
from tests.archs import ARCHS, MEL, forward, noise, weights


@pytest.fixture(scope="module")
def golden(shared):
    arrays = dict(np.load(shared / "encoders/sequence_compression/cif_ofa.npz"))
    arrays |= {name: arrays[kept] for name, kept in json.loads(str(arrays.pop("aliases_json"))).items()}
    return {name: value.astype(np.int32) if value.dtype == np.int64 else value for name, value in arrays.items()}


def weigh(bias, linear, golden):
    """The original's weight net, of the two arrays whose gradients it recorded."""
    kernel = golden["weights/alpha_fn.cnn.weight"].transpose(2, 1, 0)
    axes = ("NWC", "WIO", "NWC")
    hidden = jax.lax.conv_general_dilated(golden["x"], kernel, (1,), [(2, 2)], dimension_numbers=axes)
    hidden = hidden + bias[None, None]
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / jnp.sqrt(hidden.var(-1, keepdims=True) + 1e-5)
    hidden = hidden * golden["weights/alpha_fn.layer.0.weight"][None, None]
    hidden = hidden + golden["weights/alpha_fn.layer.0.bias"][None, None]
    score = jnp.maximum(hidden, 0) @ linear[0] + golden["weights/alpha_fn.layer.2.bias"][0]
    return jax.nn.sigmoid(score)


def flags(ends, frames):
    """Padded lists of ends as marks at the last frames."""
    marks = np.zeros((len(ends), frames + 1), bool)
    np.put_along_axis(marks, np.maximum(ends, 0), values=True, axis=1)  # what is padded marks the place before all
    return marks[:, 1:]


def test_the_original_s_losses_and_gradients(golden):
    """It pads weights with 0 up to the pseudo weights' length, counts padding, and the count is of mixed ones."""
    pseudo, ends = golden["losses/pseudo_alpha"], golden["losses/boundaries"]
    padded = pseudo.shape[1] - 60

    def losses(bias, linear):
        weights = weigh(bias, linear, golden)
        longer = jnp.pad(weights, ((0, 0), (0, padded)))
        count = count_loss(mixed(weights, jnp.float32(0.5)), np.full(3, 60, np.int32), share=0.25)
        segments = segment_loss(weights, flags(ends, 60)) * np.float32((ends > 0).mean())
        return {"card": count, "seg": segments, "frame": frame_loss(longer, np.full(3, 62, np.int32), pseudo)}

    at = golden["weights/alpha_fn.cnn.bias"], golden["weights/alpha_fn.layer.2.weight"]
    values, gradients = losses(*at), jax.jit(jax.jacrev(losses, (0, 1)))(*at)
    released = SegmentGuidance()
    both = [
        released.segments * g + released.frames * h for g, h in zip(gradients["seg"], gradients["frame"], strict=True)
    ]
    for i, name in enumerate(("card", "seg", "frame")):
        np.testing.assert_allclose(values[name], golden[f"losses/{name}"][i], rtol=1e-4)
    for name, mine in (*gradients.items(), ("released", both)):
        for kind, array in zip(("cnn_bias", "linear_weight"), mine, strict=True):
            wanted = golden[f"losses/{name}_grad_{kind}"]
            np.testing.assert_allclose(array, wanted, atol=1e-4 * abs(wanted).max(), err_msg=name)


def example():
    """Weights that fit three and two segments, in a batch with one frame of padding, and what they should be."""
    ends = np.array([[2, 5, 6], [4, 5, -1]], np.int32)
    pseudo = np.stack([even_weights(row[row > 0], 6) for row in ends])
    return pseudo, np.array([6, 5], np.int32), ends, pseudo


def test_weights_that_fit_the_segments_cost_nothing_and_fire_at_their_ends():
    weights, lengths, ends, pseudo = example()
    share = float((3 / 6 + 2 / 5) / 2)
    loss, sums = SegmentGuidance(count=1.0, share=share)(weights, lengths, flags(ends, weights.shape[1]), pseudo)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    assert set(sums) == {"count_loss", "segment_loss", "frame_loss"}
    firing = jax.jit(integrate, static_argnames="bound")(weights, lengths, bound=3)
    np.testing.assert_array_equal(firing.lengths, [3, 2])
    lasts = [np.flatnonzero(firing.shares[0, k])[-1] + 1 for k in range(3)]
    np.testing.assert_array_equal(lasts, ends[0])


def test_padding_is_in_no_loss():
    weights, lengths, ends, pseudo = example()
    weights = np.sqrt(weights)
    longer = np.pad(weights, ((0, 0), (0, 4)), constant_values=0.7)
    longer[1, 5] = 0.9
    words = {"count": 1.0, "share": 0.3}
    one, _ = SegmentGuidance(**words)(weights, lengths, flags(ends, weights.shape[1]), pseudo)
    two, _ = SegmentGuidance(**words)(longer, lengths, flags(ends, 10), np.pad(pseudo, ((0, 0), (0, 4))))
    np.testing.assert_allclose(one, two, rtol=1e-6)
    assert one > 0.1


@pytest.mark.parametrize("words", [{"count": -1.0}, {"share": 0.0}, {"share": 1.5}], ids=str)
def test_impossible_factors_are_refused(words):
    with pytest.raises(InputError, match="correct them"):
        SegmentGuidance(**words)


def test_runs_of_labels_are_those_of_prepared_data():
    labels, lengths = np.random.default_rng(0).integers(0, 3, (3, 20)).astype(np.int32), np.array([20, 13, 1], np.int32)
    last, pseudo = jax.jit(label_runs)(labels, lengths)
    for row, length in enumerate(lengths):
        ends = ends_of_labels(labels[row, :length])
        np.testing.assert_array_equal(np.flatnonzero(last[row]) + 1, ends)
        np.testing.assert_allclose(pseudo[row], even_weights(ends, 20), rtol=1e-6)


def test_a_model_that_fires_learns_to_predict_and_where_labels_change(key):
    arch, lengths = ARCHS["firing"], np.array([30, 21], np.int32)
    out = forward(arch, weights(arch), noise(arch, key), lengths)
    labels = np.repeat(np.arange(10, dtype=np.int32), 3)[None].repeat(2, 0)
    mask = np.arange(30)[None].repeat(2, 0) % 2 == 0
    predicted, reported = MaskedPrediction((11,))(out, labels, mask)
    value, sums = GuidedPrediction(MaskedPrediction((11,)))(out, labels, mask)
    guided, parts = SegmentGuidance()(out.weights, lengths, *label_runs(labels, lengths))
    np.testing.assert_allclose(value, predicted + guided, rtol=1e-6)
    assert sums == reported | parts
    assert parts["segment_loss"][0] > 1


def test_a_last_label_set_says_which_segments_guide(key):
    arch, lengths = ARCHS["firing"], np.array([30, 21], np.int32)
    out = forward(arch, weights(arch), noise(arch, key), lengths)
    labels, segments = (np.arange(30, dtype=np.int32)[None].repeat(2, 0) // size for size in (3, 5))
    loss, mask = GuidedPrediction(MaskedPrediction((11,))), np.ones((2, 30), bool)
    value, sums = loss(out, np.stack([labels, segments], -1), mask)
    predicted, reported = MaskedPrediction((11,))(out, labels, mask)
    guided, parts = SegmentGuidance()(out.weights, lengths, *label_runs(segments, lengths))
    np.testing.assert_allclose(value, predicted + guided, rtol=1e-6)
    assert sums == reported | parts
    np.testing.assert_array_equal(loss(out, labels[..., None], mask)[0], loss(out, labels, mask)[0])


def test_a_model_that_weighs_nothing_is_refused(key):
    out = forward(MEL, weights(MEL), noise(MEL, key))
    with pytest.raises(InputError, match="weighs no frames"):
        GuidedPrediction(MaskedPrediction((11,)))(out, np.zeros((2, 30), np.int32), np.ones((2, 30), bool))


@pytest.mark.slow
def test_training_brings_weights_to_where_labels_change(key):
    """A few updates of a model that has learned nothing: all three parts of the loss fall."""
    arch = ARCHS["firing"]
    labels = np.random.default_rng(0).integers(0, 11, 10, np.int32).repeat(3)[None].repeat(2, 0)
    batch = {"inputs": noise(arch, key), "lengths": np.array([30, 21], np.int32), "labels": labels}
    batch = jax.device_put({**batch, "mask": np.arange(30)[None].repeat(2, 0) % 2 == 0})
    optimizer = Optimizer(learning_rate=0.01).build()
    step, state = (
        make_step(arch, GuidedPrediction(MaskedPrediction((11,))), optimizer),
        start(weights(arch), optimizer, seed=0),
    )
    told = []
    for _ in range(20):
        state, sums = step(state, [batch])
        told.append(means(sums))
    for name in ("segment_loss", "frame_loss", "loss"):
        assert told[-1][name] < told[0][name]
    assert abs(told[0]["count_loss"] + 0.25 - 0.5) < 0.05  # fresh weights are about a half
    assert told[-1]["skipped"] == 0
