"""What a student learns from a teacher in training, and the teacher's answers, kept for the next student.

Batches are functions of integers, so what a teacher says of one is a function of them too: with a folder to keep it in,
the teacher runs once for all students of the same speech, batches and masks, and a resumed run asks nothing again.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from compress.address import flatten
from compress.errors import InputError
from jaxssl.data.arrays import read_arrays
from jaxssl.data.logmel import WINDOW, stats_bytes
from jaxssl.inference.source import Model
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.model import Params
from jaxssl.runtime import files
from jaxssl.training.corpus import Data, hearing, predicted
from jaxssl.training.ctc_recovery import Script
from jaxssl.training.distillation import LAST, TAUGHT, Distillation, Said, SoftLabels, Taught, Wanted, teach
from jaxssl.training.settings import Training

TEN_S = 10 * SAMPLE_RATE
Give = Callable[[Any, Mapping[str, int]], Any]  # a batch on the devices, and its position in the data


class Choose(Protocol):
    """Gives the loss by which a student of some shape learns from a teacher."""

    def __call__(self, student: Arch, teacher: Arch) -> Distillation: ...


@dataclass(frozen=True)
class Lesson:
    """Who teaches, and how a student learns.

    Attributes:
        arch: of the teacher.
        params: its parameters, which never change.
        choose: the loss.
        training: of the student; the teacher computes in the same dtype.
        dropout: whether the teacher drops at random, as the study's code did by mistake.
        kept: folder for its answers; None: it is asked anew.
        script: what is said in the utterances, for a loss that asks for it.
    """

    arch: Arch
    params: Params
    choose: Choose
    training: Training
    dropout: bool = False
    kept: Path | None = None
    script: Script | None = None

    def loss(self, student: Arch) -> Distillation:
        """Return the loss by which a student learns."""
        return self.choose(student, self.arch)

    def heads(self, student: Arch, *, seed: int) -> Params:
        """Draw what is trained beside the student; errors as `Distillation.heads`."""
        return self.loss(student).heads(student, self.arch, jax.random.key(seed))

    def give(self, student: Arch, data: Data) -> Give:
        """Return what makes a batch what a student hears, and adds the teacher's answers to it."""
        wanted, training = self.loss(student).wanted, self.training
        mine, theirs = hearing(student, data), hearing(self.arch, data)
        ask = teach(self.arch, wanted, dropout=self.dropout, dtype=jnp.dtype(training.dtype), stack=training.stack)

        def give(batch: Any, position: Mapping[str, int]) -> Any:
            key = jax.random.fold_in(jax.random.key(training.seed), position["epoch"]) if self.dropout else None
            key = None if key is None else jax.random.fold_in(key, position["step"])
            said = None if self.script is None else self.script.of(batch["index"])
            if self.kept is None:
                return {**mine(batch), TAUGHT: replace(ask(self._placed, theirs(batch), key), script=said)}
            path = self.kept / self._digest(wanted, position) / f"{position['epoch']}-{position['step']}.npz"
            if (kept := _read(path, wanted)) is None:
                _keep(path, ask(self._placed, theirs(batch), key))
                kept = _read(path, wanted)
            assert kept is not None  # it has just been written
            return {**mine(batch), TAUGHT: replace(kept, script=said)}

        return give

    @cached_property
    def _placed(self) -> Params:
        return jax.tree.map(jnp.asarray, self.params)

    @cached_property
    def _fingerprint(self) -> bytes:
        digest = hashlib.sha256(repr(self.arch).encode())
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.asarray(leaf).tobytes())
        return digest.digest()

    def _digest(self, wanted: Wanted, position: Mapping[str, int]) -> str:
        """Name what the answers depend on besides the batch's number."""
        data = sorted((name, value) for name, value in position.items() if name not in ("epoch", "step"))
        words = repr((wanted, self.dropout, self.training.dtype, data)).encode()
        return hashlib.sha256(self._fingerprint + words).hexdigest()[:12]


def soft_labels(data: Data, *, temperature: float, alpha: float, masked: bool = False) -> Choose:
    """Let students learn the study's way, from cluster logits."""
    return lambda student, teacher: SoftLabels((data.clusters,), temperature, alpha, masked)


def check_teacher(teacher: Model, student: Model, data: Data, *, logits: bool) -> None:
    """Refuse a teacher whose frames are not the student's, or which names other clusters.

    Raises:
        InputError: what differs, and what to do.
    """
    one, two = teacher.arch, student.arch
    if _pace(one) != _pace(two):
        heard = [f"{arch.front.kind}, {arch.frames(TEN_S)} frames of 10 s" for arch in (one, two)]
        raise InputError(
            f"the teacher {teacher.name} hears {heard[0]}, the student {student.name} {heard[1]}; their frames must be "
            "of the same pieces of speech: take a student of the teacher's frame rate"
        )
    if one.front.features and two.front.features and one.front != two.front:
        raise InputError(f"the teacher {teacher.name} hears {one.front}, the student {two.front}; they must be alike")
    stats = [None if model.stats is None else stats_bytes(model.stats) for model in (teacher, student)]
    if None not in stats and stats[0] != stats[1]:
        raise InputError(
            f"the teacher {teacher.name} and the student {student.name} have other log-Mel statistics (stats.npy), so "
            "they do not hear the same; make the student from the teacher"
        )
    if logits and (found := predicted(teacher.arch)) != data.clusters:
        raise InputError(f"the teacher {teacher.name} tells {found} clusters apart, the speech has {data.clusters}")


def _pace(arch: Arch) -> tuple[int, int, int]:
    """Return frames of ten seconds, samples from one frame of the front to the next, and those that the first sees.

    Stacked log-Mel frames count by their first window: the last one of an utterance is filled with zeros.
    """
    hop, field = arch.front.samples
    return arch.frames(TEN_S), hop, WINDOW if arch.front.features else field


def _keep(path: Path, taught: Taught) -> None:
    """Write a teacher's answer so that it is whole or not there."""
    arrays: dict[str, np.ndarray] = {}
    for name, said in (("plain", taught.plain), ("masked", taught.masked)):
        if said is not None:
            tree = {"hidden": dict(said.hidden)} | ({} if said.logits is None else {"logits": said.logits})
            arrays |= {f"{name}/{place}": np.asarray(leaf, np.float32) for place, leaf in flatten(tree).items()}
    files.write_arrays(path, arrays)


def _read(path: Path, wanted: Wanted) -> Taught | None:
    """Read an answer; None where there is none, or none that is whole."""
    try:
        arrays = {name: jnp.asarray(array, jnp.float32) for name, array in read_arrays(path).items()}
    except InputError:
        return None

    def said(name: str) -> Said:
        mine = {place.removeprefix(f"{name}/"): leaf for place, leaf in arrays.items() if place.startswith(f"{name}/")}
        names = [*map(str, wanted.layers), *([LAST] if wanted.last else [])]
        return Said(mine.get("logits"), {name: mine[f"hidden/{name}"] for name in names})

    try:
        return Taught(said("plain") if wanted.plain else None, said("masked") if wanted.masked else None)
    except KeyError:
        return None
