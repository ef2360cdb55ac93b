"""Strided convolutions without padding in a stream, whatever came late before them."""

from collections.abc import Callable
from dataclasses import dataclass

from jax import Array

from jaxssl.models.held import Memory, joined, nothing


@dataclass(frozen=True)
class Stride:
    """A convolution whose input comes `late` inputs behind; chunks are multiples of the stride.

    Of n inputs that came in all, n - late are there. The next output needs `kernel` from a multiple of `stride` on, so
    that outputs come `delay` behind, and `kept` inputs before a chunk are heard with it.

    Attributes:
        kernel: inputs that an output hears.
        stride: inputs from one output to the next.
        late: inputs.
    """

    kernel: int
    stride: int
    late: int = 0

    @property
    def delay(self) -> int:
        """Outputs by which each one comes late."""
        return -(-(self.late + max(self.kernel - self.stride, 0)) // self.stride)

    @property
    def kept(self) -> int:
        """Inputs that are held."""
        return self.delay * self.stride - self.late

    def memory(self, batch: int, width: int) -> Memory:
        """Return what is held before the first input, which is `width` wide."""
        return nothing(batch, x=(self.kept, width), valid=(self.kept,))

    def stream(
        self, run: Callable[[Array], Array], x: Array, valid: Array, memory: Memory
    ) -> tuple[Array, Array, Memory]:
        """Run the convolution on a chunk, `x: (batch, inputs, width)`; an output is valid if all that it hears is."""
        count = x.shape[1] // self.stride
        whole, held = joined(memory, "x", x)
        seen, also = joined(memory, "valid", valid)
        ends = [slice(tap, tap + (count - 1) * self.stride + 1, self.stride) for tap in range(self.kernel)]
        every = seen[:, ends[0]]
        for end in ends[1:]:
            every &= seen[:, end]
        return run(whole)[:, :count], every, {**held, **also}
