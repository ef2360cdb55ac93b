"""What front ends that take samples have in common, and those of them that must hear an utterance to its end."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from jax import Array

from compress.address import Matrix
from compress.errors import InputError
from jaxssl.models.held import Memory
from jaxssl.models.part import Arrays


class FromSamples(ABC):
    """Takes waveforms, (batch, samples)."""

    @abstractmethod
    def frames(self, count: int) -> int:
        """Return how many frames come of so many samples."""

    def convolutions(self) -> tuple[Matrix, ...]:
        """Return nothing: no convolution can be int8."""
        return ()

    def check_form(self, inputs: Array) -> None:
        """Refuse what is no batch of waveforms, however short.

        Raises:
            InputError: it is of another form.
        """
        if inputs.ndim != 2:
            raise InputError(f"a waveform model takes (batch, samples), not an array of shape {inputs.shape}")

    def check_inputs(self, inputs: Array, reduction: int) -> None:
        """Refuse what is no batch of waveforms; `reduction` frames become one later.

        Raises:
            InputError: the inputs are of another form, or too short for one frame.
        """
        self.check_form(inputs)
        if self.frames(inputs.shape[1]) < reduction:
            raise InputError(f"{inputs.shape[1]} samples are too few for one frame; pad them")


class Whole(FromSamples):
    """Hears an utterance to its end before it hands the first frame over, so that it cannot stream; packs nothing."""

    because: ClassVar[str]  # why it must, and what streams instead

    def check_stream(self) -> None:
        """Refuse a stream.

        Raises:
            InputError: always.
        """
        raise InputError(f"front: {self.because}")

    def memory(self, batch: int) -> dict[str, Memory]:
        """Return nothing: it cannot stream."""
        return {}

    def prepare(self, arrays: Arrays, dtype: Any) -> Arrays:
        """Return the arrays as given."""
        return arrays
