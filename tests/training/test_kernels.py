"""An update on our kernels is the plain one, where they run; elsewhere models train as XLA compiles them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.models import choice, stack
from jaxssl.models.arch import Dropout
from jaxssl.models.model import apply
from jaxssl.runtime import native
from jaxssl.runtime.native import build
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.speed import Load, example, objective
from jaxssl.training.step import make_step, predicting, start
from tests.archs import ARCHS, noise, weights
from tests.runtime.test_gradients import apart


@pytest.fixture
def learns(monkeypatch):
    """Return what lets our kernels train, or not; tests have several devices."""
    if not native.ready():
        pytest.skip("no C++ compiler")
    return lambda yes: monkeypatch.setattr(choice, "learns", lambda: yes)


def dropping(name):
    return replace(ARCHS[name], dropout=Dropout(hidden=0.1, attention=0.1, activation=0.1, features=0.1))


@pytest.mark.parametrize("stack", ["unroll", "scan", "remat"])
@pytest.mark.parametrize("name", ["base", "mel"])
def test_gradients_are_the_plain_ones(name, stack, learns, key):
    arch = dropping(name)
    batch = example(arch, Load(1.1, 2))
    goal = predicting(arch, objective(arch), stack=stack)
    found = []
    for yes in (False, True):
        learns(yes)
        found.append(jax.jit(jax.grad(lambda params: goal(params, (), batch, key)[0]))(weights(arch)))
    for (path, plain), ours in zip(jax.tree.leaves_with_path(found[0]), jax.tree.leaves(found[1]), strict=True):
        if np.linalg.norm(plain) > 1e-6:  # what keys add to all scores of a query has no gradient but rounding
            assert apart(ours, plain) < 1e-5, jax.tree_util.keystr(path)


def test_layers_written_out_need_less_memory_than_scanned_ones(learns, monkeypatch, key):
    """What is computed again is not merged with what was computed first, as XLA's CPU compiler does by itself."""
    learns(True)
    arch = replace(dropping("mel"), layers=ARCHS["mel"].layers[:1] * 4)
    batch, params = example(arch, Load(2.0, 2)), jax.eval_shape(lambda: weights(arch))

    def temporaries(how):
        goal = predicting(arch, objective(arch), stack=how)
        program = jax.jit(jax.grad(lambda params: goal(params, (), batch, key)[0])).lower(params).compile()
        return program.memory_analysis().temp_size_in_bytes

    scan, remat = temporaries("scan"), temporaries("remat")
    monkeypatch.setattr(stack, "_written_out", stack._scanned)
    assert scan < temporaries("scan")
    assert remat < 0.75 * scan


def programs(arch, key, x):
    text = str(jax.make_jaxpr(jax.grad(lambda p: apply(arch, p, x, key=key).last.sum()))(weights(arch)))
    return {name: f"jaxssl_{name}" in text for name in (*build.LEARNING, *build.SCANNING)}


def test_they_run_in_training_alone_and_on_one_device(monkeypatch, key):
    arch, x = replace(ARCHS["mel"], layers=ARCHS["mamba"].layers[1:]), noise(ARCHS["mel"], 0)
    assert jax.device_count() > 1
    assert not any(programs(arch, key, x).values())
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert all(programs(arch, key, x).values()) == native.ready()
    assert not any(programs(arch, None, x).values())
    monkeypatch.setattr(native, "ready", lambda: False)
    assert not any(programs(arch, key, x).values())


def test_an_update_gives_the_same_bits_again(learns):
    learns(True)
    layers = ARCHS["mel"].layers[0], ARCHS["mamba"].layers[1]
    arch, optimizer = replace(dropping("mel"), layers=layers), Optimizer().build()
    batch = example(arch, Load(1.1, 3))
    step = make_step(arch, objective(arch), optimizer, dtype=jnp.bfloat16)
    one, two = (step(start(weights(arch), optimizer, seed=3), [batch])[0] for _ in range(2))
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(a, b)
