"""The block-sparse product in all its forms, and models with packed maps."""

import json
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compress.address import flatten, put
from compress.blocks import unpack
from compress.errors import InputError
from jaxssl.inference.specialise import unpacked
from jaxssl.models import block_product as module
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import FULL, Blocks, Rank
from jaxssl.models.arch_json import from_json, to_json
from jaxssl.models.block_product import block_product, gathered_product, kernel_product
from jaxssl.models.describe import describe
from jaxssl.models.inner_maps import map_inputs
from jaxssl.models.model import apply, init, shapes
from jaxssl.models.sites import axes, entries, matrices
from jaxssl.training.step import start
from tests.archs import LARGE, MEL, fresh, noise, transformer_layer
from tests.processes import finish

SOME = transformer_layer(4, 24, q=Blocks(4, 2), out=Blocks(8, 1), fc1=Blocks(8, 2), fc2=Blocks(4, 3))
ARCH = replace(MEL, layers=(SOME, SOME, transformer_layer(4, 24, q=Rank(2), k=Blocks(16, 1), v=Blocks(2, 8))))
WAVE = replace(LARGE, layers=(SOME, transformer_layer(2, 0, out=Blocks(8, 1))))
every_arch = pytest.mark.parametrize("arch", [ARCH, WAVE], ids=["mel", "wave"])


def toy(size, *, ins=128, outs=192, kept=2, seed=0):
    """Blocks, which rows they are in, and the same as one matrix."""
    rng = np.random.default_rng(seed)
    columns, rows = outs // size, ins // size
    blocks = rng.normal(size=(columns, kept, size, size)).astype(np.float32)
    index = np.sort(rng.permuted(np.tile(np.arange(rows), (columns, 1)), axis=1)[:, :kept]).astype(np.int32)
    matrix = np.zeros((rows, size, columns, size))
    for column, row in np.ndindex(columns, kept):
        matrix[index[column, row], :, column] = blocks[column, row]
    return jnp.asarray(blocks), jnp.asarray(index), matrix.reshape(ins, outs)


def inputs(time, ins=128, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, time, ins)).astype(np.float32), dtype)


def check(product, size, time, dtype, **words):
    blocks, index, matrix = toy(size, **words)
    x = inputs(time, len(matrix), dtype)
    y = product(x, blocks, index)
    assert y.dtype == dtype
    assert y.shape == (2, time, matrix.shape[1])
    expected = np.asarray(x, np.float64) @ matrix
    error = np.linalg.norm(np.asarray(y, np.float64) - expected) / np.linalg.norm(expected)
    assert error < (1e-6 if dtype == jnp.float32 else 5e-3)


def kernel_of(platform):
    return lambda *arrays: kernel_product(*arrays, platform=platform, interpret=True)


FORMS = {"gathered": gathered_product, "gpu": kernel_of("gpu"), "tpu": kernel_of("tpu")}
every_form = pytest.mark.parametrize("product", list(FORMS.values()), ids=list(FORMS))
every_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


@every_form
@every_dtype
@pytest.mark.parametrize(("size", "time"), [(16, 7), (32, 33), (64, 1)])
def test_the_product_is_that_of_the_dense_matrix(product, dtype, size, time):
    check(product, size, time, dtype)


@every_form
def test_blocks_wider_than_a_product_and_frames_longer_than_a_tile(product, monkeypatch):
    monkeypatch.setattr(module, "TPU_FRAMES", 64)
    check(product, 128, 75, jnp.float32, ins=256, outs=384)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_numbers_that_cancel_are_added_up_in_float32(platform):
    """300 + 1 − 300 is 1; in bfloat16, of 8 bits, 300 + 1 is 300."""
    size, kept = 16, 3
    blocks = jnp.concatenate([jnp.full((1, 1, size, size), v) for v in (300.0, 1.0, -300.0)], axis=1)
    index = jnp.arange(kept, dtype=jnp.int32)[None]
    x = jnp.zeros((1, 5, kept, size)).at[..., 0].set(1.0).reshape(1, 5, -1).astype(jnp.bfloat16)
    y = kernel_of(platform)(x, blocks, index)
    np.testing.assert_array_equal(np.asarray(y, np.float32), 1)


@pytest.mark.parametrize("time", [1, 11, 60, 127])
def test_a_long_product_in_pieces_is_the_same(monkeypatch, time):
    monkeypatch.setattr(module, "GATHERED", 12 * 2 * 16 * 10)  # ten frames at a time
    check(gathered_product, 16, time, jnp.float32)


