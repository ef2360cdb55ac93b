"""Combine techniques: a plan of stages, each with recovery, every stage a point of the curve.

    python -m experiments.combine
    python -m experiments.combine --plan layers=3@60:distil heads=6 heads=4 rows=512
    python -m experiments.combine --plan rank=96 rows=512:distil weights=0.5 --every 30
    python -m experiments.combine --plan ratio=2,3 heads=6 ratio=2,4,merge@60:distil
    python -m experiments.combine --file plan.txt --model melhubert-20ms --corpus PREPARED
    python -m experiments.combine --model MODEL --audio FOLDER

MODEL is any model folder or any checkpoint that docs/families.md lists, compressed before or not; --audio FOLDER is
any speech. What models learn of it is told under --audio, and in a note. A fine-tuned model keeps its CTC layer, and
is asked what it writes of held-out speech that has transcripts.

A stage is KIND=VALUE: `layers` (the first so many stay), `heads` and `rows` of each layer (the lowest by weight go),
`rank` of each dense map (activation-aware; `svd` is the plain one; where it makes the map smaller), `weights` (share of
zeros, over the whole model), `ratio` (frames that become one before the middle layer; `ratio=2,front` behind the front
end, `ratio=2,4` before layer 4, counted from 0; their mean, or `ratio=2,4,convolution`, `ratio=2,4,merge` and
`ratio=2,front,fire` as experiments.sequence has them, of which the last two take fractions too, as in
ratio=1.25,2,merge ratio=1.25,3,merge; what fires recovers by predict, for labels guide it, and fires another number
once the layers below are cut, which the table tells). @N trains N updates after it, :distil lets the model recover by
what the dense one says of each frame and :predict by masked prediction. A file has one stage a line; what follows a #
is a remark.

Without a plan it is the study's winner in proportion to the model: half the layers, distilled, then heads to three
quarters and a half, then rows to a sixth in five steps ("Is Smaller Always Faster?", arXiv 2211.09949). Each stage's
model is saved, evaluated, probed, counted and timed, Adam starts anew at each, and a run that was broken off goes on
with the same command, in the stage it was in.

A stage of 15 updates takes half a minute on two CPU cores. Expected on 52 minutes of LibriSpeech with
`--plan layers=3@45:distil heads=6 heads=4 rows=768 rows=512 rows=320 --every 15 --masked`: 3.316, 3.314, 3.317, 3.366,
3.443 and 3.532 nats at 0.56, 0.51, 0.47, 0.43, 0.38 and 0.34 of the dense time. Without --masked the first stage loses
more: a student that never hears masked speech does not predict it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from compress.errors import InputError
from compress.lowrank import check_rank
from compress.plan import Heads, Layers, LowRank, Rows, Shorter, Step, Way, Weights
from compress.sparse import check_sparsity
from experiments.curves.curve import Curve, Recovery, check_heeded
from experiments.curves.events import compressed
from experiments.curves.fewer_frames import check_heard, frames_per_s
from experiments.curves.fired import check_guided, narrowed, roomy
from experiments.curves.job import Job, control_of, draw, open_job, open_model, recovering, trained
from experiments.curves.points import Bench, Subject
from experiments.curves.schedule import Schedule
from jaxssl.models.arch import Arch, KeyMerging
from jaxssl.models.shorten import arch_by_step
from jaxssl.models.sites import matrices
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import NATURAL, Count, There, Written
from jaxssl.training.calendar import Calendar
from jaxssl.training.lesson import Lesson

Kind = Literal["layers", "heads", "rows", "rank", "svd", "weights", "ratio"]
ALONE: dict[Kind, str] = {
    "layers": "fewer layers",
    "heads": "heads",
    "rows": "rows",
    "rank": "low rank, activation-aware",
    "svd": "low rank, plain SVD",
    "weights": "weights",
    "ratio": "shorter sequences",
}
FORM = (
    "KIND=VALUE with layers, heads, rows, rank, svd, weights or ratio (also ratio=2,front,fire or ratio=2,4,merge), "
    "then @UPDATES and :distil, :predict or :ctc if wanted, as rows=512@30:distil"
)
T = TypeVar("T")
FRONT = "front"
STAGE = re.compile(
    r"(?P<kind>layers|heads|rows|rank|svd|weights|ratio)=(?P<value>[0-9.]+)"
    r"(,(?P<place>front|\d+))?(,(?P<way>mean|convolution|merge|fire))?"
    r"(@(?P<steps>\d+))?(:(?P<how>\w+))?"
)
WORDS: dict[Recovery, str] = {"predict": "masked prediction", "distil": "distillation", "ctc": "CTC and distillation"}
ROUND = 64  # rows of the default plan are multiples, where there are enough of them


@dataclass(frozen=True)
class Words:
    """A stage as it is written.

    Attributes:
        kind: what it does.
        value: how far.
        place: of a ratio, `front` or the number of a layer; None: the middle layer.
        way: of a ratio.
        steps: updates after it; None: it does not say.
        how: the model recovers; None: it does not say.
    """

    kind: str
    value: float
    place: str | None
    way: Way
    steps: int | None
    how: Recovery | None


def _words(word: str) -> Words:
    """Part a stage into its words; ValueError where it is not written as one."""
    found = STAGE.fullmatch(word)
    if found is None or found["how"] not in (None, *WORDS):
        raise ValueError(word)
    value, steps = float(found["value"]), None if found["steps"] is None else int(found["steps"])
    if value not in NATURAL or (steps is not None and steps not in NATURAL):
        raise ValueError(word)
    if found["kind"] != "ratio" and (found["place"] or found["way"]):
        raise ValueError(word)
    ways: tuple[Way, ...] = get_args(Way)
    way: Way = next((way for way in ways if way == found["way"]), "mean")
    how = next((how for how in WORDS if how == found["how"]), None)
    return Words(found["kind"], value, found["place"], way, steps, how)


Stages = Annotated[T, Written(_words, FORM)]


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Compress a model stage by stage."""

    plan: Stages[tuple[str, ...]] = ()
    """stages as KIND=VALUE, @UPDATES and :distil, :predict or :ctc after it; default: the study's winner, in
    proportion"""
    file: There[Path | None] = None
    """file with a stage on each line, instead of --plan"""
    every: Count[int] = 30
    """updates after each stage that does not say itself"""
    recover: Recovery = "predict"
    """how the model recovers after each stage that does not say itself"""
    masked: bool = False
    """of distillation: both hear masked speech and masked frames count; default: all of it, and every frame"""
    out: Path = Path("runs/combine")
    """folder of the run"""


