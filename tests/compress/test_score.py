"""Scores against their definitions in double precision, against speech run through the map, and against the study's."""

import json
from collections import defaultdict
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import Axis, flatten, get
from compress.edit import cut, mask
from compress.errors import InputError
from compress.lowrank import decompose, factorise, truncate
from compress.score import contribution, contributions, magnitude
from compress.select import highest
from jaxssl.analysis.calibration import moments, unit_moments
from jaxssl.convert.conversion import read
from jaxssl.models.describe import describe
from jaxssl.models.inner_maps import map_inputs
from jaxssl.models.model import apply, shapes
from jaxssl.models.sites import axes, matrices
from tests.archs import ARCHS, BASE, MEL, noise
from tests.golden import meets

every_arch = pytest.mark.parametrize("arch", list(ARCHS.values()), ids=list(ARCHS))


def lively(arch, seed=0):
    """Parameters of a size that trained ones have, biases and norms included; drawn without a program to compile."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * draw.standard_normal(x.shape)).astype(np.float32), shapes(arch))


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("shape", "at"),
    [
        *(((768, 3072), 1), ((3072, 768), 0), ((768, 12, 64), 1), ((12, 64, 768), 0), ((3072,), 0)),  # full size
        *(((300, 7, 500), 1), ((5, 150_001), 0), ((150_001, 3), 1), ((4000, 2), 0), ((6, 0), 1), ((0, 6), 1)),
    ],
)
def test_magnitude_is_exact(shape, at, order):
    """To 1e-5 of the sum in double precision, whichever blocks the array falls into, weights of every size."""
    weights = np.random.default_rng(0).standard_normal(shape).astype(np.float32) ** 3
    axis = Axis("x", shape[at], (("w", at),))
    exact = (np.abs(weights.astype(np.float64)) ** order).sum(tuple(i for i in range(len(shape)) if i != at))
    found = magnitude({"w": jnp.asarray(weights)}, axis, order=order)
    assert (found.shape, found.dtype) == ((shape[at],), np.float64)
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_narrow_weights_are_summed_wide():
    weights = np.full((1, 3000), 1.0)
    found = magnitude({"w": jnp.asarray(weights, jnp.bfloat16)}, Axis("x", 1, (("w", 0),)))
    np.testing.assert_array_equal(found, [3000.0])  # bfloat16 itself would stop at 256


def output_of(params, path, x):
    """Run one map, without its bias, on `x: (frames, *in)`."""
    dense = get(params, path)
    first = np.asarray(dense["kernel"] if "kernel" in dense else dense["down"], np.float64)
    y = np.tensordot(x, first, x.ndim - 1)
    return y if "kernel" in dense else np.tensordot(y, np.asarray(dense["up"], np.float64), 1)


def frames_of(heard, lengths):
    """Put the valid frames of `heard: (batch, time, …)` one after the other."""
    return np.concatenate([np.asarray(row[:length], np.float64) for row, length in zip(heard, lengths, strict=True)])


@every_arch
def test_contribution_is_what_zeroing_a_unit_changes(arch):
    """The root mean square over frames of the change of the map's output, with inputs that go together."""
    params, draw = lively(arch), np.random.default_rng(1)
    maps = {matrix.path: matrix for matrix in matrices(arch)}
    for axis, path in [(each, path) for each in axes(arch) if each.size for path in each.feeds]:
        matrix, feeds = maps[path], replace(axis, leaves=tuple(leaf for leaf in axis.leaves if path in leaf[0]))
        flat = draw.standard_normal((50, matrix.fan_in)) @ draw.standard_normal((matrix.fan_in, matrix.fan_in))
        x = flat.reshape(50, *matrix.shape[: matrix.inputs])
        found, whole = contribution(params, matrix, axis, flat.T @ flat / 50), output_of(params, path, x)
        for unit in range(axis.size):
            zeroed = mask(params, feeds, np.delete(np.arange(axis.size), unit))
            change = whole - output_of(zeroed, path, x)
            np.testing.assert_allclose(found[unit], np.sqrt(np.square(change).sum(-1).mean()), rtol=1e-6)


