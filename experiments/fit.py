"""Training as every experiment does it: settings, data, checkpoints, telemetry around the one loop."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from experiments.cli import Preempted, console, updates
from jaxssl.data import prepared
from jaxssl.data.batches import Batch, Corpus, Loader, Validation, validation
from jaxssl.data.buckets import Watch
from jaxssl.data.feeds import MelCorpus, WaveCorpus
from jaxssl.data.logmel import Stats
from jaxssl.data.masking import HUBERT, MELHUBERT_10MS, MELHUBERT_20MS, Spans
from jaxssl.data.quality import entropy
from jaxssl.data.study import read_study
from jaxssl.latency import matmul_peak
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch, LogMel, to_json
from jaxssl.models.model import Params, Stack
from jaxssl.training import distributed, pictures
from jaxssl.training.loop import Hook, every, termination, train
from jaxssl.training.losses import MaskedPrediction, Sums, add, means
from jaxssl.training.optimizer import Optimizer, skipped
from jaxssl.training.resume import Checkpoints
from jaxssl.training.sharding import check_rows, fetch, global_batch, make_mesh, place, shardings
from jaxssl.training.step import Loss, State, View, as_seen, make_evaluation, make_step, start
from jaxssl.training.telemetry import Journal, Meter, read_journal

Tell = Callable[[int, str], None]
HOPELESS = 100  # updates skipped in a row after which a run gives up
AGREE_EVERY = 5  # updates between two questions among processes whether one was told to stop


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train. Batches are global: they do not depend on the number of devices or hosts."""

    steps: int = 400
    """updates in all"""
    batch: int = 8
    """utterances of a batch"""
    accumulate: int = 1
    """batches whose gradients are averaged for one update"""
    crop: float = 7.5
    """longest stretch of an utterance, in seconds; longer ones are cut at random"""
    shortest: float = 1.0
    """utterances below that are left out, in seconds"""
    buckets: int = 8
    """padded lengths at most; each is a program to compile"""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adamw decays weights by 0.01"""
    learning_rate: float = 1e-3
    """highest learning rate"""
    warmup: float = 0.1
    """share of the updates over which the rate rises"""
    decay: Literal["constant", "linear", "cosine"] = "linear"
    """after the warm-up"""
    clip: float = 10.0
    """largest norm of a gradient"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation; parameters stay float32"""
    stack: Stack = "unroll"
    """how equal layers run: unroll; scan: compiles faster; remat: computes again in the backward pass, least memory"""
    seed: int = 0
    """of initial weights, order, crops, masks and dropout"""
    valid_every: int = 100
    """updates between two validations"""
    save_every: int = 100
    """updates between two checkpoints"""
    keep: int = 3
    """checkpoints kept"""
    log_every: int = 20
    """updates between two lines"""
    fsdp: int = 1
    """devices over which each parameter is spread"""
    coordinator: str | None = None
    """HOST:PORT of process 0, for several processes; TPU pods and SLURM are recognised without"""
    processes: int | None = None
    """how many processes there are"""
    process: int | None = None
    """which one this is, from 0"""
    timeout: float = 300.0
    """seconds to wait for the other processes"""


ANYWHERE = ("coordinator", "processes", "process", "timeout", "log_every", "keep")  # a resumed run may change these


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
    """

    train: tuple[Corpus, np.ndarray]
    valid: tuple[Corpus, np.ndarray]
    clusters: int
    entropy: float
    stats: Stats | None
    spans: Spans
    per_second: int


@dataclass(frozen=True)
class Fitted:
    """A trained model: parameters as the loss saw them, on the host, and the last validation's numbers."""

    params: Params
    valid: dict[str, float]
    rows: list[dict[str, Any]] = field(default_factory=list)


def load_data(corpus: Path, front: Any, *, labels: str | None, valid: Path | None, stats: Stats | None = None) -> Data:
    """Open a prepared corpus as a model's front end takes it.

    Args:
        corpus: folder of `experiments.prepare`, or a .csv of the MelHuBERT study.
        front: of the arch.
        labels: name of a label set; None: the only one.
        valid: another prepared folder of held-out speech; None: the corpus's own validation part.
        stats: a trained model's log-Mel statistics; None: the corpus's own.

    Raises:
        InputError: there is no validation part, or the two label sets differ in size.
    """
    here = _open(corpus)
    targets = here.labels(labels)
    there = here if valid is None else _open(valid)
    held_out = targets if valid is None else there.labels(targets.name)
    if held_out.clusters != targets.clusters:
        raise InputError(f"{valid}: {held_out.clusters} clusters, {corpus} has {targets.clusters}; prepare it --like")
    if isinstance(front, LogMel):
        stats = stats or here.stats
        feeds: list[Corpus] = [MelCorpus(c, t, front.stack, stats) for c, t in ((here, targets), (there, held_out))]
        spans, per_second = (MELHUBERT_10MS if front.stack == 1 else MELHUBERT_20MS), 100 // front.stack
    else:
        feeds = [WaveCorpus(c.manifest, t) for c, t in ((here, targets), (there, held_out))]
        stats, spans, per_second = None, HUBERT, SAMPLE_RATE
    learned = np.arange(len(here)) if valid is not None else here.indices("train")
    kept = np.arange(len(there)) if valid is not None else here.indices("valid")
    counts = np.bincount(np.concatenate([targets[int(i)] for i in learned]), minlength=targets.clusters)
    return Data((feeds[0], learned), (feeds[1], kept), targets.clusters, entropy(counts), stats, spans, per_second)


