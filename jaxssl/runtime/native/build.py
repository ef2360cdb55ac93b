"""`kernels.cc` as a library for this processor, built by the machine's C++ compiler and kept in the user's cache."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import jaxlib.version

from compress.errors import InputError
from jaxssl.runtime import private
from jaxssl.runtime.compiled import place

SOURCE = Path(__file__).with_name("kernels.cc")  # which includes the headers beside it
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-w")
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
PATIENCE = 120.0  # seconds
FORWARD, LEARNING = (
    ("attention", "product", "factored", "int8", "factored_int8"),
    ("attention_gradient", "convolution", "kernel_gradient", "frames_gradient"),
)
WHOLE = ("int16_bfloat16", "factored_int16_bfloat16")
SCANNING = ("scan_float32", "scan_gradient_float32")  # of a state, which bfloat16 would lose
KERNELS = (
    *(f"{name}_{dtype}" for name in (*FORWARD, *LEARNING) for dtype in ("float32", "bfloat16")),
    *WHOLE,
    *SCANNING,
    "later",
)
# A process of its own loads a new library first: a broken one would end the process that asked for it.
TRIAL = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); [getattr(library, name) for name in sys.argv[2:]]"


def shared_object(*processor: str) -> Path | None:
    """Return the built file; None where there is no compiler, or, with a warning, where it fails.

    The environment's CXX names the compiler to use; by being empty, none. What was built before is taken when nobody
    else can have written it and it is, byte for byte, what was built.

    Args:
        *processor: the compiler's flags for what to build for; none: this machine's.
    """
    try:
        compiler = _compiler()
        return None if compiler is None else _found(compiler, processor or (NATIVE,))
    except (InputError, OSError, ValueError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"{SOURCE.name}: not built by {os.environ.get('CXX') or 'the C++ compiler'}, so models run slower, as XLA "
            f"compiles them: {error}; mend it, name another compiler by CXX, or none by CXX=",
            stacklevel=2,
        )
        return None


def _compiler() -> list[str] | None:
    """Return the command, which CXX may give with words of its own, as "ccache g++"."""
    told = os.environ.get("CXX")
    if told is not None:
        return shlex.split(told) or None
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    return [found] if found else None


def _found(compiler: list[str], processor: tuple[str, ...]) -> Path:
    """Return the library that was built of all this, now or before."""
    sources = (each.read_text() for each in (SOURCE, *sorted(SOURCE.parent.glob("*.h"))))
    told = (*sources, *compiler, *processor, *FLAGS, jaxlib.version.__version__)
    name = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    target = private.folder(place("kernels")) / f"{name}.so"
    if not (private.file(target) and _whole(target)):
        _build(compiler, processor, target)
    return target


def _whole(library: Path) -> bool:
    """Tell whether a library is what was built: a truncated one would end the process that loads it."""
    told = _digest_file(library)
    return private.file(told) and told.read_text(errors="replace") == _digest(library)


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _build(compiler: list[str], processor: tuple[str, ...], target: Path) -> None:
    """Build beside the target and put it there whole: another process may be doing the same."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [*compiler, *FLAGS, *processor, "-isystem", jax.ffi.include_dir(), str(SOURCE), "-o", str(made)]
        _run(command, Path(folder) / "errors")
        _run([sys.executable, "-I", "-c", TRIAL, str(made), *KERNELS], Path(folder) / "errors")
        made.chmod(0o600)
        _digest_file(made).write_text(_digest(made))
        _digest_file(made).chmod(0o600)
        _digest_file(made).replace(_digest_file(target))
        made.replace(target)


def _run(command: list[str], errors: Path) -> None:
    """Run a program to its end; what it says goes into a file, which nothing that it leaves behind can keep open.

    Raises:
        SubprocessError: it failed, with what it said, or took longer than `PATIENCE`.
    """
    with errors.open("wb") as said:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise subprocess.SubprocessError(f"it took over {PATIENCE:g} s") from None
    if done.returncode:
        told = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        reason = told[-1 if told[0].startswith("Traceback") else 0]
        raise subprocess.SubprocessError(f"{reason[:400]} (exit status {done.returncode})")
