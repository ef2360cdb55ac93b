"""Whisper's front end: its own log-Mel of samples, and two convolutions."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from compress.address import Axis
from compress.errors import InputError
from jaxssl.models.fronts.samples import Whole
from jaxssl.models.fronts.strided_conv import Conv, StridedConv
from jaxssl.models.keys import Keys
from jaxssl.models.layers import frame_mask, gelu
from jaxssl.models.names import CONV, dense_rules
from jaxssl.models.part import Arrays, Featured, Names, Padding, check_counts

WINDOW, SHIFT = 400, 160  # samples: 25 ms, 10 ms
FLOOR = 1e-10  # of energies
RANGE = 8.0  # decades below an utterance's loudest energy that are heard
NAMES = (
    *dense_rules(r"encoder\.conv1", "front/convs/0", CONV),
    *dense_rules(r"encoder\.conv2", "front/convs/1", CONV),
)


@dataclass(frozen=True)
class Whisper(Whole):
    """Log-Mel frames every 10 ms and two convolutions of three taps, the second of stride 2 (Radford et al. 2022).

    Attributes:
        width: channels of the second convolution, as many as the model is wide.
        hidden: channels of the first one.
        bins: Mel bins, 80 or, of large-v3, 128.
        longest: frames that there are positions for; 1500 are 30 s.
    """

    width: int
    hidden: int
    bins: int = 80
    longest: int = 1500
    kind: Literal["whisper"] = "whisper"

    features: ClassVar = False  # whether inputs are features, normalised by a corpus's statistics
    because: ClassVar = (
        "Whisper's log-Mel is set against an utterance's loudest frame; use a log-Mel or waveform model to stream"
    )
    pieces: ClassVar = 2  # numbered, with arrays of their own
    rate: ClassVar = 16_000  # inputs (samples) a second
    hop: ClassVar = 2 * SHIFT  # inputs from one frame to the next
    # Inputs that must be there for a frame to be. What it hears, 1040 samples around the first of these, may reach over
    # both ends of a waveform.
    field: ClassVar = SHIFT
    samples: ClassVar = (2 * SHIFT, SHIFT)  # hop and field in samples, which are the inputs
    centre: ClassVar = 0  # sample in the middle of the first frame: half of what it hears is before the beginning
    ahead: ClassVar = 0
    penalty: ClassVar = 0.0  # pre-training has no term of it
    spans: ClassVar = (0.8, 10)  # masked in pre-training: share of frames, frames of a span
    names: ClassVar[Names] = {"fairseq": NAMES, "huggingface": NAMES}

    @property
    def most(self) -> int:
        """Inputs that it takes at most: the last one that there is a position for."""
        return (2 * self.longest + 1) * SHIFT - 1

    @property
    def size(self) -> int:
        """Width of the features handed to the encoder."""
        return self.width

    @property
    def convs(self) -> tuple[Conv, Conv]:
        """Both convolutions; each pads one frame of zeros at either end."""
        return Conv(self.hidden, 3, 1), Conv(self.width, 3, 2)

    def frames(self, samples: Any) -> Any:
        """Count the frames that `samples` samples give (an int or an array of ints)."""
        return (samples // SHIFT + 1) // 2

    def heard(self, inputs: Any) -> Any:
        """Count the frames of that many inputs, which are samples."""
        return self.frames(inputs)

    def shape(self, samples: int) -> tuple[int, ...]:
        """Return the shape of one utterance's inputs."""
        return (samples,)

    def macs(self, samples: int) -> int:
        """Count the multiply-accumulates of one utterance's convolutions; as elsewhere, log-Mel is not counted."""
        first, second = self.convs
        inner = samples // SHIFT * first.kernel * self.bins * first.channels
        return inner + self.frames(samples) * second.kernel * first.channels * second.channels

    def activation_bytes(self, samples: int, itemsize: int) -> float:
        """Return the bytes that one utterance leaves for the backward pass: 3 · itemsize an entry."""
        return 3.0 * itemsize * (samples // SHIFT * self.hidden + self.frames(samples) * self.width)

    def channels(self, project: str | None) -> tuple[Axis, ...]:
        """List the first convolution's channels, which only the second one reads."""
        leaves = (("front/convs/0/kernel", 2), ("front/convs/0/bias", 0), ("front/convs/1/kernel", 1))
        return (Axis("front/convs/0/channels", self.hidden, leaves, "front/convs/1"),)

    def read(self, arrays: Arrays) -> "Whisper":
        """Return the front end that these arrays are; how long an input may be is this one's."""
        bins, hidden = arrays["convs"]["0"]["kernel"].shape[1:]
        return replace(self, width=arrays["convs"]["1"]["kernel"].shape[2], hidden=hidden, bins=bins)

    def check(self) -> None:
        """Refuse convolutions without channels, no bins, and no positions.

        Raises:
            InputError: the message says which.
        """
        check_counts("front", width=self.width, hidden=self.hidden, bins=self.bins, longest=self.longest)

    def check_inputs(self, inputs: Array, reduction: int) -> None:
        """Refuse what is no batch of waveforms of at most `longest` frames; `reduction` frames become one later.

        Raises:
            InputError: the inputs are of another form, too short for one frame, or too long.
        """
        super().check_inputs(inputs, reduction)
        frames = self.frames(inputs.shape[1])
        if frames > self.longest:
            seconds = self.longest * self.hop / self.rate
            raise InputError(
                f"{inputs.shape[1]} samples give {frames} frames, the model has {self.longest} positions; cut them to "
                f"pieces of {seconds:g} s"
            )

    def build(self, *, prepared: bool, rngs: Keys) -> "Listener":
        """Make the module."""
        return Listener(self, rngs=rngs)


class Listener(nnx.Module):
    """Computes `Whisper`.

    Whisper itself hears 30 s, shorter speech with silence behind it: `lengths` None, and samples so padded, as OpenAI's
    program and transformers have it. With lengths, an utterance ends where it ends; with lengths and the padding
    "faster_whisper", zeros stand behind its log-Mel and are heard.
    """

    def __init__(self, part: Whisper, *, rngs: Keys):
        self.part = part
        inputs = (part.bins, part.hidden)
        each = zip(inputs, part.convs, strict=True)
        self.convs = nnx.List([StridedConv(before, conv, bias=True, rngs=rngs) for before, conv in each])

    def __call__(self, samples: Array, lengths: Array | None, *, dtype: Any, padding: Padding) -> Featured:
        """Turn `samples: (batch, samples)`, of which `lengths` are valid, into features (batch, time, channels)."""
        if padding == "faster_whisper" and lengths is not None:
            x, lengths = zeros_behind_mel(samples, lengths, bins=self.part.bins).astype(dtype), None
        else:
            x = whisper_mel(samples, lengths, bins=self.part.bins).astype(dtype)
        first, second = self.convs
        x = self._silenced(gelu(first(_edged(x))), lengths)
        x = gelu(second(_edged(x)))
        return Featured(x, None if lengths is None else self.part.frames(lengths))

    def _silenced(self, x: Array, lengths: Array | None) -> Array:
        """Zero what stands behind each row's end, as the next convolution pads."""
        return x if lengths is None else jnp.where(frame_mask(lengths // SHIFT, x.shape[1])[..., None], x, 0 * x)


def whisper_mel(samples: Array, lengths: Array | None = None, *, bins: int = 80) -> Array:
    """Compute Whisper's log-Mel: (batch, samples // 160, bins), float32; zeros behind each row's end.

    Of `mel_decades`, what is 8 decades below the loudest of an utterance is raised to that, and 4 + x divided by 4
    (Radford et al. 2022, §2.2, and the authors' code).

    Args:
        samples: (batch, samples) in [-1, 1] at 16 kHz.
        lengths: (batch,), valid samples of each row; None: all.
        bins: Mel bins.
    """
    decades, valid = mel_decades(samples, lengths, bins=bins)
    loudest = decades.max((1, 2), keepdims=True, where=valid, initial=math.log10(FLOOR))
    return jnp.where(valid, (jnp.maximum(decades, loudest - RANGE) + 4) / 4, jnp.zeros_like(decades))


def mel_decades(samples: Array, lengths: Array | None = None, *, bins: int = 80) -> tuple[Array, Array]:
    """Compute log10 of Mel energies, (batch, samples // 160, bins), float32, and which are valid, (batch, frames, 1).

    Frames are centred on every 160th sample, the waveform mirrored at its ends; Hann window of 400, power spectrum,
    Slaney's triangles. Arguments as of `whisper_mel`.
    """
    batch, total = samples.shape
    count = total // SHIFT
    ends = jnp.full(batch, total) if lengths is None else lengths
    at = (jnp.arange(count) * SHIFT - WINDOW // 2)[:, None] + jnp.arange(WINDOW)[None]
    at = jnp.abs(at).reshape(1, -1)
    last = ends[:, None] - 1
    at = jnp.clip(jnp.where(at > last, 2 * last - at, at), 0, total - 1)
    frames = jnp.take_along_axis(samples.astype(jnp.float32), at, 1).reshape(batch, count, WINDOW)
    spectrum = jnp.fft.rfft(frames * jnp.asarray(hann(), jnp.float32)[None, None])
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energies = jnp.matmul(power, jnp.asarray(slaney_triangles(bins)), precision=jax.lax.Precision.HIGHEST)
    decades = jnp.log10(jnp.maximum(energies, FLOOR))
    return decades, frame_mask(ends // SHIFT, count)[..., None]


def zeros_behind_mel(samples: Array, lengths: Array, *, bins: int = 80) -> Array:
    """Compute log-Mel as faster-whisper 1.2 does: as `whisper_mel`, (batch, samples // 160, bins).

    Each utterance gets 10 ms of silence, the last frame of its log-Mel is left out, and zeros stand behind the others,
    which are not what silence gives: 0 is an energy of 10⁻⁴, and silence is the utterance's loudest less 8 decades.
    """
    mel = whisper_mel(jnp.pad(samples, ((0, 0), (0, SHIFT))), lengths + SHIFT, bins=bins)[:, :-1]
    return jnp.where(frame_mask(lengths // SHIFT, mel.shape[1])[..., None], mel, jnp.zeros_like(mel))


def hann() -> np.ndarray:
    """Return the window of a frame, (400,), one period of a raised cosine."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


@lru_cache
def slaney_triangles(bins: int) -> np.ndarray:
    """Return the Mel filters, (201, bins) float32: evenly spaced on Slaney's scale from 0 to 8 kHz, of equal area.

    That scale is linear to 1 kHz, 15 Mel, and logarithmic above it, 27 Mel for a factor of 6.4 (Auditory Toolbox).
    """
    top = 15 + 27 * math.log(8) / math.log(6.4)
    mel = np.linspace(0, top, bins + 2)
    edges = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))
    hertz = np.arange(WINDOW // 2 + 1)[:, None] * 16_000 / WINDOW
    rising = (hertz - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - hertz) / np.diff(edges)[1:]
    return (np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


def _edged(x: Array) -> Array:
    """Add a frame of zeros at both ends of `x: (batch, time, channels)`."""
    return jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
