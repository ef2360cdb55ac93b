"""Distil the teacher into smaller students, and draw the curve.

    python -m experiments.distill
    python -m experiments.distill --layers 3 --loss dphubert
    python -m experiments.distill --layers 4 --ffn 512 --heads 4 --rank 64
    python -m experiments.distill --layers 4 2 --random --temperature 2 --alpha 0.5 --masked
    python -m experiments.distill --model TEACHER --student runs/rows/models/rows-512 --out runs/distil-rows
    python -m experiments.distill --model MODEL --audio FOLDER

MODEL is any model folder or any checkpoint that docs/families.md lists, compressed before or not; --audio FOLDER is
any speech. What models learn of it is told under --audio, and in a note. A fine-tuned model keeps its CTC layer, and
is asked what it writes of held-out speech that has transcripts.

A student takes layers of the teacher, its first ones, every second or whichever are named, with their weights or new
ones, and may be narrower in heads, feed-forward units and ranks; or it is any model of the teacher's frame rate, of
another family too, log-Mel beside waveforms. It learns the teacher's clusters (the study's way: the divergence of the
cluster probabilities) or its hidden layers (DistilHuBERT, FitHuBERT, ARMHuBERT, STaRHuBERT, DPHuBERT; the output layer
then learns the clusters by itself, and what it learns changes nothing below it). The teacher runs without dropout and
without gradients. What it says of each batch is kept beside the run, so that it runs once for all students. The study's
own settings are --batch 32 --crop 15 --learning-rate 1e-4 --layers 6 2 of melhubert-20ms.

Every point is saved as a model of its own, evaluated, probed, counted and timed in turns with the dense one, and a run
that was broken off goes on with the same command.

A student takes about two minutes on two CPU cores. Expected, with --masked on 52 minutes of LibriSpeech: four layers of
six know held-out clusters as well as the teacher did (3.195 nats to its 3.190, or 3.069 when it trains on as long by
itself), three have 3.240; of the phones 0.665 both, the teacher 0.683. They run 1.4 and 1.8 times as fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax

from compress.errors import InputError
from compress.plan import Heads, Layers, LowRank, Rows, Step
from compress.plan import run as run_plan
from experiments.curves.curve import Curve, check_heeded
from experiments.curves.evidence import sites_below
from experiments.curves.job import Job, control_of, open_job, open_model, prune, writing
from experiments.curves.points import Subject
from experiments.curves.recovery import with_head
from experiments.curves.schedule import Schedule
from experiments.curves.sweep import Event
from jaxssl.inference.source import Model, in_float, load_model
from jaxssl.models.arch import FULL, Arch, Layer
from jaxssl.models.describe import describe
from jaxssl.models.model import init
from jaxssl.models.part import formed
from jaxssl.runtime.cli import On, main
from jaxssl.runtime.ranges import Count, Natural, Positive, Share
from jaxssl.training import hidden_states
from jaxssl.training.calendar import Calendar
from jaxssl.training.corpus import Data
from jaxssl.training.lesson import Choose, Lesson, check_teacher, soft_labels
from jaxssl.training.two_fronts import for_both

HEEDED = {"temperature": ("soft", "ctc"), "alpha": ("soft", "ctc"), "masked": ("soft",)}  # by --loss
Loss = Literal["soft", "distilhubert", "fithubert", "armhubert", "starhubert", "dphubert"]


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Distil a model into smaller ones; --model is the teacher."""

    student: str | None = None
    """a model to train instead of what the settings below make of the teacher, named like --model"""
    layers: Count[tuple[int, ...]] = ()
    """layers of the students, one each, falling; default: every number below the teacher's, six at most"""
    take: Literal["first", "even"] = "first"
    """which of the teacher's layers: the first, or evenly spread ones that end with its last"""
    given: Natural[tuple[int, ...]] = ()
    """the teacher's layers that one student takes, counted from 0, instead of --layers"""
    width: Count[int | None] = None
    """of the student, with new weights; default: the teacher's"""
    heads: Natural[int | None] = None
    """heads of each layer; default: the teacher's; those of least weight go"""
    ffn: Natural[int | None] = None
    """feed-forward units of each layer, likewise"""
    rank: Count[int | None] = None
    """rank of each dense map of the layers, where that makes it smaller"""
    random: bool = False
    """start from new weights instead of the teacher's"""
    loss: Loss | Literal["ctc"] = "soft"
    """soft: the study's, of cluster probabilities; ctc, of a teacher with a CTC layer: what is said, and what that
    layer makes of the teacher; the others compare hidden layers as those systems do"""
    temperature: Positive[float] = 1.0
    """of --loss soft and ctc: divides the logits of both"""
    alpha: Share[float] = 1.0
    """of --loss soft: share of the teacher, the rest is the clusters' cross-entropy; of ctc: weight of the teacher
    beside the CTC loss"""
    masked: bool = False
    """of --loss soft: both hear masked speech and masked frames count; default: all of it, and every frame"""
    teacher_dropout: bool = False
    """let the teacher drop at random, as the study's code did by mistake"""
    keep_answers: On = True
    """write what the teacher says of each batch, for the other students and for a run that was broken off"""
    steps: Count[int] = 105
    """updates of each student"""
    out: Path = Path("runs/distil")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    check_heeded(config, [config.loss], flag="--loss", by=HEEDED)
    model, subject = open_model(config)
    student = None if config.student is None else in_float(load_model(config.student, seed=config.seed))
    levels = levels_of(config, model.arch, student)
    plans = [plan_of(config, model.arch, level) for level in levels] if student is None else []
    for plan in plans:
        make(config, subject, plan)  # refuses what cannot be before any work
    schedule = Schedule(Calendar((), config.steps), tuple(map(float, levels)))
    training = config.settings(config.steps, paper=False, log_every=max(config.steps // 5, 1))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    if student is not None:
        check_teacher(job.model, student, job.data, logits=False)
        job = replace(job, data=for_both(job.data, job.model, student))
        student = with_head(student, job.data, job.training, out=config.out.parent)
    lesson = lesson_of(config, job)
    job = replace(job, lesson=lesson, control=control_of(lesson))
    starts = [make(config, job.subject, plan) for plan in plans] if student is None else [_as_subject(student)]
    for start in starts:
        check_teacher(job.model, student or job.model, job.data, logits=config.loss == "soft")
        assert job.lesson is not None
        job.lesson.heads(start.arch, seed=config.seed)  # refuses what cannot be learned

    def act(subject: Subject, level: float, number: int) -> Event:
        return Event({}, lambda tree: starts[number].params, arch=starts[number].arch)

    label = f"distilled, {config.loss}" + (", new weights" if config.random or config.width else "")
    prune(job, act, out=config.out, technique="distil", label=label, now=len(model.arch.layers))


def levels_of(config: Config, teacher: Arch, student: Model | None) -> Sequence[int]:
    """Return how many layers each student has.

    Raises:
        InputError: numbers that the teacher does not have or that do not fall, or settings that exclude each other.
    """
    shaping = (config.layers, config.given, config.width, config.heads, config.ffn, config.rank)
    if student is not None:
        if any(shaping) or config.random:
            raise InputError("--student names the model; --layers, --width and what else shapes one do not go with it")
        return (len(student.arch.layers),)
    if config.given:
        if config.layers:
            raise InputError("--layers and --given both say which layers the student has; give one of them")
        return (len(config.given),)
    depth = len(teacher.layers)
    found = config.layers or tuple(range(depth - 1, 0, -max(1, depth // 6)))
    if any(not 1 <= level <= depth for level in found) or list(found) != sorted(set(found), reverse=True):
        raise InputError(f"--layers {' '.join(map(str, found))}: name falling numbers from {depth} to 1")
    return found


def plan_of(config: Config, teacher: Arch, level: int) -> list[Step]:
    """Return what makes a student of the teacher."""
    depth = len(teacher.layers)
    first = tuple(range(level))
    even = tuple(round(depth * (i + 1) / level) - 1 for i in range(level))
    plan: list[Step] = [Layers(config.given or (first if config.take == "first" else even))]
    plan += [] if config.heads is None else [Heads(config.heads)]
    plan += [] if config.ffn is None else [Rows(config.ffn)]
    return plan + ([] if config.rank is None else [LowRank("layers/*", config.rank)])


def make(config: Config, teacher: Subject, plan: Sequence[Step]) -> Subject:
    """Make a student: the plan's arrays, or new weights of its shape.

    Raises:
        InputError: the teacher does not have what the plan keeps, or the width is impossible.
    """
    params = run_plan(plan, teacher.seen, sites=sites_below(teacher.arch))
    arch = describe(teacher.arch, params)
    if not (config.random or config.width):
        return Subject(arch, params, {})
    if config.width is not None:
        arch = replace(arch, width=config.width, layers=tuple(map(_without_ranks, arch.layers)))
    return Subject(arch, init(arch, jax.random.key(config.seed)), {})


def lesson_of(config: Config, job: Job) -> Lesson:
    """Return how students learn from the job's model."""
    kept = config.out.parent / "taught" if config.keep_answers else None
    make = partial(Lesson, job.model.arch, job.subject.seen, training=job.training)
    make = partial(make, dropout=config.teacher_dropout, kept=kept)
    if config.loss == "ctc":
        choose, said = writing(job, alpha=config.alpha, temperature=config.temperature)
        return make(choose=choose, script=said)
    return make(choose=_choose(config, config.loss, job.data))


def _choose(config: Config, loss: Loss, data: Data) -> Choose:
    match loss:
        case "soft":
            return soft_labels(data, temperature=config.temperature, alpha=config.alpha, masked=config.masked)
        case "distilhubert":
            return hidden_states.distilhubert
        case "fithubert":
            return hidden_states.fithubert
        case "armhubert":
            return hidden_states.armhubert
        case "starhubert":
            return hidden_states.starhubert
        case "dphubert":
            return hidden_states.dphubert


def _as_subject(model: Model) -> Subject:
    return Subject(model.arch, model.params, {})


def _without_ranks(layer: Layer) -> Layer:
    return layer.changed(lambda block: formed(block, FULL))


if __name__ == "__main__":
    main(run, Config, __doc__)
