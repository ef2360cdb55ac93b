"""Mamba-2 against the original code: the recurrence, outputs, gradients, states; and what no padding may move."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.models import cost
from jaxssl.models.arch import FeedForward, Layer, LogMel, Mamba2, NoFeedForward
from jaxssl.models.describe import describe
from jaxssl.models.mixers.duality import CHUNK, duality
from jaxssl.models.model import apply, init
from tests.archs import MAMBA2, mix, weights

BLOCK = Mamba2(8, 12, 24)


@pytest.fixture(scope="module")
def original(shared):
    with np.load(shared / "encoders/mamba/mamba2_ssd.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def under(original, prefix):
    return {name.removeprefix(prefix): each for name, each in original.items() if name.startswith(prefix)}


def near(found, wanted):
    """To 1e-4 of the largest number."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * max(1, np.abs(wanted).max()))


def ours(found):
    """Weights or gradients of the original's block of 8 heads of 12, width 32 and state 24, by our names."""
    gate, x, selected, step = np.split(found["in_proj.weight"].T, [96, 192, 240], 1)
    (conv, select_conv), (bias, select_bias) = (np.split(found[f"conv1d.{name}"], [96]) for name in ("weight", "bias"))
    return {
        "input": {"kernel": np.stack([x, gate], -1).reshape(32, 8, 1, 12, 2)},
        "select": {"kernel": selected.reshape(32, 2, 1, 24)},
        "step": {"kernel": step.reshape(32, 8, 1), "bias": found["dt_bias"].reshape(8, 1)},
        "conv": {"kernel": conv.T.reshape(4, 8, 1, 12), "bias": bias.reshape(8, 1, 12)},
        "select_conv": {"kernel": select_conv.T.reshape(4, 2, 1, 24), "bias": select_bias.reshape(2, 1, 24)},
        "scan": {"log_decay": found["A_log"].reshape(8, 1), "skip": found["D"].reshape(8, 1)},
        "norm": {"scale": found["norm.weight"].reshape(8, 1, 12)},
        "out": {"kernel": found["out_proj.weight"].T.reshape(8, 1, 12, 32)},
    }


@partial(jax.jit, static_argnums=0)
def gradients(part, arrays, x, probe):
    return jax.grad(lambda arrays, x: (mix(part, arrays, x) * probe).sum(), argnums=(0, 1))(arrays, x)


@pytest.fixture(scope="module")
def arrays(original):
    return ours(under(original, "block/weights/"))


def test_the_block_and_its_gradients(original, arrays):
    near(mix(BLOCK, arrays, original["block/x"]), original["block/y"])
    mine, of_x = gradients(BLOCK, arrays, original["block/x"], original["block/probe"])
    near(of_x, original["block/grad_x"])
    jax.tree.map(near, mine, ours(under(original, "block/grad/")))


@partial(jax.jit, static_argnames=("size",))
def scanned(given, state, size=16):
    """The original's recurrence, softplus and skip included; it has B and C of each group, heads behind groups."""
    steps = jax.nn.softplus(given["dt"] + given["dt_bias"][None, None])
    x, decay = given["x"][:, :, :, None], given["A"][:, None]
    y, last = duality(x, steps[..., None], decay, given["B"], given["C"], state[:, :, None], size=size)
    return (y + given["D"][None, None, :, None, None] * x)[:, :, :, 0], last[:, :, 0]


@pytest.fixture(scope="module")
def given(original):
    found = under(original, "in/")
    return found, found.pop("initial_states")


def test_the_recurrence_and_its_gradients(original, given):
    """From a state on and from none, at a chunk size that does not divide the frames; what comes last too."""
    inputs, state = given
    y, last = scanned(inputs, state)
    near(y, original["out"])
    near(last, original["final_state"])
    y, last = scanned(inputs, np.zeros_like(state))
    near(y, original["zero_state/out"])
    near(last, original["zero_state/final_state"])

    def probed(inputs, state):
        y, last = scanned(inputs, state)
        return (y * original["probe_out"]).sum() + (last * original["probe_final_state"]).sum()

    found, of_state = jax.jit(jax.grad(probed, argnums=(0, 1)))(inputs, state)
    near(of_state, original["grad/initial_states"])
    for name, each in found.items():
        near(each, original[f"grad/{name}"])


@pytest.mark.parametrize("size", [1, 7, 50, 64])
def test_the_size_of_chunks_changes_nothing(given, size):
    """One frame at a time is the recurrence itself; in one chunk it is attention without a softmax."""
    for found, wanted in zip(scanned(*given, size=size), scanned(*given), strict=True):
        near(found, wanted)


def test_a_state_goes_on(given):
    """Two pieces, the second from the state that the first left, are the whole."""
    inputs, state = given
    first, second = (
        {name: each[:, piece] if each.ndim > 2 else each for name, each in inputs.items()}
        for piece in (slice(0, 21), slice(21, None))
    )
    y, between = scanned(first, state)
    more, last = scanned(second, between)
    whole, wanted = scanned(inputs, state)
    near(jnp.concatenate([y, more], 1), whole)
    near(last, wanted)


