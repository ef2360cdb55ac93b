"""Speech of any length through a model: waveforms or features in, layers out, by a few compiled programs.

`encode` is the forward pass from waveforms, whichever front end the model has. `hear` is the same compiled, for a
padded batch and the layers that are wanted. `encode_all` takes utterances of any length: similar lengths run together,
and where a limit is set, what is longer runs in pieces.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError
from jaxssl.data.buckets import choose, plan
from jaxssl.data.logmel import WINDOW, Stats, logmel, normalize, stack, windows
from jaxssl.data.padding import pad
from jaxssl.inference.firing_room import Held, held, released, roomed
from jaxssl.inference.prepack import prepared
from jaxssl.models import choice
from jaxssl.models.arch import SAMPLE_RATE, Arch, LogMel
from jaxssl.models.model import Output, Params, apply, restored
from jaxssl.models.part import Featured

LONGEST = 30  # seconds of a piece: attention's memory grows with the square of the frames, and few models heard more

# The model's output, all hidden layers, what the output layer says, or one hidden layer (0: input of the first).
Layers = Literal["last", "all", "logits"] | int


@dataclass(frozen=True)
class Timing:
    """How a model reads its input: a frame sees `field` steps of it, the next frame the same `hop` steps later.

    Attributes:
        hop: input steps from one frame to the next.
        field: input steps that a frame sees.
        rate: input steps a second.
    """

    hop: int
    field: int
    rate: int


def timing(arch: Arch, *, features: bool = True) -> Timing:
    """Return hop and receptive field of a model's frames, those that became one included.

    Args:
        arch: of the model.
        features: steps of a log-Mel model are its stacked frames; False: samples, as of waveform models in any case.
    """
    front, more = arch.front, arch.joined  # a convolution of as many taps
    hop, field, rate = (front.hop, front.field, front.rate) if features else (*front.samples, SAMPLE_RATE)
    return Timing(hop * more, field + (more - 1) * hop, rate)


def front_inputs(arch: Arch, samples: Array, lengths: Array | None, stats: Stats | None) -> tuple[Array, Array | None]:
    """Turn waveforms into what a model's front end takes, and their valid lengths; waveform models take them as is."""
    return mel_inputs(arch.front, samples, lengths, stats) if isinstance(arch.front, LogMel) else (samples, lengths)


def mel_inputs(front: LogMel, samples: Array, lengths: Array | None, stats: Stats | None) -> tuple[Array, Array | None]:
    """Turn waveforms into log-Mel frames, (batch, frames, bins × stack), and their valid lengths.

    Without `stats` (mean and deviation of each bin) the features stay as they are, which is enough for timing only.
    """
    features = logmel(samples, bins=front.bins)
    if stats is not None:
        features = normalize(features, stats)
    frames = None if lengths is None else windows(lengths)
    inputs, stacked = stack(features, frames, n=front.stack)
    return inputs, None if lengths is None else stacked


def encode(
    arch: Arch,
    params: Params,
    inputs: Array,
    lengths: Array | None = None,
    *,
    stats: Stats | None = None,
    dtype: Any = jnp.float32,
) -> Output:
    """Run a model on waveforms (batch, samples) at 16 kHz, or on a log-Mel model's features (batch, frames, size).

    Args:
        arch: the model.
        params: its parameters.
        inputs: padded rows.
        lengths: (batch,), valid samples or frames of each row; None: all.
        stats: the corpus's, for log-Mel models that get waveforms; see `mel_inputs`.
        dtype: of the computation.
    """
    if inputs.ndim == 2:
        inputs, lengths = front_inputs(arch, inputs, lengths, stats)
    return apply(arch, params, inputs, lengths, dtype=dtype)


@partial(jax.jit, static_argnames=("arch", "layers", "dtype"))
def hear(
    arch: Arch,
    params: Params,
    stats: Stats | None,
    inputs: Array,
    lengths: Array,
    *,
    layers: Layers = "all",
    dtype: Any = jnp.float32,
) -> tuple[Array, Array]:
    """Encode a padded batch by a compiled program, one for each shape of batch.

    Returns:
        The layers that are wanted, (batch, frames, width), of "all" (layers, batch, frames, width); and the valid
        frames of each row, (batch,).

    Raises:
        InputError: logits of a model without an output layer are wanted, or all layers of one whose layers differ in
            their number of frames.
    """
    return _layers(arch, encode(arch, params, inputs, lengths, stats=stats, dtype=dtype), layers)


@partial(jax.jit, static_argnames=("arch", "dtype"))
def hear_front(
    arch: Arch, params: Params, stats: Stats | None, inputs: Array, lengths: Array, *, dtype: Any = jnp.float32
) -> Featured:
    """Run the front end alone, which models may have in common, on what `hear` takes."""
    taken = front_inputs(arch, inputs, lengths, stats) if inputs.ndim == 2 else (inputs, lengths)
    return restored(arch, params).featurise(*taken, jnp.dtype(dtype), "independent")


