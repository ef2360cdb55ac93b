"""Probe frozen models: phones, characters, speakers and digits, each rate with its interval, two models paired.

    python -m experiments.probe
    python -m experiments.probe --baselines --measures
    python -m experiments.probe runs/heads/models/dense runs/heads/models/heads-4 --task phones characters --measures
    python -m experiments.probe --data LibriSpeech/train-clean-100 --test LibriSpeech/test-clean --lexicon lexicon.txt
    python -m experiments.probe --task speakers --data VoxCeleb1/wav --split-file iden_split.txt --limit 200000
    python -m experiments.probe --task digits speakers --data fsdd_600
    python -m experiments.probe --data phones/clean --test phones/other --frames 40000 --seeds 3 --baselines

SUPERB's recipe (Yang et al. 2021) at any scale: the model is frozen, a softmax-weighted sum of all layers feeds a small
head. Phones: a linear map and CTC, phone error rate (PER); where phone times are known, also each frame's phone.
Characters: a BiLSTM and CTC, word and character error rates; `--project 1024 --lstm-layers 2 --lstm-size 1024
--lstm-rate 1e-4` is SUPERB's. Speakers and digits: the mean over an utterance, softmax regression. What differs from
SUPERB: each layer is standardised first, rates fall to 0 over a few hundred updates (--constant), the last update
counts, and phones are without stress (--stress).

Every rate has a 95 % bootstrap interval, over sentences where it is asked what was said, else over utterances. With
several models each is compared with the first one by a paired bootstrap. `--measures` adds what needs no training: CKA
to a teacher, PNMI of clusters and phones, and masked prediction (`experiments.probes.untrained`).

The last example asks real speech, whose phone times `experiments.align` found.

A model that fires (`experiments.sequence --by once`) is asked at its own rate; with --amount learned it first learns
one for each task, frozen otherwise, with a linear map of its output, and is asked at that (Chen et al. 2023).
`--baselines` asks the log-Mel frames at the first model's times too, and its shape with random weights.

On two CPU cores the first command takes a minute, the second two, the third five. Expected on the embedded corpus: PER
25 % (22 to 28), random weights 37, log-Mel frames 49; the default model cut to 4 of 8 heads 24, planned to half its
time 23, neither told from it (both trained on); of the frames 74.7, 64.7 and 63.5 %, of 24 voices 99, 94 and 93 %. PNMI
rises from 0.49 at the input to 0.55 at the top, chance being 0.06. On `fsdd_600` 97 of 100 digits. A second run gives
the same numbers. Nothing here compares with SUPERB's: the speech is synthetic.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from compress.errors import InputError
from experiments.probes import amounts, untrained
from experiments.probes.listening import BASELINES, Heard, Hearing, baselines, listen, period_ms, program
from experiments.probes.questions import (
    CHARACTERS,
    EMBEDDED,
    PHONES,
    TASKS,
    WRITTEN,
    Question,
    ask,
    check_short,
    narrow,
    open_speech,
    thinned,
)
from experiments.probes.rates import Answer, averaged, compare, draw_probes, short, show
from experiments.probes.tasks import batches
from jaxssl.data.audio import SAMPLE_RATE, read
from jaxssl.data.lexicon import read_lexicon
from jaxssl.data.manifest import Utterance
from jaxssl.data.quality import frame_phones, phone_names
from jaxssl.inference.source import Model, Speech, load_model, with_stats
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, follow, main, progress
from jaxssl.runtime.ranges import Count, Length, Natural, Positive, Seed, Several, There
from jaxssl.training import ctc
from jaxssl.training.ctc import Head, Recipe
from jaxssl.training.error_rates import error_rate
from jaxssl.training.probe import FRAME_L2, UTTERANCE_L2, Examples, frame_probe, utterance_probe

FRAME, GRID = "frames with a phone", "frames of CKA"
STATISTICS = 100  # utterances that log-Mel statistics are taken from, where a model has none


@dataclass(frozen=True)
class Config:
    """Ask what frozen models know."""

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """model folders, run folders, checkpoints or names; default: the trained model that comes with the package"""
    task: tuple[Literal["phones", "characters", "speakers", "digits"], ...] = ("phones", "speakers")
    """what is asked"""
    data: str = EMBEDDED
    """speech: `embedded`, or a folder, a glob or a manifest.tsv (LibriSpeech's and VoxCeleb's layouts are known)"""
    test: There[Path | None] = None
    """speech that tests, all of --data trains then; default: the corpus's own parts, or a part that is held out"""
    split_file: There[Path | None] = None
    """VoxCeleb's identification split, iden_split.txt"""
    phones: There[Path | None] = None
    """table of phone times, where not beside the manifest"""
    lexicon: There[Path | None] = None
    """words and their phones, as LibriSpeech's lexicon; phones then come from the texts"""
    stress: bool = False
    """keep the stress of the lexicon's vowels"""
    limit: Count[int] = 300
    """utterances that train each probe at most; a third as many test"""
    frames: Count[int] = 8_000
    """frames that train the frame probe at most; a third as many test"""
    longest: Length[float] = 20.0
    """seconds of an utterance that trains CTC, at most"""
    updates: Count[int] = 400
    """of the CTC probes"""
    batch: Count[int] = 16
    """utterances of an update"""
    rate: Positive[float] = 3e-2
    """Adam's for phones; the best of five by the PER of a fifth of the embedded corpus's training sentences"""
    project: Natural[int] = 0
    """width of a linear map before the LSTM; 0: none"""
    lstm_layers: Count[int] = 1
    """of the characters' BiLSTM"""
    lstm_size: Count[int] = 64
    """of each of its directions"""
    lstm_rate: Positive[float] = 5e-3
    """Adam's for characters"""
    constant: bool = False
    """keep Adam's rates constant, as SUPERB does, instead of letting them fall to 0"""
    amount: Literal["own", "learned"] = "own"
    """of models that fire, how far weights are mixed: as the model has it; or learned, for each task"""
    amount_updates: Count[int] = 100
    """of --amount learned"""
    memory: Natural[float] = 4.0
    """GB for features; where they do not fit they are computed anew for every update"""
    baselines: bool = False
    """also the log-Mel frames at the first model's times, and its shape with random weights"""
    measures: bool = False
    """also what needs no training: CKA, PNMI, masked prediction"""
    teacher: str | None = None
    """of CKA; default: the first model"""
    clusters: Several[int] = 100
    """of PNMI"""
    out: Path = Path("runs/probe")
    """folder for table, picture and report.json"""
    seeds: Count[int] = 1
    """seeds of each probe, from --seed on; rates are their means, report.json has each"""
    seed: Seed[int] = 0
    """of held-out parts, heads, the order of utterances, and the bootstrap"""


