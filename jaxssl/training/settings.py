"""How to train: the settings that training experiments share, and the folder that belongs to a run's settings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compress.errors import InputError
from jaxssl.models.stack import Stack
from jaxssl.runtime import files
from jaxssl.runtime.ranges import Count, Crop, Inner, Length, Natural, Positive, Seed, Share
from jaxssl.training import distributed
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.spikes import Policy


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train. Batches are global: they do not depend on the number of devices or hosts."""

    steps: Count[int] = 400
    """updates in all"""
    batch: Count[int] = 8
    """utterances of a batch"""
    accumulate: Count[int] = 1
    """batches whose gradients are averaged for one update"""
    crop: Crop[float] = 7.5
    """longest stretch of an utterance, in seconds; longer ones are cut at random"""
    shortest: Length[float] = 1.0
    """utterances below that are left out, in seconds"""
    buckets: Count[int] = 8
    """padded lengths at most; each is a program to compile"""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adamw decays weights by 0.01"""
    learning_rate: Positive[float] = 1e-3
    """highest learning rate"""
    warmup: Share[float] = 0.1
    """share of the updates over which the rate rises"""
    decay: Literal["constant", "linear", "cosine"] = "linear"
    """after the warm-up"""
    clip: Positive[float] = 10.0
    """largest norm of a gradient"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation; parameters stay float32"""
    stack: Stack = "scan"
    """how equal layers run: unroll; scan: backward computes what is cheap again; remat: all again, least memory"""
    seed: Seed[int] = 0
    """of initial weights, order, crops, masks and dropout"""
    valid_every: Count[int] = 100
    """updates between two validations"""
    save_every: Count[int] = 100
    """updates between two checkpoints"""
    keep: Count[int] = 3
    """checkpoints kept"""
    log_every: Count[int] = 20
    """updates between two lines"""
    spikes: Literal["rollback", "skip", "off"] = field(default="rollback", repr=False)
    """what follows when the loss or the gradient of an update is far above the recent ones: skip that update; rollback:
    and after several in a row go back to the last checkpoint, with a smaller step and the speech that comes next"""
    spike_far: Positive[float] = field(default=10.0, repr=False)
    """how far is far: in standard deviations of the last 128 updates, from their median"""
    spike_row: Count[int] = field(default=10, repr=False)
    """spikes in a row, or gradients that are not finite, before a run goes back"""
    spike_shrink: Inner[float] = field(default=0.5, repr=False)
    """by which the step is multiplied each time that a run goes back"""
    fsdp: Count[int] = 1
    """devices over which each parameter is spread"""
    coordinator: str | None = None
    """HOST:PORT of process 0, for several processes; TPU pods and SLURM are recognised without"""
    processes: Count[int | None] = None
    """how many processes there are"""
    process: Natural[int | None] = None
    """which one this is, from 0"""
    timeout: Positive[float] = 300.0
    """seconds to wait for the other processes"""


# A resumed run may change these: on other devices and hosts it goes on with the same batches, and it may be spikes that
# it stopped for. What a control is found by, how `Training` prints, does not have the latter either.
SPIKES = ("spikes", "spike_far", "spike_row", "spike_shrink")
ANYWHERE = ("coordinator", "processes", "process", "timeout", "fsdp", "log_every", "keep", *SPIKES)


def optimizer(training: Training) -> Optimizer:
    """Return the optimiser that the settings ask for."""
    return Optimizer(
        kind=training.optimizer,
        learning_rate=training.learning_rate,
        warmup=round(training.warmup * training.steps),
        decay=training.decay,
        steps=training.steps,
        clip=training.clip,
    )


def policy(training: Training) -> Policy | None:
    """Return what the settings say of loss spikes; None: nothing is done about them."""
    if training.spikes == "off":
        return None
    row = training.spike_row if training.spikes == "rollback" else None
    return Policy(training.spike_far, row, training.spike_shrink)


def claim(out: Path, config: Any, *, free: Sequence[str] = ANYWHERE) -> None:
    """Make sure that a run may take a folder, or take it up again; a folder of another run is refused.

    The folder belongs to the run from `own` on, so that a command which is refused in between leaves it as it was.

    Args:
        out: the folder.
        config: the run's settings, a dataclass.
        free: settings that may be others when a run goes on.

    Raises:
        InputError: the folder belongs to a run with other settings; the first that differs is named.
    """
    path = out / files.SETTINGS
    if path.is_file():
        if not isinstance(there := files.read_json(path), dict):
            raise InputError(f"{path}: not the settings of a run; choose another --out")
        for name, value in _bound(config, free).items():
            if there.get(name) != value:
                raise InputError(
                    f"{out}: a run with --{name.replace('_', '-')} {there.get(name)} is there, this one has {value}; "
                    "choose another --out"
                )
    if distributed.is_main():
        files.claim(out)


def own(out: Path, config: Any, *, free: Sequence[str] = ANYWHERE) -> None:
    """Make a claimed folder this run's own, once nothing can be refused any more; the arguments are `claim`'s."""
    if distributed.is_main():
        files.own(out, _bound(config, free))


def _bound(config: Any, free: Sequence[str]) -> dict[str, Any]:
    """Return the settings that a run keeps when it goes on."""
    return {name: value for name, value in files.plain(config).items() if name not in free}
