"""Tensors that are made of others, or of nothing, and unread until they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.errors import InputError
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
class Part:
    """Some rows and columns of a tensor called `name`: of its first axes the places in `kept`, of the others all."""

    whole: Tensor
    kept: tuple[Sequence[int], ...]
    name: str = "a tensor"

    @property
    def shape(self) -> Shape:
        """What it has of each axis."""
        return (*map(len, self.kept), *self.whole.shape[len(self.kept) :])

    @property
    def dtype(self) -> str:
        """The whole tensor's."""
        return self.whole.dtype

    def read(self) -> np.ndarray:
        """Return them as an array of their own.

        Raises:
            InputError: the tensor has fewer.
        """
        for axis, (size, places) in enumerate(zip(self.whole.shape, self.kept, strict=False)):
            if max(places, default=0) >= size:
                raise InputError(
                    f"{self.name}: {size} places on axis {axis}, {max(places) + 1} are asked for by the other arrays "
                    "or the config; the file is damaged, copy it again"
                )
        return self.whole.read()[np.ix_(*self.kept)]
