"""Put mixers of linear time in place of attention, teach them what it did, and draw what it costs and saves.

    python -m experiments.mixers
    python -m experiments.mixers --mixers summary_mixing mamba --layers 3 4 5 --steps 200
    python -m experiments.mixers --mixers mamba2 mamba2_attention --layers 3
    python -m experiments.mixers --model MODEL --audio FOLDER --layerwise 400 --recover distil

Attention takes time that grows with the square of an utterance's length. SummaryMixing (arXiv 2307.07421, 2407.13377)
and Mamba (arXiv 2312.00752, 2506.12606) take time that grows with its length. Each gets as many parameters as the
attention that it replaces, as near as its sizes allow, in all layers or in those of --layers; everything else is the
dense model's. `attention` in the list is attention with new weights: what as many updates bring the original mixer to.

`mamba2` (arXiv 2405.21060) has the shape of the attention instead, a group for each of its heads, and with both
directions seven maps for its four. `mamba2_attention` is the same and begins with the attention's maps: queries become
C, keys B, values x, and the map back is kept, as where Transformers are distilled into Mamba (arXiv 2408.15237,
2408.10189). The table has the loss right after the exchange, after the layers have learned, and in the end.

A model first learns layer by layer what the dense model's layers say of speech (--layerwise updates, the squared
distance of every layer, nothing hidden), then recovers as every compressed model does (--steps updates). Each is a
point of the curve: saved, counted, timed in turns with the dense one, and probed; the dense model trained as long as
the recovery is the control. A run that was broken off goes on with the same command. How time grows with the length
of an utterance: `experiments.lengths`.

MODEL is any model folder or any checkpoint that docs/families.md lists whose layers have plain attention; --audio
FOLDER is any speech. What models learn of it is told under --audio, and in a note.

On two CPU cores with our kernels, which need a C++ compiler, an update of the default model with Mamba in three of its
six layers takes about as long as with attention, with Mamba-2 1.7 times as long; without a compiler Mamba's scan is a
slow loop. Expected of layers 3 to 5 on 52 minutes of LibriSpeech: Mamba, SummaryMixing and attention with new weights
end 0.01 nats below the dense model trained as long, and none is told from it: these layers hardly need what is
exchanged, for before anything is learned the loss is no higher. Mamba-2 from the attention's maps ends 0.01 above it,
with new weights 0.01 below. Three models take eight minutes.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from compress.errors import InputError
from experiments.curves.before import known_before
from experiments.curves.curve import Curve, Recovery, check_heeded
from experiments.curves.job import Job, control_of, draw, open_job, open_model, recovering, trained
from experiments.curves.measures import MACS, TIME
from experiments.curves.points import Bench, Subject
from experiments.curves.schedule import Schedule
from experiments.reports import methods
from jaxssl.models.exchange import exchanged, with_new_mixers
from jaxssl.models.inherited import inherited
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Natural
from jaxssl.training.calendar import Calendar
from jaxssl.training.hidden_states import same_layers
from jaxssl.training.lesson import Lesson

Name = Literal["attention", "summary_mixing", "mamba", "mamba2", "mamba2_attention"]
WAYS: dict[Name, str] = {
    "attention": "attention, new weights",
    "summary_mixing": "SummaryMixing",
    "mamba": "Mamba, both ways",
    "mamba2": "Mamba-2, both ways",
    "mamba2_attention": "Mamba-2 from attention",
}


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Exchange a model's attention for other mixers and measure the result beside the dense model."""

    mixers: tuple[Name, ...] = ("attention", "summary_mixing", "mamba")
    """what takes the place of attention, one model each; mamba2_attention begins with the attention's maps"""
    layers: Natural[tuple[int, ...]] = ()
    """layers whose attention goes, from 0; default: all"""
    layerwise: Natural[int] = 120
    """updates in which every layer learns what the dense model's says; 0: none"""
    steps: Natural[int] = 60
    """updates of recovery after them; 0: none"""
    recover: Recovery = "predict"
    """what the recovery is: masked prediction; what the dense model says; or, of a model with a CTC layer, what is
    said, and what that layer makes of the dense model"""
    masked: bool = False
    """of --recover distil: both hear masked speech and masked frames count; default: all of it, and every frame"""
    out: Path = Path("runs/mixers")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    check_heeded(config, [config.recover], flag="--recover")
    model, subject = open_model(config)
    mixers = tuple(dict.fromkeys(config.mixers))
    if not mixers:
        raise InputError("nothing is asked for; name at least one of --mixers")
    for name in mixers:
        exchange(config, subject, name)  # refuses what cannot be before any work
    training = config.settings(config.steps, paper=False, log_every=max(max(config.steps, config.layerwise) // 4, 1))
    schedule = Schedule(Calendar((), config.steps), tuple(map(float, range(1, len(mixers) + 1))))
    job = open_job(config, model, subject, schedule, training, out=config.out)
    lesson = recovering(job, config.recover, config.out, masked=config.masked) if config.steps else None
    job = replace(job, control=control_of(lesson))

    def points(bench: Bench) -> None:
        for number, name in enumerate(mixers, 1):
            _point(config, job, bench, lesson, name, number)

    names = {str(name): WAYS[name] for name in mixers}
    picture = partial(methods.draw, names=names, costs=(TIME, MACS))
    draw(job, points, ends=(config.steps,), out=config.out, technique="mixers", label="mixers", now=0, picture=picture)


def exchange(config: Config, dense: Subject, name: Name) -> Subject:
    """Give the dense model another mixer with new weights; a mask of weights elsewhere stays where it was.

    Raises:
        InputError: a layer is not there, or its mixer is no plain attention.
    """
    layers = config.layers or range(len(dense.arch.layers))
    other = exchanged(dense.arch, "mamba2" if name == "mamba2_attention" else name, layers)
    params = with_new_mixers(dense.arch, dense.params, other, layers, seed=config.seed)
    if name == "mamba2_attention":
        params = inherited(dense.arch, dense.params, other, params, layers)
    gone = tuple(f"layers/{i}/{dense.arch.layers[i].mixer.place}/" for i in layers)
    masks = {path: mask for path, mask in dense.masks.items() if not path.startswith(gone)}
    return Subject(other, params, masks)


def _point(config: Config, job: Job, bench: Bench, lesson: Lesson | None, name: Name, number: int) -> None:
    """Exchange the mixers, teach the layers, recover, measure."""
    if bench.has(name):
        return
    changed, told = exchange(config, job.subject, name), dict[str, Any](method=name, layerwise=config.layerwise)
    told["loss_exchanged"] = bench.quality(changed)["valid_loss"]
    if config.layerwise:
        console.print(f"layer by layer: {name}", markup=False)
        layerwise = Lesson(
            job.model.arch, job.subject.seen, same_layers, job.training, kept=config.out.parent / "taught"
        )
        changed = trained(job, bench.out / "layerwise" / name, changed, layerwise, config.layerwise)
    if config.steps:
        console.print(f"training on: {name}", markup=False)
        told |= known_before(bench.hear(changed), bench.controls.get(config.steps))
        changed = trained(job, bench.out / "recovery" / name, changed, lesson, config.steps)
    bench.point(name, changed, level=number, step=config.steps, told=told)


if __name__ == "__main__":
    main(run, Config, __doc__)
