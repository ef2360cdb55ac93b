"""Losses and their gradients are those of fairseq and of the MelHuBERT study."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.models.model import apply
from jaxssl.training.corpus import Data, pretraining_loss
from jaxssl.training.losses import MaskedPrediction, add, means
from tests import golden
from tests.archs import ARCHS, BASE, MEL, forward, noise, weights


def shallow(arch):
    return replace(arch, layers=arch.layers[:1])


TOLERANCE = 1e-4  # relative, of each gradient's norm


def assert_gradients_equal(ours, theirs):
    theirs = flatten(theirs)
    whole = np.sqrt(sum(float((np.asarray(leaf) ** 2).sum()) for leaf in theirs.values()))
    for path, leaf in flatten(ours).items():
        if path.endswith("/k/bias"):  # it shifts all scores of a query alike: its gradient is rounding
            continue
        error = np.linalg.norm(np.asarray(leaf) - theirs[path])
        wanted = np.linalg.norm(theirs[path])
        assert error <= TOLERANCE * max(wanted, 1e-3 * whole), f"{path}: off by {error:.3g}, golden norm {wanted:.3g}"


def count_frames(arch, params, inputs):
    return jax.eval_shape(lambda x: apply(arch, params, x), inputs).last.shape[1]


@pytest.mark.parametrize("name", ["hubert_base_tiny", "hubert_large_tiny"])
def test_fairseq_loss_and_gradients(shared, name):
    converted = read(shared / f"fairseq/{name}.pt")
    arrays = np.load(shared / f"fairseq/{name}.golden.npz")
    samples = np.stack([np.pad(arrays[f"raw_{i}"], (0, 40000 - len(arrays[f"raw_{i}"]))) for i in (0, 1)])
    lengths, mask = arrays["lengths"].astype(np.int32), arrays["mask_indices"]
    labels = arrays["targets"][:, :: arrays["targets"].shape[1] // mask.shape[1]][:, : mask.shape[1]].astype(np.int32)
    loss = MaskedPrediction(converted.arch.head.codewords, penalty=10.0, padding="fairseq")

    def value(params):
        output = apply(converted.arch, params, samples, lengths, mask=mask, padding="fairseq")
        return loss(output, labels, mask)

    (found, sums), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(converted.params)
    count = float(arrays["sample_size"])
    golden.meets({"loss": found * count}, arrays, rtol=1e-5)
    assert float(sums["masked_loss"][1]) == count
    theirs = golden.tree(converted.arch, arrays, "grad/")
    assert_gradients_equal(jax.tree.map(lambda g: g * count, gradients), theirs)


def test_melhubert_loss_and_gradients(shared):
    folder = shared / "melhubert"
    converted = read(folder / "ckpt/tiny20.ckpt")
    arrays = np.load(folder / "forward/tiny20_trainstep.npz")
    inputs, lengths, labels = golden.batch(np.load(folder / "mini/batches-20ms-bs2.npz"), int(arrays["batch_index"]))
    loss = MaskedPrediction((32,))

    def value(params):
        output = apply(converted.arch, params, inputs, lengths, mask=arrays["mask"])
        return loss(output, labels, arrays["mask"])

    (found, _), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(converted.params)
    golden.meets({"loss": found}, arrays, rtol=1e-5)
    assert_gradients_equal(gradients, golden.tree(converted.arch, arrays, "grad/"))
    norm = np.sqrt(sum(float((np.asarray(leaf) ** 2).sum()) for leaf in flatten(gradients).values()))
    golden.meets({"grad_norm": norm}, arrays, rtol=1e-4)


@pytest.mark.parametrize("arch", [shallow(MEL), shallow(ARCHS["large"])], ids=["mel", "large"])
def test_padding_changes_nothing(arch, key):
    """Neither the loss nor a gradient sees what pads a batch."""
    params, inputs = weights(arch), noise(arch, key)
    frames = count_frames(arch, params, inputs)
    draw = np.random.default_rng(0)
    labels, mask = draw.integers(0, 9, (2, frames), np.int32), draw.random((2, frames)) < 0.5
    loss = MaskedPrediction((11 if arch.front.features else 9,), unmasked=0.3, penalty=10.0)

    def value(params, inputs, lengths, labels, mask):
        return loss(apply(arch, params, inputs, lengths, mask=mask), labels, mask)[0]

    whole = np.full(2, inputs.shape[1], np.int32)
    more = ((0, 0), (0, 80), *((0, 0),) * (inputs.ndim - 2))
    wide = np.pad(inputs, more, constant_values=7.0)
    grown = count_frames(arch, params, wide) - frames
    labelled = np.pad(labels, ((0, 0), (0, grown)), constant_values=-1)
    masked = np.pad(mask, ((0, 0), (0, grown)), constant_values=True)
    run = jax.jit(jax.value_and_grad(value))
    near, close = run(params, inputs, whole, labels, mask)
    far, also = run(params, wide, whole, labelled, masked)
    np.testing.assert_allclose(near, far, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), close, also)


def test_two_label_sets_add_up(key):
    params, inputs = weights(BASE), noise(BASE, key)
    output = forward(BASE, params, inputs)
    frames = output.last.shape[1]
    draw = np.random.default_rng(0)
    labels = jnp.asarray(np.stack([draw.integers(0, n, (2, frames), np.int32) for n in (9, 5)], -1))
    mask = jnp.asarray(draw.random((2, frames)) < 0.5)
    both, sums = MaskedPrediction((9, 5))(output, labels, mask)
    parts = (output.logits[..., :9], output.logits[..., 9:])
    alone = [
        MaskedPrediction((n,))(replace(output, logits=logits), labels[..., i], mask)[0]
        for i, (n, logits) in enumerate(zip((9, 5), parts, strict=True))
    ]
    np.testing.assert_allclose(both, sum(alone), rtol=1e-6)
    np.testing.assert_allclose(means(sums)["masked_loss_1"], alone[1], rtol=1e-6)


def test_weights_choose_the_frames(key):
    output = forward(MEL, weights(MEL), noise(MEL, key))
    draw = np.random.default_rng(0)
    labels, mask = jnp.asarray(draw.integers(0, 11, (2, 30), np.int32)), jnp.asarray(draw.random((2, 30)) < 0.5)
    logs = jax.nn.log_softmax(output.logits)
    surprise = -np.take_along_axis(np.asarray(logs), np.asarray(labels)[..., None], 2)[..., 0]
    hidden, _ = MaskedPrediction((11,))(output, labels, mask)
    seen, _ = MaskedPrediction((11,), masked=0.0, unmasked=1.0)(output, labels, mask)
    np.testing.assert_allclose(hidden, surprise[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(seen, surprise[~mask].mean(), rtol=1e-5)


def test_a_batch_with_nothing_masked_is_finite(key):
    output = forward(MEL, weights(MEL), noise(MEL, key))
    value, sums = MaskedPrediction((11,))(output, jnp.zeros((2, 30), int), jnp.zeros((2, 30), bool))
    assert value == 0
    assert "masked_accuracy" not in means(sums)
    assert means(add(sums, sums))["unmasked_accuracy"] == means(sums)["unmasked_accuracy"]


def test_misfits_are_named(key):
    output = forward(MEL, weights(MEL), noise(MEL, key))
    mask = jnp.zeros((2, 30), bool)
    with pytest.raises(InputError, match="12 clusters, the model's output 11"):
        MaskedPrediction((12,))(output, jnp.zeros((2, 30), int), mask)
    with pytest.raises(InputError, match="29 label frames, 30 output frames"):
        MaskedPrediction((11,))(output, jnp.zeros((2, 29), int), mask)
    with pytest.raises(InputError, match="no output layer"):
        MaskedPrediction((11,))(replace(output, logits=None), jnp.zeros((2, 30), int), mask)


def test_pre_training_weighs_frames_that_are_not_hidden_as_it_is_told():
    data = Data((None, None), (None, None), 4, 1.0, None, None, 50)
    assert pretraining_loss(MEL, data) == MaskedPrediction((4,))
    assert pretraining_loss(MEL, replace(data, unmasked=0.5)) == MaskedPrediction((4,), unmasked=0.5)