def _open(place: Path) -> prepared.Prepared:
    return read_study(place) if place.suffix.lower() == ".csv" else prepared.load(place)


def pretraining_loss(arch: Arch, data: Data) -> MaskedPrediction:
    """Return the loss the model's family was pre-trained with: HuBERT adds 10 times its feature penalty."""
    return MaskedPrediction((data.clusters,), penalty=0.0 if isinstance(arch.front, LogMel) else 10.0)


def evaluate(arch: Arch, params: Params, data: Data, training: Training) -> dict[str, float]:
    """Return a model's mean loss and accuracies on held-out speech, masks fixed."""
    mesh = make_mesh(fsdp=1)
    run = make_evaluation(arch, pretraining_loss(arch, data), dtype=jnp.dtype(training.dtype))
    placed = place(params, shardings(params, mesh))
    return means(_total(run(placed, (), _arrays(batch, mesh)) for batch in _held_out(data, training)))


def fit(
    folder: Path,
    arch: Arch,
    params: Params,
    data: Data,
    training: Training,
    *,
    loss: Loss | None = None,
    view: View = as_seen,
    held: Any = (),
    passes: float = 3.0,
) -> Fitted:
    """Train, or go on training, in a run folder.

    Args:
        folder: of the run: checkpoints, `metrics.jsonl`, TensorBoard's file.
        arch: what `view(params)` is.
        params: to start from, when the folder has no checkpoint.
        data: to learn from and to validate on.
        training: how.
        loss: what to minimise; None: the family's pre-training loss.
        view: how the loss sees the parameters.
        held: what the view needs besides.
        passes: see `Meter`.

    Raises:
        Preempted: SIGTERM came; all is saved.
        InputError: the settings do not fit, or no gradient has been finite for long.
    """
    loss = loss or pretraining_loss(arch, data)
    mesh = make_mesh(fsdp=training.fsdp)
    check_rows(training.batch, mesh.size)
    optimizer = _optimizer(training).build()
    with ExitStack() as stack:
        saves = stack.enter_context(Checkpoints(folder / "checkpoints", keep=training.keep))
        loader = stack.enter_context(_loader(data, training))
        state = start(params, optimizer, seed=training.seed, held=held)
        places = shardings(state, mesh)
        state = _resume(saves, loader, place(state, places))
        journal = stack.enter_context(Journal(folder, after=int(state.step))) if distributed.is_main() else None
        told = stack.enter_context(termination())
        tell = stack.enter_context(updates("training", training.steps))
        dtype = jnp.dtype(training.dtype)
        step = make_step(arch, loss, optimizer, view=view, dtype=dtype, stack=training.stack, shardings=places)
        check = make_evaluation(arch, loss, view=view, dtype=dtype)
        meter = Meter(peak=matmul_peak(dtype) * mesh.size, passes=passes)
        console.print(f"batches: {loader.summary()}", markup=False)

        def save(number: int, state: State, sums: Sums) -> None:
            saves.save(number, state, {"position": loader.state(), "arch": to_json(arch)})

        last = training.steps
        hooks = [
            every(training.log_every, _log(training, meter, tell, journal), last=last),
            every(training.valid_every, _validate(arch, data, training, check, view, mesh, tell, journal), last=last),
            every(training.save_every, save, last=last),
        ]
        stream = _stream(loader, training.accumulate, mesh, arch, data, meter)
        state = train(step, state, stream, steps=training.steps, hooks=hooks, stop=_stop(told.is_set))
        if (number := int(state.step)) < training.steps:
            save(number, state, {})
            saves.close()
            raise Preempted(f"after update {number} of {training.steps}, saved; the same command goes on")
        final = fetch(view(state.params, state.held))
    return Fitted(final, evaluate(arch, final, data, training), read_journal(folder))


def _log(training: Training, meter: Meter, tell: Tell, journal: Journal | None) -> Hook:
    """Tell losses and rates; give up when no gradient has been finite for long."""
    rate = _optimizer(training).schedule()

    def log(number: int, state: State, sums: Sums) -> None:
        values = means(sums) | {"learning_rate": float(rate(number - 1))} | meter.read()
        _give_up(state)
        tell(number, _line(number, values, training.steps))
        if journal:
            journal.write(number, "train", values)

    return log


