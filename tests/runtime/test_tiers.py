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
NO_TILES = ("-march=sapphirerapids", "-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")  # as some virtual machines are
HAS = {  # what is true of a processor's kinds
    ("-march=sapphirerapids",): "BFloat16::kTiles && Int8::kTiles && !Float32::kTiles",
    NO_TILES: "!BFloat16::kTiles && !BFloat16::kGrouped && Int16::kGrouped && Int8::kGrouped",
    ("-march=icelake-server",): "!BFloat16::kTiles && !BFloat16::kGrouped && Int16::kGrouped && Int8::kGrouped",
    ("-march=cooperlake",): "!BFloat16::kTiles && BFloat16::kGrouped && Int16::kGrouped && Int8::kGrouped",
    ("-march=alderlake",): "!BFloat16::kTiles && !BFloat16::kGrouped && Int16::kGrouped && Int8::kGrouped",
    ("-march=x86-64-v3",): "!BFloat16::kTiles && !BFloat16::kGrouped && Int16::kGrouped && !Int8::kGrouped",
    ("-march=x86-64-v2",): "!BFloat16::kTiles && !BFloat16::kGrouped && !Int16::kGrouped && !Int8::kGrouped",
}


@pytest.fixture(autouse=True)
def _compiler():
    if not native.ready():
        pytest.skip("no C++ compiler")


def test_the_tier_is_the_one_that_the_processor_has():
    """By Linux's own list of what it can do; an AMX that is skipped in silence fails here."""
    flags = processor.flags()
    pairs = "avx512_bf16" in flags and "avx512_fp16" not in flags  # Intel's processors with both add pairs slowly
    vnni = "avx512_vnni" in flags or ("avx_vnni" in flags and "avx512f" not in flags)
    avx2 = "avx2" in flags and "avx512f" not in flags
    whole = "VNNI" if vnni else "AVX2" if avx2 else "float32"
    bfloat16 = "AMX" if "amx_bf16" in flags else "AVX512-BF16" if pairs else whole
    int8 = "AMX" if "amx_int8" in flags else "VNNI" if vnni else "plain C++"
    wanted = {"bfloat16": bfloat16, "int8": int8}
    assert native.tiers() == wanted
    assert native.fast_int8() == (wanted["int8"] != "plain C++")
    assert native.fast_bfloat16() == (wanted["bfloat16"] in ("AMX", "AVX512-BF16", "VNNI"))
    assert native.whole_bfloat16() == (wanted["bfloat16"] in ("VNNI", "AVX2"))


@pytest.mark.parametrize(
    ("name", "bfloat16", "int8"),
    [("sse", "float32", "plain C++"), ("avx2", "AVX2", "plain C++"), ("vnni", "VNNI", "VNNI"), ("tiles", "AMX", "AMX")],
)
def test_a_lesser_processor_has_a_lesser_tier(name, bfloat16, int8):
    assert native.tiers(*X86[name]) == {"bfloat16": bfloat16, "int8": int8}


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


@pytest.mark.parametrize("flags", HAS, ids=lambda flags: "".join(flags))
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_compiler_takes_what_a_processor_has(compiler, flags):
    """Clang up to 15 spells the macros of tiles otherwise."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    told = f'#include "tiles.h"\nstatic_assert({HAS[flags]});\n'
    command = [compiler, "-std=c++17", *flags, "-fsyntax-only", "-I", build.SOURCE.parent, "-x", "c++", "-"]
    done = subprocess.run(command, input=told, capture_output=True, text=True)
    if flags[0].partition("=")[2] in done.stderr:
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
