"""Tensors that are made of others, or of nothing, and unread until they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxssl.convert.naming import Tensor
from jaxssl.models.names import Shape


@dataclass(frozen=True)
class Zeros:
    """An array of zeros that stands for one of a block that was pruned away."""

    shape: Shape
    dtype: str = "float32"

    def read(self) -> np.ndarray:
        """Return the zeros."""
        return np.zeros(self.shape, np.float32)


@dataclass(frozen=True)
class Taken:
    """Some entries of a tensor along one of its axes."""

    whole: Tensor
    axis: int
    entries: Sequence[int]

    @property
    def shape(self) -> Shape:
        """What it has of each axis."""
        before, after = self.whole.shape[: self.axis], self.whole.shape[self.axis + 1 :]
        return (*before, len(self.entries), *after)

    @property
    def dtype(self) -> str:
        """The whole tensor's."""
        return self.whole.dtype

    def read(self) -> np.ndarray:
        """Read the whole and take the entries."""
        return np.take(self.whole.read(), np.asarray(self.entries, int), self.axis)
