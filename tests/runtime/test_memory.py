"""The process keeps its memory, unless its user has said otherwise."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys, jaxssl
from jaxssl.runtime import memory
kept = memory.keep()
piece = int(sys.argv[1]) << 20
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
faults = []
for _ in range(3):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = libc.malloc(piece)
    ctypes.memset(place, 1, piece)
    libc.free(place)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
print(kept, *faults)
"""


# A piece, and then something else in its place, so that the next piece comes beside it; what the process holds after.
PIECES = """
import ctypes, jaxssl
from pathlib import Path
from jaxssl.runtime import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
held = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
print(memory.keep(), held())
for size in (400 << 20, 800 << 20):
    place, behind = libc.malloc(size), libc.malloc(1 << 20)
    ctypes.memset(place, 1, size)
    libc.free(place)
    print(held())
memory.tidy()
print(held())
memory.tidy()
print(held())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_what_lies_free_goes_back_when_the_heap_has_grown():
    told = subprocess.run([sys.executable, "-c", PIECES], capture_output=True, text=True, check=True).stdout.split()
    if told[0] != "True":
        pytest.skip("not glibc, or the user's settings")
    before, one, both, tidied, again = (int(bytes) for bytes in told[1:])
    assert one > before + (350 << 20)
    assert both > before + (1100 << 20)
    assert tidied < before + (100 << 20)
    assert abs(again - tidied) < 1 << 20


def faults(megabytes=100, **settings):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(megabytes)],
        env={**clean, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, *counts = told.stdout.split()
    return kept == "True", [int(count) for count in counts]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
@pytest.mark.parametrize("megabytes", [100, 2200])  # the latter beyond what a C int counts
def test_memory_is_asked_for_once(megabytes):
    kept, counts = faults(megabytes)
    if not kept:
        pytest.skip("not glibc")
    assert counts[0] > 100 * max(counts[1:])


def test_the_users_own_settings_stand():
    kept, counts = faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert not kept
    assert min(counts) > 1000 or not sys.platform.startswith("linux")
