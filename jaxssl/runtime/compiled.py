"""Compiled programs on disk, so that a command's second run starts at once (JAX's persistent compilation cache)."""

import hashlib
import os
import platform
import warnings
from pathlib import Path

import jax

from compress.errors import InputError
from jaxssl.runtime import private

WORTH = 0.3  # seconds of compiling; what takes less is not kept


def remember() -> Path | None:
    """Keep what compiles in the user's cache from now on, apart for every kind of processor.

    JAX_COMPILATION_CACHE_DIR, where it is set, says another place, or by being empty none; it is left alone then.

    Returns:
        The folder; None where the environment has decided, or, with a warning, where others could have written there.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    try:
        folder = private.folder(place("compiled"))
    except (InputError, OSError) as error:
        warnings.warn(f"compiled programs are not kept: {error}", stacklevel=2)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def place(kind: str) -> Path:
    """Return the folder in the user's cache for that kind of programs; it need not exist.

    Each kind of processor has its own: a home folder may be shared by machines that cannot run each other's programs.
    """
    return private.cache(f"{kind}-{_processor()}")


def _processor() -> str:
    """Name this kind of processor by what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    except OSError:
        told = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:12]
