"""Sets of labels of a prepared corpus: made of a source by the processes together, kept where they are the same."""

import hashlib
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.data import prepared
from jaxssl.data.arrays import read_array
from jaxssl.data.labels import Clustering, Corpus, at_period, cluster
from jaxssl.data.prepared import PERIOD_MS, Labels, Prepared
from jaxssl.data.quality import entropy, phone_quality
from jaxssl.data.team import Team
from jaxssl.runtime import files
from jaxssl.runtime.cli import console
from jaxssl.storage import places
from jaxssl.training.label_source import Source

Bar = Callable[[str, int], AbstractContextManager[Callable[[], object]]]  # what is done, of how many → what to call


@dataclass(frozen=True)
class LabelSet:
    """What labels are wanted.

    Attributes:
        folder: of the prepared corpus.
        clusters: how many.
        period_ms: time from one label to the next.
        name: None: the source's name and the number of clusters.
        like: another prepared corpus, whose centres are taken.
        frames: to fit to at most.
        restarts: of k-means.
        seed: of the frames and of k-means.
    """

    folder: Path
    clusters: int
    period_ms: int
    name: str | None
    like: Path | None
    frames: int
    restarts: int
    seed: int


def make(corpus: Prepared, source: Source, wanted: LabelSet, team: Team, bar: Bar) -> Clustering | None:
    """Cluster one source, unless the same labels are there, and say what they are worth.

    What is made meanwhile lies in `labels/.NAME`, one file for each shard that is done.

    Returns:
        What was made; None where it was there.

    Raises:
        InputError: there are no centres of that name to take, the source's frames do not come so often, or there are
            too few of them for so many clusters.
    """
    centres = source.centres
    name = wanted.name or (source.name if centres is not None else f"{source.name}-{wanted.clusters}")
    prepared.check_name(name)
    at_period(Labels(name, wanted.clusters, source.period_ms, ()), wanted.period_ms)  # refused now, not at the end
    if centres is not None:
        wanted = replace(wanted, clusters=len(centres))
    elif wanted.like is not None:
        centres = _centres(wanted.like, name, wanted.clusters)
    settings = {
        "source": places.shown(source.about),
        "digest": _digest(corpus, source, centres),
        "seed": wanted.seed,
        "frames": wanted.frames,
        "restarts": wanted.restarts,
        "like": None if wanted.like is None else places.shown(wanted.like),
    }
    there = corpus.sets.get(name)
    if not team.said(np.array([there is not None and _same(there, wanted, settings)])):
        return _make(corpus, replace(source, name=name), wanted, settings, centres, team, bar)
    if there is not None and team.main:
        _report(there)
    return None


def _same(there: Labels, wanted: LabelSet, settings: dict[str, Any]) -> bool:
    known = {key: there.info.get(key) for key in settings}
    return (there.clusters, there.period_ms, known) == (wanted.clusters, wanted.period_ms, settings)


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
    wanted: LabelSet,
    settings: dict[str, Any],
    centres: np.ndarray | None,
    team: Team,
    bar: Bar,
) -> Clustering:
    first, work = prepared.shard_bounds(wanted.folder, len(corpus)), wanted.folder / "labels" / f".{source.name}"
    if team.main:
        _begin(work, {**settings, "clusters": wanted.clusters, "name": source.name})
    team.wait()
    # About so many: a layer may give one more or less, and how many it does is counted when it has.
    frames = np.maximum(corpus.lengths * PERIOD_MS // source.period_ms, 1)
    what = Corpus(source.vectors, frames, first)
    with bar(f"labels {source.name}", what.size(team.mine(range(len(first) - 1)))) as tick:
        made = cluster(
            what,
            work,
            clusters=wanted.clusters,
            seed=wanted.seed,
            limit=wanted.frames,
            restarts=wanted.restarts,
            centres=centres,
            team=team,
            tick=tick,
        )
    if team.main:
        _write(corpus, source, wanted, settings, made)
        shutil.rmtree(work)
    team.wait()
    return made


def _begin(work: Path, settings: dict[str, Any]) -> None:
    """Make the folder of what is being made, or empty it of what other settings made."""
    path = work / "settings.json"
    if work.is_dir() and not (path.is_file() and files.read_json(path) == settings):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    files.write_json(path, settings)


def _write(corpus: Prepared, source: Source, wanted: LabelSet, settings: dict[str, Any], made: Clustering) -> None:
    """Write a set of labels that is whole, and say what it is worth."""
    labels = at_period(Labels(source.name, wanted.clusters, source.period_ms, made.rows), wanted.period_ms)
    inertia = made.inertia if source.near else None
    info = {**settings, "fitted": made.fitted, "inertia": inertia, **_worth(corpus, labels, made)}
    prepared.write_labels(
        wanted.folder,
        source.name,
        (labels[i] for i in range(len(labels))),
        lengths=labels.lengths,
        clusters=wanted.clusters,
        period_ms=wanted.period_ms,
        info=info,
        centres=made.centres if source.near else None,
    )
    _report(replace(labels, info=info))


def _centres(like: Path, name: str, clusters: int) -> np.ndarray:
    path = like / "labels" / f"{name}.centres.npy"
    if not path.is_file():
        raise InputError(f"{like}: no centres of labels {name}; make them there first, or give --name")
    centres = read_array(path, axes=2)
    if len(centres) != clusters:
        raise InputError(f"{path}: {len(centres)} centres, --clusters {clusters}; use the same")
    return np.asarray(centres)


def _worth(corpus: Prepared, labels: Labels, made: Clustering) -> dict[str, Any]:
    counts = np.zeros(labels.clusters, np.int64)
    for i in range(len(labels)):
        counts += np.bincount(labels[i], minlength=labels.clusters)
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
