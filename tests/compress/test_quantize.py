"""Laws of int8 maps: rounding is plain NumPy's, what is simulated is stored, and nothing takes integers for weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import Matrix, flatten, put
from compress.blocks import pack
from compress.errors import InputError
from compress.lowrank import decompose, dense_kernel, factorise
from compress.quantize import bfloat16, dequantize, float32, quantize, simulate
from compress.sparse import block_masks, entry_masks, n_of_m_masks, zero_masks

FC = Matrix("fc", 1, (24, 36))
Q = Matrix("q", 1, (24, 3, 4))
OUT = Matrix("out", 2, (3, 4, 24))
every_map = pytest.mark.parametrize("matrix", [m for d in (FC, Q, OUT) for m in (d, replace(d, rank=5))], ids=str)


def arrays(matrix):
    """Names of a map's weights, how many leading axes are inputs, and shapes."""
    if matrix.rank is None:
        return [("kernel", matrix.inputs, matrix.shape)]
    ins, outs = matrix.shape[: matrix.inputs], matrix.shape[matrix.inputs :]
    return [("down", matrix.inputs, (*ins, matrix.rank)), ("up", 1, (matrix.rank, *outs))]


def toy(matrix, seed=0):
    """A tree with one map whose channels are of very different size."""
    rng = np.random.default_rng(seed)
    leaves = {"bias": np.ones(matrix.shape[matrix.inputs :], np.float32)}
    for name, inputs, shape in arrays(matrix):
        sizes = 10.0 ** rng.uniform(-6, 3, shape[inputs:])
        leaves[name] = (rng.normal(size=shape) * sizes).astype(np.float32)
    return {matrix.path: leaves, "other": np.ones(2, np.float32)}


def by_hand(array, inputs):
    """Quantise channel by channel: integers, scales."""
    flat = array.reshape(-1, *array.shape[inputs:]).reshape(np.prod(array.shape[:inputs], dtype=int), -1)
    scales = np.array([np.float32(np.abs(column).max()) / np.float32(127) or 1 for column in flat.T], np.float32)
    return np.rint(flat / scales).reshape(array.shape), scales.reshape(array.shape[inputs:])


@every_map
@pytest.mark.parametrize("seed", range(3))
def test_rounding_is_that_of_plain_numpy(matrix, seed):
    params = toy(matrix, seed)
    found = quantize(params, matrix)
    leaves = found[matrix.path]
    assert leaves.keys() == {"bias"} | {n for name, *_ in arrays(matrix) for n in (name, f"{name}_scale")}
    for name, inputs, _ in arrays(matrix):
        values, scales = by_hand(params[matrix.path][name], inputs)
        assert (leaves[name].dtype, leaves[f"{name}_scale"].dtype) == (np.int8, np.float32)
        np.testing.assert_array_equal(leaves[name], values)
        # XLA multiplies by 1 / 127, which moves a scale by its last bit
        np.testing.assert_allclose(leaves[f"{name}_scale"], scales, rtol=2e-7)
        assert np.abs(values).max() == 127
        assert (np.abs(values).max(tuple(range(inputs))) == 127).all(), "every channel uses its whole grid"
    assert leaves["bias"] is params[matrix.path]["bias"]
    assert found["other"] is params["other"]


@every_map
def test_what_is_simulated_is_what_is_stored(matrix):
    params = toy(matrix)
    seen, stored = simulate(params, matrix), quantize(params, matrix)
    back = dequantize(stored, replace(matrix, int8=True))
    assert back[matrix.path].keys() == params[matrix.path].keys()
    for name, inputs, shape in arrays(matrix):
        one, two = (np.asarray(tree[matrix.path][name]) for tree in (seen, back))
        assert (one.dtype, one.shape) == (np.float32, shape)
        np.testing.assert_array_equal(one, two)
        values, scales = by_hand(params[matrix.path][name], inputs)
        np.testing.assert_allclose(one, values * scales, rtol=2e-7)


@every_map
def test_no_weight_moves_by_more_than_half_a_step(matrix):
    params = toy(matrix)
    seen, stored = simulate(params, matrix), quantize(params, matrix)
    for name, *_ in arrays(matrix):
        moved = np.abs(np.float64(seen[matrix.path][name]) - params[matrix.path][name])
        assert (moved <= np.float64(stored[matrix.path][f"{name}_scale"]) / 2 * (1 + 1e-5)).all()
        assert moved.max() > 0


@every_map
def test_rounding_again_moves_nothing(matrix):
    once = simulate(toy(matrix), matrix)
    for name, *_ in arrays(matrix):
        first, again = (quantize(tree, matrix)[matrix.path][name] for tree in (toy(matrix), once))
        np.testing.assert_array_equal(first, again)


def test_signs_ties_and_channels_of_nothing():
    kernel = np.array([[127.0, -127.0, 0.0, -0.0, 1e-44], [0.5, -1.5, 0.0, 0.0, 0.0], [2.5, -2.5, 0.0, 0.0, 0.0]])
    params = {"m": {"kernel": kernel.astype(np.float32), "bias": np.zeros(5, np.float32)}}
    found = quantize(params, Matrix("m", 1, (3, 5)))["m"]
    np.testing.assert_array_equal(found["kernel"], [[127, -127, 0, 0, 0], [0, -2, 0, 0, 0], [2, -2, 0, 0, 0]])
    np.testing.assert_array_equal(found["kernel_scale"], [1, 1, 1, 1, 1])


