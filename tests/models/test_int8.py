"""Models in int8 and in bfloat16: the same shapes, plain NumPy's integers, and nothing that would quietly go wrong."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten, get, put, unflatten
from compress.errors import InputError
from compress.plan import Heads, LowRank, Rows, Sites, Weights, run
from compress.quantize import bfloat16, float32, quantize, simulate
from jaxssl.analysis.attention_maps import attention_maps
from jaxssl.convert import to_huggingface
from jaxssl.convert.to_torch import state
from jaxssl.inference.specialise import dequantized, groups, quantized
from jaxssl.models import checkpoint, cost, dense
from jaxssl.models.arch import Blocks
from jaxssl.models.describe import describe
from jaxssl.models.inner_maps import apply_gated, map_inputs
from jaxssl.models.int8_product import int8_product
from jaxssl.models.model import apply, predict, shapes
from jaxssl.models.sites import axes, entries, matrices
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.step import start
from tests.archs import ARCHS, BASE, MEL, beside_noise, forward, fresh, noise, transformer_layer, without_layers
from tools import export

every_arch = pytest.mark.parametrize("arch", list(ARCHS.values()), ids=list(ARCHS))


def _in_int8(layer):
    def each(block):
        forms = {spec.name: spec.form for spec in block.maps(1)}
        stored = {name: form if isinstance(form, Blocks) else replace(form, int8=True) for name, form in forms.items()}
        return replace(block, **stored)

    return layer.changed(each)


def int8(arch):
    return replace(arch, layers=tuple(map(_in_int8, arch.layers)))


def assert_same(one, two):
    """Bit for bit, dtypes included."""
    one, two = flatten(one), flatten(two)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        assert leaf.dtype == two[path].dtype, path
        np.testing.assert_array_equal(leaf, two[path], err_msg=path)


def by_hand(x, weights, scale, contracted):
    """Compute the product in NumPy, the sums in int64."""
    x, weights, scale = (np.asarray(array) for array in (x, weights, scale))
    flat, matrix = x.reshape(*x.shape[:2], -1), weights.reshape(-1, scale.size).astype(np.int64)
    step = np.abs(flat).max(-1, keepdims=True) / np.float32(127)
    step = np.where(step == 0, np.float32(1), step)
    y = (np.rint(flat / step).astype(np.int64) @ matrix) * step * scale.reshape(-1)
    return jnp.asarray(y.reshape(*x.shape[:2], *scale.shape).astype(np.float32))


def drawn(shape, outs, seed=0):
    """Inputs (2, 7, *in) whose frames are of very different size, one of them all zero, and an int8 matrix."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 7, *shape)) * 10.0 ** rng.uniform(-4, 4, (2, 7, *(1,) * len(shape)))
    x[1, 3] = 0
    kernel, axes = rng.normal(size=(*shape, *outs)), tuple(range(len(shape)))
    scale = np.abs(kernel).max(axes) / 127
    return x.astype(np.float32), kernel, np.rint(kernel / scale).astype(np.int8), scale.astype(np.float32)


@pytest.mark.parametrize(("shape", "outs"), [((24,), (36,)), ((24,), (3, 4)), ((3, 4), (24,)), ((1,), (1,))])
def test_the_product_is_that_of_plain_numpy(shape, outs):
    x, _, weights, scale = drawn(shape, outs)
    found, expected = int8_product(x, weights, scale, len(shape)), by_hand(x, weights, scale, len(shape))
    assert (found.shape, found.dtype) == ((2, 7, *outs), jnp.float32)
    far = np.abs(found - expected).max(tuple(range(2, found.ndim)))
    assert (far <= 1e-5 * np.abs(expected).max(tuple(range(2, found.ndim)))).all(), "frame by frame"
    assert not np.asarray(found)[1, 3].any()


def test_the_product_is_off_by_rounding_only():
    """|Σ x w − y| ≤ Σ |x| s / 2 + Σ |w'| t / 2, with w' the rounded weights and t the frame's step."""
    x, kernel, weights, scale = drawn((48,), (30,))
    found, seen = np.float64(int8_product(x, weights, scale, 1)), weights * np.float64(scale)
    step = np.abs(x).max(-1, keepdims=True) / 127
    bound = np.abs(x).sum(-1, keepdims=True) * scale / 2 + np.abs(seen).sum(0) * step / 2
    assert (np.abs(found - x @ kernel) <= bound * 1.001).all()


