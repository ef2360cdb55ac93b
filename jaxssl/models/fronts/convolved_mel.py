"""A front end of log-Mel frames, normalised by each utterance's own statistics, and strided convolutions over them."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from compress.address import Axis
from jaxssl.models.fronts.samples import Whole
from jaxssl.models.fronts.strided_conv import Conv, StridedConv
from jaxssl.models.fronts.whisper_frames import SHIFT, mel_decades
from jaxssl.models.keys import Keys
from jaxssl.models.layers import NORM_EPSILON, LayerNorm, gelu
from jaxssl.models.part import Arrays, Featured, Names, Padding, check_counts

MEL_CONVS = (Conv(512, 3, 2), Conv(512, 3, 1))  # a frame each 20 ms


@dataclass(frozen=True)
class ConvolvedMel(Whole):
    """Log-Mel frames of 25 ms every 10 ms, and convolutions, each with a norm over channels and GELU behind it.

    So wav2vec 2.0 hears in SummaryMixing's recipe (arXiv 2407.13377), with convolutions that neither pad nor have a
    bias, and a norm behind the last. Each bin is brought to zero mean and unit variance over an utterance. The filters
    are Whisper's, no weights of that recipe being published that would want its own.

    Attributes:
        bins: Mel bins.
        convs: the convolutions, first to last.
    """

    bins: int = 80
    convs: tuple[Conv, ...] = MEL_CONVS
    kind: Literal["convolved_mel"] = "convolved_mel"

    features: ClassVar = False  # whether inputs are features, normalised by a corpus's statistics
    most: ClassVar = None  # inputs that it takes at most; None: any number
    rate: ClassVar = 16_000  # inputs (samples) a second
    ahead: ClassVar = 0
    because: ClassVar = (
        "this log-Mel is normalised by the whole utterance; use a log-Mel model with a corpus's statistics, or a "
        "waveform model, to stream"
    )
    penalty: ClassVar = 0.0  # pre-training has no term of it
    spans: ClassVar = (0.65, 10)  # masked in pre-training: share of frames, frames of a span
    names: ClassVar[Names] = {"fairseq": (), "huggingface": ()}

    @property
    def size(self) -> int:
        """Width of the features handed to the encoder."""
        return self.convs[-1].channels

    @property
    def hop(self) -> int:
        """Inputs from one frame to the next."""
        return SHIFT * math.prod(conv.stride for conv in self.convs)

    @property
    def field(self) -> int:
        """Inputs that must be there for a frame to be; its log-Mel windows reach 200 samples beyond either end."""
        hop, field = 1, 1
        for conv in self.convs:
            field, hop = field + (conv.kernel - 1) * hop, hop * conv.stride
        return SHIFT * field

    @property
    def samples(self) -> tuple[int, int]:
        """Return hop and field in samples, which are the inputs."""
        return self.hop, self.field

    @property
    def centre(self) -> int:
        """Sample in the middle of the first frame: log-Mel windows stand around every 160th, from the first on."""
        return (self.field - SHIFT) // 2

    @property
    def pieces(self) -> int:
        """How many numbered pieces with arrays of their own it has."""
        return len(self.convs)

    def frames(self, samples: Any) -> Any:
        """Count the frames that `samples` samples give (an int or an array of ints)."""
        frames = samples // SHIFT
        for conv in self.convs:
            frames = (frames - conv.kernel) // conv.stride + 1
        return frames

    def heard(self, inputs: Any) -> Any:
        """Count the frames of that many inputs, which are samples."""
        return self.frames(inputs)

    def shape(self, samples: int) -> tuple[int, ...]:
        """Return the shape of one utterance's inputs."""
        return (samples,)

    def sizes(self, samples: int) -> list[tuple[int, int, Conv]]:
        """List what each convolution is given: frames that it makes of `samples` samples, channels, and itself."""
        found, frames, channels = [], samples // SHIFT, self.bins
        for conv in self.convs:
            frames = (frames - conv.kernel) // conv.stride + 1
            found.append((frames, channels, conv))
            channels = conv.channels
        return found

    def macs(self, samples: int) -> int:
        """Count the multiply-accumulates of one utterance's convolutions; as elsewhere, log-Mel is not counted."""
        return sum(frames * conv.kernel * inputs * conv.channels for frames, inputs, conv in self.sizes(samples))

    def activation_bytes(self, samples: int, itemsize: int) -> float:
        """Return the bytes that one utterance leaves for the backward pass: 3 · itemsize an entry, 8 for its norm."""
        return sum(frames * conv.channels * (3 * itemsize + 8) for frames, _, conv in self.sizes(samples))

    def channels(self, project: str | None) -> tuple[Axis, ...]:
        """List no channels: the others of a norm would change with one."""
        return ()

    def read(self, arrays: Arrays) -> "ConvolvedMel":
        """Return the front end that these arrays are; strides are this one's."""
        kernels = [arrays["convs"][str(i)]["conv"]["kernel"] for i in range(len(self.convs))]
        convs = (
            replace(conv, kernel=kernel.shape[0], channels=kernel.shape[2])
            for conv, kernel in zip(self.convs, kernels, strict=True)
        )
        return replace(self, bins=kernels[0].shape[1], convs=tuple(convs))

    def check(self) -> None:
        """Refuse no convolutions or bins, and convolutions without channels, taps or strides.

        Raises:
            InputError: the message says which.
        """
        check_counts("front", bins=self.bins, convs=len(self.convs))
        for i, conv in enumerate(self.convs):
            check_counts(f"front/convs/{i}", channels=conv.channels, kernel=conv.kernel, stride=conv.stride)

    def build(self, *, prepared: bool, rngs: Keys) -> "MelConvolutions":
        """Make the module."""
        return MelConvolutions(self, rngs=rngs)


class NormedConv(nnx.Module):
    """One convolution, a norm over channels, GELU."""

    def __init__(self, inputs: int, spec: Conv, *, rngs: Keys):
        self.conv = StridedConv(inputs, spec, bias=False, rngs=rngs)
        self.norm = LayerNorm(spec.channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Map `x: (batch, time, in)` to (batch, fewer, channels)."""
        return gelu(self.norm(self.conv(x)))


class MelConvolutions(nnx.Module):
    """Computes `ConvolvedMel`."""

    def __init__(self, part: ConvolvedMel, *, rngs: Keys):
        self.part = part
        inputs = (part.bins, *(conv.channels for conv in part.convs))
        each = zip(inputs[:-1], part.convs, strict=True)
        self.convs = nnx.List([NormedConv(before, conv, rngs=rngs) for before, conv in each])
        self.norm = LayerNorm(part.size, rngs=rngs)

    def __call__(self, samples: Array, lengths: Array | None, *, dtype: Any, padding: Padding) -> Featured:
        """Turn `samples: (batch, samples)`, of which `lengths` are valid, into features (batch, time, channels).

        No frame that is valid hears one that is not, for convolutions do not pad.
        """
        x = normalised(*mel_decades(samples, lengths, bins=self.part.bins)).astype(dtype)
        for conv in self.convs:
            x = conv(x)
        return Featured(self.norm(x), None if lengths is None else self.part.frames(lengths))


def normalised(mel: Array, valid: Array) -> Array:
    """Bring each bin of `mel: (batch, frames, bins)` to zero mean and unit variance over frames that are `valid`."""
    mean = mel.mean(1, keepdims=True, where=valid)
    variance = jnp.square(mel - mean).mean(1, keepdims=True, where=valid)
    return jnp.where(valid, (mel - mean) / jnp.sqrt(variance + NORM_EPSILON), jnp.zeros_like(mel))