def test_the_gathered_form_has_the_gradients_of_the_dense_matrix():
    blocks, index, matrix = toy(16)
    x, weight = inputs(9), inputs(9, 192)

    @partial(jax.grad, argnums=(0, 1))
    def gradient(x, blocks):
        return (gathered_product(x, blocks, index) * weight).sum()

    by_x, by_blocks = jax.jit(gradient)(x, blocks)
    np.testing.assert_allclose(by_x, np.asarray(weight) @ matrix.T, rtol=1e-4, atol=1e-4)
    dense = np.einsum("bti,bto->io", x, weight).reshape(8, 16, 12, 16)
    for column, row in np.ndindex(*index.shape):
        np.testing.assert_allclose(by_blocks[column, row], dense[index[column, row], :, column], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@every_dtype
@pytest.mark.parametrize(("platform", "lowered"), [("gpu", "cuda"), ("tpu", "tpu")])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_the_kernel_lowers_for_its_platform(platform, lowered, size, dtype):
    """On a machine without it: from jax 0.12 on, a GPU that is not there has to be named."""
    blocks, index, _ = toy(size, ins=768, outs=3072)
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, platform="cuda")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device if platform == "gpu" else None)
    with jax.sharding.use_abstract_mesh(mesh):
        run = jax.jit(lambda *arrays: kernel_product(*arrays, platform=platform))
        text = run.trace(inputs(63, 768, dtype), blocks, index).lower(lowering_platforms=(lowered,)).as_text()
    assert {"gpu": "triton", "tpu": "tpu_custom_call"}[platform] in text


@pytest.mark.parametrize(
    ("backend", "size", "form"),
    [("cpu", 16, None), ("tpu", 16, "tpu"), ("tpu", 8, "tpu"), ("gpu", 16, "gpu"), ("gpu", 8, None), ("gpu", 48, None)],
)
def test_the_backend_decides_which_form_runs(backend, size, form, monkeypatch):
    ran = []

    def kernel(*arrays, platform):
        ran.append(platform)
        return kernel_product(*arrays, platform=platform, interpret=True)

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(module, "kernel_product", kernel)
    check(block_product, size, 5, jnp.float32, ins=3 * size, outs=2 * size)
    assert ran == ([form] if form else [])


def test_a_gpu_without_the_triton_backend_gathers(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    check(block_product, 16, 5, jnp.float32)


def test_nothing_on_cpus_needs_pallas():
    done = finish("-c", BARE)
    assert done.returncode == 0, done.stderr


BARE = """
import sys
sys.modules.update(dict.fromkeys(("jax.experimental.pallas", "jax.experimental.pallas.tpu",
                                  "jax.experimental.pallas.triton")))
import jax.numpy as jnp
from jaxssl.models.block_product import block_product
assert block_product(jnp.ones((1, 3, 8)), jnp.ones((2, 1, 4, 4)), jnp.zeros((2, 1), jnp.int32)).sum() == 96
"""


@every_arch
def test_describe_inverts_init(arch, key):
    params = fresh(arch)
    assert describe(arch, params) == arch
    assert describe(replace(arch, layers=()), params) == arch
    assert from_json(json.loads(json.dumps(to_json(arch)))) == arch
    expected = {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(shapes(arch)).items()}
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in flatten(params).items()} == expected


def test_fresh_blocks_are_ascending_and_read_every_input(key):
    index = np.asarray(fresh(ARCH)["layers"]["0"]["ffn"]["fc2"]["index"])
    assert index.dtype == np.int32
    assert (np.diff(index) > 0).all()
    assert set(index.ravel()) == set(range(6))


