"""One update follows the study's own, whatever way the stack is run, and survives what is not finite."""

import json
from dataclasses import replace
from functools import cache, partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compress.address import flatten
from compress.edit import cut
from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.models.arch import Dropout
from jaxssl.models.describe import describe
from jaxssl.models.model import apply
from jaxssl.models.sites import axes
from jaxssl.training.losses import MaskedPrediction, means
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.step import change, make_evaluation, make_step, start
from tests import golden
from tests.archs import MEL, noise, weights

STILL = replace(MEL, dropout=Dropout(0.0, 0.0), layers=MEL.layers[:1])
DEEP = replace(MEL, layers=MEL.layers[:2])
LOSS = MaskedPrediction((11,))


def batch(key, *, rows=2, frames=30):
    inputs = noise(MEL, key, batch=rows, frames=frames)
    draw = np.random.default_rng(0)
    labels, mask = draw.integers(0, 11, (rows, frames), np.int32), draw.random((rows, frames)) < 0.5
    found = {"inputs": inputs, "lengths": np.full(rows, frames, np.int32), "labels": labels, "mask": mask}
    return jax.device_put(found)


@cache
def stepping():
    """One optimiser and its update for all tests that need no other, so that its programs are compiled once."""
    optimizer = Optimizer(learning_rate=0.01).build()
    return optimizer, make_step(STILL, LOSS, optimizer)


@partial(jax.jit, static_argnums=0)
def gradients_by(stack, params, data, key):
    """Loss, hidden layers and gradients with dropout, whichever way the stack runs."""

    def value(params):
        output = apply(DEEP, params, data["inputs"], mask=data["mask"], key=key, stack=stack)
        return LOSS(output, data["labels"], data["mask"])[0], output.hidden

    return jax.value_and_grad(value, has_aux=True)(params)


@pytest.mark.slow
def test_the_studys_pretraining_run_is_followed(shared):
    """Eight updates of two batches each: same data, masks and settings, dropout 0."""
    folder = shared / "melhubert"
    converted = read(folder / "ckpt/tiny20.ckpt")
    arch = replace(converted.arch, dropout=Dropout(0.0, 0.0))
    trace = json.loads((folder / "pretrain20/trace.json").read_text())
    stored, masks = np.load(folder / "mini/batches-20ms-bs2.npz"), np.load(folder / "pretrain20/masks.npz")
    optimizer = Optimizer(learning_rate=1e-3, clip=0.5).build()
    step, state = make_step(arch, MaskedPrediction((32,)), optimizer), start(converted.params, optimizer, seed=0)
    order = iter(enumerate(trace["batch_index"]))
    for number, (loss, norm) in enumerate(zip(trace["loss"], trace["grad_norm"], strict=True)):
        pair = []
        for i, index in islice(order, 2):
            inputs, lengths, labels = golden.batch(stored, index)
            mask = jnp.asarray(masks[f"mask_{i:03d}"])
            pair.append({"inputs": inputs, "lengths": lengths, "labels": labels, "mask": mask})
        state, sums = step(state, pair)
        found = means(sums)
        np.testing.assert_allclose(found["loss"], loss, rtol=1e-4, err_msg=f"update {number}")
        np.testing.assert_allclose(found["gradient_norm"], norm, rtol=1e-3, err_msg=f"update {number}")
    last = read(folder / "pretrain20/last-step.ckpt").params
    found = {path: leaf for path, leaf in flatten(state.params).items() if not path.endswith("/k/bias")}
    # A tenth of one update: where a gradient is mere rounding, other on each processor, Adam follows its sign.
    golden.meets(found, last, atol=1e-4)


@pytest.mark.parametrize("stack", ["scan", "remat"])
def test_the_way_the_stack_runs_changes_nothing(key, stack):
    """With dropout on: the same random bits, the same gradients."""
    given = weights(DEEP), batch(key), key
    (loss, hidden), gradients = gradients_by("unroll", *given)
    (same, also), others = gradients_by(stack, *given)
    np.testing.assert_allclose(loss, same, rtol=1e-6)
    np.testing.assert_allclose(np.stack(hidden), np.stack(also), rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, others)


@pytest.mark.slow
def test_rematerialisation_lowers_memory(key):
    arch = replace(MEL, layers=MEL.layers[:1] * 8)
    params, data = jax.eval_shape(lambda: weights(arch)), batch(key, frames=200)

    def temporaries(stack):
        def value(params):
            return apply(arch, params, data["inputs"], mask=data["mask"], key=key, stack=stack).logits.sum()

        return jax.jit(jax.grad(value)).lower(params).compile().memory_analysis().temp_size_in_bytes

    unroll, scan, remat = (temporaries(stack) for stack in ("unroll", "scan", "remat"))
    assert remat < 0.75 * scan < 0.75 * 0.75 * unroll