def _validate(
    arch: Arch,
    data: Data,
    training: Training,
    check: Callable[[Any, Any, Any], Sums],
    view: View,
    mesh: Any,
    tell: Tell,
    journal: Journal | None,
) -> Hook:
    """Tell the loss on held-out speech, and draw what the model sees and where it looks."""

    def validate(number: int, state: State, sums: Sums) -> None:
        found = means(_total(check(state.params, state.held, _arrays(b, mesh)) for b in _held_out(data, training)))
        tell(number, f"held out: loss {found['loss']:.3f}, masked accuracy {found['masked_accuracy']:.1%}")
        if journal:
            journal.write(number, "valid", found)
            if mesh.size == 1:
                _draw(journal, number, arch, view(state.params, state.held), data, training)

    return validate


def _optimizer(training: Training) -> Optimizer:
    return Optimizer(
        kind=training.optimizer,
        learning_rate=training.learning_rate,
        warmup=round(training.warmup * training.steps),
        decay=training.decay,
        steps=training.steps,
        clip=training.clip,
    )


def _loader(data: Data, training: Training) -> Loader:
    corpus, among = data.train
    return Loader(corpus, seed=training.seed, among=among, **_shared(data, training))


def _held_out(data: Data, training: Training) -> Validation:
    corpus, among = data.valid
    return validation(corpus, among=among, **_shared(data, training))


def _shared(data: Data, training: Training) -> dict[str, Any]:
    import jax

    return {
        "batch_size": training.batch,
        "crop": math.floor(training.crop * data.per_second),
        "shortest": math.floor(training.shortest * data.per_second),
        "spans": data.spans,
        "buckets": training.buckets,
        "host": jax.process_index(),
        "hosts": jax.process_count(),
    }


def _resume(saves: Checkpoints, loader: Loader, state: State) -> State:
    found = saves.newest()
    if found is None:
        return state
    number, record, notes = found
    for note in notes:
        console.print(f"note: {note}", markup=False)
    loader.restore(record["position"])
    console.print(f"resuming after update {number}", markup=False)
    return saves.restore(number, state)


def _stream(
    loader: Loader, accumulate: int, mesh: Any, arch: Arch, data: Data, meter: Meter
) -> Iterator[Sequence[dict[str, Any]]]:
    """Give each update's batches, on the devices; count speech and multiplications on the way."""
    watch = Watch(len(loader.shapes()))
    for drawn in itertools.count():
        if drawn == 1:
            meter.read()  # the first update compiled; rates are of those after it
        batches = [next(loader) for _ in range(accumulate)]
        for batch in batches:
            if note := watch.see(batch.inputs.shape):
                console.print(f"note: {note}", markup=False)
        lengths = np.concatenate([batch.lengths for batch in batches])
        audio = float(lengths.sum()) / data.per_second
        macs = sum(_macs(arch, round(int(n) / data.per_second * SAMPLE_RATE)) for n in lengths)
        meter.count(audio=audio, macs=macs)  # before the update: a reading after it counts it
        yield [_arrays(batch, mesh) for batch in batches]


@lru_cache(maxsize=4096)
def _macs(arch: Arch, samples: int) -> float:
    return cost.macs(arch, samples).total


def _arrays(batch: Batch, mesh: Any) -> dict[str, Any]:
    rows = {"inputs": batch.inputs, "lengths": batch.lengths, "labels": batch.labels, "mask": batch.mask}
    return global_batch(rows, mesh)


def _total(each: Iterator[Sums]) -> Sums:
    total = next(each)
    for sums in each:
        total = add(total, sums)
    return total


def _stop(told: Callable[[], bool]) -> Callable[[int], bool]:
    """Ask whether to stop; processes ask each other, so that all stop after the same update."""
    import jax

    if jax.process_count() == 1:
        return lambda number: told()
    return lambda number: number % AGREE_EVERY == 0 and distributed.anywhere(told())


def _give_up(state: State) -> None:
    _, row = skipped(state.optimizer)
    if int(row) >= HOPELESS:
        raise InputError(
            f"update {int(state.step)}: the last {int(row)} gradients were not finite (limit {HOPELESS}); lower "
            "--learning-rate, or look for what is wrong with the speech"
        )


def _line(number: int, values: dict[str, float], steps: int) -> str:
    left = (steps - number) / max(values["updates_per_s"], 1e-9)
    words = f"loss {values['loss']:.3f}, masked accuracy {values.get('masked_accuracy', math.nan):.1%}"
    words += f", {values['updates_per_s']:.2f} updates/s, {values['audio_s_per_s']:.0f} s of speech/s"
    return f"{words}, MFU {values['mfu']:.0%}, {left // 60:.0f}:{left % 60:02.0f} left"


def _draw(journal: Journal, number: int, arch: Arch, params: Params, data: Data, training: Training) -> None:
    """Show one held-out utterance as the model sees it, and where each layer with heads looks."""
    batch = _held_out(data, replace(training, batch=1))[0]
    length = int(batch.lengths[0])
    if isinstance(arch.front, LogMel):
        journal.picture(number, "masked", pictures.masked_features(batch.inputs[0, :length], batch.mask[0, :length]))
    for i, layer in enumerate(arch.layers):
        if layer.heads:
            maps = pictures.attention(arch, params, jnp.asarray(batch.inputs[:, :length]), i)
            journal.picture(number, f"attention/{i}", pictures.tile(maps))
