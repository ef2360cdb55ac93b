"""What all pruning experiments share: settings, the model and its speech, the control, every point of the curve."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from compress.sparse import zero_masks
from experiments import report
from experiments.cli import console
from experiments.corpus import Data
from experiments.fit import open_run
from experiments.points import Bench, Fast, Subject, show, where_the_rest_went
from experiments.probing import log_mel, open_probes
from experiments.recovery import speech_with_targets
from experiments.schedule import Schedule, Timing
from experiments.settings import Training, claim
from experiments.source import Model, Speech, load_model, load_speech
from experiments.sweep import Act, Event, begin, subject_of, sweep
from jaxssl.latency import Load, machine
from jaxssl.models.sites import matrices
from jaxssl.specialise import unpacked

PRUNED = 1e-3  # share of an array's entries that must be zero for its zeros to be meant


@dataclass(frozen=True, kw_only=True)
class Pruning(Timing):
    """Settings that weights, heads and rows share."""

    model: str | None = None
    """model folder, run folder, preset or checkpoint, compressed in whatever way; default: the trained model that comes
    with the package"""
    audio: tuple[str, ...] = ()
    """speech to train on, labelled by the model that makes its targets; default: the embedded corpus"""
    held_out: tuple[str, ...] = ()
    """speech of others to validate on, labelled likewise; default: a part of --audio"""
    corpus: Path | None = None
    """folder of experiments.prepare, instead of --audio"""
    labels: str | None = None
    """name of the labels in --corpus, where there are several"""
    valid: Path | None = None
    """another such folder, of held-out speech; default: a part of the training corpus"""
    batch: int | None = None
    """utterances of a batch; default: 8, with --schedule paper 4"""
    crop: float | None = None
    """longest stretch of an utterance, in seconds; default: 3, with --schedule paper 15"""
    shortest: float | None = None
    """utterances below that are left out, in seconds; default: 1, with --schedule paper 3.2"""
    learning_rate: float | None = None
    """of Adam, constant; default: 2e-4, with --schedule paper 1e-5"""
    reset: bool = False
    """forget Adam's moments at each event, as the study does for heads and rows; else they are cut with the weights"""
    control: bool = True
    """train the dense model as long, to compare with"""
    probes: bool = True
    """probe every point for phones and speakers (embedded corpus)"""
    speakers: Path | None = None
    """folder of speech with known speakers, ten utterances of each, for the probe"""
    save_every: int = 100
    """updates between two checkpoints, besides those at events"""
    stack: Literal["unroll", "scan", "remat"] = "scan"
    """how equal layers run in training, see experiments.pretrain"""
    seconds: float = 5.0
    """length of the utterance that is timed, in seconds"""
    rounds: int = 15
    """timed runs of each model, in turns with the dense one"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation, in training and timing"""
    seed: int = 0
    """of order, crops, masks, dropout and random weights"""

    def training(self, schedule: Schedule) -> Training:
        """Return the settings of the run's updates."""
        paper = self.schedule == "paper"
        return Training(
            steps=max(schedule.calendar.last, 1),
            batch=self.batch or (4 if paper else 8),
            crop=self.crop or (15.0 if paper else 3.0),
            shortest=(3.2 if paper else 1.0) if self.shortest is None else self.shortest,
            learning_rate=self.learning_rate or (1e-5 if paper else 2e-4),
            warmup=0.0,
            decay="constant",
            buckets=8 if paper else 1,
            dtype=self.dtype,
            stack=self.stack,
            seed=self.seed,
            valid_every=max(schedule.calendar.last, 1) + 1,  # points are what is validated
            save_every=self.save_every,
            log_every=1000 if paper else max(self.every // 2, 1),
        )


@dataclass(frozen=True)
class Job:
    """A pruning run, ready to begin.

    Attributes:
        config: what was asked.
        model: before pruning.
        subject: the same, as pruning acts on it.
        schedule: when, and how far.
        training: settings of the updates.
        data: labelled speech.
        speech: some of it as audio, for calibration and for proofs.
    """

    config: Pruning
    model: Model
    subject: Subject
    schedule: Schedule
    training: Training
    data: Data
    speech: Speech


def open_model(config: Pruning) -> tuple[Model, Subject]:
    """Load the model, packed maps unpacked; weights that were pruned before stay zero."""
    model = load_model(config.model, seed=config.seed)
    arch, params = unpacked(model.arch, model.params)
    model = replace(model, arch=arch, params=params)
    masks = {p: mask for p, mask in zero_masks(params, matrices(arch)).items() if np.mean(mask) < 1 - PRUNED}
    if masks:
        count = sum(int(np.size(mask) - np.count_nonzero(mask)) for mask in masks.values())
        note = f"{count:,} weights in {len(masks)} arrays are zero and stay zero"
        model = replace(model, notes=(*model.notes, note))
    return model, Subject(arch, params, masks)


def open_job(config: Pruning, model: Model, subject: Subject, schedule: Schedule, *, out: Path) -> Job:
    """Take the run folder and prepare the speech; what can be refused has been refused before."""
    claim(out, config, free=())
    shared = out.parent  # the runs of one place prepare the same speech once
    for note in model.notes:
        console.print(f"note: {note}", markup=False)
    data = speech_with_targets(
        model,
        corpus=config.corpus,
        labels=config.labels,
        valid=config.valid,
        out=shared,
        audio=config.audio,
        held_out=config.held_out,
    )
    if model.stats is None:
        model = replace(model, stats=data.stats)
    speech = load_speech(config.audio, limit=8)
    return Job(config, model, subject, schedule, config.training(schedule), data, speech)


def prune(
    job: Job,
    act: Act,
    *,
    out: Path,
    technique: str,
    label: str,
    now: float,
    fast: Callable[[Subject], Fast] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Carry out the run: the dense model, the control, every point, and the report.

    Args:
        job: what to do.
        act: what an event does.
        out: the run's folder.
        technique: weights, heads or rows.
        label: of the curve, in pictures of several runs.
        now: the model's own level.
        fast: puts a point into the form that is timed; None: as it is.
        notes: lines a reader of the report should see.
    """
    bench = _bench(job, out, technique, label, fast)
    bench.point("dense", job.subject, level=now, step=0, told={})
    if job.config.control and job.schedule.calendar.last:
        _control(job, bench)
    if job.schedule.calendar.last:
        act = _telling(act, bench)
    if job.schedule.once:
        for number in range(len(job.schedule.levels)):
            _once(job, bench, act, number)
    else:
        _iterate(job, bench, act)
    _report(job, bench, [*job.model.notes, *job.speech.notes, *notes])


def _bench(job: Job, out: Path, technique: str, label: str, fast: Callable[[Subject], Fast] | None) -> Bench:
    config, dtype = job.config, jnp.dtype(job.config.dtype)
    probes = open_probes(log_mel(job.model.arch), speakers=config.speakers) if config.probes else None
    bench = Bench(out, job.model, job.data, job.training, Load(config.seconds), dtype, config.rounds, probes, technique)
    return replace(bench, label=label, fast=fast or bench.fast)


def _telling(act: Act, bench: Bench) -> Act:
    """Let an event tell the loss right after it, before any training."""

    def acting(subject: Subject, level: float, number: int) -> Event:
        event = act(subject, level, number)
        return replace(event, told={**event.told, "loss_before": bench.quality(event.after(subject))["valid_loss"]})

    return acting


def _control(job: Job, bench: Bench) -> None:
    """Train the dense model as long as every point was, and remember its quality at each of their updates.

    Runs of one place with the same model, speech, settings and updates share it.
    """
    folder, last = bench.out.parent / f"control-{_control_digest(job)}", job.schedule.calendar.last
    path, subject = folder / "quality.json", _dropping(job.subject)
    if path.is_file():
        bench.controls.update({int(step): found for step, found in json.loads(path.read_text()).items()})
    if last in bench.controls:
        return
    console.print("training the dense model as long, to compare with", markup=False)

    def measure(number: int, subject: Subject, step: int, told: Mapping[str, Any]) -> None:
        bench.controls[step] = bench.quality(subject)
        report.write_json(path, bench.controls)

    if job.schedule.once:
        measure(0, _trained(job, folder, subject), last, {})
        return
    calendar = replace(job.schedule.calendar, gate=None)
    with open_run(folder, job.data, job.training) as run:
        nothing = replace(job.schedule, calendar=calendar)
        sweep(run, subject, nothing, lambda subject, *_: Event(subject.masks), measure, reset=False)


def _control_digest(job: Job) -> str:
    digest = hashlib.sha256()
    events = () if job.schedule.once else job.schedule.calendar.events
    speech = (job.config.audio, job.config.held_out, job.config.corpus, job.config.labels, job.config.valid)
    digest.update(repr((job.training, events, speech)).encode())
    for leaf in jax.tree.leaves((job.subject.params, _dropping(job.subject).masks)):
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()[:8]


def _dropping(subject: Subject) -> Subject:
    """Leave out masks that drop nothing."""
    return replace(subject, masks={path: mask for path, mask in subject.masks.items() if not np.all(mask)})


def _iterate(job: Job, bench: Bench, act: Act) -> None:
    names = [bench.name(level) for level in job.schedule.levels]

    def measure(number: int, subject: Subject, step: int, told: Mapping[str, Any]) -> None:
        bench.point(names[number], subject, level=job.schedule.levels[number], step=step, told=told)

    with open_run(bench.out, job.data, job.training) as run:
        sweep(run, job.subject, job.schedule, act, measure, reset=job.config.reset)


def _once(job: Job, bench: Bench, act: Act, number: int) -> None:
    """Prune straight from the model, train if asked, measure."""
    level, steps = job.schedule.levels[number], job.schedule.calendar.last
    if bench.has(name := bench.name(level)):
        return
    event = act(job.subject, level, number)
    pruned = event.after(job.subject)
    if steps:
        pruned = _trained(job, bench.out / "once" / name, pruned)
    bench.point(name, pruned, level=level, step=steps, told=event.told)


def _trained(job: Job, folder: Path, subject: Subject) -> Subject:
    with open_run(folder, job.data, job.training) as run:
        state, programs = begin(run, subject)
        return subject_of(programs.arch, run.train(programs, state, last=job.schedule.calendar.last))


def _report(job: Job, bench: Bench, notes: Sequence[str]) -> None:
    rows, out = bench.rows(), bench.out
    show(rows, bench.title)
    lines = where_the_rest_went(rows[1:])
    for line in lines:
        console.print(line, markup=False)
    values: dict[str, Any] = {"technique": bench.technique, "label": bench.label, "model": job.model.name}
    values |= {"machine": machine(bench.dtype), "notes": [*notes, *lines], "points": rows}
    report.write_json(out / "report.json", values)
    console.print(f"wrote {out}: report.json, curve.csv, curve.png, models/", markup=False)