@every_arch
def test_a_packed_model_is_the_dense_model(arch, key):
    """In a padded batch, under jit, written out and, where layers are equal, scanned."""
    params, x = fresh(arch), noise(arch, key)
    dense, weights = unpacked(arch, params)
    assert not any(m.blocks for m in matrices(dense))
    lengths = jnp.array([x.shape[1] * 2 // 3, x.shape[1]])
    frames = int(lengths[0] if arch is ARCH else arch.front.frames(lengths[0]))
    expected = jax.jit(lambda p, x, n: apply(dense, p, x, n).last)(weights, x, lengths)
    found = jax.jit(lambda p, x, n: apply(arch, p, x, n, stack="scan").last)(params, x, lengths)
    np.testing.assert_allclose(found[0, :frames], expected[0, :frames], atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5, rtol=1e-4)


def test_bfloat16_stays_near_float32(key):
    arch = replace(ARCH, layers=(SOME,))
    params, x = fresh(arch), noise(arch, key)
    low, high = (jax.jit(lambda p, x, d=d: apply(arch, p, x, dtype=d).last)(params, x) for d in ("bfloat16", "float32"))
    assert low.dtype == jnp.bfloat16
    assert float(jnp.linalg.norm(low.astype(jnp.float32) - high) / jnp.linalg.norm(high)) < 0.05


@every_arch
def test_a_packed_model_is_saved_and_loaded(arch, key, tmp_path):
    params = fresh(arch)
    checkpoint.save(tmp_path / "model", arch, params)
    found, read = checkpoint.load(tmp_path / "model")
    assert found == arch
    for path, leaf in flatten(params).items():
        assert flatten(read)[path].dtype == leaf.dtype
        np.testing.assert_array_equal(flatten(read)[path], leaf, err_msg=path)


def test_map_inputs_are_those_of_the_dense_model(key):
    params, x = fresh(ARCH), noise(ARCH, key)
    dense, weights = unpacked(ARCH, params)
    heard, _ = jax.jit(lambda p, x: map_inputs(ARCH, p, x))(params, x)
    expected, _ = jax.jit(lambda p, x: map_inputs(dense, p, x))(weights, x)
    assert heard.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(heard[path], value, atol=1e-5, rtol=1e-4)


@every_arch
def test_costs_count_the_blocks_and_not_their_numbers(arch, key):
    params = fresh(arch)
    dense, _ = unpacked(arch, params)
    maps = [m for m in matrices(arch) if m.blocks]
    saved = sum(m.fan_in * m.fan_out - m.size for m in maps)
    assert [m.size for m in maps] == [flatten(params)[f"{m.path}/blocks"].size for m in maps]
    assert saved > 0
    assert cost.parameters(dense) - cost.parameters(arch) == saved
    assert cost.macs(dense, 8000).total - cost.macs(arch, 8000).total == arch.front.frames(8000) * saved
    floating = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert cost.nonzero(params) == sum(int(np.count_nonzero(leaf)) for leaf in floating)
    empty = params
    for m in maps:
        empty = put(empty, f"{m.path}/blocks", jnp.zeros_like(flatten(params)[f"{m.path}/blocks"]))
    fewer = cost.nominal_macs_per_second(arch, params) - cost.nominal_macs_per_second(arch, empty)
    seconds = sum(cost.UTTERANCES) / 16_000
    frames = sum(arch.front.frames(n) for n in cost.UTTERANCES)
    assert fewer == pytest.approx(frames / seconds * sum(m.size for m in maps))


def test_what_needs_dense_maps_says_to_unpack(key):
    params = fresh(ARCH)
    for act in (axes, entries):
        with pytest.raises(InputError, match=r"layers/0: 4 of its 6 maps are packed.*unpack"):
            act(ARCH)
    with pytest.raises(InputError, match=r"layers/0/attention/out/index: int32 has no gradient.*unpack"):
        start(params, optax.adam(1e-3), seed=0)
    arch, weights = unpacked(ARCH, params)
    assert axes(arch)
    assert start(weights, optax.adam(1e-3), seed=0).params.keys() == params.keys()


def test_unpacking_one_map_leaves_the_others_packed(key):
    params = fresh(ARCH)
    matrix = next(m for m in matrices(ARCH) if m.path == "layers/1/ffn/fc1")
    arch = describe(ARCH, unpack(params, matrix))
    assert arch.layers[1] == replace(SOME, ffn=replace(SOME.ffn, fc1=FULL))
    assert arch.layers[0] == SOME


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (transformer_layer(4, 24, q=Blocks(5, 1)), "1 blocks of 5 .* 16 × 16"),
        (transformer_layer(4, 24, fc2=Blocks(8, 4)), "4 blocks of 8 .* 24 × 16"),
        (transformer_layer(4, 24, fc2=Blocks(8, 0)), "0 blocks of 8 .* 24 × 16"),
    ],
)
def test_impossible_blocks_are_refused(layer, message, key):
    with pytest.raises(InputError, match=message):
        init(replace(ARCH, layers=(layer,)), key)
