"""A run that draws a curve, from beginning to end: open the model and its speech, train the control, let points follow.

`Job` is what such a run was asked and what it was given; `Bench`, in `experiments.curves.points`, measures its points.
`draw` serves every command; `prune` those whose points follow a schedule, `experiments.curves.sweep` between them.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from experiments.curves.columns import show, where_the_rest_went
from experiments.curves.curve import Curve, Pruning, Recovery, check_heeded
from experiments.curves.points import (
    PRUNED,
    ROUNDED,
    Bench,
    Fast,
    Row,
    Subject,
    with_zeros,
)
from experiments.curves.recovery import ready, with_head
from experiments.curves.schedule import Schedule
from experiments.curves.sweep import Act, Event, begin, subject_of, sweep
from experiments.curves.transcripts import open_transcripts
from experiments.probes.probing import Probes, log_mel, open_probes
from jaxssl.inference.latency import Load, machine
from jaxssl.inference.source import Model, Speech, in_float, load_model, load_speech
from jaxssl.inference.specialise import unpacked
from jaxssl.models.arch import Arch
from jaxssl.models.sites import matrices
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console
from jaxssl.training.corpus import Data, check_batches, read_heard
from jaxssl.training.ctc_layer import read_ctc
from jaxssl.training.ctc_recovery import Script, Writing, script
from jaxssl.training.fit import open_run
from jaxssl.training.lesson import Choose, Lesson, check_teacher, soft_labels
from jaxssl.training.settings import Training, claim, own
from jaxssl.training.two_fronts import for_both


@dataclass(frozen=True)
class Job:
    """A run that draws a curve, ready to begin.

    Attributes:
        config: what was asked.
        model: before pruning.
        subject: the same, as compression acts on it.
        schedule: when, and how far.
        training: settings of the updates.
        data: labelled speech.
        speech: some of it as audio, for calibration and for proofs.
        lesson: how models learn from a teacher; None: they are trained on masked prediction.
        reset: start the optimiser anew at each event.
        control: how the dense model learns that points are compared with; None: masked prediction.
    """

    config: Curve
    model: Model
    subject: Subject
    schedule: Schedule
    training: Training
    data: Data
    speech: Speech
    lesson: Lesson | None = None
    reset: bool = False
    control: Lesson | None = None


def open_model(config: Curve) -> tuple[Model, Subject]:
    """Load the model, packed maps unpacked, all weights in float32; those that were pruned before stay zero.

    Raises:
        InputError: a setting is out of its range, or the model cannot be used.
    """
    ranges.check(config)
    loaded = load_model(config.model, seed=config.seed)
    arch, params = unpacked(loaded.arch, loaded.params)
    model = in_float(replace(loaded, arch=arch, params=params))
    int8 = any(matrix.int8 for matrix in matrices(loaded.arch))
    subject = with_zeros(model.arch, model.params, meant=ROUNDED if int8 else PRUNED)
    if masks := subject.masks:
        count = sum(int(np.size(mask) - np.count_nonzero(mask)) for mask in masks.values())
        note = f"{count:,} weights in {len(masks)} arrays are zero and stay zero"
        model = replace(model, notes=(*model.notes, note))
    return model, subject


def open_job(
    config: Curve, model: Model, subject: Subject, schedule: Schedule, training: Training, *, out: Path
) -> Job:
    """Claim the run folder and prepare the speech."""
    claim(out, config, free=())  # it is the run's own when `draw` is called
    shared = out.parent  # the runs of one place prepare the same speech once
    model, data = ready(model, config.asked, training, out=shared)
    speech = load_speech(config.audio, limit=8)
    return Job(config, model, subject_like(model, subject), schedule, training, data, speech)


def subject_like(model: Model, subject: Subject) -> Subject:
    """Give what is compressed the model's output layer, where it had none."""
    head = {name: part for name, part in model.params.items() if name == "head"}
    return replace(subject, arch=replace(subject.arch, head=model.arch.head), params={**head, **subject.params})


def open_pruning(config: Pruning, model: Model, subject: Subject, schedule: Schedule, *, out: Path) -> Job:
    """Open a job of weights, heads or rows, with the teacher that models recover by, if they are to."""
    check_heeded(config, [config.recover], flag="--recover")
    teacher = load_model(config.teacher, seed=config.seed) if config.teacher else None
    job = open_job(config, model, subject, schedule, config.training(schedule), out=out)
    job = replace(job, reset=config.reset)
    if config.recover != "distil":
        lesson = recovering(job, config.recover, out, alpha=config.alpha, temperature=config.temperature)
        return replace(job, lesson=lesson, control=control_of(lesson))
    if teacher is None:
        teacher = job.model
    else:
        check_teacher(teacher, job.model, job.data, logits=False)
        job = replace(job, data=for_both(job.data, teacher, job.model))
        teacher = with_head(teacher, job.data, job.training, out=out.parent)
    check_teacher(teacher, job.model, job.data, logits=True)
    choose = soft_labels(job.data, temperature=config.temperature, alpha=config.alpha, masked=config.masked)
    lesson = Lesson(teacher.arch, teacher.params, choose, job.training, kept=out.parent / "taught")
    lesson.heads(job.subject.arch, seed=config.seed)  # refuses what cannot be learned
    return replace(job, lesson=lesson)


