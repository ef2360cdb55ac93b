"""Our kernels give what the plain formulation gives, on every kind of processor and from many threads at once."""

import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from compress.quantize import quantize, rounded
from jaxssl.inference.prepack import prepared
from jaxssl.models.arch import Rank
from jaxssl.models.attend import attend
from jaxssl.models.describe import describe
from jaxssl.models.fronts.strided_conv import Conv, windows_of
from jaxssl.models.inner_maps import map_products
from jaxssl.models.int8_product import int8_product
from jaxssl.models.layers import convolve, frame_mask, gelu
from jaxssl.models.model import apply
from jaxssl.models.packed import packed_convolution
from jaxssl.models.sites import matrices
from jaxssl.runtime import native, processor
from jaxssl.runtime.native import build
from tests.archs import MAPS, MEL, forward, noise, transformer_layer, weights
from tests.inference.test_prepack import forget

X86 = {  # processors without these instructions run what stands for them, and so must agree
    "sse": ("-march=x86-64",),
    "avx2": ("-march=x86-64-v3",),
    "vnni": ("-march=x86-64-v3", "-mavxvnni"),
    "tiles": ("-march=x86-64-v3", "-DEMULATED_TILES"),  # AMX's registers, in plain C++
}
WANTS = {"vnni": "avx_vnni"}  # the flag without which a processor cannot run it
ATOL = {"float32": 5e-5, "bfloat16": 0.05}
UNEVEN = replace(
    MEL,
    layers=(
        transformer_layer(4, 48, **dict.fromkeys(MAPS, Rank(16))),
        transformer_layer(4, 48, q=Rank(5), out=Rank(32)),
    ),
    position=replace(MEL.position, groups=4),
    head=None,
)


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    if not native.ready():
        pytest.skip("no C++ compiler")


@pytest.fixture(scope="module", params=["own", *X86])
def kernels(request):
    """Return the prefix of kernels that are built for this processor or a lesser one."""
    if request.param == "own":
        return "jaxssl"
    if platform.machine() != "x86_64":
        pytest.skip("builds for another processor")
    if WANTS.get(request.param, "sse2") not in processor.flags():
        pytest.skip(f"has no {WANTS[request.param]}")
    path = build.shared_object(*X86[request.param])
    assert path != build.shared_object()
    native.register(path, request.param)
    return request.param


def normal(seed, *shape, scale=1.0):
    return jax.device_put(np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale))


plain = jax.jit(attend)


