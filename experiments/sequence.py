"""Let a model hear shorter sequences, by a fixed ratio, and draw what it costs and saves.

    python -m experiments.sequence
    python -m experiments.sequence --ratio 2 4 --by mean convolution --at front 3
    python -m experiments.sequence --by mean fire once --at front
    python -m experiments.sequence --by fire --at front 3 --guide labels phones smoothed --ratio 4
    python -m experiments.sequence --by mean merge --at 3
    python -m experiments.sequence --model MODEL --audio FOLDER --recover distil --steps 200

Each group of --ratio frames becomes one: their mean, or a learned map of them (a strided convolution, which begins as
the mean). --at says where: behind the front end, as published ("On Compressing Sequences for Self-Supervised Speech
Models", arXiv 2210.07189), so that all layers hear the short sequence; or before a layer, counted from 0, so that
those below it hear all frames. The output is brought back to as many frames as before, by repetition or with
--upsample learned by a transposed convolution, so that every label, probe and CTC layer fits it as the dense model.

--by merge, before a layer, needs no training: of neighbouring frames those whose keys in that layer are most alike
become one, as many as the ratio asks for (adjacent token merging, "Accelerating Transducers through Adjacent Token
Merging", arXiv 2306.16009). The table has its loss before training and after it. Frames that are hidden from the model
are more alike than any, so they merge first: in masked prediction it loses more than means.

--by fire groups by what is said: a small net weighs every frame, and one fires whenever the weights' sum reaches 1
(continuous integrate-and-fire). The net is first fitted to where labels change, in seconds, and guided by that further
on, or by other segments (--guide); a ratio is then reached by mixing its weights. --by once is one model for all ratios
("Once-for-All Sequence Compression", arXiv 2211.02332): each update draws how far weights are mixed, and the model is
read out at each ratio. Programs have fixed shapes, so what is timed (packed/) has room for --room times the most frames
that fired of an utterance of training speech; the same model with room for all is in models/. The table has the frames
that fired in a second of held-out speech, on the mean and of the utterances with fewest and most. An utterance that
fires more than there is room for has no output but NaN, and encoding it says so; how many would is told. In JAX
utterances run one by one behind what weighs their frames, each by the program of the smallest room that holds what
fires, and none is lost: the speed-up over speech is that of the speech of --audio, in turns with the dense model.

MODEL is any model folder or any checkpoint that docs/families.md lists, compressed before or not; --audio FOLDER is
any speech. What models learn of it is told under --audio, and in a note. A fine-tuned model keeps its CTC layer, and
is asked what it writes of held-out speech that has transcripts.

Each ratio, way and place is a point of the curve: the dense model made shorter, trained on for --steps updates, saved,
counted, timed in turns with the dense one, and probed; the dense model trained as long is the control. A hidden frame
hides the whole group that it is put into. A run that was broken off goes on with the same command.

A point of 60 updates takes a minute on two CPU cores. Expected on 52 minutes of LibriSpeech: halved before layer 3 of 6
the default model loses 0.06 nats and takes 0.79 of the time, quartered 0.27 and 0.67; halved behind the front end it
loses 0.80 and takes 0.53, for labels of 20 ms are asked of layers that hear frames of 40 ms from the beginning. Firing
loses more than means at the front end: at ratios 2, 3, 4 and 8 1.12, 1.60, 1.91 and 2.19 nats where means lose 0.80,
1.36, 1.74 and 2.12, and one model for all 1.29, 1.82, 2.12 and 2.24; merging before layer 3 loses 0.35 and 0.72 at
ratios 2 and 4. One model for all takes 0.71, 0.54, 0.45 and 0.30 of the time with one room for all utterances, 0.61,
0.45, 0.37 and 0.25 over speech with a room for each. What other segments than the labels' change, and firing before a
layer, have not been measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from compress.errors import InputError
from compress.plan import Shorter
from experiments.curves.before import known_before
from experiments.curves.curve import Curve, Recovery, check_heeded
from experiments.curves.fewer_frames import check_heard, frames_per_s
from experiments.curves.fired import ROOM, Guide, Roomy, begun, check_guided, guided, narrowed, roomy
from experiments.curves.job import Job, control_of, draw, open_job, open_model, recovering, trained
from experiments.curves.measures import MACS, TIME
from experiments.curves.points import Bench, Subject
from experiments.curves.schedule import Schedule
from experiments.reports import methods
from jaxssl.models.arch import Arch
from jaxssl.models.shorten import arch_by_step, by_step
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Natural, Positive, Several
from jaxssl.training.calendar import Calendar
from jaxssl.training.lesson import Lesson

Way = Literal["mean", "convolution", "merge", "fire", "once"]
FRONT = "front"
FIRES = ("fire", "once")
Found = Callable[[int | None, Guide], Roomy]  # by the layer before which frames fire, and what guides them


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Make a model's sequences shorter and measure the result beside the dense model."""

    ratio: Several[tuple[int, ...]] = (2, 3, 4, 8)
    """frames that become one, one model each"""
    by: tuple[Way, ...] = ("mean",)
    """mean of the group; convolution: a learned map of it; merge: of neighbours whose keys are alike; fire: by what is
    said; once: the same, one model for all ratios"""
    at: tuple[str, ...] = ()
    """front: behind the front end; or the number of the layer before which, from 0; default: front, and the middle
    layer"""
    upsample: Literal["repeat", "learned"] = "repeat"
    """how the output gets its frames back"""
    guide: tuple[Guide, ...] = ("labels",)
    """of --by fire and once: what segments are whose ends teach frames to fire, one model each: runs of equal labels;
    phones, where their times are known of all training speech, as of the embedded corpus; or smoothed runs, after those
    below 60 ms have gone"""
    room: Positive[float] = ROOM
    """of --by fire and once: frames there is room for, in units of the most that fired of an utterance of training
    speech"""
    steps: Natural[int] = 60
    """updates of recovery after it; 0: none"""
    recover: Recovery = "predict"
    """what the recovery is: masked prediction; what the dense model says; or, of a model with a CTC layer, what is
    said, and what that layer makes of the dense model"""
    masked: bool = False
    """of --recover distil: both hear masked speech and masked frames count; default: all of it, and every frame"""
    out: Path = Path("runs/sequence")
    """folder of the run"""