def run(config: Config) -> None:
    """Probe the models and write the report."""
    _check(config)
    utterances, notes = open_speech(
        config.data, test=config.test, split_file=config.split_file, phones=config.phones, tasks=config.task
    )
    lexicon = None if config.lexicon is None else read_lexicon(config.lexicon, stress=config.stress)
    pose = partial(ask, utterances=utterances, lexicon=lexicon, limit=config.limit, seed=config.seed)
    questions, utterances = narrow([pose(task) for task in dict.fromkeys(config.task)], utterances)
    learned = config.amount == "learned"
    check_short([q for q in questions if learned or q.task in WRITTEN], utterances, longest=config.longest)
    models = [load_model(place, seed=config.seed) for place in config.models or (None,)]
    if learned:
        amounts.check(models)
    files.claim(config.out)
    speech = follow(utterances, "reading speech", total=len(utterances))
    bench = Bench(config, questions, utterances, tuple(read(utterance.path).samples for utterance in speech))
    places = [model.name for model in models]
    models = [replace(bench.with_stats(m), name=n) for m, n in zip(models, short(places), strict=True)]
    notes = [*notes, *(n for q in questions for n in q.notes), *(n for m in models for n in m.notes)]
    asked: list[tuple[Model, Hearing]] = [(model, program(model)) for model in models]
    if config.baselines:
        asked += baselines(models[0], seed=config.seed)
    for note in notes:
        console.print(f"note: {note}", markup=False)

    teacher, rows, extra = bench.teacher(), [], []
    first: dict[str, list[Answer]] = {}
    for model, hear in asked:
        heard = bench.listen(model, hear)
        answers = {}
        for question in questions:
            best, told = bench.tuned(question, heard)
            answers[question.task], notes = bench.average(question, best), notes + told
        first = first or answers
        rows += [
            row for task in answers for row in compare(task, model.name, answers[task], first[task], seed=config.seed)
        ]
        if config.measures:
            teacher = heard if teacher is None and len(asked) > 1 else teacher
            extra.append(bench.measure(heard, teacher))
    rows.sort(key=lambda row: config.task.index(row["task"]))
    show(rows, extra)
    title = f"probes of frozen layers, {config.data}"
    files.own(config.out, config)
    draw_probes(config.out / "probe.png", rows, title=title, caption="bars: 95 % bootstrap intervals")
    files.write_csv(config.out / "probe.csv", rows)
    report = {"data": config.data, "models": places, "notes": notes, "probes": rows, "measures": extra}
    files.write_json(config.out / "report.json", report)
    console.print(f"wrote {config.out}: report.json, probe.csv, probe.png", markup=False)


