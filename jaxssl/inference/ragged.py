"""Utterances of any length through a model: similar lengths together, by a few compiled programs."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError
from jaxssl.data.audio import SHORTEST
from jaxssl.data.buckets import choose, plan
from jaxssl.data.logmel import Stats
from jaxssl.inference.prepack import prepared
from jaxssl.inference.upstream import encode
from jaxssl.models import choice
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params


def encode_all(
    arch: Arch,
    params: Params,
    utterances: Sequence[np.ndarray],
    *,
    stats: Stats | None = None,
    dtype: Any = jnp.float32,
    batch: int | None = None,
    programs: int = 8,
    waste: float = 0.1,
) -> Iterator[tuple[int, np.ndarray]]:
    """Run a model on every utterance, short ones first, and yield each one's number and output as it comes.

    What an utterance gives does not depend on what runs with it, but for rounding.

    Args:
        arch: the model.
        params: its parameters; they are prepared (`jaxssl.inference.prepack`) here.
        utterances: waveforms (samples,) at 16 kHz.
        stats: the corpus's, for log-Mel models.
        dtype: of the computation.
        batch: utterances that run together; None: what suits the device.
        programs: compiled at most, one for each length that is padded to.
        waste: share of the padded lengths that may be padding, if so many programs are enough for it.

    Yields:
        Index of the utterance and its last layer's output, (frames, width).

    Raises:
        InputError: an utterance is no waveform, shorter than 25 ms or not finite, or `batch` is below 1.
    """
    batch = choice.together() if batch is None else batch
    if batch < 1:
        raise InputError(f"batch {batch}: run 1 utterance or more together")
    for i, samples in enumerate(utterances):
        _check(i, samples)
    if not utterances:
        return iter(())
    arch, params = prepared(arch, params, dtype=dtype)
    run = partial(_run, arch, dtype, params, None if stats is None else (stats.mean, stats.std))
    lengths = np.asarray([len(samples) for samples in utterances])
    edges = choose(lengths, batch_size=batch, most=programs, waste=waste)
    planned = plan(lengths, edges, batch_size=batch, rng=None, fill=True)
    batches = zip(planned.buckets, planned.rows, strict=True)
    return (pair for bucket, rows in batches for pair in _together(run, utterances, rows, edges[bucket]))


def _together(
    run: Callable[[np.ndarray, np.ndarray], tuple[Array, Array]],
    utterances: Sequence[np.ndarray],
    rows: np.ndarray,
    length: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """Run the utterances that `rows` names, padded to `length`; rows of -1, which fill a batch, are silence."""
    samples, valid = np.zeros((len(rows), length), np.float32), np.full(len(rows), length, np.int32)
    named = [int(i) for i in rows if i >= 0]
    for row, i in enumerate(named):
        valid[row] = len(utterances[i])
        samples[row, : valid[row]] = utterances[i]
    last, frames = map(np.asarray, run(samples, valid))
    for row, i in enumerate(named):
        yield i, last[row, : frames[row]]


def _check(i: int, samples: np.ndarray) -> None:
    if samples.ndim != 1 or len(samples) < SHORTEST:
        raise InputError(
            f"utterance {i}: {samples.shape}, not a waveform of {SHORTEST} samples (25 ms at 16 kHz) or more"
        )
    if bad := int(np.count_nonzero(~np.isfinite(samples))):
        raise InputError(f"utterance {i}: {bad} of {samples.size} samples are NaN or infinite; repair or leave it out")


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    arch: Arch, dtype: Any, params: Params, moments: tuple[Array, Array] | None, samples: Array, lengths: Array
) -> tuple[Array, Array]:
    stats = None if moments is None else Stats(*moments)  # type: ignore[arg-type]  # traced arrays
    out = encode(arch, params, samples, lengths, stats=stats, dtype=dtype)
    return out.last, out.lengths[-1]
