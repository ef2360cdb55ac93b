"""The PyTorch step that ours is timed against computes the same thing."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.inference.latency import Load
from jaxssl.models.arch import Dropout
from jaxssl.models.model import apply
from jaxssl.training import speed
from jaxssl.training.losses import means
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.step import make_step, start
from tests.archs import BASE, LARGE, MEL, UNEVEN, WAVLM, weights

STILL = Dropout(0.0, 0.0)
ARCHS = {
    "mel": replace(MEL, layers=MEL.layers[:1], dropout=STILL),
    "base": replace(
        BASE,
        front=replace(BASE.front, gradient_scale=0.1),
        layers=BASE.layers[:1],
        head=replace(BASE.head, untied=False),
        dropout=STILL,
    ),
    "large": replace(LARGE, layers=LARGE.layers[:1], head=BASE.head, dropout=STILL),
}
LOAD = Load(0.3, 2)


@pytest.fixture(scope="module")
def torch_step(torch):
    from tools.pytorch import torch_step

    return torch_step


def prepared(name, *, seed=0):
    arch = ARCHS[name]
    params = weights(arch)
    # Biases and norms start as 0 and 1: noise makes their order and layout matter.
    noise = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * noise.standard_normal(leaf.shape).astype(np.float32), params)
    return arch, params, speed.example(arch, LOAD, seed=seed)


@partial(jax.jit, static_argnums=0)
def ours(arch, params, batch):
    def value(params):
        output = apply(arch, params, batch["inputs"], batch["lengths"], mask=batch["mask"])
        return speed.objective(arch)(output, batch["labels"], batch["mask"])[0]

    return jax.value_and_grad(value)(params)


def assert_same(torch_step, arch, params, batch):
    value, gradients = ours(arch, params, batch)
    step = torch_step.Step(arch, params, batch, loss=speed.objective(arch))
    found = step.value()
    np.testing.assert_allclose(float(found.detach()), float(value), rtol=0, atol=1e-4)
    found.backward()
    for path, leaf in torch_step.weights(gradients, "cpu").items():
        expected, gradient = leaf.detach().numpy(), step.weights[path].grad.numpy()
        tolerance = 2e-4 * float(np.abs(expected).max()) + 2e-6
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("name", ARCHS)
def test_loss_and_gradients_are_ours(torch_step, name):
    assert_same(torch_step, *prepared(name))


def test_padded_frames_are_not_seen(torch_step):
    arch, params, batch = prepared("mel")
    assert_same(torch_step, arch, params, batch | {"lengths": np.array([15, 9], np.int32)})


def test_unknown_labels_do_not_count(torch_step):
    arch, params, batch = prepared("mel")
    assert_same(torch_step, arch, params, batch | {"labels": np.where(batch["labels"] < 5, -1, batch["labels"])})


def test_updates_follow_ours(torch_step):
    arch, params, batch = prepared("mel")
    settings = Optimizer(learning_rate=0.003, clip=0.1)
    theirs = torch_step.Step(arch, params, batch, loss=speed.objective(arch), optimizer=settings)
    optimizer = settings.build()
    step, state = make_step(arch, speed.objective(arch), optimizer), start(params, optimizer, seed=0)
    losses = []
    for _ in range(4):
        state, sums = step(state, [batch])
        losses.append(means(sums)["loss"])
    np.testing.assert_allclose([float(theirs()) for _ in range(4)], losses, rtol=0, atol=1e-3)
    assert losses[0] - losses[-1] > 0.05


def test_dropout_is_on(torch_step):
    arch, params, batch = prepared("mel")

    def values(dropout, seed):
        step = torch_step.Step(replace(arch, dropout=dropout), params, batch, loss=speed.objective(arch), seed=seed)
        return [float(step.value().detach()) for _ in range(2)]

    still = values(STILL, 0)
    for name in ("hidden", "attention", "activation", "features", "layer"):
        some = replace(STILL, **{name: 0.5})
        assert values(some, 1) == values(some, 1)
        assert values(some, 1) != still, name
    assert values(replace(STILL, layer=1.0), 0)[0] != still[0]


def test_autocast_is_near(torch_step):
    arch, params, batch = prepared("base")
    exact, half = (
        torch_step.Step(arch, params, batch, loss=speed.objective(arch), dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    value = float(half.value().detach())
    assert value != float(exact.value().detach())
    np.testing.assert_allclose(value, float(exact.value().detach()), rtol=0.02)
    assert {str(leaf.dtype) for leaf in half.weights.values()} == {"torch.float32"}


def test_a_program_comes_out(torch_step, torch):
    arch, params, batch = prepared("mel")
    threads = torch.get_num_threads()
    program = torch_step.prepare(arch, params, batch, LOAD, loss=speed.objective(arch), dtype="float32")
    program.run()
    torch.set_num_threads(threads)
    assert (program.load, program.compile_s) == (LOAD, 0.0)


def test_layouts_are_pytorchs(torch_step):
    params = weights(BASE)
    shapes = {path: tuple(leaf.shape) for path, leaf in torch_step.weights(params, "cpu").items()}
    assert shapes["layers/0/ffn/fc1/kernel"] == (24, 16)
    assert shapes["front/convs/1/conv/kernel"] == (12, 12, 3)
    assert shapes["position/kernel"] == (16, 4, 8)
    assert shapes.keys() == flatten(params).keys()


@pytest.mark.parametrize(
    ("arch", "settings", "message"),
    [
        (replace(MEL, layers=UNEVEN.layers), {}, "dense layers only"),
        (replace(WAVLM, head=MEL.head), {}, "no relative positions"),
        (MEL, {"optimizer": Optimizer(kind="adamw")}, "Adam at a constant rate only"),
        (MEL, {"loss": replace(speed.objective(MEL), unmasked=1.0)}, "masked frames alone"),
    ],
)
def test_what_is_not_written_is_refused(torch_step, arch, settings, message):
    with pytest.raises(InputError, match=message):
        torch_step.Step(arch, {}, {}, **{"loss": speed.objective(arch), **settings})


def test_padded_waveforms_are_refused(torch_step):
    arch, params, batch = prepared("base")
    with pytest.raises(InputError, match="1 of 2 waveforms are padded"):
        torch_step.Step(arch, params, batch | {"lengths": np.array([4800, 4000])}, loss=speed.objective(arch))
