"""Factorise a model's dense maps, run them as two thin products, and see what it costs and saves.

    python -m experiments.lowrank --rank 128
    python -m experiments.lowrank --rank 64 --steps 50
    python -m experiments.lowrank --rank 64 128 256 --model MODEL --audio FOLDER
    python -m experiments.lowrank --model MODEL --audio FOLDER --steps 50 --recover distil

MODEL is any model folder, run folder, preset (random weights) or checkpoint that docs/families.md lists, compressed
before or not; without it, the trained MelHuBERT that comes with the package. --audio FOLDER is any speech (else the
embedded corpus): it calibrates, errors are measured on a part of it, and with --steps N models recover on it. Targets
of the recovery are, in this order, and a note says which: the labels of --corpus; those that the model names; its own
codewords, where it has an output layer; --clusters of its middle layer, with an output layer fitted to them in seconds,
the same for the dense model and the compressed, so that losses compare. --recover distil needs no labels at all, and
--recover ctc takes transcripts. A fine-tuned model keeps its CTC layer, and is asked what it writes of held-out speech
that has transcripts.

Every rank, energy and budget with every method is a point of the curve: a saved model, with its parameters, MACs, time
in turns with the dense model's, and how far its output is from the dense one's on held-out speech. With --steps, each
is trained on, and so is the dense model, as a control; held-out loss and masked accuracy are told before and after. Of
the run's folder,

    curve.png            quality against measured time and against parameters, before and after the recovery
    curve.csv            the points; report.json has all of it, for programs
    maps.csv layers.csv  rank and errors of every map; error and cosine of every layer; --maps prints them
    models/              dense, rank-64-svd, rank-64-activation, …

A run that was broken off goes on with the same command, in the point and the update it was in, and ends the same to the
bit in models/, held-out/, maps.csv, layers.csv, and in every column of curve.csv and report.json that is not a time
(real_time_factor, speedup*, *_ms).

The first command takes about a minute on two CPU cores, the second about four. Expected: the activation-aware error is
below that of the plain SVD at every rank, training recovers most of what factorising lost (errors of the output are
told before it), and the timing follows the MACs only in part (attention itself and the positional convolution stay).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from compress.errors import InputError
from experiments.curves.before import known_before
from experiments.curves.columns import Row
from experiments.curves.curve import Curve, Recovery, check_heeded
from experiments.curves.job import (
    Job,
    control_of,
    open_bench,
    open_model,
    recovering,
    report,
    subject_like,
    train_control,
    trained,
)
from experiments.curves.points import Bench, Subject, sizes
from experiments.curves.recovery import ready
from experiments.curves.schedule import Schedule
from experiments.curves.targets import Budget, Target, check, parse
from experiments.curves.variants import (
    Known,
    Method,
    Variant,
    analyse,
    apart,
    build,
    choose,
    itself,
    map_rows,
    variants_of,
)
from experiments.reports import methods, tables
from jaxssl.inference.source import Model, Speech, load_speech, with_stats
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Count, Crop, Length, Natural, Part, Positive, Seed, There
from jaxssl.training.calendar import Calendar
from jaxssl.training.corpus import Data, HeldOut, check_batches, held_out
from jaxssl.training.settings import Training, claim, own

NAMES = {"svd": "plain SVD", "activation": "activation-aware"}
FREE = ("maps",)  # a finished run may be asked for its maps
MAP_COLUMNS = {
    "variant": "variant",
    "path": "map",
    "shape": "shape",
    "rank": "rank",
    "energy:.3f": "energy kept",
    "error:.3f": "weight error",
    "speech_error:.3f": "speech error",
}
FIRST = {
    "name": "point",
    "parameters:,": "parameters",
    "macs_g_per_s:.3f": "MACs G/s",
    "output_error:.4f": "output error",
    "output_cosine:.4f": "cosine",
    "loss_before:.3f": "held-out loss",
    "accuracy_before:.1%": "masked accuracy",
}


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Factorise a model's dense maps and measure the result beside the dense model."""

    rank: Count[tuple[int, ...]] = ()
    """ranks to try, one model each; 128 when neither --energy nor --budget is given"""
    energy: Part[tuple[float, ...]] = ()
    """shares of each map's squared singular values to keep, in (0, 1]"""
    budget: Budget[tuple[str, ...]] = ()
    """whole-model budgets shared over the maps: params=40e6, or macs=3e9 (per second of speech)"""
    where: str = "layers/*"
    """glob on the maps to factorise, as layers/*/ffn/*; commas separate alternatives"""
    method: tuple[Method, ...] = ("svd", "activation")
    """svd: least error of the weights; activation: least error of the outputs on calibration speech"""
    audio: There[tuple[str, ...]] = ()
    """speech for calibration, for the output error and to recover on: files, folders, .tsv manifests; default: embedded
    corpus"""
    limit: Count[int] = 20
    """utterances used of --audio, spread evenly over it"""
    steps: Natural[int] = 0
    """updates of recovery training after factorising"""
    recover: Recovery = "predict"
    """what the recovery is: masked prediction; what the dense model says; or, of a model with a CTC layer, what is
    said, and what that layer makes of the dense model"""
    masked: bool = False
    """of --recover distil: both hear masked speech and masked frames count; default: all of it, and every frame"""
    corpus: There[Path | None] = None
    """prepared speech to recover on, instead of --audio"""
    held_out: There[tuple[str, ...]] = ()
    """speech of others to validate on, labelled likewise; default: a part of the speech to recover on"""
    batch: Count[int] = 8
    """utterances of a batch in the recovery"""
    crop: Crop[float] = 7.5
    """longest stretch of an utterance in the recovery, in seconds"""
    shortest: Length[float] = 1.0
    """utterances below that are left out of the recovery, in seconds"""
    learning_rate: Positive[float] = 3e-4
    """highest learning rate of the recovery"""
    save_every: Count[int] = 25
    """updates of the recovery between two checkpoints"""
    probes: bool = False
    """probe every point for phones and speakers (embedded corpus)"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation, in the timing and in the output error"""
    rounds: Count[int] = 7
    """timed runs of each model, in turns with the dense one"""
    seed: Seed[int] = 0
    """of random weights, and of the recovery's order, crops, masks and dropout"""
    maps: bool = False
    """print what became of every map, and errors by layer; they are in maps.csv and layers.csv in any case"""
    out: Path = Path("runs/lowrank")
    """folder of the run"""

    def training(self) -> Training:
        """Return the settings of the recovery; a short run has one padded length, so one program to compile."""
        shared = self.settings(self.steps, paper=False, log_every=max(self.steps // 5, 1))
        return replace(shared, warmup=Training.warmup, decay=Training.decay, dtype=Training.dtype)


def run(config: Config) -> None:
    """Carry out the experiment and write its report."""
    targets = _targets(config)
    check_heeded(config, [config.recover], flag="--recover")
    model, subject = open_model(config)
    chosen = choose(subject.arch, config.where)
    check(targets, subject.arch, chosen)
    speech = load_speech(config.audio, limit=config.limit)
    model = with_stats(model, speech)
    claim(config.out, config, free=FREE)
    model, data = _labelled(config, model) if config.steps else (model, None)
    subject = subject_like(model, subject)
    bench = open_bench(config, model, data, config.training(), out=config.out, technique="lowrank", label="low rank")
    bench = replace(bench, draw=partial(methods.draw, names=NAMES))
    own(config.out, config, free=FREE)
    for note in (*(model.notes if data is None else ()), *speech.notes):
        console.print(f"note: {note}", markup=False)

    full = max(matrix.max_rank for matrix in chosen)
    bench.point("dense", subject, level=full, step=0, told=itself(subject.arch))
    known = analyse(model, subject, chosen, speech, config.method, targets)
    variants = variants_of(targets, config.method, subject.arch, known)
    maps = map_rows(subject.seen, variants, known)
    files.write_csv(config.out / "maps.csv", maps)

    begun = _begin(config, bench, subject, speech, [v for v in variants if not bench.has(v.name)], known)
    if data is None:
        for each in begun:
            bench.point(each.name, each.subject, level=each.level, step=0, told=each.told)
    elif begun:
        tables.show("factorised, before training", [each.row for each in begun], FIRST)
        _recover(config, Job(config, model, subject, _schedule(config), bench.training, data, speech), bench, begun)
    _report(config, bench, speech, maps)


@dataclass(frozen=True)
class Begun:
    """A factorised model, before any training.

    Attributes:
        name: of its point.
        level: the rank, share or budget that it aims at.
        subject: the model.
        told: columns of its point: how far its output is from the dense model's.
        heard: what it made of each held-out utterance; None without labels.
    """

    name: str
    level: float
    subject: Subject
    told: Mapping[str, Any]
    heard: HeldOut | None

    @property
    def row(self) -> dict[str, Any]:
        """What there is to say of it."""
        return {"name": self.name, **sizes(self.subject), **self.told, **self.quality}

    @property
    def quality(self) -> dict[str, float]:
        """Held-out loss with its interval, and masked accuracy, where there are labels."""
        return known_before(self.heard)


def _targets(config: Config) -> list[Target]:
    """Refuse what can be refused before anything is read."""
    ranges.check(config)
    if not config.method:
        raise InputError("--method: name svd, activation or both")
    return parse(config.rank, config.energy, config.budget)


def _labelled(config: Config, model: Model) -> tuple[Model, Data]:
    """Open the speech to recover on, and refuse it where it makes no batches; the model may get an output layer."""
    training = config.training()
    model, data = ready(model, config.asked, training, out=config.out.parent)  # the runs of one place share it
    check_batches(data, training)
    held_out(data, training)
    return model, data


def _begin(
    config: Config, bench: Bench, dense: Subject, speech: Speech, variants: Sequence[Variant], known: Known
) -> list[Begun]:
    """Factorise, and compare with the dense model."""
    if not variants:
        return []
    subjects = [build(dense, variant, known) for variant in variants]
    far = apart(bench.model, dense, subjects, speech, dtype=config.dtype)
    heard = [None if bench.data is None else bench.hear(subject) for subject in subjects]
    return [
        Begun(variant.name, variant.target.value, subject, {"method": variant.method, **told}, quality)
        for variant, subject, told, quality in zip(variants, subjects, far, heard, strict=True)
    ]


def _recover(config: Config, job: Job, bench: Bench, begun: Sequence[Begun]) -> None:
    """Train the dense model on, as a control, then each factorised one as long; measure these."""
    steps = job.training.steps
    lesson = recovering(job, config.recover, config.out, masked=config.masked)
    job = replace(job, control=control_of(lesson))
    if job.config.control:
        train_control(job, bench, (steps,))
    for each in begun:
        console.print(f"training on: {each.name}", markup=False)
        subject = trained(job, bench.out / "recovery" / each.name, each.subject, lesson, steps)
        told = {**each.told, **known_before(each.heard, bench.controls.get(steps))}
        bench.point(each.name, subject, level=each.level, step=steps, told=told)


def _schedule(config: Config) -> Schedule:
    return Schedule(Calendar((), config.steps), ())


def _report(config: Config, bench: Bench, speech: Speech, maps: Sequence[Row]) -> None:
    rows = bench.rows()
    layers = [
        {"name": row["name"], "layer": number, "relative_error": error, "cosine": cosine}
        for row in rows
        for number, (error, cosine) in enumerate(zip(row["layer_errors"], row["layer_cosines"], strict=True))
    ]
    files.write_csv(config.out / "layers.csv", layers)
    report(bench, speech.notes, {"maps": maps})
    if config.maps:
        tables.show("every map", maps, MAP_COLUMNS)
        tables.show("relative error by layer (0: input of the first)", *_by_layer(rows, "layer_errors"))
        tables.show("cosine by layer", *_by_layer(rows, "layer_cosines"))
    else:
        console.print("every map: maps.csv, every layer: layers.csv; --maps prints both", markup=False)


def _by_layer(rows: Sequence[Row], key: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Turn per-layer lists into table rows, and the columns to show them by."""
    flat = [{"name": row["name"], **{str(i): x for i, x in enumerate(row[key])}} for row in rows[1:]]
    return flat, {"name": "point", **{f"{i}:.3f": str(i) for i in range(len(rows[0][key]))}}


if __name__ == "__main__":
    main(run, Config, __doc__)