def test_contribution_reads_the_calibration(key):
    """Over batches of unequal length, padding counts for nothing: the moments give what all valid frames give."""
    arch = replace(BASE, layers=BASE.layers[:1], head=None)
    params, waves = lively(arch), noise(arch, key, batch=4)
    batches = [(waves[:2], jnp.array([1220, 800])), (waves[2:], jnp.array([900, 500]))]
    seen = moments(arch, params, batches)
    axis = axes(arch)[1]
    matrix = next(matrix for matrix in matrices(arch) if matrix.path == axis.into)
    run = jax.jit(lambda *given: map_inputs(arch, *given))
    heard = [run(params, *batch) for batch in batches]
    x = np.concatenate([frames_of(each[axis.into], lengths[axis.into]) for each, lengths in heard])
    kernel = np.asarray(get(params, f"{axis.into}/kernel"))
    expected = np.sqrt(np.square(x).mean(0)) * np.linalg.norm(kernel, axis=1)
    np.testing.assert_allclose(contribution(params, matrix, axis, seen[axis.into]), expected, rtol=1e-4)
    both = axes(arch)[:2]
    alone = unit_moments(arch, params, batches, {each.into: each.size for each in both})
    for name, scores in contributions(params, both, matrices(arch), seen).items():
        np.testing.assert_allclose(contributions(params, both, matrices(arch), alone)[name], scores, rtol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_a_factorised_map_scores_as_its_product(which):
    params, axis = lively(MEL), axes(MEL)[which]
    matrix = next(matrix for matrix in matrices(MEL) if matrix.path == axis.into)
    root = np.random.default_rng(0).standard_normal((matrix.fan_in, matrix.fan_in))
    thin, dense = (act(params, decompose(params, matrix), 3) for act in (factorise, truncate))
    one = contribution(thin, replace(matrix, rank=3), axis, root @ root.T)
    two = contribution(dense, matrix, axis, root @ root.T)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert not np.allclose(two, contribution(params, matrix, axis, root @ root.T), rtol=1e-2)


def test_units_that_are_gone_have_no_scores():
    params = cut(lively(MEL), axes(MEL)[0], ())
    small = describe(MEL, params)
    axis, matrix = axes(small)[0], next(m for m in matrices(small) if m.path == "layers/0/attention/out")
    assert contribution(params, matrix, axis, np.zeros((0, 0))).shape == (0,)
    assert magnitude(params, axis).shape == (0,)


def test_a_moment_of_another_map_is_refused():
    params, (heads, hidden, *_) = lively(MEL), axes(MEL)
    matrix = next(matrix for matrix in matrices(MEL) if matrix.path == hidden.into)
    with pytest.raises(InputError, match="layers/0/attention/heads: its units feed 'layers/0/attention/out'"):
        contribution(params, matrix, heads, np.eye(24))
    with pytest.raises(InputError, match=r"layers/0/ffn/fc2: the inputs' moment is \(16, 16\), the map has 24 inputs"):
        contribution(params, matrix, hidden, np.eye(16))
    with pytest.raises(InputError, match="layers/0/ffn/fc2: the inputs' moment is not finite"):
        contribution(params, matrix, hidden, np.full((24, 24), np.nan))


def removed(axis, keep):
    return set(range(axis.size)) - set(keep)


def assert_tree_is(params, golden):
    params, golden = flatten(params), flatten(golden)
    assert params.keys() == golden.keys()
    meets(params, golden)


def assert_features_are(arch, params, folder, run):
    inputs, golden = np.load(folder / "forward/tiny20_libri960.npz"), np.load(run / "features.npz")
    lengths = inputs["mel_len"].astype(np.int32)
    output = jax.jit(lambda *given: apply(arch, *given))(params, inputs["mel_input"], lengths)
    found = {f"hidden_{i}_first101": hidden for i, hidden in enumerate(output.hidden) if i}
    meets({"last": output.last, **found}, golden, atol=1e-4, lengths=lengths)


def test_the_studys_l1_heads(shared):
    """Two events, a head of each layer at each: its scores, its heads, its checkpoints, its features."""
    folder, run = shared / "melhubert", shared / "melhubert/head/l1-by_layer/pure"
    converted = read(folder / "ckpt/tiny20.ckpt")
    arch, params = converted.arch, converted.params
    for event, left in zip(json.loads((run / "events.json").read_text())["events"], (9, 6), strict=True):
        golden = defaultdict(list)
        for layer, _, score in event["scores"]:
            golden[f"layers/{layer}/attention/heads"].append(score)
        for axis in (axis for axis in axes(arch) if axis.name in golden):
            scores = magnitude(params, axis, leaves="*/[qkv]/*")
            meets({axis.name: scores}, golden, rtol=1e-4)
            keep = highest(scores, axis.size - 1)
            assert removed(axis, keep) == set(event["pruned"][axis.name.split("/")[1]])
            params = cut(params, axis, keep)
        arch = describe(arch, params)
        assert_tree_is(params, read(run / f"states_prune_{left}.ckpt").params)
    assert_features_are(arch, params, folder, run)


def test_the_studys_rows(shared):
    """Two events, 32 units of each layer at each."""
    folder, run = shared / "melhubert", shared / "melhubert/row/pure"
    converted = read(folder / "ckpt/tiny20.ckpt")
    arch, params = converted.arch, converted.params
    events = iter(json.loads((run / "events.json").read_text())["events"])
    for left in (96, 64):
        for axis in (axis for axis in axes(arch) if axis.name.endswith("/hidden")):
            scored, dropped = next(events), next(events)
            scores = magnitude(params, axis)
            meets({axis.name: scores}, {axis.name: scored["scores"]}, rtol=1e-4)
            keep = highest(scores, left)
            assert removed(axis, keep) == set(dropped["rows"])
            params = cut(params, axis, keep)
        arch = describe(arch, params)
        assert_tree_is(params, read(run / f"states_prune_{left}.ckpt").params)
    assert not list(events)
    assert_features_are(arch, params, folder, run)
