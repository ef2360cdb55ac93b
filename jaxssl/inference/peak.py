"""How fast large plain products run here, by whoever multiplies fastest: what shares of a peak are shares of."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxssl.models import choice
from jaxssl.runtime import native

PATIENCE = 2.0  # seconds of products; XLA has no instructions for some dtypes, and takes as long for one


def matmul_peak(dtype: Any, *, size: int | None = None, rounds: int = 5) -> float:
    """Return the fastest of `rates`, in MACs per second."""
    return max(rates(jnp.dtype(dtype).name, size=size, rounds=rounds).values())


@lru_cache
def rates(dtype: str, *, size: int | None = None, rounds: int = 5) -> dict[str, float]:
    """Measure a square product by XLA and, where they run, by our kernels; the best of some rounds.

    XLA's CPU code has fast bfloat16 products only of the kind that adds up in float32, so that its plain product alone
    would be too low a peak. Once for all runs of a process: on two CPU cores it takes three seconds.

    Args:
        dtype: "float32" (at the precision jax uses by default), "bfloat16" or "int8" (sums of 32 bits).
        size: of the matrices; None: 2048 on CPUs, 8192 elsewhere.
        rounds: products timed.

    Returns:
        MACs per second, by "XLA" and "our kernels".
    """
    size = size or (2048 if jax.default_backend() == "cpu" else 8192)
    found = {"XLA": max(_rate(run, size, rounds) for run in _by_xla(dtype, size))}
    ours = _by_kernels(dtype, size)
    return found | ({} if ours is None else {"our kernels": _rate(ours, size, rounds)})


def _by_xla(dtype: str, size: int) -> list[Callable[[], Any]]:
    matrix = jnp.ones((size, size), dtype)
    sums = {"int8": (jnp.int32,), "bfloat16": dict.fromkeys((None, choice.sums()))}.get(dtype, (None,))
    products = [jax.jit(lambda a, kind=kind: jnp.matmul(a, a, preferred_element_type=kind)) for kind in sums]
    return [lambda product=product: product(matrix) for product in products]  # type: ignore[misc]


def _by_kernels(dtype: str, size: int) -> Callable[[], Any] | None:
    if not choice.packs(int8=dtype == "int8") or dtype not in native.GROUPS:
        return None
    weights, bias = jnp.ones((size, size), dtype), jnp.zeros(size)
    if dtype == "int8":  # each frame is quantised as it comes, which is part of such a product
        x, packed = jnp.ones((1, size, size)), native.pack_int8(weights)
        quick = jax.jit(native.dense_int8)
        return lambda: quick(x, packed, bias, bias)
    frames = jnp.ones((1, size, size), dtype)
    kernel = native.pack_int16(weights) if choice.whole(dtype) else native.pack(weights, dtype)
    product = jax.jit(native.dense)
    return lambda: product(frames, kernel, bias)


def _rate(run: Callable[[], Any], size: int, rounds: int) -> float:
    jax.block_until_ready(run())
    times: list[float] = []
    while len(times) < rounds and sum(times) < PATIENCE:
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return size**3 / min(times)