def test_sums_of_the_widest_map_do_not_overflow():
    x, weights = jnp.ones((1, 1, 100_000)), jnp.full((100_000, 2), 127, jnp.int8)
    np.testing.assert_allclose(int8_product(x, weights, jnp.ones(2), 1), np.full((1, 1, 2), 127e5), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_frame_that_is_not_finite_stays_so_and_alone(bad):
    x, _, weights, scale = drawn((24,), (36,))
    clean = int8_product(x, weights, scale, 1)
    x[0, 2, 5] = bad
    found = np.array(int8_product(x, weights, scale, 1))
    assert not np.isfinite(found[0, 2]).any()
    found[0, 2] = clean[0, 2]
    np.testing.assert_array_equal(found, clean)


@every_arch
def test_fresh_weights_are_quantised_fresh_weights(arch, key):
    wanted, params = int8(arch), fresh(int8(arch))
    found = quantized(arch, fresh(arch))
    assert found[0] == wanted == describe(wanted, params)
    assert describe(without_layers(arch), params) == wanted
    assert_same(params, found[1])
    assert {p: (s.shape, s.dtype) for p, s in flatten(shapes(wanted)).items()} == {
        p: (leaf.shape, leaf.dtype) for p, leaf in flatten(params).items()
    }
    for matrix in matrices(wanted):
        assert matrix.int8 == matrix.path.startswith("layers/")
        assert {leaf.dtype.name for name, leaf in get(params, matrix.path).items() if name in ("kernel", "up")} == {
            "int8" if matrix.int8 else "float32"
        }


@every_arch
def test_costs_count_scales_and_nothing_else(arch, key):
    wide = int8(arch)
    assert cost.macs_per_second(wide) == cost.macs_per_second(arch)
    params = fresh(wide)
    scales = sum(leaf.size for path, leaf in flatten(params).items() if path.endswith("_scale"))
    assert cost.parameters(wide) == cost.parameters(arch) + scales == sum(x.size for x in jax.tree.leaves(params))
    some = {path: jnp.ones_like(leaf) for path, leaf in flatten(params).items()}
    assert cost.nonzero(unflatten(some)) == cost.parameters(wide)


@every_arch
def test_the_whole_model_is_that_of_plain_numpy(arch, key, monkeypatch):
    wide, params = quantized(arch, fresh(arch))
    inputs = noise(arch, key)
    found = forward(wide, params, inputs)
    heard = []

    def instead(*given):
        heard.append(given[1].shape)
        return by_hand(*given)

    monkeypatch.setattr(dense, "int8_product", instead)
    expected = apply(wide, params, inputs)
    ran = [m for m in matrices(wide) if m.int8 and m.max_rank]
    assert len(heard) == sum(1 if m.rank is None else 2 for m in ran)
    for one, two in zip((*found.hidden, found.last), (*expected.hidden, expected.last), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5 * float(jnp.abs(two).max()))


@every_arch
def test_int8_stays_near_float(arch, key):
    params, inputs = fresh(arch), noise(arch, key)
    wide, whole = quantized(arch, params)
    high, low = forward(arch, params, inputs).last, forward(wide, whole, inputs).last
    far = float(jnp.linalg.norm(low - high) / jnp.linalg.norm(high))
    assert far < 0.05
    assert far > 0 or not any(layer.mixer.heads or layer.ffn.size for layer in arch.layers)


@pytest.mark.parametrize("arch", [MEL, ARCHS["wave-uneven"]], ids=["mel", "wave-uneven"])
def test_padding_beside_an_utterance_changes_nothing(arch, key):
    arch = int8(arch)
    alone, together, frames = beside_noise(arch, fresh(arch), key)
    # A sum in another order may round an input to the next step, which float32 alone would not show.
    np.testing.assert_allclose(together.last[0, :frames], alone.last[0], atol=2e-3)


@pytest.mark.parametrize("stack", ["scan", "remat"])
def test_layers_run_scanned_compiled_and_in_bfloat16(stack, key):
    arch = int8(MEL)
    params, inputs = fresh(arch), noise(arch, key)
    plain = forward(arch, params, inputs).last
    scanned = forward(arch, params, inputs, stack=stack).last
    np.testing.assert_allclose(scanned, plain, atol=2e-3 * float(jnp.abs(plain).max()))
    low = forward(arch, params, inputs, dtype=jnp.bfloat16, stack=stack).last
    assert low.dtype == jnp.bfloat16
    assert float(jnp.linalg.norm(low.astype(jnp.float32) - plain) / jnp.linalg.norm(plain)) < 0.05


@every_arch
def test_bfloat16_is_used_as_the_numbers_it_stands_for(arch, key):
    params, inputs = fresh(arch), noise(arch, key)
    low = bfloat16(params)
    assert describe(arch, low) == arch
    np.testing.assert_array_equal(apply(arch, low, inputs).last, apply(arch, float32(low), inputs).last)
    wide, whole = quantized(arch, params)
    np.testing.assert_array_equal(
        apply(wide, bfloat16(whole), inputs).last, apply(wide, float32(bfloat16(whole)), inputs).last
    )


@every_arch
def test_back_in_float_it_is_what_was_simulated(arch, key):
    params = fresh(arch)
    expected = params
    for matrix in matrices(arch):
        expected = simulate(expected, matrix) if matrix.path.startswith("layers/") else expected
    back, whole = dequantized(*quantized(arch, params))
    assert back == arch
    assert_same(whole, expected)
    same, still = dequantized(arch, params)
    assert same == arch
    assert all(flatten(still)[path] is leaf for path, leaf in flatten(params).items())
    assert_same(dequantized(arch, bfloat16(params))[1], float32(bfloat16(params)))


@pytest.mark.parametrize("form", ["int8", "bfloat16", "both"])
@pytest.mark.parametrize("arch", [MEL, ARCHS["uneven"]], ids=["mel", "uneven"])
def test_what_is_saved_is_what_is_loaded(arch, form, key, tmp_path):
    params = fresh(arch)
    if form != "bfloat16":
        arch, params = quantized(arch, params)
    if form != "int8":
        params = bfloat16(params)
    checkpoint.save(tmp_path / "model", arch, params)
    again, loaded = checkpoint.load(tmp_path / "model")
    assert again == arch
    one, two = ({p: leaf for p, leaf in flatten(tree).items() if leaf.size} for tree in (params, loaded))
    assert_same(unflatten(one), unflatten(two))
    inputs = noise(arch, key)
    # The arrays are the same to the bit; how they lie in memory may change the order of a sum.
    np.testing.assert_allclose(forward(arch, params, inputs).last, forward(again, loaded, inputs).last, atol=1e-6)


@pytest.mark.parametrize("base", [BASE, MEL], ids=["hubert", "melhubert"])
def test_int8_comes_after_everything_else(base, key):
    def sites(params):
        return Sites(axes(describe(base, params)), matrices(describe(base, params)))

    params = run((LowRank("layers/*/ffn/*", 4), Heads(2), Rows(16), Weights(0.5)), fresh(base), sites=sites)
    arch = describe(base, params)
    wide, whole = quantized(arch, params)
    assert wide == int8(arch)
    for path, leaf in flatten(params).items():
        zero = np.asarray(leaf) == 0
        assert not np.asarray(get(whole, path))[zero].any(), f"{path}: what was pruned stays zero"
    inputs = noise(base, key)
    high, low = forward(arch, params, inputs).last, forward(wide, whole, inputs).last
    assert float(jnp.linalg.norm(low - high) / jnp.linalg.norm(high)) < 0.05


def test_nothing_is_learned_through_int8_in_silence(key):
    arch = int8(replace(MEL, mask_embedding=True))
    params, inputs = fresh(arch), noise(arch, key)

    def loss(part, *, name, stack="unroll"):
        return (apply(arch, {**params, name: part}, inputs, mask=jnp.ones((2, 30), bool), stack=stack).last ** 2).sum()

    for name, stack in (("mask_embedding", "unroll"), ("project", "unroll"), ("position", "scan"), ("norm", "remat")):
        with pytest.raises(InputError, match="int8 maps have no gradient; dequantize"):
            jax.jit(jax.grad(lambda p, name=name, stack=stack: loss(p, name=name, stack=stack)))(params[name])
    with pytest.raises(InputError, match="int8 maps have no gradient"):
        jax.jvp(lambda x: apply(arch, params, x).last, (inputs,), (inputs,))
    gates = {"layers/0/ffn/fc2": jnp.ones((1, 1, 24))}
    with pytest.raises(InputError, match="int8 maps have no gradient"):
        jax.grad(lambda gates: apply_gated(arch, params, gates, inputs).last.sum())(gates)
    with pytest.raises(InputError, match=r"kernel: int8 has no gradient; of an int8 map\? dequantize the model"):
        start(params, Optimizer().build(), seed=0)
    last = jax.lax.stop_gradient(apply(arch, params, inputs).last)
    learned = jax.grad(lambda head: (predict(arch, {**params, "head": head}, last) ** 2).sum())(params["head"])
    assert all(bool(leaf.any()) for leaf in jax.tree.leaves(learned)), "what is above can still learn"


def test_calibration_hears_int8_maps(key):
    arch = int8(MEL)
    params, inputs = fresh(arch), noise(arch, key)
    heard, _ = map_inputs(arch, params, inputs)
    assert set(heard) == {"head/project", *(matrix.path for matrix in matrices(arch))}


def test_what_cannot_be_pruned_or_packed_is_refused(key):
    arch = int8(MEL)
    params = fresh(arch)
    for look in (axes, entries):
        with pytest.raises(InputError, match=r"layers/0: its maps are int8.*dequantize first \(compress.quantize"):
            look(arch)
    with pytest.raises(InputError, match="layers/0: int8; dequantize the model first"):
        attention_maps(arch, params, noise(arch, key))
    for step in (LowRank("layers/0/ffn/fc1", 2), Weights(0.5)):
        with pytest.raises(InputError, match=r"layers/0/.*int8.*dequantize first \(compress.quantize"):
            run((step,), params, sites=lambda params: Sites((), matrices(arch)))
    assert groups(arch, params, (2, 4)) == ()
    with pytest.raises(InputError, match="layers/0/attention/q: int8 already.*dequantize first"):
        quantized(arch, params)
    packed = replace(MEL, layers=(transformer_layer(4, 24, fc1=Blocks(4, 2)),))
    with pytest.raises(InputError, match="layers/0/ffn/fc1: packed, in blocks of 4.*unpack"):
        quantized(packed, fresh(packed))
    with pytest.raises(InputError, match=r"layers/0: int8, with 1 maps packed \(fc1\)"):
        fresh(int8(packed))


def test_arrays_that_are_half_int8_are_refused(key):
    arch, params = int8(MEL), fresh(int8(MEL))
    plain = fresh(MEL)
    with pytest.raises(InputError, match=r"layers/1: 1 of its 6 maps are int8 \(fc1\)"):
        describe(MEL, quantize(plain, next(m for m in matrices(MEL) if m.path == "layers/1/ffn/fc1")))
    path = "layers/0/ffn/fc1/kernel"
    with pytest.raises(InputError, match=f"{path}: the arch wants int8, the parameters have float32"):
        apply(arch, put(params, path, get(plain, path)), noise(MEL, key))
    with pytest.raises(InputError, match=f"{path}: the arch wants float32, the parameters have int8"):
        apply(MEL, put(plain, path, get(params, path)), noise(MEL, key))
    with pytest.raises(InputError, match=f"{path}_scale: the parameters have it, the arch does not"):
        apply(MEL, put(plain, f"{path}_scale", jnp.ones(24)), noise(MEL, key))


@pytest.mark.parametrize("form", ["int8", "bfloat16"])
def test_other_programs_get_floats(form, key, tmp_path):
    base = replace(BASE, head=None)
    arch, params = quantized(base, fresh(base)) if form == "int8" else (base, bfloat16(fresh(base)))
    plain = dequantized(arch, params)
    checkpoint.save(tmp_path / "model", arch, params)
    given = export.read(str(tmp_path / "model"))
    assert given.arch == base
    assert_same(given.params, plain[1])
    for one, two in zip(state(arch, params, None).items(), state(*plain, None).items(), strict=True):
        assert one[0] == two[0]
        assert one[1].dtype == np.float32
        np.testing.assert_array_equal(one[1], two[1])
    for one, two in zip(
        to_huggingface.folder(arch, params)[2].items(), to_huggingface.folder(*plain)[2].items(), strict=True
    ):
        np.testing.assert_array_equal(one[1], two[1])