@dataclass(frozen=True)
class Bench:
    """Questions on utterances that were read, put to one model after the other."""

    config: Config
    questions: tuple[Question, ...]
    utterances: tuple[Utterance, ...]
    signals: tuple[np.ndarray, ...]

    def with_stats(self, model: Model) -> Model:
        """Give a log-Mel model that came without feature statistics those of speech that trains, and say so."""
        some = [self.signals[i] for i in self.questions[0].train[:STATISTICS].tolist()]
        return with_stats(model, Speech(tuple(batch for _, batch in batches(some)), (), ()))

    def teacher(self) -> Heard | None:
        """Hear the teacher of CKA, where one is named."""
        if self.config.teacher is None or not self.config.measures:
            return None
        model = self.with_stats(load_model(self.config.teacher, seed=self.config.seed))
        return listen(model, self.signals, self._grid(model), memory=0, whole=np.zeros(len(self.signals), bool))

    def listen(self, model: Model, hear: Hearing) -> Heard:
        """Hear all utterances; keep all frames of those that CTC asks of, and the frames whose phone is asked."""
        whole = np.zeros(len(self.signals), bool)
        for question in self.questions:
            whole[question.used] |= question.task in WRITTEN
        labels = self._frame_labels(model)
        picks = {} if labels is None else {FRAME: [np.flatnonzero(row >= 0) for row in labels]}
        picks |= self._grid(model)
        return listen(model, self.signals, picks, memory=self.config.memory * 1e9, whole=whole, hearing=hear)

    def tuned(self, question: Question, heard: Heard) -> tuple[Heard, list[str]]:
        """Hear all again at the rate that a model that fires learns for a task, where that is asked for; tell it."""
        config, model = self.config, heard.model
        if config.amount == "own" or model.arch.firing is None or model.name in BASELINES:
            return heard, []
        given = amounts.lessons(question, self.signals, self.trains(question, heard))
        with progress(f"{question.task}: a rate for {model.name}", config.amount_updates) as tick:
            words = {"updates": config.amount_updates, "batch": config.batch, "seed": config.seed}
            amount, _ = amounts.learned(model, given, **words, tick=tick)
        model, told = amounts.at(model, amount), f"{question.task}: {model.name} learned to mix by {amount:.2f}"
        console.print(f"note: {told}", markup=False)
        return replace(self, questions=(question,)).listen(model, program(model)), [told]

    def average(self, question: Question, heard: Heard) -> list[Answer]:
        """Answer by the mean of as many probes as seeds are asked for."""
        first = self.config.seed
        benches = [replace(self, config=replace(self.config, seed=first + i)) for i in range(self.config.seeds)]
        return averaged([bench.answer(question, heard) for bench in benches], seed=first)

    def answer(self, question: Question, heard: Heard) -> list[Answer]:
        """Train and test what a task asks."""
        if question.task not in WRITTEN:
            return [self._classify(question, heard)]
        wer = "WER" if question.task == CHARACTERS else "PER"
        answers = self._spell(question, heard, wer)
        sides = self._frames(question, heard) if question.task == PHONES else None
        return answers if sides is None else [*answers, self._by_frame(heard, *sides)]

    def measure(self, heard: Heard, teacher: Heard | None) -> dict[str, Any]:
        """Return what needs no training, each under its name; None where it cannot be said."""
        config, model = self.config, heard.model
        question = next((q for q in self.questions if q.task == PHONES), None)
        sides = None if question is None else self._frames(question, heard)
        told: dict[str, Any] = {"model": model.name, "cka": None, "pnmi": None, "teacher": None}
        if teacher is not None and GRID in heard.picked and GRID in teacher.picked:
            ours, theirs = (np.concatenate(list(side.picked[GRID]), axis=1) for side in (heard, teacher))
            told |= {"cka": untrained.alignment(ours, theirs), "teacher": teacher.model.name}
        if sides is not None:
            title = f"clusters: {model.name}"
            found = untrained.cluster_quality(*sides, clusters=config.clusters, seed=config.seed, title=title)
            told |= {key: [p and p[i] for p in found] for i, key in enumerate(("pnmi", "pnmi_chance"))}
        audio = config.test or (None if config.data == EMBEDDED else Path(config.data))
        return told | (untrained.masked_prediction(model, audio, out=config.out) or {})

    def _spell(self, question: Question, heard: Heard, measure: str) -> list[Answer]:
        """Train a CTC probe and count its errors: of symbols, and of words where the symbols are characters."""
        config, symbols = self.config, question.symbols
        number = {symbol: i for i, symbol in enumerate(symbols, 1)}
        rows, total = self.trains(question, heard), len(question.train)
        if left := total - len(rows):
            why = f"longer than {config.longest:g} s, or too few frames for their symbols"
            console.print(f"note: {question.task}: {left} of {total} utterances do not train: {why}", markup=False)
        with progress(f"{question.task}: {heard.model.name}", config.updates) as tick:
            writer = ctc.fit(
                heard.source(rows),
                [np.array([number[s] for s in question.answers[i]]) for i in rows.tolist()],
                classes=len(symbols) + 1,
                scale=heard.scale(rows),
                recipe=_recipe(config, question.task),
                tick=tick,
            )
        written = ctc.write(writer, heard.source(question.test), len(question.test))
        said = [question.answers[i] for i in question.test.tolist()]
        wrote = [tuple(symbols[s - 1] for s in line) for line in written]
        units, more = question.units[question.test], (writer.shares, len(rows))
        rate = partial(error_rate, units=units, seed=config.seed)
        if measure == "PER":
            found = rate(said, wrote)
            return [Answer(measure, found, *more, int(found.total.sum()), len(symbols))]
        words = rate(*([tuple("".join(line).split()) for line in lines] for lines in (said, wrote)))
        return [
            Answer(name, found, *more, int(found.total.sum()), len(symbols))
            for name, found in (("WER", words), ("CER", rate(said, wrote)))
        ]

    def trains(self, question: Question, heard: Heard) -> np.ndarray:
        """Number the utterances that train, of --longest at most and with frames for all that is written.

        Raises:
            InputError: there is none.
        """
        rows = question.train[[len(self.signals[i]) <= self.config.longest * SAMPLE_RATE for i in question.train]]
        if question.task in WRITTEN:
            symbols = (np.unique(question.answers[i], return_inverse=True)[1] for i in rows.tolist())
            rows = rows[[ctc.needed(each) for each in symbols] <= heard.frames[rows]]
        if not len(rows):
            raise InputError(
                f"{question.task}: {heard.model.name} has fewer frames than symbols of every utterance that trains; "
                "ask a model with more frames a second"
            )
        return rows

    def _classify(self, question: Question, heard: Heard) -> Answer:
        number = {symbol: i for i, symbol in enumerate(question.symbols)}

        def side(rows: np.ndarray) -> Examples:
            labels = np.array([number[question.answers[i][0]] for i in rows.tolist()])
            return Examples(heard.means[:, rows], labels, question.units[rows])

        train, test = side(question.train), side(question.test)
        with progress(f"{question.task}: {heard.model.name}", len(UTTERANCE_L2) + 1) as tick:
            score = utterance_probe(train, test, classes=len(number), seed=self.config.seed, tick=tick)
        return Answer("accuracy", score, score.weights, len(train.labels), len(test.labels), len(number))

    def _by_frame(self, heard: Heard, train: Examples, test: Examples) -> Answer:
        classes = 1 + int(max(train.labels.max(), test.labels.max()))
        with progress(f"phones by frame: {heard.model.name}", len(FRAME_L2) + 1) as tick:
            score = frame_probe(train, test, classes=classes, seed=self.config.seed, tick=tick)
        return Answer("frame accuracy", score, score.weights, len(train.labels), len(test.labels), classes)

    def _frames(self, question: Question, heard: Heard) -> tuple[Examples, Examples] | None:
        """Return the frames with a known phone that train and that test; None where either side has none."""
        labels = self._frame_labels(heard.model)
        if labels is None or FRAME not in heard.picked:
            return None

        def side(rows: np.ndarray) -> Examples:
            known = [labels[i][labels[i] >= 0] for i in rows.tolist()]
            units = [np.full(len(row), question.units[i]) for i, row in zip(rows.tolist(), known, strict=True)]
            features = np.concatenate([heard.picked[FRAME][i] for i in rows.tolist()], axis=1)
            return Examples(features, np.concatenate(known), np.concatenate(units))

        sides = side(question.train), side(question.test)
        return sides if all(len(np.unique(side.units)) > 1 for side in sides) else None

    def _frame_labels(self, model: Model) -> list[np.ndarray] | None:
        """Number the phone of each frame, thinned to what is asked; -1 where none is known or wanted."""
        question = next((q for q in self.questions if q.task == PHONES), None)
        period = period_ms(model.arch)
        if question is None or period is None or not any(self.utterances[i].phones for i in question.used.tolist()):
            return None
        names = phone_names([u.phones for u in self.utterances])
        counts = [int(model.arch.frames(len(signal))) for signal in self.signals]
        rows = [
            frame_phones(u.phones, count, period_ms=period, names=names)
            for u, count in zip(self.utterances, counts, strict=True)
        ]
        return thinned(rows, question, self.config.frames)

    def _grid(self, model: Model) -> dict[str, list[np.ndarray]]:
        if not self.config.measures:
            return {}
        places = untrained.grid(model.arch, [len(s) for s in self.signals], self.questions[0].test)
        return {} if places is None else {GRID: places}


def _recipe(config: Config, task: str) -> Recipe:
    phones = task == PHONES
    return Recipe(
        updates=config.updates,
        batch=config.batch,
        learning_rate=config.rate if phones else config.lstm_rate,
        decay=not config.constant,
        head=Head() if phones else Head(config.project, config.lstm_layers, config.lstm_size),
        seed=config.seed,
    )


def _check(config: Config) -> None:
    ranges.check(config)
    if not config.task or (unknown := [task for task in config.task if task not in TASKS]):
        raise InputError(f"--task {' '.join(unknown) if config.task else ''}: there are {', '.join(TASKS)}")
    asked = {"lexicon": ("--task phones", PHONES in config.task), "stress": ("--lexicon", config.lexicon is not None)}
    asked |= dict.fromkeys(("teacher", "clusters"), ("--measures", config.measures))
    asked |= {"amount_updates": ("--amount learned", config.amount == "learned")}
    for name, (flag, there) in asked.items():
        if not there and (given := getattr(config, name)) != getattr(Config, name):
            raise InputError(f"--{name.replace('_', '-')} {given}: it is for {flag}; add that, or leave it out")
    untrained.check_clusters(config.clusters)


if __name__ == "__main__":
    main(run, Config, __doc__)