@partial(jax.jit, static_argnames=("arch", "layers"))
def hear_behind(arch: Arch, params: Params, heard: Featured, *, layers: Layers = "all") -> tuple[Array, Array]:
    """Run what stands behind the front end; return what `hear` does.

    Raises:
        InputError: as `hear` does.
    """
    return _layers(arch, restored(arch, params).encode(heard), layers)


def hear_fired(
    arch: Arch,
    params: Params,
    stats: Stats | None,
    inputs: Array,
    lengths: Array,
    *,
    layers: Literal["last", "logits"] = "last",
    dtype: Any = jnp.float32,
) -> tuple[Array, Array]:
    """Encode a padded batch as `hear` does, with no more room for what fires than it needs (`inference.firing_room`).

    It is not one program: the host waits until frames are weighed, so it cannot be traced.

    Raises:
        InputError: logits of a model without an output layer are wanted.
    """
    if layers == "logits" and arch.head is None:
        raise _headless()
    before = _held(arch, params, stats, inputs, lengths, dtype)
    return released(roomed(arch, int(before.needed)), params, before, layers)


@partial(jax.jit, static_argnums=(0, 5))
def _held(arch: Arch, params: Params, stats: Stats | None, inputs: Array, lengths: Array, dtype: Any) -> Held:
    if inputs.ndim == 2:
        return held(arch, params, *front_inputs(arch, inputs, lengths, stats), dtype)
    return held(arch, params, inputs, lengths, dtype)


def encode_all(
    arch: Arch,
    params: Params,
    utterances: Sequence[np.ndarray],
    *,
    stats: Stats | None = None,
    layers: Layers = "last",
    dtype: Any = jnp.float32,
    batch: int | None = None,
    programs: int = 8,
    waste: float = 0.1,
    edges: Sequence[int] | None = None,
    longest: float | None = None,
    prepare: bool = True,
) -> Iterator[tuple[int, np.ndarray]]:
    """Run a model on every utterance, short ones first, and yield each one's number and layers as they come.

    What an utterance gives does not depend on what runs with it, but for rounding.

    Args:
        arch: the model.
        params: its parameters.
        utterances: waveforms (samples,) at 16 kHz, or a log-Mel model's features (frames, bins × stack).
        stats: the corpus's, for log-Mel models that get waveforms.
        layers: which are wanted.
        dtype: of the computation; "auto": the quicker one here (`jaxssl.models.choice.quickest`).
        batch: utterances that run together; None: what suits the device.
        programs: lengths that are padded to at most, each with a program that is compiled; of a model that fires, with
            one for each room that its frames need there (`inference.firing_room`).
        waste: share of the padded lengths that may be padding, if so many programs are enough for it.
        edges: lengths to pad to, ascending, instead of those that fit these utterances best; the programs of several
            calls are then the same ones.
        longest: seconds; longer utterances run in pieces that do not see each other, and no frame is lost
            (`LONGEST` where memory must not grow). None: every utterance runs whole.
        prepare: bring the weights into the form that runs fastest here (`jaxssl.inference.prepack`), which rounds
            otherwise.

    Yields:
        Index of the utterance and its layers, (frames, width), of "all" (layers, frames, width).

    Raises:
        InputError: an utterance is no waveform, shorter than 25 ms or not finite, more of it fires than there is room
            for (when it is its turn), or `batch` is below 1.
    """
    batch, dtype = choice.together() if batch is None else batch, choice.resolved(dtype)
    _check_all(arch, utterances, batch)
    if not utterances:
        return iter(())
    parts = [(i, part) for i, whole in enumerate(utterances) for part in _parts(arch, whole, longest)]
    lengths = np.asarray([len(part) for _, part in parts])
    edges = choose(lengths, batch_size=batch, most=programs, waste=waste) if edges is None else edges
    planned = plan(lengths, edges, batch_size=batch, rng=None, fill=True)
    arch, params = prepared(arch, params, dtype=dtype) if prepare else (arch, params)
    run = partial(_program(arch, layers), arch, params, stats, layers=layers, dtype=dtype)
    owners, inputs = [i for i, _ in parts], [part for _, part in parts]
    ran = (
        (int(row), found)
        for bucket, rows in zip(planned.buckets, planned.rows, strict=True)
        for row, found in _together(run, inputs, rows[rows >= 0], edges[bucket], len(rows))
    )
    return _joined(_fitting(arch, ran, owners), owners)


