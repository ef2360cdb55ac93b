"""Speech with targets for a model to recover on, whatever the model is, and a model's quality on it.

Targets are, in this order: labels that are given; those that the model names; its own codewords, what its output layer
answers where nothing is hidden; clusters of its own middle layer. A model without an output layer gets one, fitted to
its frozen frames (`jaxssl.training.output_layer`).
"""

import hashlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from compress.errors import InputError
from jaxssl.data import prepared
from jaxssl.data.logmel import Stats
from jaxssl.data.prepared import Prepared
from jaxssl.inference.source import Model, load_model
from jaxssl.runtime.cli import console
from jaxssl.training.corpus import Data, evaluate, load_data, predicted
from jaxssl.training.label_source import Source, fingerprint, model_source
from jaxssl.training.output_layer import with_output_layer
from jaxssl.training.preparation import Preparation, prepare
from jaxssl.training.settings import Training

CLUSTERS = 100  # of a model without codewords, as HuBERT's first iteration


def own_quality(model: Model, audio: Path | None, *, out: Path) -> dict[str, float]:
    """Measure masked prediction on speech that the model never saw, with its own targets.

    Args:
        model: one that says how its targets were made.
        audio: speech; None: the embedded corpus, which nothing of the package was trained on.
        out: folder for the prepared speech.

    Returns:
        `loss` (nats, masked frames), `masked_accuracy`, and `entropy` of the targets.
    """
    places = () if audio is None else (str(audio),)
    prepare(Preparation(audio=places, out=out, labels=(f"{model.name}:own",), name="own", valid=0.0))
    data = load_data(out, model.arch, labels="own", valid=out, stats=model.stats)
    found = evaluate(model.arch, model.params, data, Training())
    return {"loss": found["masked_loss"], "masked_accuracy": found["masked_accuracy"], "entropy": data.entropy}


@dataclass(frozen=True)
class Asked:
    """Speech to train on, as a command line names it.

    Attributes:
        corpus: folder of `experiments.prepare`; None: speech is prepared here, with targets of the model's.
        labels: name of the labels in it; None: the only ones.
        valid: another folder of `experiments.prepare`, of held-out speech; None: the corpus's own part.
        audio: speech to prepare; none: the embedded corpus.
        held_out: speech to validate on, prepared as well; none: a part of `audio`.
        clusters: of the middle layer of a model without codewords; None: `CLUSTERS`.
    """

    corpus: Path | None = None
    labels: str | None = None
    valid: Path | None = None
    audio: Sequence[str] = ()
    held_out: Sequence[str] = ()
    clusters: int | None = None


@dataclass(frozen=True)
class Found:
    """Speech with targets.

    Attributes:
        data: the speech.
        told: a line that says what the targets are.
        codewords: place of the model whose codewords they are, where a later run can find it; else None.
    """

    data: Data
    told: str
    codewords: str | None = None


def speech_with_targets(model: Model, asked: Asked, *, out: Path) -> Found:
    """Open speech with targets for a model.

    Args:
        model: whose targets are meant.
        asked: the speech.
        out: folder for what is prepared here; what an earlier run prepared of the same speech is used again.

    Raises:
        InputError: the labels do not fit the model's output layer, or there are targets and clusters are asked for.
    """
    corpus, valid, codewords = asked.corpus, asked.valid, None
    if asked.clusters is not None and asked.clusters < 2:
        raise InputError(f"--clusters {asked.clusters}: there is nothing to tell apart; give 2 or more")
    if asked.clusters is not None and (corpus or model.targets or model.arch.head):
        why = "labels are given" if corpus else f"{model.name} has targets of its own"
        raise InputError(f"--clusters {asked.clusters}: {why}, nothing is clustered; leave it out")
    if corpus is not None:
        told = f"targets: the labels of {corpus}" + (f" called {asked.labels}" if asked.labels else "")
    elif model.targets is not None:
        told = f"targets: those of {model.targets}"
        name = partial(_named, out, model.targets)
        corpus, valid = name(asked.audio), name(asked.held_out, valid=0.0) if asked.held_out else valid
    else:
        labelling, told = _labelling(model, asked)
        corpus, valid = _own(labelling, asked, out)
        if model.arch.head is not None and labelling.place is not None and Path(labelling.place).exists():
            codewords = str(Path(labelling.place).resolve())
    data = load_data(corpus, model.arch, labels=asked.labels, valid=valid, stats=model.stats)
    found = predicted(model.arch)
    if found and found != data.clusters:
        raise InputError(_mismatch(model, asked, corpus, data.clusters))
    return Found(data, told, codewords)


