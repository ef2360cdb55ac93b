"""Ask what a model's layers know that plain features and random weights do not.

    python -m experiments.card --model MODEL
    python -m experiments.card --model MODEL --speakers FOLDER

Three systems under the same linear probes (`jaxssl.training.probe`): the log-Mel frames that the model gets; the
model's layers with fresh random weights; its layers as they are. Two tasks: phone classification, frame by frame, on
the embedded corpus, whose phone times are exact, tested on sentences that training never said; and telling the voices
of that corpus apart. With --speakers, also speaker identification on a folder of speech, the first 7 utterances of each
speaker to train and the next 3 to test; --turns 3 asks twice more, of other utterances. Each accuracy comes with a 95 %
bootstrap interval over sentences or utterances, each difference with a paired one.

Speakers are asked of whole utterances (SUPERB) and of single frames (van den Oord et al. 2018, section 3.1). Where each
was recorded in one session, the recording alone gives them away: of ten LibriSpeech speakers log-Mel and random
attention find all 30 utterances. So frames are asked once more after every utterance was filtered to one long-term
spectrum.

A 20 ms model of 5 million parameters takes about two minutes on two CPU cores, with --speakers about three. Expected: a
model that learned something beats both others at phones by more than the interval; on the embedded corpus log-Mel and
random weights both find about 64 % of the frames' phones, and 44 % and 78 % of their speakers.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from compress.errors import InputError
from experiments.curves.measures import Row
from experiments.curves.recovery import own_quality
from experiments.probes.probing import Sides, System, classes, examples, log_mel, log_mel_frames, probe, spoken
from experiments.probes.tasks import TURNS, Corpus, batches, by_speaker, equalised, sentences
from experiments.reports import tables
from jaxssl.data import corpora
from jaxssl.inference.encode import hear
from jaxssl.inference.source import Model, Speech, load_model, with_stats
from jaxssl.models.arch import LogMel
from jaxssl.models.model import init
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Count, Seed, There
from jaxssl.training.probe import Score, difference, together


@dataclass(frozen=True)
class Config:
    """Compare a model's layers with log-Mel features and with random weights."""

    model: str | None = None
    """model folder, run folder or checkpoint; default: the trained model that comes with the package"""
    speakers: There[Path | None] = None
    """speech with known speakers, ten utterances or more of each: a manifest.tsv, or a folder of folders"""
    turns: Count[int] = 1
    """times that the speakers are asked, 3 at most; each tests other utterances, which narrows the intervals"""
    limit: Count[int] = 300
    """utterances of the embedded corpus that train; a third as many test"""
    frames: Count[int] = 8_000
    """frames that train each probe of frames, spread evenly; a third as many test"""
    out: Path = Path("runs/card")
    """folder for table and report.json"""
    seed: Seed[int] = 0
    """of the random weights, the choice of utterances and the bootstrap"""


def run(config: Config) -> None:
    """Carry out the comparisons and write their report."""
    ranges.check(config)
    if config.limit < 8 or config.frames < 100:
        raise InputError(f"--limit {config.limit} --frames {config.frames}: give 8 utterances and 100 frames or more")
    if config.turns > TURNS:
        raise InputError(f"--turns {config.turns}: of ten utterances three test at a time; give {TURNS} or fewer")
    files.claim(config.out)
    model = load_model(config.model, seed=config.seed)
    corpora_ = _corpora(config, log_mel(model.arch))
    model = with_stats(model, Speech(tuple(batch for _, batch in batches(corpora_[0][0].signals)), (), ()))
    for note in model.notes:
        console.print(f"note: {note}", markup=False)

    heard = systems(model, seed=config.seed)
    rows = [row for turns in corpora_ for row in compare(turns, heard, seed=config.seed)]
    tables.show(f"{model.name}: accuracy of linear probes", rows, COLUMNS)
    tables.show("share of each layer (0: input of the first)", *_by_layer(rows))
    quality = _masked_prediction(config, model)
    if quality:
        tables.show("masked prediction of its own targets", [quality], QUALITY)
    files.own(config.out, config)
    files.write_csv(config.out / "card.csv", rows)
    values = {"model": model.name, "notes": model.notes, "probes": rows, "masked_prediction": quality}
    files.write_json(config.out / "report.json", values)
    console.print(f"wrote {config.out}: report.json, card.csv", markup=False)


