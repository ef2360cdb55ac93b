"""Strict settings for the whole suite: dtypes are cast explicitly, shapes broadcast explicitly, warnings are errors."""

import gc
import importlib
import os
import signal
from functools import lru_cache
from itertools import count
from pathlib import Path

from tests.processes import JAX, QUICKLY

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is XLA compiling small programs, many of them alike: what one test, or a command that it
# starts, compiled, all others read.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1].resolve() / ".pytest_cache/compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; PyTorch's threads would wait for each other's
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=4 {QUICKLY} {os.environ.get('XLA_FLAGS', '')}"

import jax
import pytest

from jaxssl.runtime import hooks

hooks.log_in_one_line()  # a trace, written while a test parses code, would break the parser
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The suite lowers ten thousand programs, most of one operation, and JAX makes an MLIR context for each, which takes
# longer than the lowering. Newer versions use one several times, and so do we: a fifth of the suite's time.
if JAX < (0, 12):
    from jax._src.interpreters import mlir

    made, numbers = lru_cache(maxsize=1)(lambda _, make=mlir.make_ir_context: make()), count()
    mlir.make_ir_context = lambda: made(next(numbers) // 100)

# A shell's background jobs ignore Ctrl-C, and so would the programs that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where CI promises PyTorch, its absence fails here, at once, whichever way a test would have skipped itself.
if os.environ.get("JAXSSL_REQUIRE_TORCH"):
    importlib.import_module("torch")
    importlib.import_module("transformers")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def key():
    """A key whose random bits compile in a third of threefry's time, which init would need fifty programs for."""
    return jax.random.key(0, impl="rbg")


@pytest.hookimpl(tryfirst=True)  # before any fixture compiles
def pytest_runtest_setup(item):
    """Compile small programs quickly rather than well; only what is marked so repays the time."""
    jax.config.update("jax_disable_most_optimizations", not any(item.iter_markers("optimised")))


def pytest_runtest_teardown(item, nextitem):
    """Forget compiled programs before there are too many: each maps six pieces of memory, and Linux allows a process
    65,530, past which XLA crashes in whatever it does next."""
    if nextitem is not None and nextitem.path == item.path:
        return
    pieces = Path("/proc/self/maps")
    if pieces.is_file() and pieces.read_text().count("\n") > 30_000:
        jax.clear_caches()
        gc.collect()


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that no worker is left alone with it at the end."""
    long = ("tests/storage/", "tests/experiments/", "tests/tools/")
    items.sort(key=lambda item: next((i for i, place in enumerate(long) if item.nodeid.startswith(place)), len(long)))


@pytest.fixture(scope="session")
def shared():
    """The folder of real speech, checkpoints and golden arrays, kept outside this repository; CI insists on it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir() and not os.environ.get("JAXSSL_REQUIRE_DATA"):
        pytest.skip("needs ../shared/data (real speech and golden arrays), which is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def torch():
    """PyTorch, for parity; a machine without it skips."""
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def transformers(torch):
    """Hugging Face transformers, for parity."""
    return pytest.importorskip("transformers")
