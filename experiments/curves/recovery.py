"""Speech with the labels that a model was trained on, and a model's quality on it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from compress.errors import InputError
from jaxssl.inference.source import Model
from jaxssl.training.corpus import Data, evaluate, load_data, predicted
from jaxssl.training.preparation import Preparation, prepare
from jaxssl.training.settings import Training


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
