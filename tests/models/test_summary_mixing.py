"""SummaryMixing against arrays made by its formulas, and the laws of a mean over frames."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.models.arch import SummaryMixing
from jaxssl.models.describe import describe
from jaxssl.models.mixers.summaries import FAR, summaries
from jaxssl.models.model import init
from tests.archs import SUMMARY, mix

CELL = SummaryMixing(4, 8, 8, 8, 8)
FAST = SummaryMixing(1, 32, 32, mode="fast")


@pytest.fixture(scope="module")
def cell(shared):
    with np.load(shared / "encoders/summarymixing/cell.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def halves(kernel, heads):
    """The merge's kernel in two: units before heads, as ours are."""
    return {
        name: half.reshape(heads, -1, kernel.shape[-1]).swapaxes(0, 1) if heads > 1 else half
        for name, half in zip(("local", "summary"), np.split(kernel, 2), strict=True)
    }


def arrays_of(part, cell):
    """The file's weights under our names."""
    weights = {name.removeprefix("weights/"): each for name, each in cell.items() if name.startswith("weights/")}
    if part.mode == "fast":
        found = {}
        for i, name in enumerate(("local", "summary")):
            kernel, bias = np.split(weights["fast.weight"], 2, 1)[i], np.split(weights["fast.bias"], 2)[i]
            found[f"{name}1"] = {"kernel": kernel, "bias": bias}
        merge, bias = weights["fast_merge.weight"], weights["fast_merge.bias"]
    else:
        chain = [f"{branch}{i}" for branch in part.branches for i in (1, 2)]
        found = {name: {"kernel": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]} for name in chain}
        merge, bias = weights["merge.weight"], weights["merge.bias"]
    if part.mode != "lite":
        kernels = halves(merge, part.heads)
        found["merge_local"] = {"kernel": kernels["local"]}
        found["merge_summary"] = {"kernel": kernels["summary"], "bias": bias}
    if part.norm:
        for name in part.branches:
            found[f"{name}_norm"] = {"scale": weights[f"ln_{name}.weight"], "bias": weights[f"ln_{name}.bias"]}
    return found


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (CELL, "plain/y"),
        (replace(CELL, norm=True), "plain_layernorm/y"),
        (replace(CELL, mode="lite", local=0, local_hidden=0), "lite/y"),
        (FAST, "fast/y"),
        (replace(CELL, decay=0.995), "expdecay/y_real_frames"),
        (replace(CELL, window=(FAR, 0)), "window_causal/y_divide_real"),
    ],
)
def test_it_is_the_formula(cell, part, name):
    y = mix(part, arrays_of(part, cell), cell["x"], cell["mask"] > 0)
    for row, frames in enumerate(cell["lengths"]):
        np.testing.assert_allclose(y[row, :frames], cell[name][row, :frames], atol=1e-5)


def test_a_window_is_its_matrix(cell):
    """Also of two sides and half a window at the ends."""
    s, real = cell["summary_frames"], cell["mask"] > 0
    near = summaries(jnp.asarray(s), real, window=(5, 5))
    for row, frames in enumerate(cell["lengths"]):
        np.testing.assert_allclose(near[row, :frames], cell["window_sym5/summary_divide_real"][row, :frames], atol=1e-5)


@pytest.fixture(scope="module")
def drawn():
    """A part's arrays, of some size, and frames."""
    part = SummaryMixing(4, 4, 3, 3, 5)
    draw = np.random.default_rng(0)
    shapes = jax.tree.map(lambda leaf: leaf.shape, init_of(part), is_leaf=lambda leaf: hasattr(leaf, "shape"))
    arrays = jax.tree.map(lambda s: draw.standard_normal(s).astype(np.float32), shapes, is_leaf=tuple.__instancecheck__)
    return part, arrays, draw.standard_normal((1, 9, 16)).astype(np.float32)


def init_of(part):
    return jax.eval_shape(lambda: init(replace(SUMMARY, layers=(replace(SUMMARY.layers[0], mixer=part),)), key()))[
        "layers"
    ]["0"]["mixing"]


def key():
    return jax.random.key(0)


def test_permuting_frames_permutes_the_output(drawn):
    part, arrays, x = drawn
    order = np.random.default_rng(1).permutation(9)
    np.testing.assert_allclose(mix(part, arrays, x[:, order]), mix(part, arrays, x)[:, order], atol=2e-4, rtol=1e-4)


def test_what_cannot_be_told_apart_is_the_plain_mean(drawn):
    """A decay of nearly 1, and a window over all frames."""
    part, arrays, x = drawn
    plain = mix(part, arrays, x)
    np.testing.assert_allclose(mix(replace(part, decay=1 - 1e-7), arrays, x), plain, atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(mix(replace(part, window=(9, FAR)), arrays, x), plain, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("words", [{"decay": 0.8}, {"window": (2, 1)}, {}])
def test_padding_changes_nothing(drawn, words):
    part, arrays, x = drawn
    part = replace(part, **words)
    noisy = np.where(np.arange(9)[None, :, None] < 6, x, np.float32(1e4))
    together = mix(part, arrays, noisy, jnp.arange(9)[None] < 6)[:, :6]
    np.testing.assert_allclose(together, mix(part, arrays, x[:, :6]), atol=2e-4, rtol=1e-4)


def test_decay_and_window_are_in_no_array():
    """So they come from the base."""
    part = replace(SUMMARY.layers[0].mixer, decay=0.9)
    arch = replace(SUMMARY, layers=(replace(SUMMARY.layers[0], mixer=part), SUMMARY.layers[1]))
    assert describe(arch, jax.eval_shape(lambda: init(arch, key()))) == arch


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (SummaryMixing(0, 4, 4), "layers/0: heads is 0; use 1 or more"),
        (SummaryMixing(3, 4, 4), "3 heads cannot divide a width of 16"),
        (SummaryMixing(4, 4, -1), "none may be negative"),
        (SummaryMixing(4, 4, 4, mode="fast"), "the fast mode has whole maps, not 4 heads"),
        (SummaryMixing(4, 4, 4, 4, 4, mode="lite"), "the lite mode has no local branch, local is 4"),
        (SummaryMixing(4, 0, 3, 0, 4, mode="lite"), "returns its summary, 4 × 3 wide, in a width of 16"),
        (SummaryMixing(4, 4, 4, decay=0.0), "decay 0.0 is no share that a frame keeps"),
        (SummaryMixing(4, 4, 4, window=(3,)), "give frames to the left and to the right"),
    ],
)
def test_what_cannot_be_is_refused(part, message):
    arch = replace(SUMMARY, layers=(replace(SUMMARY.layers[0], mixer=part),))
    with pytest.raises(InputError, match=message):
        init(arch, key())
