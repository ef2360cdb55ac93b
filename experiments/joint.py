"""Distil and prune at once: the student begins as the teacher, and learns which of its units may go (DPHuBERT).

    python -m experiments.joint
    python -m experiments.joint --target 0.3 0.5 0.7 --steps 200 --after 100
    python -m experiments.joint --model hubert-base --corpus PREPARED --target 0.75 --channels
    python -m experiments.joint --loss soft --masked
    python -m experiments.joint --model MODEL --audio FOLDER

MODEL is any model folder or any checkpoint that docs/families.md lists, compressed before or not; --audio FOLDER is
any speech. What models learn of it is told under --audio, and in a note. A fine-tuned model keeps its CTC layer, and
is asked what it writes of held-out speech that has transcripts.

Every head and every feed-forward unit has a gate, and with --channels those of a waveform extractor's channels that can
go without a trace. While the student learns the teacher's hidden layers (input, a third, two thirds and the end; L1
minus the cosine), or with --loss its clusters or what it writes, an augmented Lagrangian brings the expected share of
parameters that go to the target, which rises from 0 over the first part of the updates. Then the units whose gates are
least open are cut until the target is met, the gates of the others become part of the weights, and the slim model is
distilled again (Peng et al. 2023).

Each target is a run of its own from the teacher, and a point: saved, evaluated, probed, counted, timed in turns with
the dense model. A run that was broken off goes on with the same command. The point's row says what share of the
parameters the gates learned to close and what share was cut, beside the target.

A target takes two to three minutes on two CPU cores. Expected on 52 minutes of LibriSpeech: the gates learn to close on
20, 62 and 80 % of the parameters of the default model, 25.0, 50.3 and 75.0 % are cut; masked prediction is forgotten
(3.94, 4.09 and 4.24 nats, dense 3.19), for no term of this loss asks for it; of phones by frame 0.64 to 0.66 stay right
(dense 0.68, intervals ± 0.03).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from compress.address import Axis, Tree
from compress.edit import cut
from compress.errors import InputError
from experiments.curves.curve import Curve, Recovery, check_heeded
from experiments.curves.job import Job, control_of, draw, open_job, open_model, recovering, trained
from experiments.curves.points import Bench, Subject
from experiments.curves.schedule import Schedule
from jaxssl.models import cost
from jaxssl.models.arch import Arch
from jaxssl.models.describe import describe
from jaxssl.models.model import Params
from jaxssl.models.sites import axes, channels
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Count, Inner, Part, Positive, Share
from jaxssl.training import gates
from jaxssl.training.calendar import Calendar
from jaxssl.training.distillation import joined, split
from jaxssl.training.fit import Programs, Run, open_run
from jaxssl.training.hidden_states import dphubert
from jaxssl.training.lesson import Lesson
from jaxssl.training.settings import optimizer, policy
from jaxssl.training.sharding import fetch, shardings
from jaxssl.training.step import State, compile_step, start

HEEDED = {"temperature": ("soft", "ctc"), "alpha": ("soft", "ctc"), "masked": ("soft",)}  # by --loss


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Distil and prune at once; --model is the teacher and where the student begins."""

    target: Inner[tuple[float, ...]] = (0.25, 0.5, 0.75)
    """shares of the parameters that are to go, rising, one point each"""
    loss: Literal["dphubert", "soft", "ctc"] = "dphubert"
    """dphubert: the teacher's hidden layers; soft: its clusters, which keeps masked prediction; ctc, of a teacher with
    a CTC layer: what is said, and what that layer makes of the teacher"""
    temperature: Positive[float] = 1.0
    """of --loss soft and ctc: divides the logits of both"""
    alpha: Share[float] = 1.0
    """of --loss soft: share of the teacher, the rest is the clusters' cross-entropy; of ctc: weight of the teacher
    beside the CTC loss"""
    masked: bool = False
    """of --loss soft: both hear masked speech and masked frames count; default: all of it, and every frame"""
    channels: bool = False
    """let channels of a waveform extractor go as well"""
    steps: Count[int] = 105
    """updates with gates"""
    ramp: Part[float] = 0.5
    """share of these updates over which the target rises from 0"""
    after: Count[int] = 60
    """updates of the slim model"""
    gate_rate: Positive[float] = 0.2
    """learning rate of gates and multipliers; the published 0.02 is for some 50,000 updates"""
    out: Path = Path("runs/joint")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    check_heeded(config, [config.loss], flag="--loss", by=HEEDED)
    model, subject = open_model(config)
    check(config, subject)
    total = config.steps + config.after
    schedule = Schedule(Calendar((), total), config.target)
    training = config.settings(total, paper=False, log_every=max(config.steps // 5, 1))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    lesson = lesson_of(config, job)
    job = replace(job, control=control_of(lesson))

    def points(bench: Bench) -> None:
        for target in config.target:
            _point(config, job, bench, lesson, target)

    draw(job, points, ends=(total,), out=config.out, technique="joint", label="distilled and pruned at once", now=0.0)


def lesson_of(config: Config, job: Job) -> Lesson:
    """Return how the student learns from the model, with gates and after they are cut."""
    if config.loss == "dphubert":
        kept = config.out.parent / "taught"
        return Lesson(job.model.arch, job.subject.seen, dphubert, job.training, kept=kept)
    how: Recovery = "ctc" if config.loss == "ctc" else "distil"
    said = {"alpha": config.alpha, "temperature": config.temperature}
    lesson = recovering(job, how, config.out, masked=config.masked, **said)
    assert lesson is not None  # it is not by masked prediction
    return lesson


def check(config: Config, subject: Subject) -> None:
    """Refuse what cannot be before any work.

    Raises:
        InputError: targets that do not rise or exceed what has gates, weights that masks hold at zero, no update.
    """
    if subject.masks:
        raise InputError("weights that are zero stay zero, and gates keep no masks; prune weights afterwards")
    mine = axes_of(config, subject.arch)
    dense = cost.parameters(subject.arch)
    most = 1 - gates.size(subject.arch, mine, {axis.name: 0 for axis in mine}) / dense
    if not config.target or list(config.target) != sorted(set(config.target)):
        raise InputError(f"--target {' '.join(map(str, config.target))}: name rising shares")
    for target in (config.target[0], config.target[-1]):
        if not 0 < target < most:
            raise InputError(f"--target {target:g}: all that has gates is {most:.3f} of the parameters; stay below it")


def axes_of(config: Config, arch: Arch) -> tuple[Axis, ...]:
    """List the axes whose units have gates: gates are on weights behind them, where no norm may stand between."""
    inner = tuple(axis for axis in axes(arch) if axis.size and not axis.normed)
    return (*channels(arch), *inner) if config.channels else inner


def slim(subject: Subject, mine: Sequence[Axis], logits: Mapping[str, Any], target: float) -> Subject:
    """Cut as many units as make the target, those whose gates are least open, and make the others' part of the weights.

    The cut model computes what the gated one did. A channel stays at least.
    """
    stay = gates.chosen(subject.arch, mine, logits, target)
    for axis in mine:
        if axis.name.endswith("/channels") and not stay[axis.name].any():
            stay[axis.name][np.argmax(logits[axis.name])] = True
    z = {name: gates.settled(jnp.asarray(logits[name]), jnp.asarray(keep)) for name, keep in stay.items()}
    seen: Tree = gates.gated(subject.seen, mine, z)
    keeps = {name: tuple(np.flatnonzero(keep).tolist()) for name, keep in stay.items()}
    params = reduce(lambda tree, axis: cut(tree, axis, keeps[axis.name]), mine, seen)
    return Subject(describe(subject.arch, params), params, {})


def _point(config: Config, job: Job, bench: Bench, lesson: Lesson, target: float) -> None:
    """Learn the gates, cut, distil again, measure."""
    if bench.has(name := bench.name(target)):
        return
    cut_model, told = _learned(config, job, bench.out / "gates" / name, lesson, target)
    before = bench.quality(cut_model)["valid_loss"]
    after = trained(job, bench.out / "after" / name, cut_model, lesson, config.after)
    bench.point(name, after, level=target, step=config.steps + config.after, told={"loss_before": before, **told})


def _learned(config: Config, job: Job, folder: Path, lesson: Lesson, target: float) -> tuple[Subject, dict[str, float]]:
    """Train with gates, and cut."""
    subject = job.subject
    mine = axes_of(config, subject.arch)
    training = replace(job.training, steps=config.steps)
    with open_run(folder, job.data, training) as run:
        heads = lesson.heads(subject.arch, seed=training.seed)
        build = replace(optimizer(training), rates=((gates.GATES, config.gate_rate),)).build()
        tree = {**joined(subject.params, heads), gates.GATES: gates.fresh(mine)}
        state = run.begin(start(tree, build, seed=training.seed))
        programs = _programs(run, subject.arch, state, lesson, mine, build, config, target)
        state = run.train(programs, state, last=config.steps)
        params = fetch(state.params)
    logits, dense = params[gates.GATES]["open"], cost.parameters(subject.arch)
    found = slim(Subject(subject.arch, _plain(params), {}), mine, logits, target)
    learned = 1 - float(gates.size(subject.arch, mine, {n: gates.chance(a).sum() for n, a in logits.items()})) / dense
    gone = 1 - cost.parameters(found.arch) / dense
    told = f"gates were to close on {target:.1%} of the parameters and learned to on {learned:.1%}; {gone:.1%} are cut"
    console.print(told, markup=False)
    return found, {"target": target, "learned": learned, "gone": gone}


def _programs(
    run: Run, arch: Arch, state: State, lesson: Lesson, mine: Sequence[Axis], build: Any, config: Config, target: float
) -> Programs:
    """Compile what learns gates; validation hears the student with its gates as they are."""
    goal = gates.gating(arch, lesson.loss(arch), mine, dtype=jnp.dtype(config.dtype), stack=config.stack)
    steps, give, rise = run.feed.steps, lesson.give(arch, run.data), max(config.ramp * config.steps, 1)

    def given(batch: Any, position: Mapping[str, int]) -> Any:
        number = position["epoch"] * steps + position["step"]
        return {**give(batch, position), gates.TARGET: jnp.float32(target * min((number + 1) / rise, 1.0))}

    def view(params: Any, held: Any) -> Any:
        z = {name: gates.settled(values) for name, values in params[gates.GATES]["open"].items()}
        return gates.gated(_plain(params), mine, z)

    plain = run.programs(arch, state, view=view)
    step = compile_step(goal, build, shardings=shardings(state, run.mesh), spikes=policy(run.training))
    return replace(plain, step=step, lesson=lesson, give=given)


def _plain(params: Params) -> Params:
    """Leave out what is trained beside the student: heads and gates."""
    student, _ = split(params)
    return {name: part for name, part in student.items() if name != gates.GATES}


if __name__ == "__main__":
    main(run, Config, __doc__)