def pieces(
    inputs: np.ndarray, timing: Timing, *, longest: float = LONGEST, frames: int | None = None, multiple: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Cut inputs that are longer than `longest` seconds so that no frame is lost; yield (inputs, frames).

    Args:
        inputs: (steps, …).
        timing: of the model.
        longest: seconds of a piece at most.
        frames: that the whole gives; None: as many as see no padding.
        multiple: frames that a later part of the model makes one, which no cut parts.
    """
    hop, field = timing.hop, timing.field
    total = (len(inputs) - field) // hop + 1 if frames is None else frames
    most = (round(longest * timing.rate) - field) // hop + 1
    most = most - most % multiple if most > multiple else most
    for first in range(0, total, most):
        count = min(most, total - first)
        yield inputs[first * hop : (first + count - 1) * hop + field], count


def _layers(arch: Arch, out: Output, layers: Layers) -> tuple[Array, Array]:
    """Pick the layers that are wanted, and the valid frames of each row."""
    match layers:
        case "last":
            return out.end
        case "all":
            _check_one_rate(arch, out)
            return jnp.stack(out.aligned), out.last_lengths
        case "logits":
            if out.logits is None:
                raise _headless()
            return out.logits, out.last_lengths
        case number:
            return out.aligned[number], out.last_lengths if arch.upsampling else out.lengths[number]


def _headless() -> InputError:
    return InputError("the model has no output layer, so it has no logits; give its arch a head")


def _program(arch: Arch, layers: Layers) -> Callable[..., tuple[Array, Array]]:
    """Return what encodes a batch: inner layers of a model that fires come by one program alone."""
    return hear_fired if arch.firing and layers in ("last", "logits") else hear


def _check_one_rate(arch: Arch, out: Output) -> None:
    frames = sorted({each.shape[1] for each in out.aligned}, reverse=True)
    if len(frames) > 1:
        raise InputError(
            f"the layers have {' and '.join(map(str, frames))} frames, so they are no one array; ask for one of them, "
            "or give the arch an upsampling"
        )


def _parts(arch: Arch, utterance: np.ndarray, longest: float | None) -> list[np.ndarray]:
    whole = np.asarray(utterance, np.float32)
    samples = whole.ndim == 1
    how = timing(arch, features=not samples)
    if longest is None:
        return [whole]
    frames = int(arch.frames(len(whole))) if samples else None
    together = arch.grouped // arch.joined * (arch.length_adapter.joined if arch.length_adapter else 1)
    return [piece for piece, _ in pieces(whole, how, longest=longest, frames=frames, multiple=together)]


def _together(
    run: Any, parts: Sequence[np.ndarray], rows: np.ndarray, length: int, batch: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Run the parts that `rows` names, padded to `length`; the first one again where they are fewer than the batch."""
    filled = [*rows, *[rows[0]] * (batch - len(rows))]
    inputs, lengths = pad([parts[row] for row in filled], to=length)
    found, frames = map(np.asarray, run(inputs, lengths))
    for place, row in enumerate(rows.tolist()):
        yield row, found[..., place, : frames[place], :]


def _fitting(
    arch: Arch, ran: Iterator[tuple[int, np.ndarray]], owners: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Refuse an utterance of which more frames fired than there was room for, which the model's NaN says."""
    fires = arch.firing is not None
    for number, found in ran:
        if fires and np.isnan(found).any():
            raise InputError(
                f"utterance {owners[number]}: more frames fire than the arch has room for, or its weights are no "
                f"numbers ({arch.firing}); give more room (`most`), or a higher amount"
            )
        yield number, found


def _joined(ran: Iterator[tuple[int, np.ndarray]], owners: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Put the parts of each utterance together, in their order, once all are there."""
    left = np.bincount(owners)
    known: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
    for number, found in ran:
        owner = owners[number]
        known[owner][number] = found
        if len(known[owner]) == left[owner]:
            each = known.pop(owner)
            whole = [each[part] for part in sorted(each)]
            yield owner, whole[0] if len(whole) == 1 else np.concatenate(whole, axis=-2)


def _check_all(arch: Arch, utterances: Sequence[np.ndarray], batch: int) -> None:
    if batch < 1:
        raise InputError(f"batch {batch}: run 1 utterance or more together")
    for i, utterance in enumerate(utterances):
        _check(arch, i, utterance)


def _check(arch: Arch, i: int, utterance: np.ndarray) -> None:
    if utterance.ndim == 2 and utterance.shape[1:] == arch.front.shape(WINDOW)[1:]:
        short = len(utterance) < arch.least
    else:
        short = utterance.ndim != 1 or len(utterance) < WINDOW
    if short:
        raise InputError(
            f"utterance {i}: {utterance.shape}, not a waveform of {WINDOW} samples (25 ms at 16 kHz) or more"
        )
    if bad := int(np.count_nonzero(~np.isfinite(utterance))):
        raise InputError(
            f"utterance {i}: {bad} of {utterance.size} samples are NaN or infinite; repair or leave it out"
        )
