"""The process keeps its memory, unless its user has said otherwise."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, jaxssl
from jaxssl.runtime import memory
kept = memory.keep()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
faults = []
for held in (0, 0, 0, memory.HEAVY, memory.HEAVY, 0, 0):
    piece = 100 << 20 if held == 0 else 300 << 20  # more than is free
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with memory.giving_back(held):
        place = libc.malloc(piece)
        ctypes.memset(place, 1, piece)
        libc.free(place)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
print(kept, *faults)
"""


def faults(**settings):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT], env={**clean, **settings}, capture_output=True, text=True, check=True
    )
    kept, *counts = told.stdout.split()
    return kept == "True", [int(count) for count in counts]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_memory_is_asked_for_once():
    kept, counts = faults()
    if not kept:
        pytest.skip("not glibc")
    assert counts[0] > 100 * max(*counts[1:3], *counts[5:])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_beside_a_large_state_large_pieces_go_back():
    kept, counts = faults()
    if not kept:
        pytest.skip("not glibc")
    assert min(counts[3:5]) > 2 * counts[0]


def test_the_users_own_settings_stand():
    kept, counts = faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept
    assert min(counts) > 1000 or not sys.platform.startswith("linux")