@dataclass(frozen=True)
class Variant:
    """One way of making sequences shorter.

    Attributes:
        ratio: frames that become one.
        way: how.
        at: the layer before which; None: behind the front end.
        guide: the segments that teach frames to fire.
    """

    ratio: int
    way: Way
    at: int | None
    guide: Guide = "labels"

    def __str__(self) -> str:
        return f"ratio-{self.ratio}-{self.method}"

    @property
    def method(self) -> str:
        """What it has in common with other ratios."""
        return f"{self.words}-{self.place}"

    @property
    def words(self) -> str:
        """The way, and by which segments where these are not the labels'."""
        return self.way if self.guide == "labels" else f"{self.way}-{self.guide}"

    @property
    def place(self) -> str:
        """Where it is done, in words."""
        return FRONT if self.at is None else f"layer-{self.at}"

    @property
    def step(self) -> Shorter | None:
        """What does it in a plan's words; None where frames fire, for that begins with a net that heard speech."""
        return None if self.way == "fire" or self.way == "once" else Shorter(self.ratio, self.at, self.way)


def run(config: Config) -> None:
    """Carry out the experiment."""
    check_heeded(config, [config.recover], flag="--recover")
    check_heeded(config, config.by, flag="--by", by={"room": FIRES, "guide": FIRES})
    model, subject = open_model(config)
    variants = variants_of(config, subject.arch)
    training = config.settings(config.steps, paper=False, log_every=max(config.steps // 4, 1))
    for variant in variants:
        check_heard(str(variant), _checked(config, subject, variant), seconds=min(config.seconds, training.crop))
    schedule = Schedule(Calendar((), config.steps), tuple(float(variant.ratio) for variant in variants))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    lesson = recovering(job, config.recover, config.out, masked=config.masked) if config.steps else None
    job = replace(job, control=control_of(lesson))
    jobs = {variant.guide: guided(job, variant.guide) for variant in variants}  # refused before any training

    def points(bench: Bench) -> None:
        net = cache(lambda at, guide: begun(jobs[guide], job.subject, at))
        once = cache(lambda at, guide: _once_for_all(config, jobs[guide], net, at, guide))
        for variant in variants:
            if variant.step is None:
                _fired_point(config, jobs[variant.guide], bench, variant, net, once)
            else:
                _point(config, job, bench, lesson, variant, variant.step)

    names = {variant.method: f"{variant.words}, {variant.place.replace('-', ' ')}" for variant in variants}
    picture = partial(methods.draw, names=names, costs=(TIME, MACS))
    label = "shorter sequences"
    draw(job, points, ends=(config.steps,), out=config.out, technique="sequence", label=label, now=1, picture=picture)


def variants_of(config: Config, arch: Arch) -> list[Variant]:
    """List what to try, by place, way and ratio.

    Raises:
        InputError: nothing is asked for, a place is neither `front` nor a layer, or a way is for another place, or for
            another recovery or upsampling.
    """
    fires, irregular = ([way for way in config.by if way in ways] for ways in (FIRES, (*FIRES, "merge")))
    if fires and config.recover != "predict":
        raise InputError(f"--by {fires[0]} --recover {config.recover}: labels guide what fires; recover by predict")
    if irregular and config.upsample == "learned":
        raise InputError(f"--by {irregular[0]} --upsample learned: no fixed number of frames becomes one; take repeat")
    if not config.guide:
        raise InputError("--guide: nothing is named; give labels, phones or smoothed")
    depth = len(arch.layers)
    places = list[int | None]()
    for word in dict.fromkeys(config.at or (FRONT, str(depth // 2))):
        if word != FRONT and not (word.isdecimal() and int(word) < depth):
            raise InputError(f"--at {word}: give {FRONT}, or the number of a layer, 0 to {depth - 1}")
        places.append(None if word == FRONT else int(word))
    if "merge" in config.by and not any(at is not None for at in places):
        raise InputError(f"--by merge --at {FRONT}: frames merge by the keys of a layer; add the number of one")
    ways = [(at, way) for at in places for way in dict.fromkeys(config.by) if _fits(way, at)]
    plain: tuple[Guide, ...] = ("labels",)
    guides = {way: tuple(dict.fromkeys(config.guide)) if way in FIRES else plain for way in config.by}
    each = [(way, at, guide) for at, way in ways for guide in guides[way]]
    found = [Variant(ratio, *words) for words in each for ratio in sorted(set(config.ratio))]
    if not found:
        raise InputError("nothing is asked for; name at least one --ratio and one --by")
    return found


def _fits(way: Way, at: int | None) -> bool:
    """Tell whether frames can be made fewer so in that place: a front end has no keys."""
    return at is not None or way != "merge"


def _checked(config: Config, subject: Subject, variant: Variant) -> Arch:
    """Return the arch of a variant; errors as those that make it."""
    if variant.step is None:
        arch = arch_by_step(subject.arch, Shorter(variant.ratio, variant.at, "fire"))
        check_guided(arch)
        return arch
    return _shortened(config, subject, variant.step).arch


def _shortened(config: Config, subject: Subject, step: Shorter) -> Subject:
    """Make the model's sequences shorter; a mask of weights that are zero stays where it was."""
    arch, params = by_step(subject.arch, subject.params, step, learned=config.upsample == "learned")
    return Subject(arch, params, subject.masks)


def _point(config: Config, job: Job, bench: Bench, lesson: Lesson | None, variant: Variant, step: Shorter) -> None:
    """Make sequences shorter, train, measure."""
    name = str(variant)
    if bench.has(name):
        return
    changed = _shortened(config, job.subject, step)
    told: dict[str, Any] = {"frames_per_s": frames_per_s(changed.arch), "method": variant.method}
    if config.steps:
        console.print(f"training on: {name}", markup=False)
        told |= known_before(bench.hear(changed), bench.controls.get(config.steps))
        changed = trained(job, bench.out / "recovery" / name, changed, lesson, config.steps)
    bench.point(name, changed, level=variant.ratio, step=config.steps, told=told)


def _fired_point(config: Config, job: Job, bench: Bench, variant: Variant, net: Found, once: Found) -> None:
    """Let frames fire at a rate, train, give the room that fits, measure."""
    name = str(variant)
    if bench.has(name):
        return
    subject = net(variant.at, variant.guide).at(variant.ratio)
    told: dict[str, Any] = {"method": variant.method}
    if config.steps:
        told |= known_before(bench.hear(subject), bench.controls.get(config.steps))
        if variant.way == "once":
            subject = once(variant.at, variant.guide).at(variant.ratio)
        else:
            console.print(f"training on: {name}", markup=False)
            subject = trained(job, bench.out / "recovery" / name, subject, None, config.steps)
    fast, fired = narrowed(job, roomy(job, subject), margin=config.room, rounds=config.rounds)
    bench = replace(bench, fast=lambda _: fast)
    bench.point(name, subject, level=variant.ratio, step=config.steps, told={**told, **fired})


def _once_for_all(config: Config, job: Job, net: Found, at: int | None, guide: Guide) -> Roomy:
    """Train one model for all ratios, each update at another amount of mixing."""
    console.print("training on: one model for all ratios", markup=False)
    subject, name = net(at, guide).drawing(config.ratio), Variant(0, "once", at, guide).method
    return roomy(job, trained(job, config.out / "recovery" / name, subject, None, config.steps))


if __name__ == "__main__":
    main(run, Config, __doc__)