def ready(model: Model, asked: Asked, training: Training, *, out: Path) -> tuple[Model, Data]:
    """Return a model that can be trained by masked prediction, and speech to do so: targets, statistics, output layer.

    The model's notes say what the targets are. The arguments and errors are as `speech_with_targets` has them;
    `training` is how batches are made.
    """
    found = speech_with_targets(model, asked, out=out)
    stats, notes = model.stats or found.data.stats, (*model.notes, found.told)
    model = replace(model, stats=stats, notes=notes, codewords=found.codewords)
    model = with_head(model, found.data, training, out=out)
    for note in model.notes:
        console.print(f"note: {note}", markup=False)
    return model, found.data


def with_head(model: Model, data: Data, training: Training, *, out: Path) -> Model:
    """Fit an output layer to a model that has none; any other stays as it is."""
    if model.arch.head is not None:
        return model
    return with_output_layer(model, data, training, kept=out / "output-layers")


def _labelling(model: Model, asked: Asked) -> tuple[Model, str]:
    """Return the model that makes a model's targets, and a line that says what they are.

    It is the model itself, or the one whose codewords it was trained on, where that is still there.
    """
    if model.arch.head is None:
        clusters, depth = asked.clusters or CLUSTERS, len(model.arch.layers)
        return model, f"targets: {clusters} clusters of its own layer {_middle(depth)} of {depth}"
    sets = model.arch.head.sets
    many = f"{sum(sets)} codewords" + (f" of {len(sets)} sets, as one" if len(sets) > 1 else "")
    own = f"targets: its own {many}, as it answers where nothing is hidden"
    if (place := model.codewords) is None:
        return model, own
    if not Path(place).exists():
        return model, f"{own}; {place}, whose codewords they were, is not there any more"
    other = load_model(place, seed=0)
    if predicted(other.arch) != sum(sets):
        return model, f"{own}; {place} is another model now than that whose codewords they were"
    return other, f"targets: the {many} of {place}, which it was made from"


def _own(labelling: Model, asked: Asked, out: Path) -> tuple[Path, Path | None]:
    """Prepare speech, and held-out speech, with what a model says of it: its codewords, or clusters of a layer."""
    which = "head" if labelling.arch.head is not None else _middle(len(labelling.arch.layers))
    clusters = asked.clusters or CLUSTERS

    def source(stats: Stats | None) -> Callable[[Prepared], Source]:
        used = replace(labelling, stats=labelling.stats or stats, notes=())
        return lambda found: model_source(used, which, found, place=labelling.name)

    words = f"{fingerprint(labelling).hex()} {which} {clusters}"
    make = partial(_prepared, out, words, clusters=clusters)
    corpus = make(asked.audio, source(None))
    if not asked.held_out:
        return corpus, asked.valid
    alike = source(prepared.load(corpus).stats)
    return corpus, make(asked.held_out, alike, valid=0.0, like=None if which == "head" else corpus)


def _middle(depth: int) -> int:
    """Choose the layer in the middle, as HuBERT's second iteration clusters; 0 is the input of the first."""
    return max(depth // 2, min(depth, 1))


def _mismatch(model: Model, asked: Asked, corpus: Path, clusters: int) -> str:
    """Say that labels do not fit the output layer, and which command makes labels that do."""
    what = f"{corpus}: {clusters} clusters, the output layer of {model.name} tells {predicted(model.arch)} apart"
    if asked.corpus is None:
        return f"{what}; its targets are not those of {model.targets}: remove that name from provenance.json"
    if not corpus.is_dir() or model.place is None:
        return f"{what}; leave out --corpus and name the speech with --audio, then its own codewords are the targets"
    folders = [corpus] if asked.valid is None else [corpus, asked.valid]
    commands = [
        f"python -m experiments.prepare --audio {shlex.quote(str(folder / 'manifest.tsv'))} --out "
        f"{shlex.quote(str(folder))} --labels {shlex.quote(f'{model.place}:head')} --name own"
        for folder in folders
    ]
    return f"{what}; label it by that model, then add --labels own: {' && '.join(commands)}"


def _named(out: Path, targets: str, audio: Sequence[str], *, valid: float = 0.05) -> Path:
    """Prepare speech with the targets that a model of that name was trained on."""
    return _prepared(out, targets, audio, None, valid=valid, labels=(f"{targets}:own",))


def _prepared(
    out: Path,
    words: str,
    audio: Sequence[str],
    source: Callable[[Prepared], Source] | None,
    *,
    valid: float = 0.05,
    labels: tuple[str, ...] = ("logmel",),
    clusters: int = CLUSTERS,
    like: Path | None = None,
) -> Path:
    """Prepare speech with targets, which `words` name, in a folder that is the same for the same speech."""
    told = "\0".join([words, *audio, f"{valid:g}"])
    folder = out / f"speech-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    settings = Preparation(
        audio=tuple(audio), out=folder, labels=labels, name="own", valid=valid, clusters=clusters, like=like
    )
    prepare(settings, source)
    return folder