def recovering(
    job: Job, how: Recovery, out: Path, *, masked: bool = False, alpha: float = 1.0, temperature: float = 1.0
) -> Lesson | None:
    """Return how models recover from the dense one; None: by masked prediction.

    What the dense model says is kept beside the run's folder.

    Raises:
        InputError: it has another number of clusters than the speech; or, to write, no CTC layer or no transcripts.
    """
    if how == "predict":
        return None
    kept = out.parent / "taught"
    if how == "ctc":
        choose, said = writing(job, alpha=alpha, temperature=temperature)
        return Lesson(job.model.arch, job.subject.seen, choose, job.training, kept=kept, script=said)
    check_teacher(job.model, job.model, job.data, logits=True)
    choose = soft_labels(job.data, temperature=temperature, alpha=alpha, masked=masked)
    return Lesson(job.model.arch, job.subject.seen, choose, job.training, kept=kept)


def control_of(lesson: Lesson | None) -> Lesson | None:
    """Return how the dense model learns that a lesson's models are compared with; None: by masked prediction.

    Where they learn to write what is said, it learns so as well.
    """
    return None if lesson is None or lesson.script is None else lesson


def writing(job: Job, *, alpha: float, temperature: float) -> tuple[Choose, Script]:
    """Let models write what is said, and as the dense one does, through its CTC layer.

    Raises:
        InputError: it has none, or no utterance has a transcript.
    """
    layer = read_ctc(job.model.ctc)
    if layer is None:
        raise InputError(
            f"CTC: {job.model.name} has no CTC layer whose symbols are known; recover by distil or predict"
        )
    corpus, among = job.data.train
    said = script(layer, job.data.taught, corpus, among, crop=math.floor(job.training.crop * job.data.per_second))
    console.print(f"CTC: {np.count_nonzero(said.counts)} of {len(among)} utterances have a transcript", markup=False)
    loss = Writing(layer, alpha, temperature)
    loss.heads(job.subject.arch, job.model.arch, jax.random.key(0))  # refuses what cannot be learned
    return (lambda student, teacher: loss), said


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
        technique: weights, heads, rows or distil.
        label: of the curve, in pictures of several runs.
        now: the model's own level.
        fast: puts a point into the form that is timed; None: as it is.
        notes: lines a reader of the report should see.
    """

    def points(bench: Bench) -> None:
        acting = _telling(act, bench) if job.schedule.calendar.last else act
        if not job.schedule.once:
            return _iterate(job, bench, acting)
        for number in range(len(job.schedule.levels)):
            _once(job, bench, acting, number)

    draw(
        job, points, ends=job.schedule.ends, out=out, technique=technique, label=label, now=now, fast=fast, notes=notes
    )


def draw(
    job: Job,
    points: Callable[[Bench], None],
    *,
    ends: Sequence[int],
    out: Path,
    technique: str,
    label: str,
    now: float,
    fast: Callable[[Subject], Fast] | None = None,
    notes: Sequence[str] = (),
    picture: Callable[..., None] | None = None,
    clock: Callable[[str], Row] | None = None,
) -> None:
    """Measure the dense model, train the control, let `points` measure the others, and report.

    `ends` are the updates that the points are trained with, rising, `picture` draws curve.png as `Bench.draw` does and
    `clock` times a point as `Bench.clock` does; the other arguments are as `prune`'s.
    """
    bench = open_bench(job.config, job.model, job.data, job.training, out=out, technique=technique, label=label)
    bench = replace(bench, fast=fast or bench.fast, draw=picture, clock=clock)
    if any(ends):
        check_batches(job.data, job.training)
    own(out, job.config, free=())
    bench.point("dense", job.subject, level=now, step=0, told={})
    if job.config.control and any(ends):
        train_control(job, bench, ends)
    points(bench)
    conclude(job, bench, notes)


def open_bench(
    config: Curve, model: Model, data: Data | None, training: Training, *, out: Path, technique: str, label: str
) -> Bench:
    """Get ready to measure points as the settings say; the arguments are as `Bench` has them."""
    load, dtype = Load(config.seconds), jnp.dtype(config.dtype)
    probes, unasked = _probes(config, model.arch)
    transcripts, written = open_transcripts(model, data)
    for told in (told for told in (unasked, written) if told is not None):
        console.print(f"note: {told}", markup=False)
        model = replace(model, notes=(*model.notes, told))
    bench = Bench(out, model, data, training, load, dtype, config.rounds, probes, technique, label)
    return replace(bench, transcripts=transcripts)


def _probes(config: Curve, arch: Arch) -> tuple[Probes | None, str | None]:
    """Open the probes that are asked for; a line where a model's frames are none that they could be asked of."""
    if not config.probes:
        return None, None
    try:
        front = log_mel(arch)
    except InputError as error:
        return None, f"not probed for phones and speakers: {error}"
    return open_probes(front, speakers=config.speakers), None


