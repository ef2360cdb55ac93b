"""Let utterances leave a model early, behind a fixed layer or once it is sure, and draw what that costs and saves.

    python -m experiments.exits
    python -m experiments.exits --at 2 3 4 6 --threshold 0.8 1.2 1.6 2.0
    python -m experiments.exits --model MODEL --audio FOLDER --held-out FOLDER

Nothing of the model is trained. Behind each layer of --at, and behind the last, an output layer of clusters is fitted
to frozen frames of labelled speech, those that are hidden; the model's own is not used, so that all exits have learned
from the same speech. A fixed exit is the model's first layers with that output layer: a model like any other, saved,
timed and probed. Beside them utterances leave one by one (DAISY, arXiv 2406.05464): the model runs in pieces, a program
each, and an utterance leaves behind the first layer whose prediction of clusters has less entropy than --threshold, in
nats, averaged over its frames. A threshold of 0 is the whole model, a very large one the first exit.

An utterance decides by its first --seconds as they sound, nothing hidden; its loss is that of the exit it takes, where
frames are hidden. All exits and thresholds are timed on the same held-out utterances, one after the other, in turns
with the whole model as one program: what asking every output layer takes is in it. Differences are to the whole model,
paired by utterance. Points that leave by entropy are not probed: their frames are of several layers.

MODEL is any model folder or any checkpoint that docs/families.md lists, compressed before or not; --audio FOLDER is any
speech. Where layers hear fewer frames (experiments.sequence) each exit brings them back to all as the model's own end
does; a learned map for that serves the exits behind the last shortening, others repeat frames. A run that was broken
off goes on with the same command.

Takes three minutes on two CPU cores for the default model, seven while other work runs. Expected on 52 minutes of
LibriSpeech, held-out loss above the whole model's 3.218: 0.29, 0.18, 0.09, 0.04 and 0.02 nats behind layers 1 to 5,
which have 0.20, 0.36, 0.52, 0.68 and 0.84 of its MACs. By entropy 0.17, 0.10 and 0.03 nats at 0.44, 0.59 and 0.80 of
its MACs: more than a fixed layer of as many.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from experiments.curves.curve import Curve
from experiments.curves.job import Job, draw, open_job, open_model
from experiments.curves.leaving import Clock, entropies, mixed, read_speech, sizes, taken, thresholds_of
from experiments.curves.measures import MACS, TIME
from experiments.curves.points import Bench, Subject
from experiments.curves.schedule import Schedule
from experiments.reports import methods
from jaxssl.data.padding import Padded
from jaxssl.inference.cascade import Cascade, check_exits, truncated, truncated_arch
from jaxssl.models.arch import Arch
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Count, Natural
from jaxssl.training.calendar import Calendar
from jaxssl.training.corpus import hear_each
from jaxssl.training.output_layer import with_output_layer

FIXED, SURE = "fixed", "entropy"
NAMES = {FIXED: "fixed", SURE: "by entropy"}
THRESHOLDS = 5  # where none are given
L2 = (3e-2, 1e-2, 3e-3)  # regularisations of an output layer to choose from
CALIBRATION = 16  # training utterances whose entropies these are spread over


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Let utterances leave a model early; settings of training only say how it is evaluated."""

    at: Count[tuple[int, ...]] = ()
    """layers behind which an utterance may leave, counted from 1; default: all"""
    threshold: Natural[tuple[float, ...]] = ()
    """entropies of the predicted clusters, in nats, below which it leaves; default: five, spread over those that
    training utterances have"""
    frames: Count[int] = 32768
    """that each output layer is fitted to at most"""
    timed: Count[int] = 32
    """held-out utterances that are timed at most, evenly spread"""
    out: Path = Path("runs/exits")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    model, subject = open_model(config)
    exits = exits_of(config, len(subject.arch.layers))
    check_exits(subject.arch, exits)
    _check_frames(subject.arch, exits)
    training = config.settings(0, paper=False, log_every=1)
    schedule = Schedule(Calendar((), 0), tuple(map(float, exits)))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    job, cascade = fitted(job, exits, frames=config.frames, kept=config.out.parent / "output-layers")
    numbers, _ = hear_each(job.subject.arch, job.subject.seen, job.data, training)
    heard = read_speech([job.data.audio[i] for i in numbers.tolist()], seconds=config.seconds)
    found = entropies(cascade.ready(), heard)
    fixed = {f"layer-{exit}-{FIXED}": exit for exit in exits[:-1]}
    thresholds = {f"below-{each:g}-{SURE}": each for each in _thresholds(config, job, cascade)}
    chosen = np.unique(np.linspace(0, len(heard) - 1, min(config.timed, len(heard))).round().astype(int))
    clock = Clock(cascade, tuple(heard[i] for i in chosen.tolist()), thresholds, fixed, config.rounds)

    def points(bench: Bench) -> None:
        for name, exit in fixed.items():
            arch, params = truncated(cascade.arch, cascade.params, exit, cascade.regressions[exit])
            bench.point(name, Subject(arch, params, {}), level=exit, step=0, told={"method": FIXED})
        for name, threshold in thresholds.items():
            _leaving(bench, clock, fixed, name, threshold, taken(found, exits, threshold))

    notes = [
        f"each utterance leaves by the first {config.seconds:g} s of it; {len(chosen)} of {len(heard)} are timed",
        f"the output layers of all exits, the last among them, are fitted to {config.frames} hidden frames at most",
    ]
    draw(
        job,
        points,
        ends=(),
        out=config.out,
        technique="exits",
        label="early exit",
        now=exits[-1],
        notes=notes,
        picture=partial(methods.draw, names=NAMES, costs=(TIME, MACS)),
        clock=clock,
    )


