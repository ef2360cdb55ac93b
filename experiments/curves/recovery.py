"""Training after compression: the speech it needs, and quality before and after."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compress.errors import InputError
from jaxssl.inference.source import Model
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params
from jaxssl.training.corpus import Data, evaluate, hear, load_data, predicted
from jaxssl.training.fit import fit
from jaxssl.training.preparation import Preparation, prepare
from jaxssl.training.settings import Training


@dataclass(frozen=True)
class Recovery:
    """Labelled speech, and how to train on it.

    Attributes:
        data: to train and to validate on.
        training: settings.
        folder: of the runs, one each model.
    """

    data: Data
    training: Training
    folder: Path

    def quality(self, arch: Arch, params: Params) -> dict[str, float]:
        """Return `valid_loss` (nats) and `masked_accuracy` on held-out speech, with their intervals."""
        return hear(arch, params, self.data, self.training).summary()

    def __call__(self, name: str, arch: Arch, params: Params) -> Params:
        """Train a compressed model on, and return its new parameters."""
        return fit(self.folder / name, arch, params, self.data, self.training).params


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
    data = load_data(out, model.arch.front, labels="own", valid=out, stats=model.stats)
    found = evaluate(model.arch, model.params, data, Training())
    return {"loss": found["masked_loss"], "masked_accuracy": found["masked_accuracy"], "entropy": data.entropy}


def open_recovery(
    model: Model,
    *,
    corpus: Path | None,
    labels: str | None,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    out: Path,
) -> Recovery:
    """Find speech with the labels that the model was trained on.

    Args:
        model: before it is compressed.
        corpus: folder of `experiments.prepare`; None: the embedded corpus, with the model's own targets.
        labels: name of the labels in it; None: the only ones.
        steps: updates.
        batch: utterances of a batch.
        learning_rate: the highest one.
        seed: of order, crops, masks and dropout.
        out: folder for the prepared corpus and the runs.

    Raises:
        InputError: the model cannot label speech itself and no corpus is named, or the labels do not fit its output.
    """
    data = speech_with_targets(model, corpus=corpus, labels=labels, out=out)
    training = Training(
        steps=steps, batch=batch, learning_rate=learning_rate, seed=seed, valid_every=steps, save_every=steps
    )
    training = replace(training, log_every=max(steps // 5, 1), buckets=1)  # a short run: one program to compile
    return Recovery(data, training, out / "recovery")


def speech_with_targets(
    model: Model,
    *,
    corpus: Path | None,
    labels: str | None,
    out: Path,
    audio: Sequence[str] = (),
    held_out: Sequence[str] = (),
    valid: Path | None = None,
) -> Data:
    """Open speech with the labels that a model was trained on.

    Args:
        model: whose targets are meant.
        corpus: folder of `experiments.prepare`; None: speech is prepared here, with the model's own targets.
        labels: name of the labels in it; None: the only ones.
        out: folder for what is prepared here; what an earlier run prepared of the same speech is used again.
        audio: speech to prepare; none: the embedded corpus.
        held_out: speech to validate on, prepared as well; none: a part of `audio`.
        valid: another folder of `experiments.prepare`, of held-out speech; None: the corpus's own part.

    Raises:
        InputError: the model has no output layer, cannot label speech itself and no corpus is named, or the labels do
            not fit its output.
    """
    if model.arch.head is None:
        raise InputError(f"{model.name}: no output layer to train with; convert a pre-trained model that kept its head")
    if corpus is None:
        if model.targets is None:
            raise InputError(
                f"{model.name} does not say how its training targets were made; prepare speech with "
                "experiments.prepare and name it with --corpus"
            )
        corpus = _prepared(out, model.targets, audio)
        valid = _prepared(out, model.targets, held_out, valid=0.0) if held_out else valid
    data = load_data(corpus, model.arch.front, labels=labels, valid=valid, stats=model.stats)
    if (found := predicted(model.arch)) != data.clusters:
        raise InputError(f"{corpus}: {data.clusters} clusters, the output layer of {model.name} has {found}")
    return data


def _prepared(out: Path, targets: str, audio: Sequence[str], *, valid: float = 0.05) -> Path:
    """Prepare speech with a model's own targets, in a folder that is the same for the same speech."""
    words = "\0".join([targets, *audio, f"{valid:g}"])
    folder = out / f"speech-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
    prepare(Preparation(audio=tuple(audio), out=folder, labels=(f"{targets}:own",), name="own", valid=valid))
    return folder
