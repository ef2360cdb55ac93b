"""Mamba-1 against the original code: outputs, gradients, states; and what no padding may move."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.models import choice
from jaxssl.models.arch import Mamba
from jaxssl.models.mixers.selective_scan import CHUNK, selective_scan
from jaxssl.models.model import init
from jaxssl.models.names import CONV, JOIN, PAIR, SPLIT
from jaxssl.runtime import native
from tests.archs import MAMBA, mix

BLOCK = Mamba(192, state=24, rank=4)


@pytest.fixture(scope="module")
def original(shared):
    with np.load(shared / "encoders/mamba/mamba1_block.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def arrays_of(found, width, inner):
    """Weights or gradients of the original's block, by our names."""
    block = {}
    for name, array in found.items():
        part, _, leaf = name.replace("mamba_rev.", "back.").replace("mamba.", "").rpartition(".")
        base, side = (leaf, "") if not part or part == "back" else (part, "")
        if part.startswith("back"):
            base, side = part.removeprefix("back.") if part != "back" else leaf, "back_"
        if base.endswith("_b"):
            base, side = base.removesuffix("_b"), "back_"
        match base:
            case "in_proj":
                place, value = ("input", "kernel"), PAIR.convert(array, (width, inner, 2))
            case "conv1d":
                place = ("conv", "bias" if leaf == "bias" else "kernel")
                value = array if leaf == "bias" else CONV.convert(array, ())
            case "x_proj":
                place, value = ("select", "kernel"), SPLIT.convert(array, (inner, len(array)))
            case "dt_proj":
                place = ("step", "bias" if leaf == "bias" else "kernel")
                value = array if leaf == "bias" else array.T
            case "out_proj":
                place, value = ("out", "kernel"), JOIN.convert(array, (inner, width))
            case "A_log":
                place, value = ("scan", "log_decay"), array
            case "D":
                place, value = ("scan", "skip"), array
            case _:
                continue
        block.setdefault(side + place[0], {})[place[1]] = np.ascontiguousarray(value)
    return block


def under(original, prefix):
    return {name.removeprefix(prefix): each for name, each in original.items() if name.startswith(prefix)}


@partial(jax.jit, static_argnums=(0, 4))
def gradients(part, arrays, x, probe, way="XLA"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "scan", lambda **_: way)
        return jax.grad(lambda arrays, x: (mix.__wrapped__(part, arrays, x) * probe).sum(), argnums=(0, 1))(arrays, x)


def near(found, wanted):
    """To 1e-4 of the largest number."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * max(1, np.abs(wanted).max()))


@pytest.fixture(params=["XLA", "native"])
def way(request):
    if request.param == "native" and not native.ready():
        pytest.skip("no C++ compiler")
    return request.param


def test_the_block_and_its_gradients(original, way):
    arrays = arrays_of(under(original, "block/weights/"), 64, 192)
    x, probe = original["block/x"], original["block/probe"]
    near(mix(BLOCK, arrays, x), original["block/y"])
    mine, of_x = gradients(BLOCK, arrays, x, probe, way)
    near(of_x, original["block/grad_x"])
    wanted = arrays_of(under(original, "block/grad/"), 64, 192)
    assert jax.tree.structure(mine) == jax.tree.structure(wanted)
    jax.tree.map(near, mine, wanted)


@pytest.mark.parametrize("halved", [True, False])
def test_both_directions_inside(original, halved):
    part = replace(BLOCK, directions="inner", halved=halved)
    arrays = arrays_of(under(original, "inner/weights/"), 64, 192)
    near(mix(part, arrays, original["block/x"]), original[f"inner/y_divide_{halved}"])


def test_two_mambas(original):
    part = Mamba(96, state=24, rank=2, directions="external", back=96)
    arrays = arrays_of(under(original, "external_postnorm/weights/"), 32, 96)
    near(mix(part, arrays, original["block/x"][..., :32]), original["external_postnorm/before_residual"])


def scanned(original, way, frames=slice(None), state=None):
    given = {name: jnp.asarray(each) for name, each in under(original, "scan/in/").items()}
    x, step, into, out = (given[name].swapaxes(1, 2)[:, frames] for name in ("u", "delta", "B", "C"))
    steps = jax.nn.softplus(step + given["delta_bias"][None, None])
    y, state = selective_scan(x, steps, given["A"], into, out, state, way=way)
    y = (y + given["D"][None, None] * x) * jax.nn.silu(given["z"].swapaxes(1, 2)[:, frames])
    return y, state


def test_the_scan_and_its_state(original, way):
    """Also in two pieces, the second from the state that the first left."""
    y, state = scanned(original, way)
    near(y.swapaxes(1, 2), original["scan/out"])
    near(state, original["scan/last_state"])
    first, between = scanned(original, way, slice(0, 11))
    second, last = scanned(original, way, slice(11, None), between)
    near(jnp.concatenate([first, second], 1), y)
    near(last, state)


def test_chunks_change_nothing():
    """Over more frames than a chunk, against one frame at a time; a step of 0 moves no state."""
    draw, frames = np.random.default_rng(0), CHUNK + 9
    x, step = draw.standard_normal((2, 1, frames, 3))
    into, out = draw.standard_normal((2, 1, frames, 4))
    step, decay = np.abs(step) * (np.arange(frames) < CHUNK + 4)[:, None], -np.abs(draw.standard_normal((3, 4)))
    h, wanted = np.zeros((1, 3, 4)), []
    for t in range(frames):
        h = np.exp(step[:, t, :, None] * decay) * h + (step * x)[:, t, :, None] * into[:, t, None]
        wanted.append((h * out[:, t, None]).sum(-1))
    y, state = jax.jit(selective_scan)(*(jnp.asarray(each, jnp.float32) for each in (x, step, decay, into, out)))
    near(y, np.stack(wanted, 1))
    near(state, h)


def test_one_direction_hears_no_later_frame(original):
    """The gradient of a frame's output with respect to later frames is 0."""
    arrays = arrays_of(under(original, "block/weights/"), 64, 192)
    x = original["block/x"]
    probe = np.zeros_like(x)
    probe[:, 20] = 1
    _, of_x = gradients(BLOCK, arrays, x, probe)
    assert np.abs(of_x[:, 21:]).max() == 0 < np.abs(of_x[:, 20]).min()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Mamba(-1), "-1 and 0 channels; neither may be negative"),
        (Mamba(4, rank=0), "layers/0: rank is 0; use 1 or more"),
        (Mamba(4, back=3), "back is 3, and there is no second Mamba"),
        (Mamba(4, halved=True), "halved, and directions are one"),
    ],
)
def test_what_cannot_be_is_refused(part, message):
    arch = replace(MAMBA, layers=(replace(MAMBA.layers[0], mixer=part),))
    with pytest.raises(InputError, match=message):
        init(arch, jax.random.key(0))
