"""Programs in processes of their own, as users start them, compiled quickly rather than well."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# XLA's older emitters compile a small program in half the time. Later versions have them no more, and end a process
# that sets a flag which they do not know.
JAX = tuple(map(int, version("jax").split(".")[:2]))
QUICKLY = "--xla_cpu_use_fusion_emitters=false" if JAX < (0, 11) else ""


def start(*words, cwd=ROOT, devices=1, **settings):
    """Start Python with these words: this checkout, what others compiled, one device as a user's machine has."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICKLY}",
        **settings,
    }
    words, pipe = [sys.executable, *map(str, words)], subprocess.PIPE
    return subprocess.Popen(words, env=environment, cwd=cwd, stdout=pipe, stderr=pipe, text=True)


def finish(*words, timeout=600, **settings):
    """Run Python with these words to the end; exit code, standard output and error."""
    with start(*words, **settings) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, output, errors)
