"""Speech as a microphone gives it, through a model chunk by chunk: log-Mel features are made inside the stream.

    state = start(arch, batch=1)
    for samples in …:  # (1, n · unit(arch)) at 16 kHz
        state, out = step(arch, params, stats, state, samples)
        use(out.last[out.valid])
    use(finish(arch, params, stats, state).last)

What comes out is what `jaxssl.inference.encode.encode` makes of the whole utterance. A model that takes waveforms gets
them as `jaxssl.inference.streaming` gives them. For one that takes log-Mel frames the last samples are held, for a
frame of 25 ms is complete only 15 ms behind the end of the 10 ms that it stands for.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from compress.errors import InputError
from jaxssl.data.logmel import SHIFT, WINDOW, Stats, logmel, normalize
from jaxssl.inference import streaming
from jaxssl.inference.streaming import Streamed
from jaxssl.models.arch import Arch, LogMel
from jaxssl.models.held import joined, nothing
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Params

State = dict[str, Any]  # "model", and of log-Mel models "held": the last samples, and which are some


def start(arch: Arch, batch: int = 1) -> State:
    """Return the state of that many streams before their first sample.

    Raises:
        InputError: the model cannot stream; the message names the part and the remedy.
    """
    model = streaming.start(arch, batch)
    held = late(arch) * arch.front.samples[0]
    return {"model": model, "held": nothing(batch, samples=(held,), valid=(held,))}


def step(
    arch: Arch,
    params: Params,
    stats: Stats | None,
    state: State,
    samples: Array,
    lengths: Array | None = None,
) -> tuple[State, Streamed]:
    """Run a chunk of every stream, in float32.

    Args:
        arch: what `params` is.
        params: on the device, so that they are not sent there for every chunk.
        stats: the corpus's, of a log-Mel model; None: features stay as they are, which is enough for timing only.
        state: of `start`, or of the chunk before.
        samples: (batch, samples) at 16 kHz, of a multiple of `unit(arch)`.
        lengths: (batch,), samples of each row before its stream's end; None: all, of streams that go on.

    Raises:
        InputError: the model cannot stream, or the chunk is of another form.
    """
    samples = jnp.asarray(samples)
    if samples.ndim != 2 or samples.shape[1] < 1 or samples.shape[1] % unit(arch):
        raise InputError(
            f"samples of shape {samples.shape}: give (batch, samples), of a multiple of {unit(arch)} samples, which "
            "make a frame"
        )
    ends = jnp.full(len(samples), samples.shape[1], jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    if isinstance(arch.front, LogMel):
        chunk, valid, held = _frames(arch.front, stats, state["held"], samples, ends)
    else:
        chunk, valid, held = samples, frame_mask(ends, samples.shape[1]), {}
    model, out = streaming.advance(arch, params, state["model"], chunk, valid)
    return {"model": model, "held": held}, out


def finish(arch: Arch, params: Params, stats: Stats | None, state: State) -> Streamed:
    """End all streams: return what they still hold, (batch, `delay(arch)`, width); a row's may have ended before.

    Raises:
        InputError: the model cannot stream.
    """
    batch = jax.tree.leaves(state)[0].shape[0] if jax.tree.leaves(state) else 1
    silence = jnp.zeros((batch, max(delay(arch), 1) * unit(arch)))
    return step(arch, params, stats, state, silence, jnp.zeros(batch, jnp.int32))[1]


def stream(
    arch: Arch, params: Params, stats: Stats | None, samples: Array, size: int, lengths: Array | None = None
) -> Streamed:
    """Run whole utterances in chunks of `size` samples; return what `encode` does, (batch, frames, …).

    Args:
        arch: what `params` is.
        params: its parameters.
        stats: as `step` takes them.
        samples: (batch, samples).
        size: of a chunk, a multiple of `unit(arch)`.
        lengths: (batch,), valid samples of each row; None: all.

    Raises:
        InputError: the model cannot stream, or the size is no multiple of `unit(arch)`.
    """
    state, found = start(arch, samples.shape[0]), []
    for chunk, valid in chunks(samples, size, lengths):
        state, out = step(arch, params, stats, state, chunk, valid)
        found.append(out)
    if delay(arch):
        found.append(finish(arch, params, stats, state))
    whole: Streamed = jax.tree.map(lambda *each: jnp.concatenate(each, axis=1), *found)
    behind, frames = delay(arch), arch.reduced(arch.front.frames(samples.shape[1]))
    cut: Streamed = jax.tree.map(lambda each: each[:, behind : behind + frames], whole)
    return cut


def chunks(samples: Array, size: int, lengths: Array | None = None) -> Iterator[tuple[Array, Array]]:
    """Cut utterances into chunks for `step`: pairs of samples, the last padded with zeros, and valid ones of each row.

    Args:
        samples: (batch, samples).
        size: of a chunk, in samples.
        lengths: (batch,), valid samples of each row; None: all.
    """
    batch, count = samples.shape
    ends = jnp.full(batch, count, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    for begin in range(0, count, size):
        part = samples[:, begin : begin + size]
        yield jnp.pad(part, ((0, 0), (0, size - part.shape[1]))), jnp.clip(ends - begin, 0, size)


def unit(arch: Arch) -> int:
    """Count the samples from one frame of the output to the next, of which a chunk has a multiple."""
    return arch.front.samples[0] * arch.time_reduction


def samples_of(arch: Arch, ms: float) -> int:
    """Count the samples of a chunk of so many milliseconds.

    Raises:
        InputError: they are no whole number of frames.
    """
    return streaming.inputs_of(arch, ms) // streaming.unit(arch) * unit(arch)


def delay(arch: Arch) -> int:
    """Count the frames of the output by which each one comes late."""
    return late(arch) // arch.time_reduction + streaming.delay(arch)


def late(arch: Arch) -> int:
    """Count the frames by which log-Mel features come late, a multiple of those that the model makes into one."""
    if not isinstance(arch.front, LogMel):
        return 0
    frames = -(-(WINDOW - SHIFT) // arch.front.samples[0])
    return -(-frames // arch.time_reduction) * arch.time_reduction


@partial(jax.jit, static_argnums=0)
def _frames(front: LogMel, stats: Stats | None, held: State, samples: Array, ends: Array) -> tuple[Array, Array, State]:
    """Make the frames that a chunk completes: (batch, frames, bins × stack), which are some, and what is held.

    A frame is some where its first window of 25 ms is whole; later ones of it that are not count as zeros.
    """
    count = samples.shape[1] // SHIFT
    whole, kept = joined(held, "samples", samples.astype(jnp.float32))
    seen, also = joined(held, "valid", frame_mask(ends, samples.shape[1]))
    features = logmel(whole[:, : (count - 1) * SHIFT + WINDOW], bins=front.bins)
    if stats is not None:
        features = normalize(features, stats)
    last = (count - 1) * SHIFT
    valid = seen[:, : last + 1 : SHIFT] & seen[:, WINDOW - 1 : last + WINDOW : SHIFT]
    features = jnp.where(valid[..., None], features, jnp.zeros_like(features))
    frames = features.reshape(len(samples), count // front.stack, front.size)
    return frames, valid[:, :: front.stack], {**kept, **also}
