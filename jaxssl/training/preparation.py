"""Speech made ready for training: manifest, log-Mel features, their statistics, and k-means labels with their worth."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compress.errors import InputError
from jaxssl.data import corpora, features, prepared
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.features import MINUTE
from jaxssl.data.manifest import Manifest, split
from jaxssl.data.prepared import PERIOD_MS, Prepared
from jaxssl.data.team import ALONE, Team
from jaxssl.runtime import ranges
from jaxssl.runtime.cli import console, messages, progress
from jaxssl.runtime.ranges import Count, Less, Natural, Positive, Seed, There
from jaxssl.storage import publishing
from jaxssl.training import distributed
from jaxssl.training.label_sets import LabelSet, make
from jaxssl.training.label_source import Source, source_of

MINUTES = 20.0  # of embedded speech


@dataclass(frozen=True)
class Preparation:
    """Prepare a corpus for training."""

    audio: There[tuple[str, ...]] = ()
    """speech: folders, globs, files, .tsv manifests; default: the embedded corpus"""
    out: Path = Path("prepared")
    """folder to fill"""
    labels: tuple[str, ...] = ("logmel",)
    """what to cluster, one set each: logmel, mfcc, MODEL:LAYER, a layer of a model folder or checkpoint; MODEL:own, the
    targets that the model was trained on; MODEL:head, what its output layer answers"""
    name: str | None = None
    """name of the labels, where one set is made; default: what is clustered and the number of clusters"""
    clusters: Count[int] = 100
    """clusters of each set"""
    period: Count[int] = 20
    """time from one label to the next, in ms; labels that come more often are thinned"""
    like: There[Path | None] = None
    """prepared corpus whose centres and statistics label this one, set by set of the same name"""
    frames: Count[int] = 300_000
    """frames to fit k-means to at most"""
    restarts: Count[int] = 5
    """initialisations of k-means tried"""
    valid: Less[float] = 0.05
    """share of utterances that become the validation part, where the manifest names no splits; 0: none"""
    split_by: Literal["utterance", "speaker"] = "utterance"
    """what the validation part is drawn from"""
    phones: There[Path | None] = None
    """table of phone times (id, start, end, label), where not beside the manifest"""
    storage: Literal["float16", "float32"] = "float16"
    """type of the features on disk"""
    seed: Seed[int] = 0
    """of the validation part, of the frames fitted to, and of k-means"""
    shard: Positive[float | None] = None
    """minutes of speech that one process does at a time, and that are one file of features; default: what the folder
    has already, else 60"""
    coordinator: str | None = None
    """HOST:PORT of process 0, for several processes with one shared --out; TPU pods and SLURM are recognised without"""
    processes: Count[int | None] = None
    """how many processes there are"""
    process: Natural[int | None] = None
    """which one this is, from 0"""
    timeout: Positive[float] = 300.0
    """seconds to wait for the other processes"""


def run(config: Preparation) -> None:
    """Prepare a corpus in this process and those that it is started together with.

    Raises:
        InputError: the speech, the model or the settings cannot be used, or a process is missing.
    """
    check(config)
    distributed.initialize(config.coordinator, config.processes, config.process, timeout_s=config.timeout)
    with distributed.guard():
        prepare(config, team=distributed.team(config.out))


def prepare(config: Preparation, source: Callable[[Prepared], Source] | None = None, *, team: Team = ALONE) -> None:
    """Prepare a corpus, or go on where a broken-off run stopped; labels that are there already are kept.

    Args:
        config: what to prepare.
        source: what to cluster, at its own period, instead of what the settings name.
        team: the processes that all call this.

    Raises:
        InputError: the speech, the model or the settings cannot be used.
    """
    check(config)
    corpus = _features(config, team)
    publishing.now(config.out)
    like = None if config.like is None else prepared.load(config.like)
    if source is not None:
        made = source(corpus)
        _label(corpus, made, config, made.period_ms, team)
        publishing.now(config.out)
        return
    for spec in config.labels:
        stats = None if like is None else like.stats
        found = source_of(spec, corpus, period=config.period, stats=stats, seed=config.seed)
        for note in found.notes if team.main else ():
            console.print(f"note: {note}", markup=False)
        _label(corpus, found, config, config.period, team)
        publishing.now(config.out)


def _features(config: Preparation, team: Team) -> Prepared:
    """Make the features that are missing."""
    frames = None if config.shard is None else max(round(config.shard * MINUTE), 1)
    manifest = None
    if team.main:
        manifest = manifest_of(config)
        planned = features.plan(manifest, storage=config.storage)
        _tell(manifest)
        console.print(f"features: {planned.bytes / 1e6:.1f} MB in {config.out}", markup=False)
    begun = time.monotonic()
    work = features.begin(manifest, config.out, storage=config.storage, shard_frames=frames, team=team)
    with _bar("log-Mel features", work.grids, team) as tick:
        features.extract(work, tick)
    features.finish(work)
    if team.main and work.missing:
        _speed("features", work.seconds, time.monotonic() - begun, team)
    if team.main and team.processes > len(work.plan.first) - 1:
        idle = f"{team.processes} processes for {len(work.plan.first) - 1} shards: some have nothing to do"
        console.print(f"note: {idle}; a new folder with a smaller --shard would give them work", markup=False)
    return prepared.load(config.out)


def _label(corpus: Prepared, source: Source, config: Preparation, period: int, team: Team) -> None:
    begun = time.monotonic()
    wanted = LabelSet(
        config.out,
        clusters=config.clusters,
        period_ms=period,
        name=config.name,
        like=config.like,
        frames=config.frames,
        restarts=config.restarts,
        seed=config.seed,
    )
    made = make(corpus, source, wanted, team, lambda what, total: _bar(what, total, team))
    if made is None or not team.main:
        return
    if made.fit_s:
        console.print(f"k-means of {source.about}: {made.fitted} frames in {made.fit_s:.1f} s", markup=False)
    seconds = sum(corpus.manifest.utterances[i].samples for i in made.new) / SAMPLE_RATE
    _speed(f"labels of {source.about}", seconds, time.monotonic() - begun - made.fit_s, team)


def _speed(what: str, seconds: float, took: float, team: Team) -> None:
    """Say how fast a step was."""
    rate = seconds / 3600 / max(took, 1e-3) * 60
    many = f", {rate / team.processes:.3g} for each of {team.processes} processes" if team.processes > 1 else ""
    line = f"{what}: {seconds / 3600:.3g} hours of speech in {took:.1f} s, {rate:.3g} hours a minute{many}"
    console.print(line, markup=False)


@contextmanager
def _bar(what: str, total: int, team: Team) -> Iterator[Callable[[], object]]:
    """Show how far process 0 is; the others are about as far."""
    if not team.main:
        yield bool
        return
    with progress(what, total) as tick:
        yield tick


def check(config: Preparation) -> None:
    """Refuse settings that do not go together.

    Raises:
        InputError: they do not.
    """
    ranges.check(config)
    if config.name is not None and len(config.labels) != 1:
        raise InputError(f"--name names one set of labels, --labels asks for {len(config.labels)}")
    if config.period < PERIOD_MS or config.period % PERIOD_MS:
        raise InputError(f"--period {config.period}: labels come each {PERIOD_MS} ms or a multiple of it, as 20")


def manifest_of(config: Preparation) -> Manifest:
    """Read the corpus that the settings name, with a validation part where they ask for one.

    Raises:
        InputError: it cannot be read, or not be split so.
    """
    if config.audio:
        with messages.status("reading the corpus"):
            manifest = corpora.read(config.audio, phones=config.phones)
    else:
        manifest = _embedded()
    if config.valid and not any(utterance.split for utterance in manifest.utterances):
        manifest = split(manifest, valid=config.valid, seed=config.seed, by_speaker=config.split_by == "speaker")
    return manifest


def _embedded() -> Manifest:
    from jaxssl.data import embedded  # it brings a speech synthesiser

    with progress("embedded speech", embedded.count(MINUTES)) as tick:
        return embedded.make(minutes=MINUTES, tick=tick)


def _tell(manifest: Manifest) -> None:
    utterances = manifest.utterances
    speakers = len({u.speaker for u in utterances if u.speaker})
    parts = Counter(u.split for u in utterances if u.split)
    words = ", ".join(f"{count} {name}" for name, count in sorted(parts.items())) or "not split"
    known = sum(bool(u.phones) for u in utterances)
    size = f"{len(utterances)} utterances ({words}), {speakers} speakers, {manifest.seconds / 60:.1f} minutes"
    console.print(f"corpus: {size}, phone times of {known}", markup=False)