@pytest.mark.parametrize(
    ("batch", "time", "heads", "size"),
    [(1, 1, 1, 1), (1, 250, 12, 64), (3, 61, 2, 80), (2, 7, 3, 20), (1, 1100, 1, 64)],
)
def test_attention(kernels, batch, time, heads, size):
    q, k, v = (normal(i, batch, time, heads, size) for i in range(3))
    lengths = jnp.asarray([time, time // 2 + 1, 1][:batch])
    for seen in (None, frame_mask(lengths, time)):
        wanted = plain(q / 4, k, v, seen)
        np.testing.assert_allclose(native.attention(q / 4, k, v, seen, prefix=kernels), wanted, atol=1e-5)
        short = (each.astype(jnp.bfloat16) for each in (q / 4, k, v))
        found = native.attention(*short, seen, prefix=kernels)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=0.03)


def test_rows_that_only_fill_a_batch_stay_finite(kernels):
    q, k, v = (normal(i, 1, 9, 2, 16) for i in range(3))
    assert jnp.isfinite(native.attention(q, k, v, jnp.zeros((1, 9), bool), prefix=kernels)).all()


def test_no_rows_give_none(kernels):
    nobody = jnp.zeros((0, 9, 2, 16))
    assert native.attention(nobody, nobody, nobody, None, prefix=kernels).shape == nobody.shape
    weights = normal(0, 32, 16), normal(1, 16, 48), normal(2, 48)
    packed = native.pack(weights[0], jnp.float32), native.pack(weights[1], jnp.float32)
    assert native.dense(jnp.zeros((0, 9, 32)), packed[0], jnp.zeros(16), prefix=kernels).shape == (0, 9, 16)
    assert native.dense(jnp.zeros((0, 9, 32)), *packed, weights[2], prefix=kernels).shape == (0, 9, 48)
    rounded_to = native.pack_int8(jnp.ones((32, 48), jnp.int8)), jnp.ones(48), weights[2]
    assert native.dense_int8(jnp.zeros((0, 9, 32)), *rounded_to, prefix=kernels).shape == (0, 9, 48)
    thin = native.pack_int8(jnp.ones((32, 8), jnp.int8)), jnp.ones(8), native.pack_int8(jnp.ones((8, 48), jnp.int8))
    thin = *thin, *rounded_to[1:]
    assert native.dense_int8(jnp.zeros((0, 9, 32)), *thin, prefix=kernels).shape == (0, 9, 48)


@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_attention_to_few_or_to_all(kernels, scale):
    q, k, v = (normal(i, 1, 50, 2, 16) for i in range(3))
    np.testing.assert_allclose(
        native.attention(scale * q, k, v, None, prefix=kernels), plain(scale * q, k, v, None), atol=1e-4
    )


def test_what_is_no_number_stays_so(kernels):
    q, k, v = (normal(i, 1, 50, 2, 16) for i in range(3))
    for wrong in (
        (q.at[0, 3, 1, 5].set(jnp.nan), k, v),
        (q, k.at[0, 3, 1, 5].set(jnp.nan), v),
        (q, k, v.at[0, 3].set(jnp.nan)),
    ):
        wanted = plain(*wrong, None)
        assert jnp.isnan(wanted).any()
        np.testing.assert_array_equal(jnp.isnan(native.attention(*wrong, None, prefix=kernels)), jnp.isnan(wanted))


LAYOUTS = {  # how weights are packed, by the dtype that they are for
    "float32": ("float32", partial(native.pack, dtype="float32")),
    "bfloat16": ("bfloat16", partial(native.pack, dtype="bfloat16")),
    "int16": ("bfloat16", native.pack_int16),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rank", [None, 5, 80, 128])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [((1, 1), (1,), (3,)), ((1, 250), (768,), (12, 64)), ((3, 61), (12, 64), (80,)), ((2, 5), (515,), (3, 112))],
)
def test_dense(kernels, rows, inputs, rank, outputs, layout):
    dtype, pack = LAYOUTS[layout]
    x, bias = normal(0, *rows, *inputs), normal(3, *outputs)
    fan_in, fan_out = np.prod(inputs), np.prod(outputs)
    shapes = [(fan_in, fan_out)] if rank is None else [(fan_in, rank), (rank, fan_out)]
    weights = [normal(i, *shape, scale=shape[0] ** -0.5) for i, shape in enumerate(shapes, 1)]
    wanted = reduce(np.matmul, weights, np.asarray(x).reshape(*rows, fan_in)).reshape(*rows, *outputs) + np.asarray(
        bias
    )
    packed = [pack(each) for each in weights]
    for activation, function in (("linear", lambda y: y), ("gelu", gelu)):
        found = native.dense(x.astype(dtype), *packed, bias, activation=activation, prefix=kernels)
        assert found.dtype == dtype
        np.testing.assert_allclose(found.astype(jnp.float32), function(wanted), atol=ATOL[dtype])


@pytest.mark.parametrize(("spread", "most"), [(0, 0.9), (1, 1.2), (2, 3)])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 3), (250, 768, 768), (61, 515, 80), (40, 3072, 64)])
def test_products_in_int16_have_no_more_error_than_in_bfloat16(kernels, rows, inputs, outputs, spread, most):
    """Frames and columns may differ in size as they like; of numbers of a frame that do, the small ones suffer."""
    sizes = jnp.exp(2 * normal(3, 1, rows, 1)) * jnp.exp(spread * normal(4, 1, 1, inputs))
    x = (sizes * normal(0, 1, rows, inputs)).astype(jnp.bfloat16)
    weights = normal(1, inputs, outputs) * jnp.exp(2 * normal(2, 1, outputs))
    wanted = np.asarray(x[0], np.float64) @ np.asarray(weights, np.float64)

    def error(packed):
        found = np.asarray(native.dense(x, packed, jnp.zeros(outputs), prefix=kernels)[0], np.float64)
        return np.sqrt(np.square(found - wanted).mean(1) / np.square(wanted).mean(1)).mean()

    one, two = (error(packed) for packed in (native.pack_int16(weights), native.pack(weights, "bfloat16")))
    assert 0 < one < (most if inputs > 1 else 1.01) * two  # of one input alone the result's rounding is all there is


