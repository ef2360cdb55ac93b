"""Positions by fixed sines and cosines of each frame's number, which no training changes."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from compress.errors import InputError
from jaxssl.models.held import Memory
from jaxssl.models.keys import Keys
from jaxssl.models.part import Arrays, Names

LONGEST = 10_000  # the longest wave, in frames over 2π


@dataclass(frozen=True)
class Sinusoids:
    """x + sinusoids(frame), wave lengths in geometric steps from 2π to 2π · 10000 (Vaswani et al. 2017, §3.5).

    Attributes:
        layout: "interleaved": sine and cosine of a wave side by side, steps of 10000^(2 / width), as the paper and
            SummaryMixing's encoder have them; "halves": all sines, then all cosines, steps of
            10000^(2 / (width - 2)), so that the last wave is the longest one, as Whisper has them.
        rounded: what the table is rounded to, as in Whisper's published files, which keep it in float16. Of tiny.en's
            one entry of a hundred is the next number, for their angles were rounded otherwise: its output is off by
            1.5e-3 at most, without the rounding by 5.3e-3 (of 12.8).
    """

    layout: Literal["interleaved", "halves"] = "interleaved"
    rounded: Literal["float32", "float16"] = "float32"
    kind: Literal["sinusoid"] = "sinusoid"

    ahead: ClassVar = 0  # frames that it waits for in a stream
    pieces: ClassVar = 0  # numbered, with arrays of their own
    names: ClassVar[Names] = {"fairseq": (), "huggingface": ()}

    def memory(self, batch: int, width: int) -> dict[str, Any]:
        """Return what a stream holds before the first frame: how many there were."""
        return {"count": jnp.zeros(batch, jnp.int32)}

    def macs(self, width: int, frames: int) -> int:
        """Count nothing: nothing is multiplied by weights."""
        return 0

    def check(self, width: int) -> None:
        """Refuse a width that is no whole number of waves.

        Raises:
            InputError: it is odd, or below 4.
        """
        if width % 2 or width < 4:
            raise InputError(f"sinusoidal positions take two numbers a wave: width {width} is odd or below 4")

    def read(self, arrays: Arrays) -> "Sinusoids":
        """Return itself: it has no arrays."""
        return self

    def of_the_past(self, arrays: Arrays) -> "tuple[Sinusoids, Arrays]":
        """Return it as it is: a frame's number tells nothing of the future."""
        return self, arrays

    def prepare(self, arrays: Arrays, dtype: Any) -> Arrays:
        """Return no arrays, as given."""
        return arrays

    def build(self, width: int, *, prepared: bool, rngs: Keys) -> "Waves":
        """Make the module."""
        return Waves(self, width)


class Waves(nnx.Module):
    """Computes what `Sinusoids` adds."""

    def __init__(self, part: Sinusoids, width: int):
        self.layout, self.rounded, self.width = part.layout, jnp.dtype(part.rounded), width

    def __call__(self, x: Array, valid: Array | None) -> Array:
        """Return what is added to `x: (batch, time, width)`: (1, time, width)."""
        return self.table(jnp.arange(x.shape[1])[None]).astype(x.dtype)

    def stream(self, x: Array, valid: Array, memory: Memory) -> tuple[Array, Memory]:
        """Return what is added to a chunk of a stream, whose valid frames are numbered on, and the memory."""
        numbers = memory["count"][:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32)
        return self.table(numbers - 1).astype(x.dtype), {"count": numbers[:, -1]}

    def table(self, numbers: Array) -> Array:
        """Return the sinusoids of frames of these numbers, (…, time): (…, time, width)."""
        waves = self.width // 2
        steps = waves - 1 if self.layout == "halves" else waves
        # Constants: a device's own exponential may be off by several roundings, which frame 1500 multiplies.
        rates = np.exp(np.arange(waves) * -math.log(LONGEST) / steps).astype(np.float32)
        angles = numbers[..., None].astype(jnp.float32) * rates.reshape(*(1,) * numbers.ndim, -1)
        both = jnp.sin(angles), jnp.cos(angles)
        halves = self.layout == "halves"
        table = jnp.concatenate(both, -1) if halves else jnp.stack(both, -1).reshape(*numbers.shape, self.width)
        return table.astype(self.rounded)
