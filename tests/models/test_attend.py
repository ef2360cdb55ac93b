"""Attention without maps is attention, however it is computed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jaxssl.models import attend as attending
from jaxssl.models import choice
from jaxssl.models.attend import attend
from jaxssl.models.choice import LONG
from jaxssl.models.layers import frame_mask
from tests.archs import ARCHS, MEL, forward, noise, weights

TIMES = [5, LONG - 1, LONG, LONG + 77]


def plain(q, k, v, valid):
    """The definition, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k)
    scores = scores if valid is None else np.where(np.asarray(valid)[:, None, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("padded", [False, True])
def test_it_is_the_definition(key, time, padded):
    q, k, v = jax.random.normal(key, (3, 2, time, 3, 4))
    valid = frame_mask(jnp.array([time, max(time // 2, 1)]), time) if padded else None
    np.testing.assert_allclose(jax.jit(attend)(q, k, v, valid), plain(q, k, v, valid), atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_the_flash_kernel_is_asked_for_the_definition(key, monkeypatch, padded):
    """With XLA's implementation in place of cuDNN's, which runs on NVIDIA GPUs alone."""
    asked, known = [], jax.nn.dot_product_attention

    def plainly(*args, implementation, **words):
        asked.append(implementation)
        return known(*args, implementation="xla", **words)

    monkeypatch.setattr(jax.nn, "dot_product_attention", plainly)
    monkeypatch.setattr(choice, "attention", lambda *_, **__: "flash")
    q, k, v = jax.random.normal(key, (3, 2, 40, 3, 4))
    valid = frame_mask(jnp.array([40, 17]), 40) if padded else None
    np.testing.assert_allclose(attend(q, k, v, valid), plain(q, k, v, valid), atol=1e-5)
    assert asked == ["cudnn"]
    attend(q, k, v, valid, rate=0.1, key=key)
    assert asked == ["cudnn"]  # it does not drop


def test_devices_get_what_was_measured_on_them(monkeypatch):
    half, full = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    assert [choice.attention(LONG + more, 64, full) for more in (-1, 0)] == ["at once", "one by one"]
    assert [choice.positions(choice.WORTH + more) for more in (-1, 0)] == ["plain", "fourier"]
    assert choice.prepared_positions() == "fourier"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(choice, "nvidia", lambda capability=0.0: capability <= 7.5)
    assert choice.attention(LONG, 64, half) == "at once"  # too old
    assert choice.positions(1) == choice.prepared_positions() == "banded"
    monkeypatch.setattr(choice, "nvidia", lambda capability=0.0: True)
    asked = [(64, half), (64, full), (60, half), (136, half)]
    assert [choice.attention(9, *each) for each in asked] == ["flash", "at once", "at once", "at once"]
    monkeypatch.setattr(choice, "nvidia", lambda capability=0.0: False)
    assert choice.positions(10**6) == "plain"
    assert choice.prepared_positions() is None


def test_gradients_are_those_of_all_heads_at_once(key):
    q, k, v = jax.random.normal(key, (3, 1, LONG, 2, 4))

    def value(run, q, k, v):
        return jnp.sin(run(q, k, v, None)).sum()

    runs = (attending._at_once, attending._one_by_one)
    one, two = (jax.jit(jax.grad(lambda *x, run=run: value(run, *x), argnums=(0, 1, 2)))(q, k, v) for run in runs)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("run", [attending._at_once, attending._one_by_one])
def test_dropout_drops_shares_and_keeps_their_mean(key, run):
    q, k = jax.random.normal(key, (2, 1, 40, 2, 4))
    v, run = jnp.ones((1, 40, 2, 4)), jax.jit(run, static_argnums=4)
    found = run(q, k, v, None, 0.25, key)
    assert float(jnp.abs(found - 1).max()) > 0.05  # without dropout all are 1
    many = jnp.stack([run(q, k, v, None, 0.25, each).mean() for each in jax.random.split(key, 50)])
    assert float(many.mean()) == pytest.approx(1, abs=0.02)


def test_a_backward_pass_drops_the_same_again(key):
    """The derivative along a direction is that of the function with its mask."""
    q, k, v, to = jax.random.normal(key, (4, 1, 12, 2, 4))

    @jax.jit
    def value(x):
        return (attending._one_by_one(q, k, v + x * to, None, 0.5, key) ** 2).sum()

    step = 1e-2
    slope = (value(step) - value(-step)) / (2 * step)  # exact: the function is quadratic
    np.testing.assert_allclose(jax.grad(value)(0.0), slope, rtol=1e-3)


def test_bfloat16_sums_in_float32(key):
    q, k, v = jax.random.normal(key, (3, 1, 40, 2, 4)).astype(jnp.bfloat16)
    found = attend(q, k, v, None)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, plain(q, k, v, None), atol=0.03)


@pytest.mark.parametrize("name", ["base", "uneven", "reusing", "student"])
def test_running_computes_what_training_does(name, key):
    """Training keeps the maps, for dropout; without any rate it is the same function."""
    arch = replace(ARCHS[name], dropout=replace(MEL.dropout, hidden=0.0, attention=0.0))
    params, x = weights(arch), noise(arch, key)
    runs, trains = forward(arch, params, x).hidden, forward(arch, params, x, key=key).hidden
    for one, two in zip(runs, trains, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_the_kernel_of_tpus_is_the_definition(key, monkeypatch, padded):
    """Interpreted, and lowered for a TPU: there is none here to run it."""
    monkeypatch.setattr(choice, "attention", lambda *_, **__: "pallas")
    q, k, v = jax.random.normal(key, (3, 2, 150, 2, 64))
    valid = frame_mask(jnp.array([150, 77]), 150) if padded else None
    with pltpu.force_tpu_interpret_mode():
        found = jax.jit(attend)(q / 8, k, v, valid)
    np.testing.assert_allclose(found, plain(q / 8, k, v, valid), atol=1e-5)
    shapes = [jax.ShapeDtypeStruct((16, 1499, 12, 64), jnp.bfloat16)] * 3
    program = jax.export.export(jax.jit(lambda q, k, v: attend(q, k, v, None)), platforms=["tpu"])(*shapes)
    assert "tpu_custom_call" in str(program.mlir_module())


def test_which_attention_is_whose(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choice.attention(1024, 64, jnp.bfloat16) == "pallas"
    assert choice.attention(1023, 64, jnp.bfloat16) == "at once"
    assert choice.attention(1024, 64, jnp.float32, prepared=True) == "at once"
    assert choice.attention(1024, 256, jnp.bfloat16) == "at once"
    assert choice.prepared_positions() is None
