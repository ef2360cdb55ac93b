"""What listens and what is asked of it: linear probes for phones and speakers, for the card and for pruning's curves.

A `System` gives features; `examples` listens to a corpus once and returns what each task trains and tests on; `probe`
answers. `Probes` is the small form for many models in a row, as the points of a pruning curve are: the speech is read
once, every utterance cut to 3 s so that a model compiles once, fewer frames, two regularisations, fewer iterations.

    probes = open_probes(log_mel(arch))              # None where no speech can be made
    probes.measure("heads-4", arch, params, stats)   # {"phone_accuracy": …, "phone_low": …, …, "speaker_high": …}

For the package's model that took 8 to 14 s a model on two CPU cores that did other work too, compiling it included, 3 s
more with a folder of ten speakers, and 22 s for the first one, whose probes compile. Expected of it: phones 0.62 (0.59
to 0.65), speakers 0.85 (0.76 to 0.92); `experiments.card` has the full numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from compress.errors import InputError
from experiments.probes.tasks import PART, Corpus, by_speaker, equalised, sentences
from jaxssl.data import corpora, embedded, padding
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.logmel import SHIFT, WINDOW, Stats
from jaxssl.data.manifest import Manifest
from jaxssl.data.padding import Padded
from jaxssl.inference.encode import hear, mel_inputs, timing
from jaxssl.models.arch import Arch, LogMel
from jaxssl.models.model import Params
from jaxssl.runtime.cli import console, follow, progress
from jaxssl.training.probe import FRAME_L2, UTTERANCE_L2, Examples, Score, frame_probe, pool, utterance_probe

PHONES, VOICES, SPEAKERS = "phones by frame", "speakers by frame", "speakers by utterance"
MINUTES = 20.0  # of the embedded corpus
CUT = 3 * SAMPLE_RATE  # samples of an utterance that `Probes` hear
BATCH = 8  # utterances that they hear at once; larger batches are no faster on CPUs
FEW_L2 = (1e-2, 1e-3)
FEW_ITERATIONS = 30
ALL = 2**31  # frames; they are thinned after the utterances are cut

Sides = tuple[Examples, Examples]  # train, test
Heard = tuple[np.ndarray, Padded]  # which utterances, and their samples and lengths


@dataclass(frozen=True)
class System:
    """What gives features: `hear(samples, lengths)` → (layers, batch, frames of `front`, width), and valid frames."""

    name: str
    front: LogMel
    hear: Callable[[Array, Array], tuple[Array, Array]]


def log_mel(arch: Arch) -> LogMel:
    """Return the log-Mel front end whose frames are the model's, one for one.

    Raises:
        InputError: a waveform model whose frames are not log-Mel's 25 ms every multiple of 10 ms, or time reduction.
    """
    if arch.joined > 1:
        raise InputError(f"{arch.joined} frames become one in this model; probes need one log-Mel frame each")
    if isinstance(arch.front, LogMel):
        return arch.front
    how = timing(arch)
    if how.hop % SHIFT or how.field != WINDOW:
        raise InputError(f"frames of {how.field} samples each {how.hop}: log-Mel has {WINDOW} each multiple of {SHIFT}")
    return LogMel(stack=how.hop // SHIFT)


@partial(jax.jit, static_argnums=0)
def log_mel_frames(front: LogMel, stats: Stats | None, samples: Array, lengths: Array) -> tuple[Array, Array]:
    """Compute log-Mel frames as if they were a model's only layer, (1, batch, frames, size); also the valid frames."""
    features, frames = mel_inputs(front, samples, lengths, stats)
    assert frames is not None  # for lengths were given
    return features[None], frames


def spoken() -> Manifest:
    """Return the embedded corpus, made where it is not there yet."""
    with progress("embedded corpus", embedded.count(MINUTES)) as tick:
        return embedded.make(minutes=MINUTES, tick=tick)


