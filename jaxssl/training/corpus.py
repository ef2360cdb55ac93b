"""Labelled speech as training takes it: opened, batched, and a model's loss on the held-out part."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError
from jaxssl.data import prepared
from jaxssl.data.arrays import read_arrays
from jaxssl.data.batches import Batch, Corpus, Loader, Validation, validation
from jaxssl.data.feeds import MelCorpus, WaveCorpus
from jaxssl.data.logmel import Stats
from jaxssl.data.masking import Spans
from jaxssl.data.quality import entropy
from jaxssl.data.study import read_study
from jaxssl.inference.encode import mel_inputs
from jaxssl.models.arch import Arch, LogMel
from jaxssl.models.model import Params, apply
from jaxssl.storage import places
from jaxssl.training.losses import MaskedPrediction, Sums, add, masked_by_row, means
from jaxssl.training.probe import interval
from jaxssl.training.segment_guidance import GuidedPrediction
from jaxssl.training.settings import Training
from jaxssl.training.sharding import check_rows, global_batch, make_mesh, place, shardings
from jaxssl.training.step import Arrays, Loss, make_evaluation

NEAR, FAR = 2, 32  # threads that read batches from a disk, which computes; and from a bucket, which is waited for


@dataclass(frozen=True)
class Data:
    """Speech with labels.

    Attributes:
        train: corpus, and which of its utterances.
        valid: the same of held-out speech.
        clusters: size of the label set.
        entropy: of the training labels, in nats.
        stats: log-Mel statistics that belong to the model; None for waveforms.
        spans: how frames are masked.
        per_second: inputs of the corpus in a second.
        texts: what is said in each utterance of the corpus of held-out speech; empty where it is not known.
        taught: the same of the corpus to train on.
        mel: statistics by which log-Mel models hear a corpus of waveforms; None for a corpus of log-Mel.
        audio: file of each utterance of the corpus of held-out speech; of the study's corpora that of its features.
        taught_audio: the same of the corpus to train on.
        unmasked: weight of the frames that are not hidden, in the loss of pre-training.
        readers: threads that read batches.
    """

    train: tuple[Corpus, np.ndarray]
    valid: tuple[Corpus, np.ndarray]
    clusters: int
    entropy: float
    stats: Stats | None
    spans: Spans
    per_second: int
    texts: tuple[str, ...] = ()
    taught: tuple[str, ...] = ()
    mel: Stats | None = None
    audio: tuple[Path, ...] = ()
    taught_audio: tuple[Path, ...] = ()
    unmasked: float = 0.0
    readers: int = NEAR


def load_data(corpus: Path, arch: Arch, *, labels: str | None, valid: Path | None, stats: Stats | None = None) -> Data:
    """Open a prepared corpus as a model takes it: inputs of its front end, a label for each frame of its layers.

    Args:
        corpus: folder of `experiments.prepare`, or a .csv of the MelHuBERT study.
        arch: the model's.
        labels: name of a label set; None: the only one.
        valid: another prepared folder of held-out speech; None: the corpus's own validation part.
        stats: a trained model's log-Mel statistics; None: the corpus's own.

    Raises:
        InputError: there is no validation part, the two label sets differ in size, or frames of log-Mel become one.
    """
    here = _open(corpus)
    targets = here.labels(labels)
    there = here if valid is None else _open(valid)
    held_out = targets if valid is None else there.labels(targets.name)
    if held_out.clusters != targets.clusters:
        raise InputError(f"{valid}: {held_out.clusters} clusters, {corpus} has {targets.clusters}; prepare it --like")
    front, joined = arch.front, arch.joined
    if isinstance(front, LogMel):
        if joined > 1:
            raise InputError(
                f"{joined} log-Mel frames become one in this model, and no corpus has labels of these; encode with it, "
                "or give its arch an upsampling"
            )
        stats = stats or here.stats
        feeds: list[Corpus] = [MelCorpus(c, t, front.stack, stats) for c, t in ((here, targets), (there, held_out))]
        mel = None
    else:
        pace = {"stride": joined * front.hop, "reach": front.field + (joined - 1) * front.hop}
        feeds = [WaveCorpus(c.manifest, t, **pace) for c, t in ((here, targets), (there, held_out))]
        stats, mel = None, here.stats
    share, span = front.spans
    learned = np.arange(len(here)) if valid is not None else here.indices("train")
    kept = np.arange(len(there)) if valid is not None else here.indices("valid")
    counts = np.bincount(np.concatenate([targets[int(i)] for i in learned]), minlength=targets.clusters)
    texts, taught = (tuple(said.text for said in c.manifest.utterances) for c in (there, here))
    return Data(
        train=(feeds[0], learned),
        valid=(feeds[1], kept),
        clusters=targets.clusters,
        entropy=entropy(counts),
        stats=stats,
        spans=Spans(share, max(span // joined, 1)),
        per_second=front.rate,
        texts=texts,
        taught=taught,
        mel=mel,
        audio=tuple(utterance.path for utterance in there.manifest.utterances),
        taught_audio=tuple(utterance.path for utterance in here.manifest.utterances),
        readers=FAR if any(map(places.url, (corpus, here.manifest.utterances[0].path))) else NEAR,
    )


def _open(place: Path) -> prepared.Prepared:
    return read_study(place) if place.suffix.lower() == ".csv" else prepared.load(place)


def pretraining_loss(arch: Arch, data: Data) -> Loss:
    """Return the loss the model's family was pre-trained with: HuBERT adds 10 times its feature penalty.

    A model that fires is guided by the labels too, or it would learn to fire every frame.
    """
    loss = MaskedPrediction((data.clusters,), unmasked=data.unmasked, penalty=arch.front.penalty)
    return loss if arch.firing is None else GuidedPrediction(loss)


def predicted(arch: Arch) -> int:
    """Count the clusters that a model's output layer tells apart."""
    return 0 if arch.head is None else sum(arch.head.sets)


