"""A place of the heap is held between runs of a program, lent, taken again and left."""

import os
import subprocess
import sys

import pytest

HELD = """
import ctypes
import jaxssl, jax, jax.numpy as jnp
from jaxssl.runtime import memory
from jaxssl.runtime.room import Room

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
inside = lambda at, place, size: place <= at < place + size

def last(x):  # with temporaries of 256 times what it takes
    return jnp.abs(jax.lax.scan(lambda c, _: (c * 0.9, c), x, length=256)[1]).sum()

room, small = Room(large=64 << 20), Room()
program, x = jax.jit(last), jnp.ones(1 << 18)
expected = float(program(x))
assert float(small.run(program, x)) == expected
assert small._place == 0, "held for a program that is not large"
assert float(room.run(program, x)) == expected
print(memory.keep())
if memory.keep():
    plan, place, size = program.lower(x).compile().memory_analysis().temp_size_in_bytes, room._place, room._size
    assert size >= plan > 200 << 20
    held = [libc.malloc(bytes) for bytes in (1 << 20, 100 << 20, plan)]
    assert not any(inside(at, place, size) for at in held), "something came to lie in it"
    with room.lent():
        within = libc.malloc(size)
        assert within == place, "not lent"
        libc.free(within)
    assert room._place == place, "not taken again"
    with room.lent():
        within = libc.malloc(size - (1 << 20))
    assert within == place and not inside(place, room._place, size), "taken although something lies there"
    libc.free(within)
    place = room._place
    float(room.run(program, jnp.ones(1 << 17)))
    assert room._size == size, "made smaller by a smaller program"
    room.leave()
    assert room._place == 0 and libc.malloc(size) != 0
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_a_place_is_held_between_runs():
    one_device = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    told = subprocess.run([sys.executable, "-c", HELD], env=one_device, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    if told.stdout.split() != ["True"]:
        pytest.skip("not glibc, or the user's settings")