def test_sums_of_the_largest_whole_numbers_of_int16_fit(kernels):
    """All of one sign, they add up to the last bit that 32 have, again and again."""
    x, weights = jnp.ones((1, 7, 3072), jnp.bfloat16), jnp.ones((3072, 64))
    for sign in (1, -1):
        found = native.dense(x, native.pack_int16(sign * weights), jnp.zeros(64), prefix=kernels)
        np.testing.assert_allclose(found.astype(jnp.float32), jnp.full((1, 7, 64), sign * 3072.0), rtol=4e-3)


def test_frames_and_columns_of_zeros_and_of_no_numbers_in_int16(kernels):
    x = normal(0, 1, 4, 32).at[0, 1].set(0).at[0, 2, 7].set(jnp.nan).astype(jnp.bfloat16)
    packed = native.pack_int16(normal(1, 32, 16).at[:, 3].set(0))
    found = native.dense(x, packed, jnp.ones(16), prefix=kernels)[0].astype(jnp.float32)
    np.testing.assert_array_equal(found[1], np.ones(16))
    assert jnp.isnan(found[2]).all()
    assert jnp.isfinite(found[jnp.array([0, 1, 3])]).all()
    np.testing.assert_array_equal(found[jnp.array([0, 1, 3]), 3], np.ones(3))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [((1, 1), 1, 3), ((1, 250), 768, 768), ((2, 61), 515, 80)])
def test_dense_in_int8(kernels, rows, inputs, outputs):
    """Sums are of whole numbers, so that every processor has the plain product's to the last bit of a float."""
    x, bias = normal(0, *rows, inputs), normal(2, outputs)
    weights, scale = rounded(normal(1, inputs, outputs), (0,))
    wanted = int8_product(x, weights, scale, 1) + bias[None, None]
    packed = native.pack_int8(weights)
    found = native.dense_int8(x, packed, scale, bias, prefix=kernels)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * float(np.abs(wanted).max()))
    again = native.dense_int8(x, packed, scale, bias, activation="gelu", prefix=kernels)
    np.testing.assert_allclose(again, gelu(wanted), rtol=1e-5, atol=1e-5)
    short = x.astype(jnp.bfloat16)
    wanted = int8_product(short.astype(jnp.float32), weights, scale, 1) + bias[None, None]
    found = native.dense_int8(short, packed, scale, bias, prefix=kernels)
    assert found.dtype == jnp.bfloat16
    error = found.astype(jnp.float32) - wanted  # a number that lies between two may be rounded either way
    assert float(jnp.square(error).mean()) < 1e-4 * float(jnp.square(wanted).mean())


@pytest.mark.parametrize("dtype", ATOL)
@pytest.mark.parametrize("rank", [1, 5, 80, 128])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [((1, 1), 1, 3), ((1, 270), 768, 768), ((2, 61), 515, 80)])
def test_thin_maps_in_int8_are_two_that_follow_each_other(kernels, rows, inputs, rank, outputs, dtype):
    """What lies between is rounded as if it had been written down, so that both ways agree to the bit."""
    x, bias = normal(0, *rows, inputs).astype(dtype), normal(2, outputs)
    down, up = (rounded(normal(i, *shape), (0,)) for i, shape in enumerate([(inputs, rank), (rank, outputs)]))
    down, up = ((native.pack_int8(each), scale) for each, scale in (down, up))
    middle = native.dense_int8(x, *down, jnp.zeros(rank), prefix=kernels)
    for activation in native.ACTIVATIONS:
        wanted = native.dense_int8(middle, *up, bias, activation=activation, prefix=kernels)
        found = native.dense_int8(x, *down, *up, bias, activation=activation, prefix=kernels)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, wanted)
    assert jnp.abs(wanted.astype(jnp.float32)).max() > 0


def test_frames_of_zeros_and_of_no_numbers_in_int8(kernels):
    x = normal(0, 1, 4, 32).at[0, 1].set(0).at[0, 2, 7].set(jnp.nan)
    weights, scale = rounded(normal(1, 32, 16), (0,))
    found = native.dense_int8(x, native.pack_int8(weights), scale, jnp.ones(16), prefix=kernels)[0]
    np.testing.assert_array_equal(found[1], np.ones(16))
    assert jnp.isnan(found[2]).all()
    assert jnp.isfinite(found[jnp.array([0, 1, 3])]).all()