def test_a_step_of_0_moves_no_state_and_nothing_overflows():
    """Also behind heads that forget all within a frame, over more frames than a chunk."""
    draw, frames = np.random.default_rng(0), CHUNK + 9
    x = draw.standard_normal((1, frames, 2, 2, 3)).astype(np.float32)
    into, out = draw.standard_normal((2, 1, frames, 2, 4)).astype(np.float32)
    step = np.abs(draw.standard_normal((1, frames, 2, 2))).astype(np.float32)
    decay = -np.array([[0.1, 1.0], [10.0, 1e4]], np.float32)
    still = step * (np.arange(frames) < CHUNK - 5)[None, :, None, None]
    run = jax.jit(duality)
    _, short = run(x[:, : CHUNK - 5], step[:, : CHUNK - 5], decay, into[:, : CHUNK - 5], out[:, : CHUNK - 5])
    y, state = run(x, still, decay, into, out)
    near(state, short)
    assert np.isfinite(y).all()
    one = jax.grad(lambda *given: duality(*given)[0].sum(), argnums=(0, 1, 2))(x, step, decay, into, out)
    assert all(bool(jnp.isfinite(each).all()) for each in one)


def test_one_direction_hears_no_later_frame(original, arrays):
    """The gradient of a frame's output with respect to later frames is 0."""
    probe = np.zeros_like(original["block/x"])
    probe[:, 20] = 1
    _, of_x = gradients(BLOCK, arrays, original["block/x"], probe)
    assert np.abs(of_x[:, 21:]).max() == 0 < np.abs(of_x[:, 20]).min()


def test_both_directions_of_a_mirrored_utterance_are_mirrored(original, arrays):
    """With the same weights both ways, x turned round gives y turned round; two of "external" are a sum."""
    x = original["block/x"]
    own = ("select", "step", "conv", "select_conv", "scan")
    inner = arrays | {f"back_{name}": arrays[name] for name in own}
    part = replace(BLOCK, directions="inner")
    near(mix(part, inner, x[:, ::-1])[:, ::-1], mix(part, inner, x))
    both = arrays | {f"back_{name}": each for name, each in arrays.items()}
    part = replace(BLOCK, directions="external", back=8)
    near(mix(part, both, x), original["block/y"] + mix(BLOCK, arrays, x[:, ::-1])[:, ::-1])


def test_a_group_is_a_mixer_of_its_own(original, arrays):
    """Two groups are two mixers of one group each, side by side."""
    draw = np.random.default_rng(1)
    axes = {"input": 2, "select": 2, "step": 2, "conv": 2, "select_conv": 2, "scan": 1, "norm": 1, "out": 1}
    other = jax.tree.map(lambda leaf: draw.permutation(leaf.ravel()).reshape(leaf.shape), arrays)
    joined = {}
    for name, leaves in arrays.items():
        shift = {leaf: axes[name] - (leaf == "bias" and name in ("step", "conv", "select_conv")) for leaf in leaves}
        joined[name] = {leaf: np.concatenate([leaves[leaf], other[name][leaf]], at) for leaf, at in shift.items()}
    x = original["block/x"]
    near(mix(replace(BLOCK, groups=2), joined, x), original["block/y"] + mix(BLOCK, other, x))


def test_what_the_norm_counted_is_told_by_the_base(key):
    """Heads that are cut stay in the mean; of what never had more, all there are."""
    layer = MAMBA2.layers[0]
    assert layer.mixer.resized("inner", 3).normed == 4 == layer.mixer.resized("inner", 3).resized("inner", 1).normed
    for part, base in ((layer.mixer.resized("inner", 2), layer.mixer), (layer.mixer, replace(layer.mixer, heads=1))):
        arch, other = (replace(MAMBA2, layers=(replace(layer, mixer=each),)) for each in (part, base))
        assert describe(other, jax.eval_shape(partial(init, arch, key))) == arch


def test_macs_agree_with_xla():
    """Which adds elementwise operations, so ours is a bound that a wide model nearly reaches; chunks are whole."""
    layers = (Layer(Mamba2(2, 32, 32), FeedForward(128)), Layer(Mamba2(4, 32, 32, groups=2), NoFeedForward()))
    arch = replace(MAMBA2, front=LogMel(40, 1), width=64, layers=layers)
    inputs = jax.ShapeDtypeStruct((1, 200, 40), jnp.float32)
    params = jax.eval_shape(lambda: weights(arch))
    compiled = jax.jit(lambda params, x: apply(arch, params, x).last).lower(params, inputs).compile()
    assert 1.0 <= compiled.cost_analysis()["flops"] / (2 * cost.macs(arch, 400 + 160 * 199).total) < 1.25
    part = layers[1].mixer
    assert part.core_macs(CHUNK + 1, 64) - part.core_macs(2 * CHUNK, 64) == (1 - CHUNK) * 4 * (256 + 128)


def test_steps_start_where_the_authors_have_them(key):
    """Between 0.001 and 0.1; and heads decay by 1 to 16 a unit of it."""
    mixer = init(replace(MAMBA2, layers=MAMBA2.layers[:1]), key)["layers"]["0"]["mamba2"]
    steps, decays = jax.nn.softplus(mixer["step"]["bias"]), jnp.exp(mixer["scan"]["log_decay"])
    assert 1e-3 * 0.99 <= steps.min() < steps.max() <= 0.1 * 1.01
    assert 1 <= decays.min() < decays.max() <= 16


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Mamba2(-1), "-1 and 0 heads; neither may be negative"),
        (Mamba2(4, groups=0), "layers/0: groups is 0; use 1 or more"),
        (Mamba2(4, back=3), "back is 3, back_normed 0, and there is no second Mamba-2"),
        (Mamba2(4, normed=3), "a norm over 3 of 4 heads"),
    ],
)
def test_what_cannot_be_is_refused(part, message, key):
    arch = replace(MAMBA2, layers=(replace(MAMBA2.layers[0], mixer=part),))
    with pytest.raises(InputError, match=message):
        init(arch, key)