@dataclass(frozen=True)
class Stage:
    """One stage of a plan.

    Attributes:
        step: what it does to the model.
        asked: how far, as it was written.
        steps: updates after it.
        how: the model recovers.
    """

    step: Step
    asked: float
    steps: int
    how: Recovery

    @property
    def kind(self) -> Kind:
        """The word that a plan has for the step."""
        match self.step:
            case Layers():
                return "layers"
            case Heads():
                return "heads"
            case Rows():
                return "rows"
            case LowRank(aware=aware):
                return "rank" if aware else "svd"
            case Weights():
                return "weights"
            case Shorter():
                return "ratio"

    def __str__(self) -> str:
        match self.step:
            case Shorter(_, at, way):
                return f"ratio-{self.asked:g}-{way}-{FRONT if at is None else f'layer-{at}'}"
        return f"{self.kind}-{self.asked:g}"


def run(config: Config) -> None:
    """Carry out the experiment."""
    model, subject = open_model(config)
    stages = stages_of(config, subject.arch)
    check_heeded(config, [stage.how for stage in stages], flag="--recover")
    ends = tuple(accumulate(stage.steps for stage in stages))
    schedule = Schedule(Calendar((), ends[-1]), tuple(map(float, range(1, len(stages) + 1))))
    training = config.settings(ends[-1], paper=False, log_every=max(config.every // 2, 1))
    check(stages, subject.arch, seconds=min(config.seconds, training.crop))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    hows = dict.fromkeys(stage.how for stage in stages)
    lessons = {how: recovering(job, how, config.out, masked=config.masked) for how in hows}
    job = replace(job, control=control_of(lessons.get("ctc")))
    numbered = [f"{number}-{stage}" for number, stage in enumerate(stages, start=1)]

    def points(bench: Bench) -> None:
        now = job.subject
        for number, stage in enumerate(stages):
            now = _stage(job, bench, now, stage, lessons[stage.how], name=numbered[number], step=ends[number])

    draw(job, points, ends=ends, out=config.out, technique="combine", label=_label(stages), now=0)


def stages_of(config: Config, arch: Arch) -> list[Stage]:
    """Read the plan.

    Raises:
        InputError: a stage that is not written as one, both --plan and --file, or a file that cannot be read.
    """
    if config.plan and config.file:
        raise InputError("--plan and --file both say what to do; give one of them")
    words: Sequence[str] = config.plan or default_plan(arch)
    if config.file is not None:
        try:
            lines = config.file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{config.file}: the plan cannot be read ({error})") from None
        words = [word for line in lines if (word := line.partition("#")[0].strip())]
    if not words:
        raise InputError(f"{config.file}: no stage is in it; write one a line, as rows=512")
    stages, depth = list[Stage](), len(arch.layers)
    for word in words:
        stages.append(_parse(config, word, depth))
        depth = len(step.keep) if isinstance(step := stages[-1].step, Layers) else depth
    return stages


def default_plan(arch: Arch) -> list[str]:
    """Return the study's winner in proportion: 6 of 12 layers, heads 12 → 9 → 6, rows 3072 → 2560 → … → 512."""
    depth, heads, rows = len(arch.layers), arch.layers[0].heads, arch.layers[0].ffn.size
    plan = [f"layers={max(depth // 2, 1)}:distil"]
    plan += [f"heads={count}" for count in dict.fromkeys((round(heads * 3 / 4), heads // 2)) if 0 < count < heads]
    multiple = ROUND if rows >= 6 * ROUND else 1
    return plan + [f"rows={max(round(rows * part / 6 / multiple), 1) * multiple}" for part in (5, 4, 3, 2, 1)]


def check(stages: Sequence[Stage], arch: Arch, *, seconds: float) -> None:
    """Refuse what cannot be done before any training; `seconds` are what the model hears at once.

    Raises:
        InputError: a stage keeps more than there is by then, is out of range, or undoes one before it.
    """
    layer = max(arch.layers, key=lambda layer: layer.ffn.size)
    left = {
        "layers": len(arch.layers),
        "heads": max(each.heads for each in arch.layers),
        "rows": layer.ffn.size,
    }
    zeros = 0.0
    for stage in stages:
        if stage.steps < 1:
            raise InputError(f"--plan {stage}: {stage.steps} updates after it; give 1 or more")
        match stage.step:
            case Weights(sparsity):
                check_sparsity(sparsity)
                if sparsity <= zeros:
                    raise InputError(f"--plan {stage}: {zeros:g} of the weights are zero by then; ask for more")
                zeros = sparsity
            case LowRank(_, rank):
                for matrix in matrices(arch):
                    if matrix.path.startswith("layers/") and matrix.max_rank:
                        check_rank(replace(matrix, rank=None), rank)
            case Layers() | Heads() | Rows():
                kind, least = stage.kind, 1 if stage.kind == "layers" else 0
                if not least <= stage.asked <= left[kind] or stage.asked != int(stage.asked):
                    raise InputError(
                        f"--plan {stage}: {left[kind]} {kind} are left by then; keep {least} to {left[kind]}"
                    )
                left[kind] = int(stage.asked)
                arch = _fewer(stage, arch, left["layers"])
                _check_keys(stage, arch, left["heads"])
            case Shorter():
                arch = _shorter(stage, arch, seconds=seconds)
                _check_keys(stage, arch, left["heads"])
        if arch.firing and stage.how != "predict":
            raise InputError(f"--plan {stage}: labels guide what fires, and {stage.how} takes none; recover by predict")


def _fewer(stage: Stage, arch: Arch, depth: int) -> Arch:
    """Take an arch's last layers away, unless one of them is what makes the sequence shorter."""
    if gone := [i for i, layer in enumerate(arch.layers) if i >= depth and layer.shortening]:
        raise InputError(
            f"--plan {stage}: layers hear fewer frames from layer {gone[0]} on, which would be lost; keep more layers, "
            "or name a layer that stays"
        )
    return replace(arch, layers=arch.layers[:depth])


def _check_keys(stage: Stage, arch: Arch, heads: int) -> None:
    """Refuse frames that merge by the keys of heads that are gone by then."""
    merging = any(isinstance(layer.shortening, KeyMerging) for layer in arch.layers)
    if merging and not heads:
        raise InputError(f"--plan {stage}: frames merge by keys, and no head is left that has some; keep 1 or more")


def _shorter(stage: Stage, arch: Arch, *, seconds: float) -> Arch:
    """Return the arch whose sequences are made shorter."""
    assert isinstance(stage.step, Shorter)
    try:
        arch = arch_by_step(arch, stage.step)
        check_guided(arch)
    except InputError as error:
        raise InputError(f"--plan {stage}: {error}") from None
    check_heard(f"--plan {stage}", arch, seconds=seconds)
    return arch


def _stage(
    job: Job, bench: Bench, subject: Subject, stage: Stage, lesson: Lesson | None, *, name: str, step: int
) -> Subject:
    """Compress, train, measure; of a finished stage only read the model."""
    if bench.has(name):
        return bench.read(name)
    changed = compressed(job, subject, stage.step)
    before = bench.quality(changed)["valid_loss"]
    console.print(f"{name}: {stage.steps} updates of {WORDS[stage.how]}", markup=False)
    after = trained(job, bench.out / "stages" / name, changed, lesson, stage.steps)
    told: dict[str, Any] = {"loss_before": before}
    told |= {"frames_per_s": frames_per_s(after.arch)} if after.arch.shortens else {}
    if after.arch.firing:
        fast, fired = narrowed(job, roomy(job, after), rounds=job.config.rounds)
        bench, told = replace(bench, fast=lambda _: fast), {**told, **fired}
    bench.point(name, after, level=float(name.partition("-")[0]), step=step, told=told)
    return bench.read(name)  # as a run that was broken off goes on


def _parse(config: Config, word: str, depth: int) -> Stage:
    """Read a stage of a model that has `depth` layers by then."""
    try:
        words = _words(word)
    except ValueError:
        raise InputError(f"{config.file or '--plan'} {word}: write {FORM}") from None
    steps = config.every if words.steps is None else words.steps
    return Stage(_step(words, depth), words.value, steps, words.how or config.recover)


def _step(words: Words, depth: int) -> Step:
    """Say a stage in the words of `compress.plan`."""
    value = words.value
    match words.kind:
        case "layers":
            return Layers(tuple(range(int(value))))
        case "heads":
            return Heads(value)
        case "rows":
            return Rows(value)
        case "weights":
            return Weights(value)
        case "ratio":
            at = None if words.place == FRONT else depth // 2 if words.place is None else int(words.place)
            return Shorter(value, at, words.way)
    return LowRank("layers/*", int(value), aware=words.kind == "rank")


def _label(stages: Sequence[Stage]) -> str:
    """Name the curve in pictures of several runs: by its technique, where it is one."""
    kinds = {stage.kind for stage in stages}
    return ALONE[kinds.pop()] if len(kinds) == 1 else "combined"


if __name__ == "__main__":
    main(run, Config, __doc__)
