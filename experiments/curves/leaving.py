"""Held-out utterances that leave a model early: who leaves where, what that costs in quality and saves in time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from experiments.curves.bare import bare
from experiments.curves.points import Row
from jaxssl.data.audio import SUFFIXES, read
from jaxssl.data.buckets import choose
from jaxssl.data.padding import Padded, pad
from jaxssl.inference.cascade import Cascade, truncated, truncated_arch
from jaxssl.inference.encode import hear
from jaxssl.inference.latency import Load, Program, Timing, race, speedup
from jaxssl.inference.prepack import prepared
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.model import Params
from jaxssl.runtime.cli import follow, progress
from jaxssl.training.corpus import HeldOut

LENGTHS = 4  # that utterances are padded to, each with programs of its own


def read_speech(files: Sequence[Path], *, seconds: float) -> tuple[Padded, ...]:
    """Read the first seconds of utterances, each a padded row of its own, of few lengths.

    Raises:
        InputError: one is no audio, as those of the study's corpora are not.
    """
    foreign = [file for file in files if file.suffix.lower() not in SUFFIXES]
    if foreign:
        raise InputError(
            f"{foreign[0]}: no audio, and utterances leave early by what they sound like; name speech with --audio, or "
            "a --corpus of experiments.prepare"
        )
    most = round(seconds * SAMPLE_RATE)
    return few_lengths([read(file).samples[:most] for file in follow(files, "reading speech", total=len(files))])


def few_lengths(signals: Sequence[np.ndarray]) -> tuple[Padded, ...]:
    """Pad utterances, each a row of its own, to one of a few lengths."""
    lengths = np.array([len(signal) for signal in signals])
    edges = np.asarray(choose(lengths, batch_size=1, most=LENGTHS))
    to = edges[np.searchsorted(edges, lengths)].tolist()
    rows = [pad([signal], to=length) for signal, length in zip(signals, to, strict=True)]
    return tuple((jnp.asarray(samples), jnp.asarray(counts)) for samples, counts in rows)


def entropies(cascade: Cascade, speech: Sequence[Padded]) -> np.ndarray:
    """Return each utterance's entropy at each exit but the last, (utterances, exits - 1), nats."""
    found = []
    for samples, lengths in follow(speech, "listening at every exit", total=len(speech)):
        reached = [each.entropy for _, each in cascade.pieces(samples, lengths)]
        found.append([float(entropy[0]) for entropy in reached if entropy is not None])
    return np.array(found)


def taken(found: np.ndarray, exits: Sequence[int], threshold: float) -> np.ndarray:
    """Return the exit that each utterance takes, the first whose entropy is below the threshold, (utterances,)."""
    below = np.concatenate([found < threshold, np.ones((len(found), 1), bool)], axis=1)
    return np.asarray(exits)[below.argmax(1)]


def mixed(heard: Mapping[int, HeldOut], exits: np.ndarray) -> HeldOut:
    """Return what is made of each utterance by the exit that it takes.

    Args:
        heard: what each exit makes of all of them.
        exits: that they take, (utterances,).
    """
    chosen = {name: np.zeros(len(exits)) for name in ("losses", "correct", "frames")}
    for exit, found in heard.items():
        for name, values in chosen.items():
            values[exits == exit] = getattr(found, name)[exits == exit]
    return HeldOut(**chosen)


def thresholds_of(found: np.ndarray, count: int) -> tuple[float, ...]:
    """Choose thresholds evenly spread over entropies, of all utterances and exits, to three digits."""
    chosen = np.quantile(found, [(i + 1) / (count + 1) for i in range(count)])
    return tuple(dict.fromkeys(float(f"{value:.3g}") for value in chosen))