def _telling(act: Act, bench: Bench) -> Act:
    """Let an event tell the loss right after it, before any training."""

    def acting(subject: Subject, level: float, number: int) -> Event:
        event = act(subject, level, number)
        return replace(event, told={**event.told, "loss_before": bench.quality(event.after(subject))["valid_loss"]})

    return acting


def train_control(job: Job, bench: Bench, ends: Sequence[int]) -> None:
    """Train the dense model as long as every point was, and remember what it made of each held-out utterance by then.

    Runs of one place with the same model, speech, settings and updates share it. control-*/quality.json sums it up.
    """
    folder, subject = bench.out.parent / f"control-{_control_digest(job, ends)}", _dropping(job.subject)
    paths = {end: folder / "held-out" / f"{end}.npz" for end in ends}
    bench.controls.update({end: read_heard(path) for end, path in paths.items() if path.is_file()})
    wrote = folder / "wrote.json"
    bench.wrote.update({int(end): row for end, row in (files.read_object(wrote) if wrote.is_file() else {}).items()})
    if all(end in bench.controls for end in ends):
        return
    console.print("training the dense model as long, to compare with", markup=False)
    with open_run(folder, job.data, job.training) as run:
        state, programs = begin(run, subject, job.control)
        for end in (end for end in ends if end not in bench.controls):
            state = run.train(programs, state, last=end)
            trained = subject_of(programs.arch, state)
            bench.wrote[end] = {f"control_{name}": value for name, value in bench.written(trained).items()}
            files.write_json(wrote, bench.wrote)
            bench.controls[end] = bench.hear(trained)
            files.write_arrays(paths[end], vars(bench.controls[end]))
            files.write_json(folder / "quality.json", {step: c.summary() for step, c in bench.controls.items()})


def _control_digest(job: Job, ends: Sequence[int]) -> str:
    digest = hashlib.sha256(b"utterances kept")  # a control of before that was done cannot be paired with a point
    speech = (job.config.audio, job.config.held_out, job.config.corpus, job.config.labels, job.config.valid)
    digest.update(repr((job.training, tuple(ends), speech)).encode())
    if job.data.per_second != job.model.arch.front.rate:  # beside a model that takes waveforms: other crops
        digest.update(b"log-Mel of waveforms")
    if job.control is not None:
        digest.update(repr(job.control.loss(job.subject.arch)).encode())
    for leaf in jax.tree.leaves((job.subject.params, _dropping(job.subject).masks)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:8]


def _dropping(subject: Subject) -> Subject:
    """Leave out masks that drop nothing."""
    return replace(subject, masks={path: mask for path, mask in subject.masks.items() if not np.all(mask)})


def _iterate(job: Job, bench: Bench, act: Act) -> None:
    names = [bench.name(level) for level in job.schedule.levels]

    def measure(number: int, subject: Subject, step: int, told: Mapping[str, Any]) -> None:
        bench.point(names[number], subject, level=job.schedule.levels[number], step=step, told=told)

    with open_run(bench.out, job.data, job.training) as run:
        sweep(run, job.subject, job.schedule, act, measure, reset=job.reset, lesson=job.lesson)


def _once(job: Job, bench: Bench, act: Act, number: int) -> None:
    """Prune straight from the model, train if asked, measure."""
    level, steps = job.schedule.levels[number], job.schedule.calendar.last
    if bench.has(name := bench.name(level)):
        return
    event = act(job.subject, level, number)
    pruned = event.after(job.subject)
    if steps:
        pruned = trained(job, bench.out / "once" / name, pruned, job.lesson, steps)
    bench.point(name, pruned, level=level, step=steps, told=event.told)


def trained(job: Job, folder: Path, subject: Subject, lesson: Lesson | None, steps: int) -> Subject:
    """Train a model in a folder of its own, or go on there; `lesson` None is masked prediction."""
    with open_run(folder, job.data, replace(job.training, steps=steps)) as run:
        state, programs = begin(run, subject, lesson)
        return subject_of(programs.arch, run.train(programs, state, last=steps))


def conclude(job: Job, bench: Bench, notes: Sequence[str] = ()) -> None:
    """Report a finished curve, with what its speech has to tell."""
    report(bench, [*job.speech.notes, *notes])


def report(bench: Bench, notes: Sequence[str], more: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Show all points of a finished curve, say which gained less time than promised, and write report.json.

    Args:
        bench: that measured them.
        notes: lines a reader should see, besides the model's.
        more: further values of report.json.
    """
    rows, out = bench.rows(), bench.out
    bench.picture(rows)
    show(rows, bench.title)
    lines = where_the_rest_went([row for row in rows if row["name"] != "dense"])
    for line in lines:
        console.print(line, markup=False)
    values: dict[str, Any] = {"technique": bench.technique, "label": bench.label, "model": bench.model.name}
    values |= {
        "machine": machine(bench.dtype),
        "notes": [*bench.model.notes, *notes, *lines],
        "points": rows,
        **more,
    }
    files.write_json(out / "report.json", values)
    console.print(f"wrote {out}: report.json, curve.csv, curve.png, models/", markup=False)
