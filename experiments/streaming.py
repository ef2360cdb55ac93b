"""Run speech through a model as it comes: how far that is from the whole utterance, and how long each chunk takes.

    python -m experiments.streaming
    python -m experiments.streaming --chunk 20 100 500 --right 2
    python -m experiments.streaming --model melhubert-20ms --left 250 --right 0 --causal

Each chunk goes through compiled programs that hold what the next chunks need (`jaxssl.inference.streaming`). A
frame comes out once all is there that it hears: what it hears behind its own end is the look-ahead, which is the same
for every chunk. Speech is late by the chunk, the look-ahead and the time that the chunk takes.

`largest difference` is between what streams and the same model on the whole utterance, over all frames, as a share of
the largest value. Samples go in: log-Mel features are made inside the stream (`jaxssl.inference.sound`), and are in the
time.

A model whose attention sees all frames is given a limited context here, which is said: it was not trained so. So it is
with --causal. `experiments.contexts` trains models for such contexts and measures what they cost in quality.

Expected: half a minute for the default model on two CPU cores. Measured there while other work ran: differences of
5e-7; a chunk of 20, 80, 320 and 1280 ms takes 10, 24, 29 and 53 ms. Of the look-ahead of 1.6 s, 0.6 s are that of
positions.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from experiments.reports import tables
from jaxssl.inference import sound, streaming
from jaxssl.inference.encode import encode
from jaxssl.inference.latency import Load, Timing, machine
from jaxssl.inference.source import Model, load_model, load_speech, with_stats
from jaxssl.models.arch import Arch, Attention, Layer
from jaxssl.models.model import Params
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, follow, main
from jaxssl.runtime.ranges import Count, Natural, Positive, Seconds, Seed, There

LEFT, RIGHT = 100, 8  # frames, for models whose attention sees all


@dataclass(frozen=True)
class Config:
    """Stream speech through a model, chunk by chunk."""

    model: str | None = None
    """model folder, run folder or checkpoint; default: the package's trained MelHuBERT"""
    left: Natural[int | None] = None
    """frames before its own that attention sees; default: as the model has it, 100 where it sees all"""
    right: Natural[int | None] = None
    """frames after its own that attention sees; default: as the model has it, 8 where it sees all"""
    causal: bool = False
    """let positions hear no frame of the future, for timing: no model that was trained otherwise is good so"""
    chunk: Positive[tuple[float, ...]] = (20.0, 80.0, 320.0, 1280.0)
    """sizes of a chunk, in ms"""
    audio: There[tuple[str, ...]] = ()
    """speech, of which one utterance is streamed; default: the embedded corpus"""
    seconds: Seconds[float] = 10.0
    """of the utterance at most"""
    streams: Count[int] = 1
    """utterances that run together, copies of one"""
    out: Path = Path("runs/streaming")
    """folder for streaming.csv and report.json"""
    seed: Seed[int] = 0
    """of random weights"""


COLUMNS = {
    "chunk_ms:g": "chunk ms",
    "difference:.1e": "largest difference",
    "median_ms:.2f": "median ms",
    "p90_ms:.2f": "p90",
    "real_time_factor:.3f": "real-time factor",
    "lookahead_ms:.0f": "look-ahead ms",
    "late_ms:.0f": "late ms",
}


def run(config: Config) -> None:
    """Stream the utterance in chunks of each size and write the report."""
    ranges.check(config)
    if not config.chunk:
        raise InputError("--chunk: name one or more sizes")
    speech = load_speech(config.audio, limit=1, batch=1, seconds=config.seconds)
    model = with_stats(load_model(config.model, seed=config.seed), speech)
    arch, params, notes = contexts(model.arch, model.params, config)
    model = replace(model, params=params)
    sizes = {ms: sound.samples_of(arch, ms) for ms in config.chunk}
    sound.start(arch)  # which refuses what cannot stream
    files.claim(config.out)
    samples = jnp.repeat(jnp.asarray(speech.held_out[0][0]), config.streams, axis=0)
    hear = jax.jit(lambda params, samples: encode(arch, params, samples, stats=model.stats).last)
    whole = np.asarray(hear(model.params, samples))
    points = follow(sizes.items(), "streaming", total=len(sizes))
    rows = [point(arch, model, samples, whole, ms, size) for ms, size in points]
    tables.show(f"{model.name}, streamed", rows, COLUMNS)
    ahead = streaming.lookahead(arch)
    for line in (notes := [*model.notes, *notes]):
        console.print(line, markup=False)
    files.own(config.out, config)
    files.write_csv(config.out / "streaming.csv", rows)
    told = {"frames": ahead.frames, "ms": ahead.ms, "seconds": whole.shape[1] * streaming.period(arch) / 1e3}
    report = {"machine": machine(jnp.float32), "lookahead": told, "notes": notes, "points": rows}
    files.write_json(config.out / "report.json", report)
    console.print(f"wrote {config.out}: streaming.csv, report.json", markup=False)


def contexts(arch: Arch, params: Params, config: Config) -> tuple[Arch, Params, list[str]]:
    """Give attention and positions what the settings say; return the model and what a reader should know."""
    notes, layers = list[str](), list[Layer]()
    for layer in arch.layers:
        mixer = layer.mixer
        if isinstance(mixer, Attention) and not mixer.reuse:
            left = next(number for number in (config.left, mixer.left, LEFT) if number is not None)
            right = next(number for number in (config.right, mixer.right, RIGHT) if number is not None)
            if (left, right) != mixer.context:
                notes.append(f"attention sees {left} frames before and {right} after its own, as not trained")
            layer = replace(layer, mixer=replace(mixer, left=left, right=right))
        layers.append(layer)
    found = replace(arch, layers=tuple(layers))
    if config.causal:
        found, params = streaming.causal(found, params)
        if found.position != arch.position:
            notes.append("positions hear no frame of the future, as not trained")
    return found, params, list(dict.fromkeys(notes))


def point(arch: Arch, model: Model, samples: jax.Array, whole: np.ndarray, ms: float, size: int) -> dict[str, Any]:
    """Stream the samples in chunks of one size, twice: to compile and compare, and to time every chunk."""
    params = jax.device_put(model.params)  # as they are: a kernel prepared for utterances is no faster here
    found = np.asarray(sound.stream(arch, params, model.stats, samples, size).last)
    state, seconds = sound.start(arch, samples.shape[0]), list[float]()
    pieces = list(sound.chunks(samples, size))
    for chunk, valid in jax.block_until_ready(pieces):
        begin = time.perf_counter()
        state, out = sound.step(arch, params, model.stats, state, chunk, valid)
        jax.block_until_ready((state, out))
        seconds.append(time.perf_counter() - begin)
    timing = Timing(Load(ms / 1e3, samples.shape[0]), tuple(seconds))
    ahead = streaming.lookahead(arch)
    return told(timing, ms) | {
        "difference": float(np.abs(found - whole).max() / np.abs(whole).max()),
        "lookahead_ms": ahead.ms,
        "late_ms": ms + ahead.ms + timing.median * 1e3,
        "chunks": len(seconds),
        "streams": samples.shape[0],
    }


def told(timing: Timing, ms: float) -> dict[str, Any]:
    """Return a row's times."""
    return {
        "chunk_ms": ms,
        "median_ms": timing.median * 1e3,
        "p90_ms": timing.p90 * 1e3,
        "real_time_factor": timing.real_time_factor * timing.load.batch,  # of each stream
    }


if __name__ == "__main__":
    main(run, Config, __doc__)
