"""One system's training updates, one for each line on standard input; what `benchmarks.training` starts.

    python -m benchmarks.updates scan '{"front": …}' 15 4 float32

The model is its arch as JSON. Says `ready`, then for every line it is given, as JSON: seconds of an update and bytes
held at most so far.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxssl.inference.latency import Load, Program
from jaxssl.models.arch import Arch, from_json
from jaxssl.models.model import init
from jaxssl.training import speed

Peak = Callable[[], int]  # tells the bytes held at most so far


def serve(system: str, arch: Arch, load: Load, dtype: str) -> None:
    """Make an update whenever a line comes, until no more do."""
    program = (pytorch if system == "pytorch" else ours)(arch, load, dtype, system)
    peak = held(system)
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        program.run()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "bytes": peak()}), flush=True)


def ours(arch: Arch, load: Load, dtype: str, stack: Any) -> Program:
    """Compile our update."""
    params = init(arch, jax.random.key(0))
    return speed.compile_steps(arch, params, load, stacks=(stack,), dtype=jnp.dtype(dtype))[stack]


def pytorch(arch: Arch, load: Load, dtype: str, _: str) -> Program:
    """Set PyTorch's update up."""
    from tools.pytorch import torch_step

    with jax.default_device(jax.devices("cpu")[0]):
        params = init(arch, jax.random.key(0))
        return torch_step.prepare(
            arch, params, speed.example(arch, load), load, loss=speed.objective(arch), dtype=dtype
        )


def held(system: str) -> Peak:
    """Return what tells the peak memory of this process on its device."""
    if jax.default_backend() == "cpu":
        return resident()
    if system == "pytorch":
        import torch

        return torch.cuda.max_memory_allocated
    device = jax.devices()[0]
    return lambda: device.memory_stats()["peak_bytes_in_use"]


def resident() -> Peak:
    """Return what tells the most memory that this process has held from now on, or, not on Linux, since it began."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far

    def peak() -> int:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10
        except (OSError, StopIteration):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)

    return peak


if __name__ == "__main__":
    name, arch, seconds, batch, kind = sys.argv[1:]
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the processes share a device
    serve(name, from_json(json.loads(arch)), Load(float(seconds), int(batch)), kind)