def test_accumulation_is_one_large_batch(key):
    params, data = weights(STILL), batch(key, rows=4)
    data["mask"] = np.tile(data["mask"][:1], (4, 1))  # as many masked frames in every part
    optimizer, step = stepping()
    parts = [{name: rows[i : i + 2] for name, rows in data.items()} for i in (0, 2)]
    one, sums = step(start(params, optimizer, seed=0), [data])
    two, also = step(start(params, optimizer, seed=0), parts)
    assert (int(one.step), int(two.step)) == (1, 1)
    assert (int(one.batches), int(two.batches)) == (1, 2)
    np.testing.assert_allclose(means(sums)["loss"], means(also)["loss"], rtol=1e-5)
    for path, leaf in flatten(one.params).items():
        if not path.endswith("/k/bias"):
            np.testing.assert_allclose(leaf, flatten(two.params)[path], rtol=0, atol=2e-4, err_msg=path)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing(key, parts):
    params, data = weights(STILL), batch(key)
    optimizer, step = stepping()
    broken = data | {"inputs": np.where(np.arange(2)[:, None, None] == 0, np.float32(np.nan), data["inputs"])}
    state, sums = step(start(params, optimizer, seed=0), [broken, data][:parts])
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert means(sums)["skipped"] == 1
    state, sums = step(state, [data] * parts)
    assert np.isfinite(means(sums)["loss"])
    assert int(state.step) == 2
    assert not np.array_equal(state.params["project"]["kernel"], params["project"]["kernel"])


def test_the_view_is_what_the_loss_sees(key):
    """A masked entry has no gradient and keeps its value; the optimiser knows nothing of it."""
    params, data = weights(STILL), batch(key)
    mask = jax.tree.map(np.ones_like, params)
    mask["project"]["kernel"][0] = 0
    mask = jax.device_put(mask)
    optimizer = Optimizer(learning_rate=0.01).build()
    step = make_step(STILL, LOSS, optimizer, view=lambda params, held: jax.tree.map(jnp.multiply, params, held))
    state, _ = step(start(params, optimizer, seed=0, held=mask), [data])
    np.testing.assert_array_equal(state.params["project"]["kernel"][0], params["project"]["kernel"][0])
    assert not np.array_equal(state.params["project"]["kernel"][1], params["project"]["kernel"][1])


@pytest.mark.slow
def test_a_change_cuts_moments_with_the_parameters(key):
    """Training on after a cut is training the cut model with the cut moments: same as masked ones, on what stays."""
    params, data = weights(STILL), batch(key)
    optimizer, step = stepping()
    state, _ = step(start(params, optimizer, seed=0), [data])
    axis = next(axis for axis in axes(STILL) if axis.name == "layers/0/ffn/hidden")
    keep = tuple(range(0, 24, 2))
    smaller = change(state, lambda tree: cut(tree, axis, keep))
    arch = describe(STILL, smaller.params)
    for found, whole in zip(jax.tree.leaves(smaller.optimizer), jax.tree.leaves(state.optimizer), strict=True):
        assert found.dtype == whole.dtype
    mu, cut_mu = (optax.tree.get(each.optimizer, "mu") for each in (state, smaller))
    np.testing.assert_array_equal(
        cut_mu["layers"]["0"]["ffn"]["fc1"]["kernel"], mu["layers"]["0"]["ffn"]["fc1"]["kernel"][:, ::2]
    )
    after, sums = make_step(arch, LOSS, optimizer)(smaller, [data])
    assert np.isfinite(means(sums)["loss"])
    assert int(after.step) == 2
    again, _ = step(start(params, optimizer, seed=0), [data])
    fresh = change(again, lambda tree: tree, reset=optimizer)
    assert not any(leaf.any() for leaf in jax.tree.leaves(optax.tree.get(fresh.optimizer, "mu")))


@pytest.mark.slow
def test_randomness_follows_the_seed_and_the_batch(key):
    params, data = weights(DEEP), batch(key)
    optimizer = Optimizer(learning_rate=0.0).build()
    step = make_step(DEEP, LOSS, optimizer)

    def losses(seed):
        state, found = start(params, optimizer, seed=seed), []
        for _ in range(2):
            state, sums = step(state, [data])
            found.append(means(sums)["loss"])
        return found

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)
    assert losses(1)[0] != losses(1)[1]


def test_bfloat16_keeps_float32_parameters(key):
    params, data = weights(STILL), batch(key)
    optimizer, step = stepping()
    state, sums = make_step(STILL, LOSS, optimizer, dtype=jnp.bfloat16)(start(params, optimizer, seed=0), [data])
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, sums))} == {jnp.dtype("float32")}
    _, exact = step(start(params, optimizer, seed=0), [data])
    np.testing.assert_allclose(means(sums)["loss"], means(exact)["loss"], rtol=0.02)


def test_evaluation_drops_nothing(key):
    params, data = weights(DEEP), batch(key)
    evaluate = make_evaluation(DEEP, LOSS)
    assert means(evaluate(params, (), data)) == means(evaluate(params, (), data))


def test_schedules():
    rate = Optimizer(learning_rate=1.0, warmup=10, decay="linear", steps=30).schedule()
    np.testing.assert_allclose([rate(i) for i in (0, 5, 10, 20, 30)], [0, 0.5, 1, 0.5, 0], atol=1e-6)
    rate = Optimizer(learning_rate=1.0, decay="cosine", steps=30).schedule()
    np.testing.assert_allclose([rate(i) for i in (0, 15, 30)], [1, 0.5, 0], atol=1e-6)
    assert Optimizer(learning_rate=0.3).schedule()(12345) == 0.3
    with pytest.raises(InputError, match="ends at update 5, the warm-up at 10"):
        Optimizer(warmup=10, decay="linear", steps=5).schedule()


def test_adamw_decays_weights():
    params = {"w": jnp.ones(3)}
    for kind, expected in (("adam", 1.0), ("adamw", 0.9)):
        optimizer = Optimizer(kind=kind, learning_rate=0.1, weight_decay=1.0).build()
        with jax.numpy_dtype_promotion("standard"):
            updates, _ = optimizer.update({"w": jnp.zeros(3)}, optimizer.init(params), params)
        np.testing.assert_allclose(optax.apply_updates(params, updates)["w"], expected)