def _masked_prediction(config: Config, model: Model) -> dict[str, Any] | None:
    """Return loss and accuracy on speech the model never saw, where it says how its targets are made."""
    if model.labeller is None:
        return None
    with tempfile.TemporaryDirectory(dir=config.out) as folder:
        found = own_quality(model, config.speakers, out=Path(folder) / "speech")
    return {"speech": "embedded" if config.speakers is None else config.speakers.name, **found}


QUALITY = {
    "speech": "speech",
    "loss:.3f": "loss",
    "entropy:.3f": "entropy of targets",
    "masked_accuracy:.1%": "masked accuracy",
}
COLUMNS = {
    "task": "task",
    "system": "features",
    "accuracy:.3f": "accuracy",
    "low:.3f": "from",
    "high:.3f": "to",
    "gain:+.3f": "model is better by",
    "gain_low:+.3f": "from",
    "gain_high:+.3f": "to",
    "chance:.3f": "chance",
    "classes": "classes",
    "train": "train",
    "test": "test",
}


def systems(model: Model, *, seed: int) -> tuple[System, ...]:
    """Return log-Mel features, the model with random weights, and the model: the same frames from all three."""
    front, fresh = log_mel(model.arch), init(model.arch, jax.random.key(seed))
    return (
        System("log-Mel", front, partial(log_mel_frames, front, model.stats)),
        System("random weights", front, partial(hear, model.arch, fresh, model.stats)),
        System("model", front, partial(hear, model.arch, model.params, model.stats)),
    )


def compare(turns: Sequence[Corpus], heard: Sequence[System], *, seed: int) -> list[dict[str, Any]]:
    """Probe every system on what the corpus asks; return a row each, the last system's gain over it included.

    Args:
        turns: the corpus; several where each tests other utterances, whose answers are then counted together.
        heard: the systems.
        seed: of the probes and the bootstrap.
    """
    found = {s.name: [examples(s, corpus, batches(corpus.signals)) for corpus in turns] for s in heard}
    rows = []
    for task in found[heard[0].name][0]:
        title = f"{task}: {{}}"
        each = {s.name: [probe(task, t[task], title.format(s.name), seed=seed) for t in found[s.name]] for s in heard}
        scores = {name: together(parts, seed=seed) for name, parts in each.items()}
        for name, score in scores.items():
            sides = [turn[task] for turn in found[name]]
            rows.append(_row(f"{task}, {turns[0].name}", name, sides, score))
            if name != heard[-1].name:
                gain = difference(scores[heard[-1].name], score, seed=seed)
                rows[-1] |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    return rows


def _corpora(config: Config, front: LogMel) -> list[list[Corpus]]:
    """List the corpora, each as its turns."""
    said = sentences(spoken(), front, limit=config.limit, frames=config.frames, seed=config.seed)
    if not config.speakers:
        return [[said]]
    manifest = corpora.read(config.speakers)
    asked = [by_speaker(manifest, front, frames=config.frames, turn=turn) for turn in range(config.turns)]
    return [[said], asked, [equalised(corpus) for corpus in asked]]


def _row(task: str, name: str, turns: Sequence[Sides], score: Score) -> dict[str, Any]:
    guesses = [test.labels == np.bincount(train.labels).argmax() for train, test in turns]
    return {
        "task": task,
        "system": name,
        "accuracy": score.accuracy,
        "low": score.low,
        "high": score.high,
        "chance": float(np.concatenate(guesses).mean()),
        "classes": classes(turns[0]),
        "train": len(turns[0][0].labels),
        "test": sum(len(test.labels) for _, test in turns),
        "units": len(score.total),
        "l2": score.l2,
        "layers": score.weights.tolist(),
        "correct_by_unit": score.correct.tolist(),
        "total_by_unit": score.total.tolist(),
    }


def _by_layer(rows: Sequence[Row]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Turn the layers' shares into table rows, and the columns to show them by."""
    names = {"task": "task", "system": "features"}
    deep = [{**row, **{str(i): x for i, x in enumerate(row["layers"])}} for row in rows if len(row["layers"]) > 1]
    return deep, {**names, **{f"{i}:.2f": str(i) for i in range(max(len(row["layers"]) for row in deep))}}


if __name__ == "__main__":
    main(run, Config, __doc__)