@pytest.mark.parametrize("size", [1e-30, 1e-37, 1e-40])
def test_frames_of_tiny_numbers_in_int8_are_those_of_the_plain_product(kernels, size):
    """Scales that many processors take for zero count as none; a quotient by its inverse must not overflow before."""
    x = size * normal(0, 1, 4, 32)
    weights, scale = rounded(normal(1, 32, 16), (0,))
    found = native.dense_int8(x, native.pack_int8(weights), scale, jnp.zeros(16), prefix=kernels)
    wanted = int8_product(x, weights, scale, 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("rank", [1, 5, 80, 128])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [((1, 1), 1, 3), ((1, 270), 768, 768), ((2, 61), 515, 80)])
def test_thin_maps_in_int16_are_two_that_follow_each_other(kernels, rows, inputs, rank, outputs):
    x, bias = normal(0, *rows, inputs).astype(jnp.bfloat16), normal(2, outputs)
    down, up = (native.pack_int16(normal(i, *shape)) for i, shape in enumerate([(inputs, rank), (rank, outputs)]))
    wanted = native.dense(native.dense(x, down, jnp.zeros(rank), prefix=kernels), up, bias, prefix=kernels)
    np.testing.assert_array_equal(native.dense(x, down, up, bias, prefix=kernels), wanted)
    assert jnp.abs(wanted.astype(jnp.float32)).max() > 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("taps", "stride", "inputs", "time"), [(3, 2, 48, 131), (2, 2, 33, 40), (10, 5, 1, 1203), (3, 1, 5, 3)]
)
def test_windows_are_a_convolution(kernels, taps, stride, inputs, time, layout):
    dtype, pack = LAYOUTS[layout]
    x, kernel = normal(0, 2, time, inputs), normal(1, taps, inputs, 72, scale=(taps * inputs) ** -0.5)
    bias = normal(2, 72)
    wanted = convolve(x, kernel, stride=stride) + bias[None, None]
    packed = pack(kernel.reshape(taps * inputs, -1))
    flat = x.astype(dtype).reshape(2, -1)
    found = native.windows(flat, packed, bias[None], rows=wanted.shape[1], stride=stride * inputs, prefix=kernels)
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=ATOL[dtype])


@pytest.mark.parametrize(
    ("taps", "stride", "inputs", "time"), [(3, 2, 48, 400), (2, 2, 33, 40), (5, 4, 7, 61), (3, 1, 5, 3), (3, 2, 4, 2)]
)
def test_windows_in_int8_are_quantised_one_by_one(kernels, taps, stride, inputs, time):
    """Of overlapping windows each has a scale of its own, also where a row's last one ends where the next begins."""
    x, bias = normal(0, 2, time, inputs) * jnp.exp(normal(3, 2, time, 1)), normal(2, 72)
    weights, scale = rounded(normal(1, taps, inputs, 72), (0, 1))
    conv = Conv(72, taps, stride)
    heard = jax.jit(windows_of, static_argnums=1)(x, conv)
    wanted = gelu(int8_product(heard, weights, scale, 2) + bias[None, None])
    packed = packed_convolution(weights, dtype=jnp.float32)
    call = partial(native.windows_int8, inputs=taps * inputs, rows=wanted.shape[1], stride=stride * inputs)
    found = call(x.reshape(2, -1), packed, scale, bias, activation="gelu", prefix=kernels)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * float(jnp.abs(wanted).max(initial=0)))


def test_rows_have_weights_of_their_own(kernels):
    x, kernels_of_rows = normal(0, 3, 50, 12), normal(1, 3, 12, 20)
    flat, packed, bias = x.reshape(3, -1), native.pack(kernels_of_rows, jnp.float32), normal(2, 3, 20)
    found = native.windows(flat, packed, bias, rows=50, stride=12, prefix=kernels)
    np.testing.assert_allclose(found, jnp.einsum("bti,bio->bto", x, kernels_of_rows) + bias[:, None], atol=5e-5)


def test_from_many_threads_at_once():
    """Neither waits for the other: XLA runs them on one pool, and each call shares its work with that pool."""
    arrays = [normal(i, 1, 200, 4, 32) for i in range(3)]

    @jax.jit
    def run(q, k, v):
        return sum(native.attention(q * i, k, v, None) for i in range(8))

    wanted = run(*arrays)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: run(*arrays), range(64)):
            np.testing.assert_array_equal(found, wanted)