def evaluate(arch: Arch, params: Params, data: Data, training: Training) -> dict[str, float]:
    """Return a model's mean loss and accuracies on held-out speech, masks fixed."""
    mesh = make_mesh(fsdp=1)
    run = _evaluation(arch, pretraining_loss(arch, data), training.dtype)
    placed = place(params, shardings(params, mesh))
    heard = hearing(arch, data)
    return means(total(run(placed, (), heard(arrays(batch, mesh))) for batch in held_out(data, training)))


@dataclass(frozen=True)
class HeldOut:
    """What a model made of each held-out utterance, in the order of their numbers.

    Attributes:
        losses: sum of −log p over its hidden frames, (utterances,).
        correct: hidden frames that were right, (utterances,).
        frames: hidden frames, (utterances,).
    """

    losses: np.ndarray
    correct: np.ndarray
    frames: np.ndarray

    def summary(self) -> dict[str, float]:
        """Return loss (nats) and accuracy on hidden frames, each with its 95 % bootstrap interval over utterances."""
        found: dict[str, float] = {}
        for name, sums in (("valid_loss", self.losses), ("masked_accuracy", self.correct)):
            low, high = interval(sums, self.frames, seed=0)
            found |= {name: float(sums.sum() / self.frames.sum()), f"{name}_low": low, f"{name}_high": high}
        return found

    def above(self, other: "HeldOut") -> dict[str, float]:
        """Return how far loss (nats) and accuracy are above another model's, with 95 % paired bootstrap intervals.

        Both models are seen on the same resampled utterances, so that what makes an utterance hard does not count.

        Raises:
            InputError: the two did not hear the same utterances.
        """
        if not np.array_equal(self.frames, other.frames):
            heard = f"{self.frames.sum():g} and {other.frames.sum():g} hidden frames"
            raise InputError(f"paired bootstrap: {heard} of different utterances; compare models on the same speech")
        found: dict[str, float] = {}
        pairs = {
            "loss_difference": self.losses - other.losses,
            "accuracy_difference": self.correct - other.correct,
        }
        for name, more in pairs.items():
            low, high = interval(more, self.frames, seed=0)
            found |= {name: float(more.sum() / self.frames.sum()), f"{name}_low": low, f"{name}_high": high}
        return found


def read_heard(path: Path) -> HeldOut:
    """Read what a model made of each held-out utterance.

    Raises:
        InputError: the file is missing or damaged.
    """
    heard = HeldOut(**read_arrays(path, *(field.name for field in fields(HeldOut))))
    if heard.frames.ndim != 1 or not heard.losses.shape == heard.correct.shape == heard.frames.shape:
        raise InputError(f"{path}: losses, correct and frames are of unequal shapes; remove the run's point, run again")
    if not all((np.abs(sums.astype(np.float64)) < 1e30).all() for sums in (heard.losses, heard.correct, heard.frames)):
        raise InputError(f"{path}: sums that are no numbers of utterances; remove the run's point, run again")
    if (heard.frames < 0).any() or (heard.frames % 1).any() or not heard.frames.sum():
        raise InputError(f"{path}: its numbers of frames are none; remove the run's point, run again")
    return heard


