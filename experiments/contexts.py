"""Let a model hear less of the future, train it on, and draw what a low latency costs.

    python -m experiments.contexts
    python -m experiments.contexts --right 0 2 8 --left 50 --positions causal both
    python -m experiments.contexts --model MODEL --audio FOLDER --recover distil --steps 200
    python -m experiments.streaming --model runs/contexts/models/right-2-causal

A model that listens while speech is still being spoken cannot wait for the end of the utterance. Here attention sees
--left frames before its own and --right after it, in every layer, and positions hear --positions: `causal`, no frame of
the future, or `both` sides as before. What a frame hears behind its own end is the look-ahead, by which everything
comes late, besides the chunk and the time that computing takes: --right adds up over the layers.

Each is a point of the curve: the dense model with that context, which has the same parameters, trained on for --steps
updates, saved, counted, timed in turns with the dense one on whole utterances, and probed; the dense model trained as
long is the control. The pictures have held-out loss against look-ahead. A run that was broken off goes on with the same
command. `experiments.streaming` takes a point's model as it is, runs it chunk by chunk and times the chunks.

MODEL is any model folder or any checkpoint that docs/families.md lists that can stream with a limited context; --audio
FOLDER is any speech. What models learn of it is told under --audio, and in a note.

Five models of 60 updates take four minutes on two CPU cores with --no-probes. Expected of the default model on 52
minutes of LibriSpeech: held-out loss 1.1 nats above the dense model trained as long where nothing of the future is
heard, 0.95 where attention sees eight frames of it in every layer; before training 4.6 and 4.5 nats.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

from compress.errors import InputError
from experiments.curves.before import known_before
from experiments.curves.curve import Curve, Recovery, check_heeded
from experiments.curves.job import Job, control_of, draw, open_job, open_model, recovering, trained
from experiments.curves.measures import Cost, measured
from experiments.curves.points import Bench, Subject
from experiments.curves.schedule import Schedule
from experiments.reports import methods
from jaxssl.inference.streaming import causal, limited, lookahead
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Natural
from jaxssl.training.calendar import Calendar
from jaxssl.training.lesson import Lesson

Positions = Literal["causal", "both"]
NAMES: dict[str, str] = {"causal": "positions of the past", "both": "positions of both sides"}
LOOKAHEAD = Cost("lookahead", "look-ahead (ms): what a frame hears behind its own end", measured("lookahead_ms"))


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Limit how far a model hears and measure the result beside the dense model."""

    right: Natural[tuple[int, ...]] = (0, 1, 2, 4, 8)
    """frames after its own that attention sees in every layer, one model each"""
    left: Natural[int] = 100
    """frames before its own that attention sees in every layer"""
    positions: tuple[Positions, ...] = ("causal",)
    """what positions hear: causal, no frame of the future; both, as many on either side, as the dense model"""
    steps: Natural[int] = 60
    """updates of recovery after it; 0: none"""
    recover: Recovery = "predict"
    """what the recovery is: masked prediction; what the dense model says; or, of a model with a CTC layer, what is
    said, and what that layer makes of the dense model"""
    masked: bool = False
    """of --recover distil: both hear masked speech and masked frames count; default: all of it, and every frame"""
    out: Path = Path("runs/contexts")
    """folder of the run"""


@dataclass(frozen=True)
class Variant:
    """How far a model hears.

    Attributes:
        right: frames after its own, in every layer.
        positions: what positions hear.
    """

    right: int
    positions: Positions

    def __str__(self) -> str:
        return f"right-{self.right}-{self.positions}"


def run(config: Config) -> None:
    """Carry out the experiment."""
    check_heeded(config, [config.recover], flag="--recover")
    model, subject = open_model(config)
    ways = dict.fromkeys(config.positions)
    variants = [Variant(right, way) for way, right in product(ways, sorted(set(config.right)))]
    if not variants:
        raise InputError("nothing is asked for; name at least one --right and one of --positions")
    for variant in variants:
        lookahead(changed(config, subject, variant).arch)  # refuses what cannot stream before any work
    training = config.settings(config.steps, paper=False, log_every=max(config.steps // 4, 1))
    schedule = Schedule(Calendar((), config.steps), tuple(float(variant.right) for variant in variants))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    lesson = recovering(job, config.recover, config.out, masked=config.masked) if config.steps else None
    job = replace(job, control=control_of(lesson))

    def points(bench: Bench) -> None:
        for variant in variants:
            _point(config, job, bench, lesson, variant)

    picture = partial(methods.draw, names=NAMES, costs=(LOOKAHEAD,))
    draw(
        job,
        points,
        ends=(config.steps,),
        out=config.out,
        technique="contexts",
        label="contexts",
        now=0,
        picture=picture,
    )


def changed(config: Config, dense: Subject, variant: Variant) -> Subject:
    """Give the dense model a context; a mask of weights stays where it was, for it is none of positions."""
    arch, params = limited(dense.arch, left=config.left, right=variant.right), dense.params
    if variant.positions == "causal":
        arch, params = causal(arch, params)
    return Subject(arch, params, dense.masks)


def _point(config: Config, job: Job, bench: Bench, lesson: Lesson | None, variant: Variant) -> None:
    """Limit the context, train, measure."""
    name = str(variant)
    if bench.has(name):
        return
    subject = changed(config, job.subject, variant)
    told: dict[str, Any] = {"method": variant.positions, "lookahead_ms": lookahead(subject.arch).ms}
    if config.steps:
        console.print(f"training on: {name}", markup=False)
        told |= known_before(bench.hear(subject), bench.controls.get(config.steps))
        subject = trained(job, bench.out / "recovery" / name, subject, lesson, config.steps)
    bench.point(name, subject, level=variant.right, step=config.steps, told=told)


if __name__ == "__main__":
    main(run, Config, __doc__)