def exits_of(config: Config, depth: int) -> tuple[int, ...]:
    """List the exits, the model's own end the last.

    Raises:
        InputError: a layer is not there, or none is left to leave behind.
    """
    exits = sorted({*(config.at or range(1, depth + 1)), depth})
    if exits[-1] > depth:
        raise InputError(f"--at {exits[-1]}: the model has {depth} layers; give 1 to {depth}")
    if len(exits) < 2:
        raise InputError(f"--at {depth}: the model ends there; give a layer from 1 to {depth - 1}")
    return tuple(exits)


def _check_frames(arch: Arch, exits: tuple[int, ...]) -> None:
    """Refuse exits whose frames could not be compared.

    Raises:
        InputError: behind some layers more frames of the front end are one than behind others.
    """
    joined = {exit: truncated_arch(arch, exit).joined for exit in exits}
    if len(set(joined.values())) > 1:
        told = ", ".join(f"{count} behind layer {exit}" for exit, count in joined.items())
        raise InputError(
            f"frames of the front end that are one: {told}; the exits have other frames, and labels are for one kind: "
            "give the arch an upsampling, or --at only layers alike"
        )


def fitted(job: Job, exits: tuple[int, ...], *, frames: int, kept: Path) -> tuple[Job, Cascade]:
    """Fit the output layers of all exits, or read those that were fitted before.

    Returns:
        The job, whose model has the output layer of the last exit, and the model in pieces.
    """
    regressions, whole = {}, (job.subject.arch, job.subject.seen)
    for exit in exits:
        console.print(f"output layer behind layer {exit}", markup=False)
        arch, params = truncated(*whole, exit)
        cut = replace(job.model, arch=arch, params=params, notes=())
        layer = with_output_layer(cut, job.data, job.training, kept=kept, frames=frames, hidden=True, l2=L2)
        regressions[exit] = layer.params["head"]["project"]
    arch, params = truncated(*whole, exits[-1], regressions.pop(exits[-1]))
    job = replace(job, model=replace(job.model, arch=arch, params=params), subject=Subject(arch, params, {}))
    return job, Cascade(arch, params, exits, regressions, job.model.stats, jnp.dtype(job.training.dtype))


def _thresholds(config: Config, job: Job, cascade: Cascade) -> tuple[float, ...]:
    if config.threshold:
        return tuple(sorted(set(config.threshold)))
    _, among = job.data.train
    spread = np.linspace(0, len(among) - 1, min(CALIBRATION, len(among))).round().astype(int)
    files = [job.data.taught_audio[i] for i in among[spread].tolist()]
    speech: tuple[Padded, ...] = read_speech(files, seconds=config.seconds)
    return thresholds_of(entropies(cascade.ready(), speech), THRESHOLDS)


def _leaving(
    bench: Bench, clock: Clock, fixed: Mapping[str, int], name: str, threshold: float, exits: np.ndarray
) -> None:
    """Measure what leaving by a threshold gives, of what every exit was measured to give."""
    if bench.has(name):
        return
    console.print(f"measuring {name}", markup=False)
    heard = {exit: bench.heard(point) for point, exit in {**fixed, "dense": clock.cascade.exits[-1]}.items()}
    row = {"name": name, "level": threshold, "step": 0, **sizes(clock.cascade, exits), "method": SURE}
    row |= {**bench.compared(name, mixed(heard, exits), 0), **clock(name)}
    dense = bench.rows()[0]
    row["bytes"] = dense["bytes"] + 4 * (row["parameters"] - dense["parameters"])  # of the other output layers
    bench.record(row)


if __name__ == "__main__":
    main(run, Config, __doc__)
