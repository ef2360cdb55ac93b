"""One system's training updates, one for each line on standard input; what `benchmarks.training` starts.

    python -m benchmarks.updates scan '{"front": …}' 15 4 float32

The model is its arch as JSON. The first line lets it compile; for every other it tells, as JSON, seconds of an update
and bytes held at most since.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.turns import serve
from jaxssl.inference.latency import Load, Program
from jaxssl.models.arch import Arch
from jaxssl.models.arch_json import from_json
from jaxssl.models.model import init
from jaxssl.training import speed

Peak = Callable[[], int]  # tells the bytes held at most so far


class Updates:
    """Answers questions on one system: to `compile`, or to `run` an update."""

    def __init__(self, system: str, arch: Arch, load: Load, dtype: str):
        self._given = arch, load, dtype, system
        self._program: Program | None = None
        self._peak: Peak = lambda: 0

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Answer one."""
        if self._program is None:
            assert question["do"] == "compile"
            system = self._given[-1]
            self._program = (pytorch if system == "pytorch" else ours)(*self._given)
            self._peak = held(system)
            return {}
        begin = time.perf_counter()
        self._program.run()
        return {"seconds": time.perf_counter() - begin, "bytes": self._peak()}


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
    serve(Updates(name, from_json(json.loads(arch)), Load(float(seconds), int(batch)), kind).answer)
