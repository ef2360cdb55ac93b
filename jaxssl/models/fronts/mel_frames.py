"""MelHuBERT's front end: normalised log-Mel frames, which come as inputs (`jaxssl.data.logmel` makes them)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from flax import nnx
from jax import Array

from compress.address import Axis, Matrix
from compress.errors import InputError
from jaxssl.models.held import Memory
from jaxssl.models.keys import Keys
from jaxssl.models.part import Arrays, Featured, Names, Padding, check_counts


@dataclass(frozen=True)
class LogMel:
    """Log-Mel frames of 25 ms every 10 ms, `stack` of them side by side (Lin et al. 2022).

    Attributes:
        bins: Mel bins of one 10 ms frame.
        stack: frames joined into one: 1 gives a 10 ms model, 2 a 20 ms model.
    """

    bins: int = 40
    stack: int = 2
    kind: Literal["logmel"] = "logmel"

    features: ClassVar = True  # whether inputs are features, normalised by a corpus's statistics
    most: ClassVar = None  # inputs that it takes at most; None: any number
    pieces: ClassVar = 0  # numbered, with arrays of their own
    hop: ClassVar = 1  # inputs from one frame to the next
    field: ClassVar = 1  # inputs that a frame sees
    ahead: ClassVar = 0  # frames that it waits for in a stream
    penalty: ClassVar = 0.0  # pre-training has no term of it
    names: ClassVar[Names] = {"fairseq": (), "huggingface": ()}

    @property
    def size(self) -> int:
        """Width of the features handed to the encoder."""
        return self.bins * self.stack

    @property
    def rate(self) -> int:
        """Inputs (stacked frames) a second."""
        return 100 // self.stack

    @property
    def samples(self) -> tuple[int, int]:
        """Return hop and field in samples: those of `stack` windows of 25 ms every 10 ms."""
        return 160 * self.stack, 400 + 160 * (self.stack - 1)

    @property
    def centre(self) -> int:
        """Sample in the middle of the first frame."""
        return self.samples[1] // 2

    @property
    def spans(self) -> tuple[float, int]:
        """What is masked in pre-training: share of frames, frames of a span of 100 ms."""
        return 0.7, 10 // self.stack

    def frames(self, samples: Any) -> Any:
        """Count the frames that `samples` samples give: 25 ms windows every 10 ms, stacked, the last padded."""
        return -(-(1 + (samples - 400) // 160) // self.stack)

    def heard(self, inputs: Any) -> Any:
        """Count the frames of that many inputs, which are frames."""
        return inputs

    def shape(self, samples: int) -> tuple[int, ...]:
        """Return the shape of one utterance's inputs."""
        return (self.frames(samples), self.size)

    def macs(self, samples: int) -> int:
        """Count nothing: log-Mel is no part of the model."""
        return 0

    def activation_bytes(self, samples: int, itemsize: int) -> float:
        """Return nothing: it has no parameters to learn."""
        return 0.0

    def channels(self, project: str | None) -> tuple[Axis, ...]:
        """List no channels: there are none."""
        return ()

    def convolutions(self) -> tuple[Matrix, ...]:
        """Return nothing: there are none."""
        return ()

    def read(self, arrays: Arrays) -> "LogMel":
        """Return itself: it has no arrays."""
        return self

    def check(self) -> None:
        """Refuse frames of nothing.

        Raises:
            InputError: no bins, or no frames side by side.
        """
        check_counts("front", bins=self.bins, stack=self.stack)

    def check_form(self, inputs: Array) -> None:
        """Refuse what is no batch of stacked frames, however few.

        Raises:
            InputError: it is of another form.
        """
        if inputs.ndim != 3 or inputs.shape[2] != self.size:
            raise InputError(f"a log-Mel model takes (batch, frames, {self.size}), not an array of {inputs.shape}")

    def check_inputs(self, inputs: Array, reduction: int) -> None:
        """Refuse what is no batch of stacked frames; `reduction` frames become one later.

        Raises:
            InputError: the inputs are of another form, or too few.
        """
        self.check_form(inputs)
        if inputs.shape[1] < reduction:
            raise InputError(f"{inputs.shape[1]} frames are too few to make one of {reduction}; pad them")

    def check_stream(self) -> None:
        """Accept a stream: each frame is normalised by a corpus's statistics."""

    def memory(self, batch: int) -> dict[str, Memory]:
        """Return what a stream holds: nothing."""
        return {}

    def prepare(self, arrays: Arrays, dtype: Any) -> Arrays:
        """Return the arrays as given."""
        return arrays

    def build(self, *, prepared: bool, rngs: Keys) -> "Frames":
        """Make the module."""
        return Frames()


class Frames(nnx.Module):
    """Hands log-Mel frames on."""

    def __call__(self, frames: Array, lengths: Array | None, *, dtype: Any, padding: Padding) -> Featured:
        """Return `frames: (batch, time, size)` in a dtype."""
        return Featured(frames.astype(dtype), lengths)

    def stream(self, frames: Array, valid: Array, memory: dict[str, Memory]) -> tuple[Array, Array, dict[str, Memory]]:
        """Hand a chunk of a stream on."""
        return frames, valid, memory
