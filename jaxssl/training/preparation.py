"""Speech made ready for training: manifest, log-Mel features, their statistics, and k-means labels with their worth."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from compress.errors import InputError
from jaxssl.data import corpora, features, prepared
from jaxssl.data.arrays import read_array
from jaxssl.data.labels import Clustering, at_period, cluster
from jaxssl.data.manifest import Manifest, split
from jaxssl.data.prepared import PERIOD_MS, Labels, Prepared
from jaxssl.data.quality import entropy, phone_quality
from jaxssl.runtime import ranges
from jaxssl.runtime.cli import console, messages, progress
from jaxssl.runtime.ranges import Count, Less, Seed, There
from jaxssl.storage import places, publishing
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


def prepare(config: Preparation, source: Callable[[Prepared], Source] | None = None) -> None:
    """Prepare a corpus, or go on where a broken-off run stopped; labels that are there already are kept.

    Args:
        config: what to prepare.
        source: what to cluster, at its own period, instead of what the settings name.

    Raises:
        InputError: the speech, the model or the settings cannot be used.
    """
    _check(config)
    manifest = _manifest(config)
    planned = features.plan(manifest, storage=config.storage)
    _tell(manifest)
    console.print(f"features: {planned.bytes / 1e6:.1f} MB in {config.out / 'features.npy'}", markup=False)
    with progress("log-Mel features", len(planned.grids)) as tick:
        features.prepare(manifest, config.out, storage=config.storage, tick=tick)
    publishing.now(config.out)
    corpus = prepared.load(config.out)
    like = None if config.like is None else prepared.load(config.like)
    if source is not None:
        made = source(corpus)
        return _label(corpus, made, replace(config, period=made.period_ms))
    for spec in config.labels:
        stats = None if like is None else like.stats
        found = source_of(spec, corpus, period=config.period, stats=stats, seed=config.seed)
        for note in found.notes:
            console.print(f"note: {note}", markup=False)
        _label(corpus, found, config)
        publishing.now(config.out)


def _check(config: Preparation) -> None:
    ranges.check(config)
    if config.name is not None and len(config.labels) != 1:
        raise InputError(f"--name names one set of labels, --labels asks for {len(config.labels)}")
    if config.period < PERIOD_MS or config.period % PERIOD_MS:
        raise InputError(f"--period {config.period}: labels come each {PERIOD_MS} ms or a multiple of it, as 20")


def _manifest(config: Preparation) -> Manifest:
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


def _label(corpus: Prepared, source: Source, config: Preparation) -> None:
    """Cluster one source, unless the same labels are there, and say what they are worth."""
    centres = source.centres
    name = config.name or (source.name if centres is not None else f"{source.name}-{config.clusters}")
    source = replace(source, name=name)
    if centres is not None:
        config = replace(config, clusters=len(centres))
    elif config.like is not None:
        centres = _centres(config.like, source.name, config.clusters)
    settings = {
        "source": places.shown(source.about),
        "digest": _digest(corpus, source, centres),
        "seed": config.seed,
        "frames": config.frames,
        "restarts": config.restarts,
        "like": None if config.like is None else places.shown(config.like),
    }
    labels = corpus.sets.get(source.name)
    wanted = (config.clusters, config.period, settings)
    if labels is None or (labels.clusters, labels.period_ms, {k: labels.info.get(k) for k in settings}) != wanted:
        with progress(f"labels {source.name}", len(corpus)) as tick:
            labels = _make(corpus, source, config, settings, centres, tick)
    _report(labels)


def _digest(corpus: Prepared, source: Source, centres: np.ndarray | None) -> str:
    """Name what labels and their quality follow from, besides the settings."""
    digest = hashlib.sha256(source.digest)
    digest.update(b"" if centres is None else np.ascontiguousarray(centres).tobytes())
    for utterance in corpus.manifest.utterances:
        digest.update(repr(utterance.phones).encode())
    return digest.hexdigest()


def _make(
    corpus: Prepared,
    source: Source,
    config: Preparation,
    settings: dict[str, Any],
    centres: np.ndarray | None,
    tick: Callable[[], object],
) -> Labels:
    made = cluster(
        source.vectors,
        len(corpus),
        clusters=config.clusters,
        seed=config.seed,
        limit=config.frames,
        restarts=config.restarts,
        centres=centres,
        tick=tick,
    )
    labels = at_period(Labels(source.name, config.clusters, source.period_ms, made.rows), config.period)
    inertia = made.inertia if source.near else None
    info = {**settings, "fitted": made.fitted, "inertia": inertia, **_worth(corpus, labels, made)}
    rows, clusters, period = [labels[i] for i in range(len(labels))], config.clusters, config.period
    prepared.write_labels(
        config.out,
        source.name,
        rows,
        clusters=clusters,
        period_ms=period,
        info=info,
        centres=made.centres if source.near else None,
    )
    return Labels(source.name, clusters, period, rows, info)


def _centres(like: Path, name: str, clusters: int) -> np.ndarray:
    path = like / "labels" / f"{name}.centres.npy"
    if not path.is_file():
        raise InputError(f"{like}: no centres of labels {name}; make them there first, or give --name")
    centres = read_array(path, axes=2)
    if len(centres) != clusters:
        raise InputError(f"{path}: {len(centres)} centres, --clusters {clusters}; use the same")
    return np.asarray(centres)


def _worth(corpus: Prepared, labels: Labels, made: Clustering) -> dict[str, Any]:
    counts = np.bincount(np.concatenate([labels[i] for i in range(len(labels))]), minlength=labels.clusters)
    values: dict[str, Any] = {
        "size": made.centres.shape[1],
        "used": int((counts > 0).sum()),
        "entropy": entropy(counts),
    }
    found = phone_quality(corpus, labels)
    if found is None:
        return {**values, "purity": None, "phone_purity": None, "pnmi": None}
    worth = asdict(found)
    return {**values, "phone_frames": worth.pop("frames"), **worth}


def _report(labels: Labels) -> None:
    info = labels.info
    line = f"labels {labels.name}: {info['used']} of {labels.clusters} clusters used, one each {labels.period_ms} ms"
    line += f", entropy {info['entropy']:.2f} nats"
    if info["inertia"] is not None:
        line += f", inertia {info['inertia']:.2f} a frame of {info['size']} numbers"
    if info["pnmi"] is None:
        worth = "phones unknown: no purity, no PNMI"
    else:
        worth = f"cluster purity {info['purity']:.3f}, phone purity {info['phone_purity']:.3f}, PNMI {info['pnmi']:.3f}"
        worth += f" over {info['phone_frames']} frames"
    console.print(f"{line}; {worth}", markup=False)
