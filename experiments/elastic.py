"""Train a supernet, whose subnets are of any width, depth, heads and units, and draw what each of them costs and knows.

    python -m experiments.elastic
    python -m experiments.elastic --width 256 192 128 --layers 6 5 4 --steps 200 --budget rtf=50%
    python -m experiments.elastic --subnet width=192,layers=5 heads=4,ratio=2 --no-alone
    python -m experiments.elastic --loss lighthubert --largest-first 50 --steps 200
    python -m experiments.elastic --model SUPERNET --steps 0 --budget rtf=70%

The model becomes a supernet as LightHuBERT's (arXiv 2203.15610): a subnet has the first channels, heads and units of
its arrays, and its last layers of each block go first. In training subnets are masks in the supernet's shapes, one
program for all; each update the largest, the smallest and --random more learn from the dense model (sandwich rule).
Heads and units that add most on speech come first from the beginning. Then subnets are cut out, models like any other:
saved, counted, timed in turns with the dense model and probed, without any training of their own.

What they learn is what the dense model says or, with --loss lighthubert, its last layer: each subnet hears masked
speech and predicts all frames through one linear head, of which it has the first rows and which is dropped afterwards;
the output layer learns its clusters by itself. That asks for no output layer of the model's own, as LightHuBERT's files
have none. --largest-first N is their first stage: in that many of the updates the largest subnet learns alone.

--subnet names them, as width=192,layers=5,heads=6,ratio=3; what is left out is the largest. Default: the largest, the
smallest and five between. --budget chooses one by the loss on training speech and measured time, MACs or parameters.
Beside each stands the same cut out of the dense model and trained alone, for as many updates as the whole supernet,
each with one subnet where the supernet's has three or more; --no-alone leaves these out.

MODEL is any model folder or checkpoint that docs/families.md lists whose layers are plain attention and all alike;
with --steps 0 it is taken to be a supernet already, such as LightHuBERT's, and where it has no output layer each
subnet gets one of its own (--budget then goes by the largest subnet's). --audio FOLDER is any speech. A run that was
broken off goes on with the same command.

An update of the default model's supernet takes as long as three of the model. Expected on 52 minutes of LibriSpeech
after 100 updates, held-out loss above the dense model trained as long: 0.12 nats for the largest subnet, 0.22 for half
the heads and units, 0.26 for four of six layers, 0.67 for three quarters of the width, 1.06 for the smallest. It takes
ten minutes on two CPU cores with --no-alone, and longer without.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jax

from compress.errors import InputError
from experiments.curves.before import known_before
from experiments.curves.choosing import Chooser, Judge, ordered
from experiments.curves.curve import Curve, check_heeded
from experiments.curves.job import Job, draw, open_job, open_model, recovering, trained
from experiments.curves.measures import MACS, TIME
from experiments.curves.planning import Budgets, budgets_of
from experiments.curves.points import Bench, Subject
from experiments.curves.schedule import Schedule
from experiments.curves.search import Budget
from experiments.reports import methods
from jaxssl.models import cost
from jaxssl.models.model import Params
from jaxssl.models.subnets import Space, named, space_of
from jaxssl.models.supernet import Subnet, check_subnet, sliced
from jaxssl.runtime.cli import On, console, main
from jaxssl.runtime.ranges import Count, Natural, Positive, Written
from jaxssl.training.calendar import Calendar
from jaxssl.training.distillation import joined, split
from jaxssl.training.fit import open_run
from jaxssl.training.hidden_states import lighthubert
from jaxssl.training.lesson import Lesson
from jaxssl.training.output_layer import with_output_layer
from jaxssl.training.sandwich import supernet_programs
from jaxssl.training.settings import optimizer
from jaxssl.training.sharding import fetch
from jaxssl.training.step import start

T = TypeVar("T")
SUPERNET, ALONE = "supernet", "alone"
METHODS = {SUPERNET: "supernet", ALONE: "alone"}
WORDS = {"width": int, "layers": int, "heads": int, "ratio": float}


def parse(text: str) -> dict[str, float]:
    """Read `width=192,layers=5,heads=6,ratio=3`, any of these.

    Raises:
        ValueError: it is not written so.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name not in WORDS or name in found or not WORDS[name](number) > 0:
            raise ValueError(text)
        found[name] = WORDS[name](number)
    return found


