"""What preparing a corpus takes: rates of one process, measured on some of its speech, and what follows for more."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxssl.data import features, kmeans, prepared
from jaxssl.data.arrays import Slices
from jaxssl.data.logmel import collect
from jaxssl.data.manifest import Manifest
from jaxssl.data.prepared import PERIOD_MS, Prepared
from jaxssl.training.label_source import Source, source_of
from jaxssl.training.preparation import Preparation, manifest_of

SPEECH_S = 120.0  # of speech that is tried, and once through it at least
LEAST_S = 1.5  # that a measurement takes
BATCHES = 250  # of k-means
HOURS = (960.0, 60_000.0)  # LibriSpeech; Libri-Light
ABOUT = f"""\
Measured in this process, on {SPEECH_S:g} s of the corpus with the files in memory: features; labels, which is hearing
and the search for the nearest centres; the first centres of k-means, and one of its batches. Assumed: processes do not
slow each other; sending and disks take no time; k-means stops after {BATCHES} batches (at least 101, 220 where they
were counted); all speech is like this. Bytes are of finished files, times those of the process with most to do."""


@dataclass(frozen=True)
class SetRate:
    """Rates of one set of labels.

    Attributes:
        name: of what is clustered.
        clusters: how many.
        size: numbers of a frame.
        period_ms: of its frames.
        hear: seconds of speech that become frames in a second.
        assign: seconds of speech whose frames find their centres in a second.
        begin_s: that the first centres take once.
        batch_s: that a batch's frames take to find their centres.
        move_s: that a batch takes to move the centres.
    """

    name: str
    clusters: int
    size: int
    period_ms: int
    hear: float
    assign: float
    begin_s: float
    batch_s: float
    move_s: float


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        hours: of the corpus.
        features: seconds of speech that become features in a second.
        sets: of labels.
    """

    hours: float
    features: float
    sets: tuple[SetRate, ...]


def measure(config: Preparation) -> Rates:
    """Measure on some utterances of a corpus, drawn by the seed, and write nothing.

    Raises:
        InputError: the speech, the model or the settings cannot be used.
    """
    manifest = manifest_of(config)
    some = _some(manifest, seed=config.seed)
    planned = features.plan(some, storage=config.storage, shard_frames=features.WHOLE)
    per_second = _rate(lambda: features.computed(some, planned, 0), some.seconds)
    rows = Slices(features.computed(some, planned, 0), planned.offsets)
    stats = collect(rows[i] for i in range(len(rows)))
    corpus = Prepared(some, stats, np.diff(planned.offsets), False, rows, {})
    given = None if config.like is None else prepared.load(config.like).stats
    sets = [source_of(s, corpus, period=config.period, stats=given, seed=config.seed) for s in config.labels]
    return Rates(manifest.seconds / 3600, per_second, tuple(_set_rate(source, corpus, config) for source in sets))


def rows(rates: Rates, config: Preparation) -> list[dict[str, float | str]]:
    """Say what each step takes, for the corpus and for `HOURS`, on the processes that the settings name.

    Returns:
        For each step: `what`; `rate`, hours of speech that a process does in a minute; and for each number of hours, by
        its place, `gb0`, bytes on disk in 10⁹, and `time0`.
    """
    team, hours = config.processes or 1, (rates.hours, *HOURS)
    found: list[dict[str, float | str]] = []
    seconds = np.array([_whole(3600 * each, config, team) / rates.features for each in hours])
    for storage in ("float16", "float32"):
        size = features.BINS * np.dtype(storage).itemsize * 3600 * 1000 / PERIOD_MS / 1e9
        found.append(_row(f"features, {storage}", rates.features, hours, size, seconds))
    every = seconds
    for each in rates.sets:
        wide = 2 if each.clusters <= 2**15 else 4
        fit = (each.begin_s + BATCHES * (each.batch_s / team + each.move_s)) * np.ones(len(hours))
        rate = 1 / (1 / each.hear + 1 / each.assign)
        seconds = np.array([_whole(3600 * h, config, team) / rate for h in hours])
        size = wide * 3600 * 1000 / max(config.period, each.period_ms) / 1e9
        if each.begin_s:
            found.append(_row(f"k-means of {each.name}", None, hours, 0.0, fit))
        found.append(_row(f"labels {each.name}", rate, hours, size, seconds))
        every = every + fit + seconds
    found.append(_row("all", None, hours, None, every))
    return found


def columns(rates: Rates) -> dict[str, str]:
    """Name the columns of `rows`."""
    heads = [f"{hours:,.3g} h" if hours < 1000 else f"{hours:,.0f} h" for hours in (rates.hours, *HOURS)]
    pairs = [(f"gb{i}:,.3f", f"GB of {head}") for i, head in enumerate(heads)]
    times = [(f"time{i}", f"time of {head}") for i, head in enumerate(heads)]
    return {"what": "step", "rate:.3g": "hours/min. a process", **dict(pairs), **dict(times)}


def _row(
    what: str, rate: float | None, hours: Sequence[float], size: float | None, seconds: np.ndarray
) -> dict[str, float | str]:
    row: dict[str, float | str] = {"what": what}
    if rate is not None:
        row["rate"] = rate / 60
    for i, each in enumerate(hours):
        if size:
            row[f"gb{i}"] = size * each
        row[f"time{i}"] = _time(float(seconds[i]))
    return row


def _whole(seconds: float, config: Preparation, team: int) -> float:
    """Return the speech of the process that has most of it, in whole shards."""
    shard = 60 * (config.shard or features.SHARD / features.MINUTE)
    count = max(int(np.ceil(seconds / shard)), 1)
    return seconds / count * np.ceil(count / team)


def _time(seconds: float) -> str:
    for unit, name, most in ((1, "s", 120), (60, "min", 7200), (3600, "h", 72 * 3600)):
        if seconds < most:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86400:.3g} days"


def _some(manifest: Manifest, *, seed: int) -> Manifest:
    order = np.random.default_rng(seed).permutation(len(manifest.utterances)).tolist()
    chosen, seconds = [], 0.0
    for i in order:
        if seconds > SPEECH_S:
            break
        chosen.append(manifest.utterances[i])
        seconds = Manifest(tuple(chosen)).seconds
    return Manifest(tuple(chosen))


def _set_rate(source: Source, corpus: Prepared, config: Preparation) -> SetRate:
    numbers, seconds = list(range(len(corpus))), corpus.manifest.seconds
    frames = np.concatenate([x for _, x in source.vectors(numbers)])
    hear = _rate(lambda: list(source.vectors(numbers)), seconds)
    clusters = config.clusters if source.centres is None else len(source.centres)
    draw = np.random.default_rng(config.seed)
    centres = frames[draw.integers(len(frames), size=clusters)] if source.centres is None else source.centres
    assign = _rate(lambda: kmeans.assign(frames, centres), seconds)
    name = f"{source.name}-{clusters}"
    done = SetRate(name, clusters, frames.shape[1], source.period_ms, hear, assign, 0.0, 0.0, 0.0)
    if source.centres is not None or config.like is not None:
        return done
    begin, near, move = kmeans.times(frames[draw.integers(len(frames), size=3 * kmeans.BATCH)], centres)
    return replace(done, begin_s=config.restarts * begin, batch_s=near, move_s=move)


def _rate(work: Callable[[], object], amount: float) -> float:
    """Do something again and again after a first time, which compiles; return how much of it was done in a second."""
    work()
    begun, times = time.monotonic(), 0
    while not times or time.monotonic() - begun < LEAST_S:
        work()
        times += 1
    return amount * times / (time.monotonic() - begun)