def hear(arch: Arch, params: Params, data: Data, training: Training) -> HeldOut:
    """Let a model predict each held-out utterance, masks fixed; in one process.

    Raises:
        InputError: no held-out frame is hidden.
    """
    return hear_each(arch, params, data, training)[1]


def hear_each(arch: Arch, params: Params, data: Data, training: Training) -> tuple[np.ndarray, HeldOut]:
    """Return the numbers of the held-out utterances in their corpus, and what `hear` does."""
    mesh, found = make_mesh(fsdp=1), list[np.ndarray]()
    run, heard = _by_row(arch, data.clusters, training.dtype), hearing(arch, data)
    placed = place(params, shardings(params, mesh))
    for batch in held_out(data, training):
        found.append(np.stack([batch.index, *map(np.asarray, run(placed, heard(arrays(batch, mesh))))]))
    index, *columns = np.concatenate(found, axis=1)
    kept = np.flatnonzero((index >= 0) & (columns[2] > 0))
    if not len(kept):
        raise InputError(f"none of {len(index)} held-out utterances has a hidden frame with a label; give longer ones")
    order = kept[np.argsort(index[kept])]
    return index[order].astype(np.int64), HeldOut(*(column[order].astype(np.float64) for column in columns))


@lru_cache(maxsize=4)
def _by_row(arch: Arch, clusters: int, dtype: str) -> Callable[[Any, Any], tuple[Array, Array, Array]]:
    @jax.jit
    def run(params: Any, batch: Any) -> tuple[Array, Array, Array]:
        output = apply(arch, params, batch["inputs"], batch["lengths"], mask=batch["mask"], dtype=jnp.dtype(dtype))
        return masked_by_row(output, batch["labels"], batch["mask"], (clusters,))

    return run


@lru_cache(maxsize=4)  # a compressed model is evaluated before training and after it
def _evaluation(arch: Arch, loss: Loss, dtype: str) -> Callable[[Any, Any, Any], Sums]:
    return make_evaluation(arch, loss, dtype=jnp.dtype(dtype))


def hearing(arch: Arch, data: Data) -> Callable[[Arrays], Arrays]:
    """Return what makes of a batch's inputs and lengths those that a model takes.

    They are so already, but where a log-Mel model hears a corpus of waveforms, beside a model that takes these.
    """
    front, stats = arch.front, data.mel
    if not isinstance(front, LogMel) or stats is None:
        return lambda batch: batch

    def heard(batch: Arrays) -> Arrays:
        inputs, lengths = _log_mel(front, stats, batch["inputs"], batch["lengths"])
        return {**batch, "inputs": inputs, "lengths": lengths}

    return heard


@partial(jax.jit, static_argnums=0)
def _log_mel(front: LogMel, stats: Stats, samples: Array, lengths: Array) -> tuple[Array, Array]:
    inputs, frames = mel_inputs(front, samples, lengths, stats)
    assert frames is not None  # for lengths were given
    return inputs, frames.astype(jnp.int32)


def loader(data: Data, training: Training) -> Loader:
    """Return the endless training batches."""
    corpus, among = data.train
    return Loader(corpus, seed=training.seed, among=among, **_shared(data, training))


def check_batches(data: Data, training: Training) -> None:
    """Refuse speech and settings that make no batches, before a run begins.

    Raises:
        InputError: utterances are too few or too short, or batches do not divide over the devices.
    """
    check_rows(training.batch, make_mesh(fsdp=training.fsdp).size)
    with loader(data, training):
        pass


def held_out(data: Data, training: Training) -> Validation:
    """Return the held-out batches, masks and crops fixed."""
    corpus, among = data.valid
    return validation(corpus, among=among, **_shared(data, training))


def _shared(data: Data, training: Training) -> dict[str, Any]:
    return {
        "batch_size": training.batch,
        "crop": math.floor(training.crop * data.per_second),
        "shortest": math.floor(training.shortest * data.per_second),
        "spans": data.spans,
        "buckets": training.buckets,
        "host": jax.process_index(),
        "hosts": jax.process_count(),
        "threads": data.readers,
    }


def arrays(batch: Batch, mesh: Any) -> dict[str, Any]:
    """Put a batch on the devices, as `jaxssl.training.step` takes it."""
    return global_batch(vars(batch), mesh)


def total(each: Iterator[Sums]) -> Sums:
    """Add up the sums and counts of several batches."""
    summed = next(each)
    for sums in each:
        summed = add(summed, sums)
    return summed
