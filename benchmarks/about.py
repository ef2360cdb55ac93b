"""What a benchmark ran on: processor, instruction sets, memory, and the peak of each dtype. Printed at the head.

The peak is the fastest large plain product, of JAX, of our kernels and of PyTorch where it is installed: a share of a
lower one would flatter. Each is measured in a process of its own, before anything is timed:

    python -m benchmarks.about jax      # on standard input: {"dtypes": ["float32", "bfloat16", "int8"]}
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.turns import Ended, child, serve
from compress.errors import InputError
from jaxssl.runtime import processor

READ = 512 << 20  # bytes, more than any cache holds
TRIES = 5


def measure(dtypes: Sequence[str], told: Callable[[str], None]) -> dict[str, Any]:
    """Measure this machine, as JSON values; `told` hears in one line what could not be.

    Returns:
        processor, threads, instructions, of a CPU `bandwidth` (GB/s read, by threads), `machine` (JAX's view), `tiers`
        (what multiplies in our kernels) and `peaks`: MACs per second, by dtype and who multiplies.

    Raises:
        InputError: not even JAX could be asked.
    """
    found: dict[str, Any] = {"peaks": {dtype: {} for dtype in dtypes}}
    sides = ("jax", *["torch"] * (importlib.util.find_spec("torch") is not None))
    for side in sides:
        with child("benchmarks.about", side) as process:
            try:
                answer = process.ask(dtypes=list(dtypes))
            except Ended as end:
                if side == "jax":
                    raise InputError(f"this machine could not be measured: {end}") from None
                told(f"PyTorch's peak is left out: {end}")
                continue
        for dtype, rates in answer.pop("peaks").items():
            found["peaks"][dtype] |= rates
        found |= answer
    return found


def peak(about: Mapping[str, Any], dtype: str) -> float:
    """Return the highest rate that was measured for a dtype, in MACs per second."""
    return max(about["peaks"][dtype].values())


def lines(about: Mapping[str, Any]) -> list[str]:
    """Say what a benchmark ran on."""
    machine = about["machine"]
    sets = ", ".join(about["instructions"]) or "no instruction set that matters here"
    told = [f"{machine['device']}: {about['processor']}, {about['threads']} threads; {sets}"]
    if about["bandwidth"]:
        speeds = [f"{rate:.1f} GB/s by {threads}" for threads, rate in about["bandwidth"].items()]
        told.append(f"memory is read at {', '.join(speeds)}")
    for dtype, rates in about["peaks"].items():
        each = ", ".join(f"{who} {rate / 1e9:.0f}" for who, rate in rates.items())
        told.append(f"a large product in {dtype}: {peak(about, dtype) / 1e9:.0f} GMAC/s ({each})")
    if about["tiers"]:
        told.append(f"our kernels multiply {', '.join(f'{dtype} by {by}' for dtype, by in about['tiers'].items())}")
    return told


def bandwidth() -> dict[str, float]:
    """Measure how fast memory is read, in GB/s (10^9 bytes), by one thread and by all together."""
    every = processor.threads()
    numbers = np.ones(READ // 4, np.float32)  # written once, so that each page is there
    found = {}
    for threads, who in ((1, "one thread"), (every, f"all {every}")):
        parts = np.array_split(numbers, threads)
        with ThreadPoolExecutor(threads) as pool:
            times = []
            for _ in range(TRIES):
                begin = time.perf_counter()
                list(pool.map(np.max, parts))  # NumPy's largest-of runs as fast as memory, and without Python's lock
                times.append(time.perf_counter() - begin)
        found[who] = READ / min(times) / 1e9
    return found


def by_jax(question: dict[str, Any]) -> dict[str, Any]:
    """Measure what JAX and our kernels can."""
    import jax.numpy as jnp

    from jaxssl.inference.latency import machine
    from jaxssl.inference.peak import rates
    from jaxssl.models import choice
    from jaxssl.runtime import native

    found = machine(jnp.float32)
    cpu = found["platform"] == "cpu"
    return {
        "machine": {key: value for key, value in found.items() if key != "dtype"},
        "processor": processor.name(),
        "threads": processor.threads(),
        "instructions": processor.sets(),
        "tiers": native.tiers() if choice.kernels() == "native" else {},
        "bandwidth": bandwidth() if cpu else {},
        "peaks": {dtype: rates(dtype) for dtype in question["dtypes"]},
    }


def by_torch(question: dict[str, Any]) -> dict[str, Any]:
    """Measure PyTorch's products, those that are not of int8."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 2048
    found = {}
    for dtype in (each for each in question["dtypes"] if each != "int8"):
        matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
        times = []
        for _ in range(1 + TRIES):
            begin = time.perf_counter()
            matrix @ matrix
            if matrix.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        found[dtype] = {"PyTorch": size**3 / min(times)}
    return {"peaks": found}


if __name__ == "__main__":
    serve({"jax": by_jax, "torch": by_torch}[sys.argv[1]])