Subnets = Annotated[T, Written(parse, "width=192,layers=5,heads=6,ratio=3, or some of these")]


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Train a supernet and measure its subnets beside the dense model."""

    width: Count[tuple[int, ...]] = ()
    """channels of the residual stream that subnets may have; default: all, three quarters, half"""
    layers: Count[tuple[int, ...]] = ()
    """their layers; default: all, one and two fewer"""
    heads: Count[tuple[int, ...]] = ()
    """heads of a layer; default: all, three quarters, half"""
    ratio: Positive[tuple[float, ...]] = ()
    """feed-forward units over the width; default: all, three quarters, half"""
    random: Natural[int] = 1
    """random subnets that each update hears, besides the largest and the smallest"""
    steps: Natural[int] = 200
    """updates of the supernet, and of each subnet alone; 0: the model is a supernet"""
    masked: On = True
    """of --loss soft: teacher and subnets hear masked speech, and masked frames count; off: all of it, every frame"""
    loss: Literal["soft", "lighthubert"] = "soft"
    """what subnets learn of the dense model: soft, its cluster probabilities; lighthubert, its hidden layers"""
    taught: Count[tuple[int, ...]] = ()
    """of --loss lighthubert: layers that they predict, from 1, each from their own of that place; default: the last"""
    largest_first: Natural[int] = 0
    """of the updates, the first in which the largest subnet learns alone"""
    subnet: Subnets[tuple[str, ...]] = ()
    """subnets to measure; default: the largest, the smallest, and five between"""
    budget: Budgets[tuple[str, ...]] = ()
    """for each the best subnet that takes no more: rtf, macs (per second of speech) or params, as rtf=50%"""
    batches: Count[int] = 2
    """training batches on which the loss of each subnet that is looked at is measured"""
    alone: On = True
    """train the same subnets alone as well, from the dense model, to compare with"""
    out: Path = Path("runs/elastic")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    check_heeded(config, [config.loss], flag="--loss", by={"masked": ("soft",), "taught": ("lighthubert",)})
    model, subject = open_model(config)
    if subject.masks:
        raise InputError(f"{model.name}: weights that are zero stay zero, and a supernet keeps no masks; use another")
    falling: Any = {
        name: tuple(sorted(set(values), reverse=True))
        for name, values in (
            ("widths", config.width),
            ("heads", config.heads),
            ("ratios", config.ratio),
            ("depths", config.layers),
        )
    }
    _check_stages(config, len(subject.arch.layers))
    space = space_of(subject.arch, **falling)
    subnets = subnets_of(config, space)
    for subnet in subnets.values():
        check_subnet(subject.arch, subnet)
    budgets = budgets_of(config.budget, subject.arch)
    training = config.settings(config.steps, paper=False, log_every=max(config.steps // 10, 1))
    schedule = Schedule(Calendar((), config.steps), (1.0,))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    lesson = lesson_of(config, job)
    if config.steps:
        job = replace(job, subject=ordered(job, space))
    console.print(f"a supernet of {space.count:,} subnets", markup=False)
    fit = None if config.steps or subject.arch.head else partial(_fitted, job, config.out.parent / "output-layers")

    def points(bench: Bench) -> None:
        arch, params = job.subject.arch, supernet(config, job, lesson, space)
        for name, subnet in subnets.items():
            cut = Subject(*sliced(arch, params, subnet), {})
            _point(bench, f"{name}-{SUPERNET}", fit(cut) if fit else cut, config.steps, SUPERNET, {})
        found = dict(subnets)
        if budgets:
            judge = Judge(job, params, batches=config.batches, path=config.out / "losses.json")
            chooser = Chooser(arch, params, space, judge, bench)
            for budget in budgets:
                found |= _budgeted(config, bench, chooser, budget, fit)
        for name, subnet in found.items() if config.alone and config.steps else ():
            _alone(config, job, bench, lesson, name, subnet)

    draw(
        job,
        points,
        ends=(config.steps,) if config.steps else (),
        out=config.out,
        technique="elastic",
        label="supernet",
        now=1.0,
        notes=[f"{space.count:,} subnets; {config.random + 2} hear each update{_first(config)}"],
        picture=partial(methods.draw, names=METHODS, costs=(TIME, MACS)),
    )


def _check_stages(config: Config, depth: int) -> None:
    """Refuse a first stage that is longer than all, layers that are not there, and how to learn where nothing does.

    Raises:
        InputError: the message says which.
    """
    for name in ("loss", "random") if not config.steps else ():
        if (given := getattr(config, name)) != getattr(Config, name):
            raise InputError(f"--{name} {given}: with --steps 0 nothing is trained; leave it out, or give more --steps")
    if config.largest_first > config.steps:
        raise InputError(
            f"--largest-first {config.largest_first} --steps {config.steps}: the first stage is part of the updates; "
            f"give 0 to {config.steps}, or more --steps"
        )
    if any(layer > depth for layer in config.taught) or len(set(config.taught)) < len(config.taught):
        named = " ".join(map(str, config.taught))
        raise InputError(f"--taught {named}: the model has {depth} layers; give some of 1 to {depth}, each once")


def lesson_of(config: Config, job: Job) -> Lesson:
    """Return how subnets learn from the dense model; errors as `recovering`."""
    if config.loss == "soft":
        lesson = recovering(job, "distil", config.out, masked=config.masked)
        assert lesson is not None
        return lesson
    choose = partial(lighthubert, layers=config.taught)
    return Lesson(job.model.arch, job.subject.seen, choose, job.training)  # asked anew, for layers would fill disks


def subnets_of(config: Config, space: Space) -> dict[str, Subnet]:
    """List the subnets to measure, by name: those asked for, or the largest, the smallest and five between."""
    if config.subnet:
        asked = [parse(text) for text in config.subnet]
    else:
        middle = {
            "width": space.widths[len(space.widths) // 2],
            "layers": space.depths[len(space.depths) // 2],
            "heads": space.heads[len(space.heads) // 2],
            "ratio": space.ratios[len(space.ratios) // 2],
        }
        least: dict[str, float] = {
            "width": space.widths[-1],
            "layers": space.depths[-1],
            "heads": space.heads[-1],
            "ratio": space.ratios[-1],
        }
        blocks = {"heads": least["heads"], "ratio": least["ratio"]}
        asked = [{}, {"layers": least["layers"]}, blocks, {"width": middle["width"]}, middle]
        asked += [{"width": least["width"]}, least]
    found = {}
    for words in asked:
        width, layers = int(words.get("width", space.widths[0])), int(words.get("layers", space.depths[0]))
        heads, ratio = int(words.get("heads", space.heads[0])), words.get("ratio", space.ratios[0])
        found[f"w{width}-l{layers}-h{heads}-r{ratio:g}"] = space.uniform(width, heads, ratio, layers)
    return found


def _first(config: Config) -> str:
    return f", the first {config.largest_first} the largest alone" if config.largest_first else ""


def supernet(config: Config, job: Job, lesson: Lesson, space: Space) -> Params:
    """Train the supernet in a folder of its own, or go on there; return its parameters."""
    if not config.steps:
        return job.subject.seen
    console.print("training the supernet", markup=False)
    training, arch = job.training, job.subject.arch
    shared = config.steps - config.largest_first
    passes = 3.0 * (config.largest_first + shared * (config.random + 2)) / config.steps
    with open_run(config.out / SUPERNET, job.data, training, passes=passes) as run:
        params = joined(job.subject.seen, lesson.heads(arch, seed=training.seed))
        state = run.begin(start(params, optimizer(training).build(), seed=training.seed))
        for last, count in ((config.largest_first, None), (config.steps, config.random)):
            if int(state.step) < last:
                programs = supernet_programs(run, arch, state, lesson, space, count=count, seed=training.seed)
                state = run.train(programs, state, last=last)
        found: Params = fetch(split(state.params)[0])
    return found


def _fitted(job: Job, kept: Path, subject: Subject) -> Subject:
    """Fit an output layer to a subnet of a supernet that came without one: that of the largest is not its own."""
    params = {name: part for name, part in subject.params.items() if name != "head"}
    bare = replace(job.model, arch=replace(subject.arch, head=None), params=params, notes=())
    model = with_output_layer(bare, job.data, job.training, kept=kept)
    return Subject(model.arch, model.params, {})


def _budgeted(
    config: Config, bench: Bench, chooser: Chooser, budget: Budget, fit: Callable[[Subject], Subject] | None
) -> Mapping[str, Subnet]:
    """Choose a subnet for a budget, and measure it; nothing where none is as fast."""
    name = f"auto-{budget.text}"
    subnet = chooser.choose(budget)
    if subnet is None:
        console.print(f"{name}: no subnet is timed as that fast on this machine; raise the budget", markup=False)
        return {}
    console.print(f"{name}: {named(subnet, chooser.arch)}", markup=False)
    cut = Subject(*sliced(chooser.arch, chooser.params, subnet), {})
    told = {"budget": budget.text, "subnet": named(subnet, chooser.arch)}
    _point(bench, f"{name}-{SUPERNET}", fit(cut) if fit else cut, config.steps, SUPERNET, told)
    return {name: subnet}


def _alone(config: Config, job: Job, bench: Bench, lesson: Lesson, name: str, subnet: Subnet) -> None:
    """Cut a subnet out of the dense model, train it alone and measure it."""
    name = f"{name}-{ALONE}"
    if bench.has(name):
        return
    cut = Subject(*sliced(job.subject.arch, job.subject.seen, subnet), {})
    told = known_before(bench.hear(cut), bench.controls.get(config.steps))
    console.print(f"training alone: {name}", markup=False)
    after = trained(job, bench.out / "recovery" / name, cut, lesson, config.steps)
    _point(bench, name, after, config.steps, ALONE, told)


def _point(bench: Bench, name: str, subject: Subject, step: int, method: str, told: Mapping[str, Any]) -> None:
    share = cost.macs_per_second(subject.arch).total / cost.macs_per_second(bench.model.arch).total
    params = jax.tree.map(jax.numpy.asarray, subject.params)
    bench.point(name, replace(subject, params=params), level=share, step=step, told={"method": method, **told})


if __name__ == "__main__":
    main(run, Config, __doc__)