def test_rows_of_a_batch_stay_their_own():
    q, k, v = (normal(i, 4, 2, 30, 2, 16) for i in range(3))
    together = jax.vmap(lambda q, k, v: native.attention(q, k, v, None))(q, k, v)
    for i in range(4):
        np.testing.assert_array_equal(together[i], native.attention(q[i], k[i], v[i], None))


def calls(arch, params, x, dtype=jnp.float32):
    """Count the kernels in a forward pass."""
    program = str(jax.make_jaxpr(lambda params: apply(arch, params, x, dtype=dtype).last)(params))
    return {name: program.count(f"jaxssl_{name}") for name in NONE}


NONE = dict.fromkeys(("attention", "product", "factored", "int8", "int16", "factored_int16"), 0)


@pytest.mark.parametrize(
    ("dtype", "whole"), [(jnp.float32, False), (jnp.float32, True), (jnp.bfloat16, False), (jnp.bfloat16, True)]
)
def test_prepared_models_run_them_and_others_do_not(key, monkeypatch, dtype, whole):
    monkeypatch.setattr(native, "whole_bfloat16", lambda: whole)
    forget()
    try:
        _runs_them(key, dtype, whole=whole and dtype == jnp.bfloat16)
    finally:
        forget()


def _runs_them(key, dtype, *, whole):
    params, x = weights(UNEVEN), noise(UNEVEN, key)
    ready, arrays = prepared(UNEVEN, params, dtype=dtype)
    assert calls(UNEVEN, params, x, dtype) == NONE
    maps, positions, thin = 5, 1, 8  # positions, whose windows overlap, stay bfloat16
    wanted = {"attention": 2, "product": positions + (0 if whole else maps), "factored": thin}
    wanted |= {"int16": maps, "factored_int16": thin} if whole else {}
    assert calls(ready, arrays, x, dtype) == NONE | wanted
    lengths = jnp.array([17, 30])
    plain = forward(UNEVEN, params, x, lengths, dtype=dtype).hidden
    for one, two in zip(plain, forward(ready, arrays, x, lengths, dtype=dtype).hidden, strict=True):
        for row, length in enumerate(lengths):
            found, wanted = (each[row, :length].astype(jnp.float32) for each in (two, one))
            np.testing.assert_allclose(found, wanted, atol=2e-5 if dtype == jnp.float32 else 0.05)


def test_what_a_map_makes_is_told_without_multiplying_again(key):
    ready, arrays = prepared(UNEVEN, weights(UNEVEN))
    x = noise(UNEVEN, key)
    listened = {
        of: str(jax.make_jaxpr(lambda params, of=of: map_products(ready, params, x, of=of))(arrays))
        for of in ((), tuple(each.path for each in matrices(UNEVEN)))
    }
    plain, told = ([program.count(f"jaxssl_{name}") for name in NONE] for program in listened.values())
    assert plain == told
    assert sum(plain) > 0


@pytest.mark.parametrize("made", ["float32", "bfloat16"])
def test_a_model_prepared_for_another_dtype_is_refused(key, made):
    ready, arrays = prepared(UNEVEN, weights(UNEVEN), dtype=made)
    other = {"float32": "bfloat16", "bfloat16": "float32"}[made]
    with pytest.raises(InputError, match=f"prepared for {made} runs in {other}"):
        apply(ready, arrays, noise(UNEVEN, key), dtype=other)


def test_int8_maps_run_them_where_the_processor_has_instructions(key, monkeypatch):
    params, x = weights(UNEVEN), noise(UNEVEN, key)
    small = reduce(quantize, [each for each in matrices(UNEVEN) if each.path.startswith("layers/")], params)
    arch = describe(UNEVEN, small)
    wanted = forward(arch, small, x).last
    try:
        for fast, whole, thin in ((True, 4, 8), (False, 0, 0)):
            monkeypatch.setattr(native, "fast_int8", lambda fast=fast: fast)
            forget()
            ready, arrays = prepared(arch, small)
            assert calls(ready, arrays, x) == NONE | {"attention": 2, "product": 2, "int8": whole, "factored": thin}
            np.testing.assert_allclose(forward(ready, arrays, x).last, wanted, atol=2e-5)
    finally:
        forget()
