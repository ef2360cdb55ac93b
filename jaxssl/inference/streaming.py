"""Speech through a model as it comes, chunk by chunk; what comes out is what the whole utterance gives.

    state = start(arch, batch=1)
    for chunk in …:  # (1, n · unit(arch), …)
        state, out = step(arch, params, state, chunk)
        use(out.last[out.valid])
    use(finish(arch, params, state).last)

A frame comes out once all is there that it hears: `lookahead` says how far that is. Each chunk gives as many frames as
it brings, `delay` frames later, so that a program is compiled for each size of chunk and no more; at the beginning and
behind the end stand frames that are none, where `valid` is false.

Every array of a state has the streams on its first axis, and no stream hears another: one that is over gives its row to
a new one by the same row of `start`'s state.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from compress.errors import InputError
from jaxssl.models.arch import SAMPLE_RATE, Arch, Attention
from jaxssl.models.checks import check_arch
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Params, check_params, restored
from jaxssl.models.stepping import State, check_stream, delay, memory, stepped

__all__ = [
    "Lookahead",
    "Streamed",
    "advance",
    "causal",
    "chunks",
    "delay",
    "finish",
    "inputs_of",
    "limited",
    "lookahead",
    "period",
    "start",
    "step",
    "stream",
    "unit",
]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Streamed:
    """What a chunk gives.

    Attributes:
        last: the encoder's output, (batch, frames, width).
        logits: (batch, frames, clusters or codewords), or None for a model without a head.
        valid: (batch, frames), false where a row has no such frame, at a stream's beginning and behind its end.
    """

    last: Array
    logits: Array | None
    valid: Array


@dataclass(frozen=True)
class Lookahead:
    """What a frame hears behind its own end.

    Attributes:
        frames: of the output that come after it, of which it hears something or all.
        ms: the same in milliseconds, to the last sample that it hears.
    """

    frames: int
    ms: float


def start(arch: Arch, batch: int = 1) -> State:
    """Return the state of that many streams before their first input.

    Raises:
        InputError: the model cannot stream; the message names the part and the remedy.
    """
    check_arch(arch)
    check_stream(arch)
    if batch < 1:
        raise InputError(f"{batch} streams; give 1 or more")
    return memory(arch, batch)


def step(
    arch: Arch, params: Params, state: State, chunk: Array, lengths: Array | None = None
) -> tuple[State, Streamed]:
    """Run a chunk of every stream, in float32.

    Args:
        arch: what `params` is.
        params: on the device, so that they are not sent there for every chunk.
        state: of `start`, or of the chunk before.
        chunk: (batch, samples) at 16 kHz, or (batch, frames, bins × stack) normalised log-Mel; of a multiple of
            `unit(arch)` inputs.
        lengths: (batch,), inputs of each row before its stream's end; None: all, of streams that go on.

    Raises:
        InputError: the model cannot stream, or the chunk is of another form.
    """
    check_stream(arch)
    chunk = jnp.asarray(chunk)
    arch.front.check_form(chunk)
    if chunk.shape[1] < 1 or chunk.shape[1] % unit(arch):
        more = max(chunk.shape[1] + -chunk.shape[1] % unit(arch), unit(arch))
        raise InputError(
            f"a chunk of {chunk.shape[1]} inputs is no multiple of {unit(arch)}, which make a frame; give {more}"
        )
    ends = jnp.full(len(chunk), chunk.shape[1], jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    return advance(arch, params, state, chunk, frame_mask(ends, chunk.shape[1]))


def finish(arch: Arch, params: Params, state: State) -> Streamed:
    """End all streams: return what they still hold, (batch, `delay(arch)`, width); a row's may have ended before.

    Raises:
        InputError: the model cannot stream.
    """
    held = jax.tree.leaves(state)
    batch = held[0].shape[0] if held else 1
    silence = jnp.zeros((batch, max(delay(arch), 1) * unit(arch), *arch.front.shape(0)[1:]))
    return advance(arch, params, state, silence, jnp.zeros(silence.shape[:2], bool))[1]


def chunks(arch: Arch, inputs: Array, size: int, lengths: Array | None = None) -> Iterator[tuple[Array, Array]]:
    """Cut utterances into chunks for `step`: pairs of inputs, the last padded with zeros, and valid ones of each row.

    Args:
        arch: of the model.
        inputs: (batch, inputs, …).
        size: of a chunk, in inputs.
        lengths: (batch,), valid inputs of each row; None: all.

    Raises:
        InputError: the size is no multiple of `unit(arch)`.
    """
    if size < 1 or size % unit(arch):
        raise InputError(f"chunks of {size} inputs; give a multiple of {unit(arch)}, which make a frame")
    batch, count = inputs.shape[:2]
    ends = jnp.full(batch, count, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    for begin in range(0, count, size):
        part = inputs[:, begin : begin + size]
        widths = [(0, 0), (0, size - part.shape[1]), *[(0, 0)] * (inputs.ndim - 2)]
        yield jnp.pad(part, widths), jnp.clip(ends - begin, 0, size)


def stream(arch: Arch, params: Params, inputs: Array, size: int, lengths: Array | None = None) -> Streamed:
    """Run whole utterances in chunks of `size` inputs; return what `apply` does, (batch, frames, …).

    Raises:
        InputError: the model cannot stream, or the size is no multiple of `unit(arch)`.
    """
    state, found = start(arch, inputs.shape[0]), []
    for chunk, valid in chunks(arch, inputs, size, lengths):
        state, out = step(arch, params, state, chunk, valid)
        found.append(out)
    if delay(arch):
        found.append(finish(arch, params, state))
    whole: Streamed = jax.tree.map(lambda *each: jnp.concatenate(each, axis=1), *found)
    late, frames = delay(arch), arch.reduced(arch.front.heard(inputs.shape[1]))
    cut: Streamed = jax.tree.map(lambda each: each[:, late : late + frames], whole)
    return cut


def unit(arch: Arch) -> int:
    """Count the inputs from one frame of the output to the next, of which a chunk has a multiple."""
    return arch.front.hop * arch.time_reduction


def period(arch: Arch) -> float:
    """Return the milliseconds from one frame of the output to the next."""
    return 1e3 * arch.front.samples[0] * arch.time_reduction / SAMPLE_RATE


def inputs_of(arch: Arch, ms: float) -> int:
    """Count the inputs of a chunk of so many milliseconds.

    Raises:
        InputError: they are no whole number of frames.
    """
    frames = ms / period(arch)
    if frames < 1 or abs(frames - round(frames)) > 1e-6:
        good = max(round(frames), 1) * period(arch)
        raise InputError(f"--chunk {ms:g}: no multiple of a frame of {period(arch):g} ms; give {good:g}")
    return round(frames) * unit(arch)


def lookahead(arch: Arch) -> Lookahead:
    """Say how far behind its own end a frame hears: the front end's field, positions, and attention's right context.

    Raises:
        InputError: the model cannot stream.
    """
    check_stream(arch)
    hop, field = arch.front.samples
    behind = arch.position.ahead + arch.time_reduction * sum(layer.mixer.ahead for layer in arch.layers)
    samples = max(field - hop, 0) + behind * hop
    return Lookahead(-(-samples // (hop * arch.time_reduction)), 1e3 * samples / SAMPLE_RATE)


def limited(arch: Arch, *, left: int, right: int) -> Arch:
    """Limit the context of all attention to so many frames before and after its own.

    It is another function of the same parameters: a model that was not trained so loses by it.

    Raises:
        InputError: a number is negative.
    """
    layers = tuple(
        replace(layer, mixer=replace(layer.mixer, left=left, right=right))
        if isinstance(layer.mixer, Attention) and not layer.mixer.reuse
        else layer
        for layer in arch.layers
    )
    arch = replace(arch, layers=layers)
    check_arch(arch)
    return arch


def causal(arch: Arch, params: Params) -> tuple[Arch, Params]:
    """Let positions hear no frame of the future, and as before those of the past that their taps reach.

    A model that was not trained so loses by it; the taps that heard the future are free to learn a farther past.
    """
    found, arrays = arch.position.of_the_past(params.get("position", {}))
    return (arch, params) if found == arch.position else (replace(arch, position=found), {**params, "position": arrays})


@partial(jax.jit, static_argnums=0)
def advance(arch: Arch, params: Params, state: State, chunk: Array, valid: Array) -> tuple[State, Streamed]:
    """Run a chunk as `step` does, of which any stretch may be some: `valid: (batch, inputs)`, bool.

    Inputs before a stream's first one are none, too, where what makes them is late.
    """
    check_params(arch, params)
    last, logits, valid, state = stepped(restored(arch, params), state, chunk.astype(jnp.float32), valid)
    return state, Streamed(last, logits, valid)
