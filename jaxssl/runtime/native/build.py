"""`kernels.cc` as a library for this processor, built by the machine's C++ compiler and kept in the user's cache."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import jax
import jaxlib.version

from jaxssl.runtime.compiled import place

SOURCE = Path(__file__).with_name("kernels.cc")
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-w")
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
PATIENCE = 120.0  # seconds


def shared_object(processor: str = NATIVE) -> Path | None:
    """Return the built file; None where there is no compiler, or, with a warning, where it fails.

    The environment's CXX names the compiler to use; by being empty, none.

    Args:
        processor: the compiler's flag for what to build for.
    """
    found = _compiler()
    if found is None:
        return None
    told = (SOURCE.read_text(), *found, processor, *FLAGS, jaxlib.version.__version__)
    name = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    target = place("kernels") / f"{name}.so"
    if not target.exists():
        try:
            _build(found, processor, target)
        except (OSError, subprocess.SubprocessError) as error:
            why = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
            warnings.warn(
                f"{SOURCE.name}: not built by {shlex.join(found)}, so models run slower, as XLA compiles them: {why}; "
                "mend it, name another compiler by CXX, or none by CXX=",
                stacklevel=2,
            )
            return None
    return target


def _compiler() -> list[str] | None:
    """Return the command, which CXX may give with words of its own, as "ccache g++"."""
    told = os.environ.get("CXX")
    if told is not None:
        return shlex.split(told) or None
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    return [found] if found else None


def _build(compiler: list[str], processor: str, target: Path) -> None:
    """Build beside the target and put it there whole: another process may be doing the same."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [*compiler, *FLAGS, processor, "-isystem", jax.ffi.include_dir(), str(SOURCE), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
        made.replace(target)
