"""A small residual block at a layer's end, trained for one language on top of a frozen model."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
from flax import nnx
from jax import Array

from compress.errors import InputError
from jaxssl.models.dense import Dense
from jaxssl.models.keys import Keys
from jaxssl.models.layers import LayerNorm
from jaxssl.models.names import dense_rules, norm_rules
from jaxssl.models.part import Arrays, Map, Names


@dataclass(frozen=True)
class Adapter:
    """x + up(ReLU(down(norm(x)))) after the whole layer, as MMS has it (Pratap et al. 2023).

    It is not compressed: a model has one for each language, of a few hundred thousand parameters in all.

    Attributes:
        size: hidden units.
    """

    size: int
    kind: Literal["adapter"] = "adapter"

    place: ClassVar = "adapter"
    names: ClassVar[Names] = {
        "fairseq": (),
        "huggingface": (
            *norm_rules(r"encoder\.layers\.(\d+)\.adapter_layer\.norm", r"layers/\1/adapter/norm"),
            *dense_rules(r"encoder\.layers\.(\d+)\.adapter_layer\.linear_1", r"layers/\1/adapter/down"),
            *dense_rules(r"encoder\.layers\.(\d+)\.adapter_layer\.linear_2", r"layers/\1/adapter/up"),
        ),
    }

    def macs(self, width: int, frames: int) -> int:
        """Count the multiply-accumulates of one utterance."""
        return 2 * frames * width * self.size

    def read(self, arrays: Arrays) -> "Adapter":
        """Return the adapter that these arrays are."""
        return Adapter(arrays["down"]["bias"].shape[0])

    def check(self, where: str) -> None:
        """Refuse an adapter without units.

        Raises:
            InputError: it has none.
        """
        if self.size < 1:
            raise InputError(f"{where}: an adapter of {self.size} units is none; leave it out")

    def build(self, width: int, *, rngs: Keys) -> "Bottleneck":
        """Make the module."""
        return Bottleneck(self, width, rngs=rngs)


class Bottleneck(nnx.Module):
    """Computes what `Adapter` adds."""

    def __init__(self, part: Adapter, width: int, *, rngs: Keys):
        self.norm = LayerNorm(width, rngs=rngs)
        self.down = Dense(Map("down", (width,), (part.size,)), rngs=rngs)
        self.up = Dense(Map("up", (part.size,), (width,)), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Map `x: (batch, time, width)` to what is added to it."""
        return self.up(jax.nn.relu(self.down(self.norm(x))))
