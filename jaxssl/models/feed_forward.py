"""The feed-forward block: two dense maps with an activation between them."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from flax import nnx
from jax import Array

from compress.errors import InputError
from jaxssl.models.activations import Activation
from jaxssl.models.dense import Dense
from jaxssl.models.keys import Keys
from jaxssl.models.layers import dropout
from jaxssl.models.names import dense_rules
from jaxssl.models.part import FULL, Arrays, Dropout, Form, Map, Names, Units, form_of


@dataclass(frozen=True)
class FeedForward:
    """fc2(activation(fc1(x))); without hidden units it is its output's bias.

    Attributes:
        size: hidden units; may be 0.
        fc1: form of the map to them.
        fc2: form of the map back.
        activation: between them; the exact GELU in nearly every model of this family.
    """

    size: int
    fc1: Form = FULL
    fc2: Form = FULL
    activation: Activation = "gelu"
    kind: Literal["feed_forward"] = "feed_forward"

    place: ClassVar = "ffn"
    names: ClassVar[Names] = {
        "fairseq": dense_rules(r"encoder\.layers\.(\d+)\.(fc[12])", r"layers/\1/ffn/\2"),
        "huggingface": (
            *dense_rules(r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense", r"layers/\1/ffn/fc1"),
            *dense_rules(r"encoder\.layers\.(\d+)\.feed_forward\.output_dense", r"layers/\1/ffn/fc2"),
        ),
    }

    @property
    def empty(self) -> bool:
        """Whether it is but a bias."""
        return not self.size

    def maps(self, width: int) -> tuple[Map, ...]:
        """List fc1 and fc2."""
        return Map("fc1", (width,), (self.size,), self.fc1), Map("fc2", (self.size,), (width,), self.fc2)

    def units(self) -> tuple[Units, ...]:
        """List the hidden units."""
        return (Units("hidden", self.size, (("fc1", "out"), ("fc2", "in")), "fc2"),)

    def resized(self, name: str, size: int) -> Self:
        """Return the same with another number of units."""
        return replace(self, size=size)

    def core_macs(self, frames: int, width: int) -> int:
        """Count nothing: all is in the maps."""
        return 0

    def activation_bytes(self, frames: int, itemsize: int, dropout: Dropout) -> float:
        """Return what one frame leaves: hidden units before and after the activation."""
        return 2 * itemsize * self.size

    def read(self, arrays: Arrays) -> Self:
        """Return the block that these arrays are; its activation is this one's."""
        size = arrays["fc1"]["bias"].shape[0]
        return replace(self, size=size, fc1=form_of(arrays["fc1"]), fc2=form_of(arrays["fc2"]))

    def check(self, where: str) -> None:
        """Refuse a negative size.

        Raises:
            InputError: it is negative.
        """
        if self.size < 0:
            raise InputError(f"{where}: {self.size} FFN units; use 0 or more")

    def build(self, width: int, *, dropout: Dropout, prepared: bool, rngs: Keys) -> "Hidden":
        """Make the module."""
        return Hidden(self, width, rate=dropout.activation, prepared=prepared, rngs=rngs)


class Hidden(nnx.Module):
    """Computes `FeedForward`."""

    def __init__(self, part: FeedForward, width: int, *, rate: float, prepared: bool, rngs: Keys):
        self.units, self.rate, self.activation = part.size, rate, part.activation
        self.fc1, self.fc2 = (Dense(spec, prepared=prepared, rngs=rngs) for spec in part.maps(width))

    def __call__(self, x: Array, rngs: Keys | None) -> Array:
        """Map `x: (batch, time, width)` to the same shape."""
        if self.units == 0:
            return self.fc2.bias_alone(x)
        return self.fc2(dropout(self.fc1(x, self.activation), self.rate, rngs))


@dataclass(frozen=True)
class NoFeedForward:
    """The block of a layer that has none, nor a norm behind it: the mixer's branch is all (Mamba HuBERT)."""

    kind: Literal["no_feed_forward"] = "no_feed_forward"

    place: ClassVar = "ffn"
    names: ClassVar[Names] = {"fairseq": (), "huggingface": ()}
    size: ClassVar = 0
    activation: ClassVar[Activation] = "linear"
    empty: ClassVar = True

    def maps(self, width: int) -> tuple[Map, ...]:
        """List nothing."""
        return ()

    def units(self) -> tuple[Units, ...]:
        """List nothing."""
        return ()

    def resized(self, name: str, size: int) -> Self:
        """Refuse units, of which there are none.

        Raises:
            InputError: some are asked for.
        """
        if size:
            raise InputError(f"a layer without a feed-forward block cannot have {size} units; leave it as it is")
        return self

    def core_macs(self, frames: int, width: int) -> int:
        """Count nothing."""
        return 0

    def activation_bytes(self, frames: int, itemsize: int, dropout: Dropout) -> float:
        """Return 0: nothing is computed."""
        return 0

    def read(self, arrays: Arrays) -> Self:
        """Return itself."""
        return self

    def check(self, where: str) -> None:
        """Accept any place."""

    def build(self, width: int, *, dropout: Dropout, prepared: bool, rngs: nnx.Rngs) -> None:
        """Make nothing."""