@dataclass(frozen=True)
class Clock:
    """Times models on the same utterances, one after the other, all in turns.

    Attributes:
        cascade: the model in pieces, as it is.
        speech: the utterances.
        thresholds: by the name of a point that leaves by entropy.
        fixed: exit of a point that always leaves there, by its name.
        rounds: timed runs of each.
    """

    cascade: Cascade
    speech: tuple[Padded, ...]
    thresholds: Mapping[str, float]
    fixed: Mapping[str, int]
    rounds: int

    def __call__(self, name: str) -> Row:
        """Return the columns that a point's time gives; `dense` is the whole model by one program."""
        dense, mine = self.timings["dense"], self.timings[name]
        ratio = speedup(dense, mine)
        return {
            "real_time_factor": mine.real_time_factor,
            "speedup": ratio.median,
            "speedup_low": ratio.low,
            "speedup_high": ratio.high,
            "promised_speedup": self._promised(name),
            **{f"{each}_ms": self._ms(each) for each in ("dense", "bare")},
            "point_ms": self._ms(name),
        }

    @cached_property
    def timings(self) -> dict[str, Timing]:
        """Seconds of all utterances together, by point."""
        whole, (arch, params) = self.cascade, bare(self.cascade.arch, self.cascade.params)
        runs = {"dense": self._whole(whole.arch, whole.params), "bare": self._whole(arch, params)}
        for name, exit in self.fixed.items():
            runs[name] = self._whole(*truncated(whole.arch, whole.params, exit))
        ready = whole.ready()
        runs |= {name: self._leaving(ready, threshold) for name, threshold in self.thresholds.items()}
        seconds = self.samples.mean() / SAMPLE_RATE
        load = Load(float(seconds), len(self.speech))
        programs = {name: Program(run, load, 0.0, 0.0, None) for name, run in runs.items()}
        with progress("timing side by side", self.rounds + 2) as tick:
            return race(programs, rounds=self.rounds, tick=tick)

    @cached_property
    def samples(self) -> np.ndarray:
        """Samples of each utterance, (utterances,)."""
        return np.array([int(lengths[0]) for _, lengths in self.speech])

    @cached_property
    def found(self) -> np.ndarray:
        """Entropies of the utterances, see `entropies`."""
        return entropies(self.cascade.ready(), self.speech)

    def _ms(self, name: str) -> float:
        return self.timings[name].median * 1e3 / len(self.speech)

    def _whole(self, arch: Arch, params: Params) -> Callable[[], None]:
        """Return what runs all utterances through one program for each of their lengths."""
        stats, dtype = self.cascade.stats, self.cascade.dtype
        headless = {name: part for name, part in params.items() if name != "head"}
        arch, params = prepared(replace(arch, head=None), headless, dtype=dtype)
        params = jax.device_put(params)

        def run() -> None:
            for samples, lengths in self.speech:
                jax.block_until_ready(hear(arch, params, stats, samples, lengths, layers="last", dtype=dtype))

        return run

    def _leaving(self, ready: Cascade, threshold: float) -> Callable[[], None]:
        def run() -> None:
            for samples, lengths in self.speech:
                jax.block_until_ready(ready.leave(samples, lengths, threshold=threshold)[1].last)

        return run

    def _promised(self, name: str) -> float:
        """Return the speed-up that the MACs of these utterances promise."""
        depth = len(self.cascade.arch.layers)
        exits = np.full(len(self.speech), self.fixed.get(name, depth))
        if name in self.thresholds:
            exits = taken(self.found, self.cascade.exits, self.thresholds[name])
        whole = sum(self._macs(n, depth) for n in self.samples.tolist())
        told = name in self.thresholds
        mine = sum(self._macs(n, e, told=told) for n, e in zip(self.samples.tolist(), exits.tolist(), strict=True))
        return float(whole / mine)

    def _macs(self, samples: int, exit: int, *, told: bool = False) -> float:
        layers = cost.macs(_until(self.cascade.arch, exit), samples).total
        return layers + told * regression_macs(self.cascade, self.cascade.arch.frames(samples), exit)


def _until(arch: Arch, exit: int) -> Arch:
    """Return a model's first layers, with an output layer like its own."""
    return replace(truncated_arch(arch, exit), head=arch.head)


def regression_macs(cascade: Cascade, frames: float, exit: int) -> float:
    """Count the MACs of the output layers that an utterance of so many frames passes until it leaves at an exit."""
    passed = [each for each in cascade.exits[:-1] if each <= exit]
    return sum(frames * float(np.prod(cascade.regressions[each]["kernel"].shape)) for each in passed)


def sizes(cascade: Cascade, exits: np.ndarray) -> dict[str, Any]:
    """Return the columns of a point that its shapes and the exits taken tell: means over utterances.

    Parameters are those of the whole model and of all output layers.
    """
    arch = cascade.arch
    depths, counts = np.unique(exits, return_counts=True)
    rate = sum(arch.frames(samples) for samples in cost.UTTERANCES) / (sum(cost.UTTERANCES) / SAMPLE_RATE)
    each = [
        cost.macs_per_second(_until(arch, exit)).total + regression_macs(cascade, rate, exit)
        for exit in depths.tolist()
    ]
    macs = float(np.dot(each, counts) / counts.sum()) / 1e9
    more = sum(int(np.size(leaf)) for regression in cascade.regressions.values() for leaf in regression.values())
    return {
        "parameters": cost.parameters(arch) + more,
        "nonzero": cost.nonzero(cascade.params) + more,
        "macs_g_per_s": macs,
        "nominal_macs_g_per_s": macs,
        "mean_layers": float(exits.mean()),
        "exits": {str(exit): int((exits == exit).sum()) for exit in cascade.exits},
    }
