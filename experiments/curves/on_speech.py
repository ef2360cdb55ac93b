"""How long a model that fires takes over utterances, each with the room that it needs, in turns with the dense one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.curves.job import Job
from experiments.curves.leaving import few_lengths
from experiments.curves.points import Row, Subject
from jaxssl.data.padding import Padded
from jaxssl.inference.encode import hear, hear_fired
from jaxssl.inference.latency import Load, Program, race, speedup
from jaxssl.inference.prepack import prepared
from jaxssl.models.arch import SAMPLE_RATE
from jaxssl.runtime.cli import progress


def on_speech(job: Job, roomy: Subject, *, rounds: int) -> Row:
    """Time a model that fires, with room for every frame, over some utterances, one after the other.

    Args:
        job: whose speech is heard, whole utterances, and whose dense model takes turns.
        roomy: the model.
        rounds: timed runs of each.

    Returns:
        The columns that a point gets: how many times as fast it is as the dense model, with quartiles.
    """
    signals = [
        np.asarray(row[:count])
        for samples, counts in (*job.speech.calibration, *job.speech.held_out)
        for row, count in zip(samples, counts.tolist(), strict=True)
    ]
    speech = few_lengths(signals)
    load = Load(sum(map(len, signals)) / len(signals) / SAMPLE_RATE, len(signals))
    runs = {"dense": _run(job, job.subject, speech, hear), "fired": _run(job, roomy, speech, hear_fired)}
    programs = {name: Program(run, load, 0.0, 0.0, None) for name, run in runs.items()}
    with progress("timing over speech", rounds + 2) as tick:
        timings = race(programs, rounds=rounds, tick=tick)
    ratio = speedup(timings["dense"], timings["fired"])
    return {"speech_speedup": ratio.median, "speech_speedup_low": ratio.low, "speech_speedup_high": ratio.high}


def _run(job: Job, subject: Subject, speech: tuple[Padded, ...], program: Callable[..., Any]) -> Callable[[], None]:
    """Return what runs all utterances through the encoder."""
    dtype = jnp.dtype(job.training.dtype)
    headless = {name: part for name, part in subject.seen.items() if name != "head"}
    arch, params = prepared(replace(subject.arch, head=None), headless, dtype=dtype)
    params = jax.device_put(params)

    def run() -> None:
        for samples, lengths in speech:
            heard = program(arch, params, job.model.stats, samples, lengths, layers="last", dtype=dtype)
            jax.block_until_ready(heard)

    return run
