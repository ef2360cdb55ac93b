"""Utterances as Whisper hears them: in windows of 30 s, silence behind the speech, or in shorter ones.

A shorter window gives fewer frames, and these have the first positions: the encoder's cost falls with the window, that
of attention with its square. An utterance that is longer than the window is heard in the whole one.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from experiments.transcripts.spoken import Spoken
from jaxssl.inference.latency import Load, Program
from jaxssl.inference.prepack import prepared
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.arch import Whisper as Front
from jaxssl.models.model import Params, apply

TOGETHER = 8  # utterances that go to the decoder at once
Silence = Literal["waveform", "features"]  # zeros behind an utterance's samples, or behind its log-Mel


@dataclass(frozen=True)
class Window:
    """How long what the encoder hears is.

    Attributes:
        samples: of utterances that fit.
        whole: of longer ones.
    """

    samples: int
    whole: int

    def of(self, samples: int) -> int:
        """Return the window of an utterance of so many samples."""
        return self.samples if samples <= self.samples else self.whole

    def sizes(self, spoken: Sequence[Spoken]) -> dict[int, float]:
        """Return the lengths that utterances are heard in, in samples, and the share of each."""
        share = float(np.mean([self.of(len(each.samples)) == self.samples for each in spoken]))
        parts = {self.samples: share} if self.samples == self.whole else {self.samples: share, self.whole: 1 - share}
        return {size: part for size, part in parts.items() if part > 0}


def whole(arch: Arch) -> int:
    """Return the samples of the longest window of a Whisper encoder: 480,000 for 30 s.

    Raises:
        InputError: the model is no such encoder.
    """
    if not isinstance(arch.front, Front):
        raise InputError(
            f"its front end is {arch.front.kind}; only encoders of Whisper have a decoder that writes words"
        )
    return arch.front.longest * arch.front.hop


def window(arch: Arch, seconds: float | None) -> Window:
    """Return a window of so many seconds; None: the whole one.

    Raises:
        InputError: it is longer than the positions that there are.
    """
    most = whole(arch)
    size = most if seconds is None else round(seconds * arch.front.rate)
    if not 0 < size <= most:
        raise InputError(f"input={seconds:g}: the encoder has positions for {most / arch.front.rate:g} s at most")
    return Window(size // arch.front.hop * arch.front.hop, most)


@dataclass(frozen=True)
class Listener:
    """An encoder compiled for one length of window, to hear with and to be timed.

    Attributes:
        hear: encodes (samples,) float32 of at most that length: (frames, width).
        program: the same, on noise.
    """

    hear: Callable[[np.ndarray], np.ndarray]
    program: Program


def listener(arch: Arch, params: Params, samples: int, silence: Silence = "waveform") -> Listener:
    """Compile an encoder once for a window; weights are in the form that runs fastest here.

    Args:
        arch: of the encoder.
        params: its parameters.
        samples: of the window.
        silence: what stands behind a shorter utterance: zeros behind the waveform, of which log-Mel makes quiet
            frames, as OpenAI's program and transformers have it and Whisper was trained; or zeros behind the log-Mel,
            as faster-whisper has it.
    """
    arch, params = prepared(arch, params)
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((1, samples), np.float32))

    def forward(params: Params, samples: jax.Array, lengths: jax.Array) -> jax.Array:
        if silence == "features":
            return apply(arch, params, samples, lengths, padding="faster_whisper").end[0]
        return apply(arch, params, samples).end[0]

    full = jnp.asarray([samples])
    begin = time.perf_counter()
    compiled = jax.jit(forward, keep_unused=True).lower(params, noise, full).compile()
    compile_s = time.perf_counter() - begin
    params = jax.device_put(params)

    def hear(row: np.ndarray) -> np.ndarray:
        padded = jnp.asarray(np.pad(row, (0, samples - len(row)))[None])
        return np.asarray(compiled(params, padded, jnp.asarray([len(row)])), np.float32)[0]

    def run() -> None:
        jax.block_until_ready(compiled(params, noise, full))

    begin = time.perf_counter()
    run()
    return Listener(hear, Program(run, Load(samples / SAMPLE_RATE), compile_s, time.perf_counter() - begin, None))


def hear_all(
    listeners: Mapping[int, Listener], spoken: Sequence[Spoken], window: Window
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Encode all utterances; yield eight of one length together: their numbers and frames (batch, time, width)."""
    for size, each in listeners.items():
        mine = [i for i, one in enumerate(spoken) if window.of(len(one.samples)) == size]
        for start in range(0, len(mine), TOGETHER):
            numbers = mine[start : start + TOGETHER]
            yield numbers, np.stack([each.hear(spoken[i].samples) for i in numbers])