def examples(system: System, corpus: Corpus, heard: Iterable[Heard]) -> dict[str, Sides]:
    """Listen once; return what each task trains and tests on.

    Args:
        system: what listens.
        corpus: what is asked.
        heard: its signals in batches, each utterance once; rows beyond those named only fill.
    """
    picked: list[Any] = [None] * len(corpus.signals)
    pooled: list[Any] = [None] * len(corpus.signals)
    batches = list(heard)
    for rows, (samples, lengths) in follow(batches, f"listening: {system.name}", total=len(batches)):
        for row, layers in zip(rows, np.asarray(system.hear(samples, lengths)[0]).swapaxes(0, 1), strict=False):
            valid = layers[:, : system.front.frames(len(corpus.signals[row]))]
            picked[row], pooled[row] = valid[:, corpus.picks[row]], pool(valid)[:, None]
    voices = [np.full(len(picks), speaker) for picks, speaker in zip(corpus.picks, corpus.speakers, strict=True)]
    asked: dict[str, tuple[Sequence[np.ndarray], Sequence[np.ndarray]]] = {}
    if corpus.phones:
        asked[PHONES] = picked, corpus.phones
    asked[VOICES] = picked, voices
    if corpus.whole:
        asked[SPEAKERS] = pooled, list(corpus.speakers[:, None])
    return {task: _sides(corpus, features, labels) for task, (features, labels) in asked.items()}


def probe(task: str, sides: Sides, title: str, *, seed: int) -> Score:
    """Fit and test a task's probe as the card does, with a progress bar."""
    ask, strengths = (utterance_probe, UTTERANCE_L2) if task == SPEAKERS else (frame_probe, FRAME_L2)
    with progress(title, len(strengths) + 1) as tick:
        return ask(*sides, classes=classes(sides), seed=seed, tick=tick)


def classes(sides: Sides) -> int:
    """Count the classes of a task."""
    return 1 + int(max(side.labels.max() for side in sides))


@dataclass(frozen=True)
class Asked:
    """Speech that is ready to be heard, and the columns that its tasks fill.

    Attributes:
        corpus: utterances of at most 3 s.
        heard: the same in batches of one shape.
        columns: task → first part of its columns' names.
    """

    corpus: Corpus
    heard: tuple[Heard, ...]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Probes:
    """Questions for many models in a row, on the same frames of the same speech.

    Attributes:
        front: whose frames are meant; every model's frames must be these.
        asked: the speech.
        l2: regularisations that the probes choose from, strong to weak.
        seed: of that choice and of the bootstrap.
    """

    front: LogMel
    asked: tuple[Asked, ...]
    l2: Sequence[float] = FEW_L2
    seed: int = 0

    def measure(self, name: str, arch: Arch, params: Params, stats: Stats | None) -> dict[str, float]:
        """Return a model's accuracies on test frames, each with its 95 % bootstrap interval.

        Args:
            name: for the progress bar.
            arch: what `params` is.
            params: the model.
            stats: of its log-Mel features.

        Returns:
            `phone_accuracy`, `phone_low`, `phone_high`, and the same of `speaker`; only what is asked.

        Raises:
            InputError: its frames are others than the probes'.
        """
        if (found := log_mel(arch)).stack != self.front.stack:
            raise InputError(f"{name}: frames of {10 * found.stack} ms, the probes' are of {10 * self.front.stack} ms")
        system = System(name, self.front, partial(hear, arch, params, stats))
        values: dict[str, float] = {}
        for asked in self.asked:
            sides = examples(system, asked.corpus, asked.heard)
            for task, column in asked.columns.items():
                score = self._probe(sides[task], f"{task}: {name}")
                told = {"accuracy": score.accuracy, "low": score.low, "high": score.high}
                values |= {f"{column}_{key}": value for key, value in told.items()}
        return values

    def _probe(self, sides: Sides, title: str) -> Score:
        ask = partial(frame_probe, classes=classes(sides), seed=self.seed, l2=self.l2, iterations=FEW_ITERATIONS)
        with progress(title, len(self.l2) + 1) as tick:
            return ask(*sides, tick=tick)


