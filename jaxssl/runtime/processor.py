"""What the processor is and can do, as Linux tells: its name, instruction sets, and how many threads may run."""

import os
import platform
from functools import cache
from pathlib import Path

SETS = {  # by name: the flag of /proc/cpuinfo, as Linux spells it for x86 or for ARM
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-VNNI": "avx_vnni",
    "AVX512-VNNI": "avx512_vnni",
    "AVX512-BF16": "avx512_bf16",
    "AVX512-FP16": "avx512_fp16",
    "AMX-BF16": "amx_bf16",
    "AMX-INT8": "amx_int8",
    "NEON": "asimd",
    "dot products": "asimddp",
    "BF16": "bf16",
    "I8MM": "i8mm",
    "SVE": "sve",
}


@cache
def told() -> dict[str, str]:
    """Return what /proc/cpuinfo says of the first processor, by its names; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def name() -> str:
    """Return the processor's name."""
    return told().get("model name") or platform.processor() or platform.machine()


def flags() -> frozenset[str]:
    """Return what it can do, in Linux's words."""
    return frozenset((told().get("flags") or told().get("Features") or "").split())


def sets() -> tuple[str, ...]:
    """Return the instruction sets that matter to products, by their makers' names."""
    return tuple(name for name, flag in SETS.items() if flag in flags())


def threads() -> int:
    """Return how many threads may run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