@pytest.mark.parametrize("matrix", [Matrix("m", 1, (24, 0, 4)), Matrix("m", 2, (0, 4, 24)), Matrix("m", 1, (0, 24), 2)])
def test_maps_without_entries_are_legal(matrix):
    params = {"m": {n: np.zeros(s, np.float32) for n, _, s in arrays(matrix)} | {"bias": np.ones(3)}}
    found = quantize(params, matrix)
    back = dequantize(found, replace(matrix, int8=True))
    for name, inputs, shape in arrays(matrix):
        assert found["m"][name].dtype == np.int8
        np.testing.assert_array_equal(found["m"][f"{name}_scale"], np.ones(shape[inputs:]))
        assert back["m"][name].shape == shape


def test_weights_in_bfloat16_are_quantised_as_the_numbers_they_are():
    params = toy(FC)
    low = bfloat16(params)
    for name, leaf in quantize(low, FC)["fc"].items():
        np.testing.assert_array_equal(leaf, quantize(float32(low), FC)["fc"][name])


def test_after_low_rank_comes_int8():
    params = toy(OUT)
    params = factorise(params, decompose(params, OUT), 3)
    thin = replace(OUT, rank=3)
    seen = dense_kernel(simulate(params, thin), thin)
    whole = dense_kernel(params, thin)
    assert np.linalg.norm(seen - whole) < 0.02 * np.linalg.norm(whole)


def test_bfloat16_halves_the_bytes_and_leaves_scales_and_integers():
    params = {**quantize(toy(FC), FC), "index": np.arange(3, dtype=np.int32)}
    low = bfloat16(params)
    kinds = {path: leaf.dtype for path, leaf in flatten(low).items()}
    assert kinds == {
        "fc/kernel": np.int8,
        "fc/kernel_scale": np.float32,
        "fc/bias": jnp.bfloat16,
        "other": jnp.bfloat16,
        "index": np.int32,
    }
    plain = toy(FC)
    assert 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(bfloat16(plain))) == sum(
        leaf.nbytes for leaf in jax.tree.leaves(plain)
    )
    kernel, back = plain["fc"]["kernel"], float32(bfloat16(plain))["fc"]["kernel"]
    assert back.dtype == np.float32
    assert (np.abs(back - kernel) <= np.abs(kernel) / 256).all()
    for path, leaf in flatten(float32(plain)).items():
        assert flatten(plain)[path] is leaf


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (replace(FC, blocks=(4, 2)), "fc: packed, in blocks of 4.*unpack it first"),
        (replace(FC, int8=True), "fc: int8 already.*dequantize first"),
        (Matrix("fc", 1, (36, 24)), r"fc/kernel: shape \(24, 36\), expected \(36, 24\)"),
        (replace(FC, rank=2), "fc/down: no such path"),
    ],
)
def test_what_cannot_be_quantised_is_named(matrix, message):
    for act in (quantize, simulate):
        with pytest.raises(InputError, match=message) as caught:
            act(toy(FC), matrix)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_counted(bad):
    params = toy(FC)
    params["fc"]["kernel"][0, :2] = bad
    with pytest.raises(InputError, match="fc/kernel: 2 of 864 weights are not finite"):
        quantize(params, FC)


def test_what_cannot_be_dequantised_is_named():
    params, matrix = toy(FC), replace(FC, int8=True)
    stored = quantize(params, FC)
    with pytest.raises(InputError, match="fc: not int8"):
        dequantize(stored, FC)
    with pytest.raises(InputError, match="fc/kernel_scale: no such path"):
        dequantize(params, matrix)
    with pytest.raises(InputError, match="fc/kernel: float32, expected int8"):
        dequantize(put(stored, "fc/kernel", params["fc"]["kernel"]), matrix)
    with pytest.raises(InputError, match=r"fc/kernel_scale: shape \(35,\), expected \(36,\)"):
        dequantize(put(stored, "fc/kernel_scale", np.ones(35, np.float32)), matrix)
    with pytest.raises(InputError, match="fc/kernel: int8.*dequantize first"):
        quantize(stored, FC)  # as described before it was quantised


@pytest.mark.parametrize(
    "act",
    [
        lambda params, matrix: dense_kernel(params, matrix),
        lambda params, matrix: decompose(params, matrix),
        lambda params, matrix: pack(params, matrix, 4),
        lambda params, matrix: entry_masks(params, [["fc/kernel"]], 0.5),
        lambda params, matrix: n_of_m_masks(params, [matrix], 2, 4),
        lambda params, matrix: block_masks(params, [matrix], 0.5, 4),
        lambda params, matrix: zero_masks(params, [matrix]),
    ],
    ids=["dense_kernel", "decompose", "pack", "entry_masks", "n_of_m_masks", "block_masks", "zero_masks"],
)
@pytest.mark.parametrize("told", [True, False])
def test_nothing_else_takes_integers_for_weights(act, told):
    with pytest.raises(InputError, match="fc/kernel: int8.*dequantize first"):
        act(quantize(toy(FC), FC), replace(FC, int8=told))