def open_probes(
    front: LogMel,
    *,
    speakers: Path | None = None,
    limit: int = 120,
    frames: int = 3_000,
    l2: Sequence[float] = FEW_L2,
    seed: int = 0,
) -> Probes | None:
    """Read the speech that probes are asked of: the embedded corpus and, where it is named, a folder of speakers.

    Phones are the embedded corpus's, sentences on one side only. Speakers are its 24 voices; with `speakers`, the
    people of that folder instead, every utterance filtered to one long-term spectrum, for the recording alone would
    give many of them away (`experiments.card`). Both are asked frame by frame.

    Args:
        front: log-Mel with the models' frames, see `log_mel`.
        speakers: speech with known speakers, ten utterances or more of each.
        limit: utterances of the embedded corpus that train; a third as many test.
        frames: frames that train each probe, spread evenly; a third as many test.
        l2: regularisations to choose from, strong to weak.
        seed: of the choice of utterances and the bootstrap.

    Returns:
        The probes; None where there is nothing to ask: eSpeak NG, which says the embedded corpus, is not installed, and
        no speakers are named. What cannot be asked is said in a note.

    Raises:
        InputError: the speakers named do not do.
    """
    asked = []
    try:
        manifest = spoken()
    except InputError as error:
        console.print(f"note: no probes of the embedded corpus: {error}", markup=False)
    else:
        said = sentences(manifest, front, limit=limit, frames=ALL, seed=seed)
        columns = {PHONES: "phone"} if speakers else {PHONES: "phone", VOICES: "speaker"}
        asked.append(_prepare(said, front, frames, columns))
    if speakers:
        people = by_speaker(corpora.read(speakers), front, frames=ALL)
        people = equalised(replace(people, signals=tuple(signal[:CUT] for signal in people.signals)))
        asked.append(_prepare(people, front, frames, {VOICES: "speaker"}))
    return Probes(front, tuple(asked), l2, seed) if asked else None


def _prepare(corpus: Corpus, front: LogMel, frames: int, columns: Mapping[str, str]) -> Asked:
    """Cut utterances to one length, thin the frames that are left, and pad the signals into batches of one shape."""
    signals = tuple(signal[:CUT] for signal in corpus.signals)
    inside = [
        np.flatnonzero(picks < front.frames(len(signal))) for picks, signal in zip(corpus.picks, signals, strict=True)
    ]
    kept = _thin(inside, corpus.train, frames)
    picks, phones = (
        tuple(row[places] for row, places in zip(rows, kept, strict=True)) if rows else ()
        for rows in (corpus.picks, corpus.phones)
    )
    heard = tuple(padding.batches(signals, lengths=(CUT,), size=lambda longest: BATCH))
    return Asked(replace(corpus, signals=signals, picks=picks, phones=phones, whole=False), heard, columns)


def _thin(places: Sequence[np.ndarray], train: np.ndarray, most: int) -> list[np.ndarray]:
    """Keep an even spread of at most `most` places of the training utterances, and a third of it of the others."""
    kept = list(places)
    for side, count in ((train, most), (~train, -(-most // PART))):
        rows = np.flatnonzero(side).tolist()
        total, first = sum(len(places[row]) for row in rows), 0
        for row in rows:
            number = np.arange(first, first := first + len(places[row]))
            share = min(count, total)
            kept[row] = places[row][(number + 1) * share // total > number * share // total]
    return kept


def _sides(corpus: Corpus, features: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> Sides:
    """Join what utterances give, features (layers, n, width) and labels (n,), into training and test rows."""

    def side(train: bool) -> Examples:
        rows = np.flatnonzero(corpus.train == train).tolist()
        return Examples(
            np.concatenate([features[row] for row in rows], axis=1),
            np.concatenate([labels[row] for row in rows]),
            np.concatenate([np.full(len(labels[row]), corpus.units[row]) for row in rows]),
        )

    return side(True), side(False)
