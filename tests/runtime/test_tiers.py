"""What multiplies is what the processor has: nothing is skipped in silence, by whichever compiler."""

import ctypes
import platform
import shutil
import subprocess

import jax.numpy as jnp
import pytest

from jaxssl.runtime import native, processor
from jaxssl.runtime.native import build
from tests.runtime.test_native import X86, normal

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="asks for another processor's instructions")
TILES = '#include "tiles.h"\nstatic_assert(BFloat16::kTiles && Int8::kTiles && !Float32::kTiles);\n'


@pytest.fixture(autouse=True)
def _compiler():
    if not native.ready():
        pytest.skip("no C++ compiler")


def test_the_tier_is_the_one_that_the_processor_has():
    """By Linux's own list of what it can do; an AMX that is skipped in silence fails here."""
    flags, wanted = processor.flags(), {}
    for dtype, order in (("bfloat16", ("amx_bf16", "avx512_bf16")), ("int8", ("amx_int8", "avx512_vnni"))):
        has = [flag in flags for flag in order]
        wanted[dtype] = native.TIERS[dtype][2 if has[0] else 1 if has[1] else 0]
    assert native.tiers() == wanted
    assert native.fast_int8() == (wanted["int8"] != "plain C++")
    assert native.fast_bfloat16() == (wanted["bfloat16"] != "float32")


@pytest.mark.parametrize(("name", "step"), [("sse", 0), ("avx2", 0), ("tiles", 2)])
def test_a_lesser_processor_has_a_lesser_tier(name, step):
    assert native.tiers(*X86[name]) == {dtype: by[step] for dtype, by in native.TIERS.items()}


def test_where_there_are_no_kernels_there_is_no_tier(monkeypatch):
    monkeypatch.setattr(build, "shared_object", lambda *_: None)
    assert native.tiers() == {}


@pytest.mark.parametrize(("dtype", "group"), [("bfloat16", 2), ("int8", 4)])
def test_forced_to_tiles_every_whole_tile_is_multiplied_by_them(dtype, group):
    """32 rows, 32 columns and 16 groups a time, four tiles of sums each; rows that are left over go without."""
    path = build.shared_object(*X86["tiles"])
    native.register(path, "tiles")
    count = ctypes.CDLL(str(path)).products_of_tiles
    count.restype = ctypes.c_int64
    before, rows, inputs, outputs = count(), 70, 128, 64
    x, bias = normal(0, 1, rows, inputs), normal(1, outputs)
    if dtype == "int8":
        weights = native.pack_int8(jnp.ones((inputs, outputs), jnp.int8))
        native.dense_int8(x, weights, jnp.ones(outputs), bias, prefix="tiles").block_until_ready()
    else:
        packed = native.pack(normal(2, inputs, outputs), dtype)
        native.dense(x.astype(dtype), packed, bias, prefix="tiles").block_until_ready()
    assert count() - before == (rows // 32) * (outputs // 32) * (inputs // group // 16) * 4


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_compiler_takes_the_tiles_of_a_processor_that_has_them(compiler):
    """Clang up to 15 spells their macros otherwise."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    command = [compiler, "-std=c++17", "-march=sapphirerapids", "-fsyntax-only", "-I", build.SOURCE.parent, "-x", "c++"]
    done = subprocess.run([*command, "-"], input=TILES, capture_output=True, text=True)
    if "sapphirerapids" in done.stderr:
        pytest.skip(f"this {compiler} knows no such processor")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("flags", [("-march=native",), *X86.values()], ids=["own", *X86])
def test_compilers_have_nothing_to_warn_of(compiler, flags, tmp_path):
    import jax

    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    told = [compiler, "-O1", "-std=c++17", "-Wall", "-Wextra", "-fPIC", *flags, "-isystem", jax.ffi.include_dir(), "-c"]
    done = subprocess.run([*told, build.SOURCE, "-o", tmp_path / "made.o"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
