"""Distillation: what a student is asked to reproduce of a teacher, and how far from it it is.

Every loss is a value with one interface, `Distillation`: `SoftLabels` (the study's: cluster logits), and in
`jaxssl.training.hidden_states` those of hidden layers. The teacher is frozen and
never differentiated, so it runs as a program of its own, `teach`, whose answer travels in the batch; it can be kept and
read again. What is trained only to compare, projections and prediction heads, lies beside the student's parameters
under `HEADS` and is dropped afterwards.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import Array

from compress.errors import InputError
from jaxssl.models.arch import Arch, CosineHead
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Output, Params, apply, predict
from jaxssl.models.stack import Stack
from jaxssl.training.losses import Sums, by_set, ratio, surprise
from jaxssl.training.step import Arrays, Objective, View, as_seen

HEADS = "distillation"  # among a student's parameters in training
TAUGHT = "taught"  # in a batch
LAST = "last"  # among a teacher's hidden layers: the encoder's output


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Said:
    """What a teacher says of a batch.

    Attributes:
        logits: (batch, time, clusters), or None where they are not wanted.
        hidden: wanted layers by number (0: input of the first), each (batch, time, width); `LAST` is the encoder's
            output, which pre-LN models normalise.
    """

    logits: Array | None
    hidden: Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Taught:
    """What it says of the speech as it is, and of the speech with the masked frames hidden; None is not wanted.

    `script` is what is said in it, where that is known: symbols, (batch, most) int32, and how many, (batch,).
    """

    plain: Said | None
    masked: Said | None
    script: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class Wanted:
    """What a loss needs of the teacher.

    Attributes:
        plain: whether it hears the speech as it is.
        masked: whether it hears it with masked frames hidden.
        layers: hidden layers.
        logits: whether its logits.
        last: whether the encoder's output.
    """

    plain: bool
    masked: bool
    layers: tuple[int, ...] = ()
    logits: bool = False
    last: bool = False


class Distillation(Protocol):
    """How a student learns from a teacher."""

    @property
    def masked(self) -> bool:
        """Whether masked frames are hidden from the student."""

    @property
    def wanted(self) -> Wanted:
        """What the teacher must say."""

    def heads(self, student: Arch, teacher: Arch, key: Array) -> Params:
        """Draw what is trained beside the student; an empty tree where there is nothing.

        Raises:
            InputError: the student cannot learn this of the teacher.
        """

    def __call__(self, heads: Params, output: Output, taught: Taught, labels: Array, mask: Array) -> tuple[Array, Sums]:
        """Return the loss and what to report.

        Args:
            heads: as they are now.
            output: of the student.
            taught: what was wanted of the teacher.
            labels: (batch, frames), the cluster of each frame; −1 where unknown or padded.
            mask: (batch, frames), true where a frame is hidden from whoever hears the masked speech.
        """


@dataclass(frozen=True)
class SoftLabels:
    """The study's: the divergence of the student's clusters from the teacher's.

    L = (1 − α) · CE(student, cluster) + α · KL(softmax(t / T) ‖ softmax(s / T)), summed over clusters, averaged over
    frames, without a factor T² (METHODS 2.4).

    Attributes:
        clusters: size of each label set.
        temperature: T.
        alpha: α; 1 uses no labels.
        masked: both hear the masked speech, and masked frames alone count; else both hear all and every frame counts.
    """

    clusters: tuple[int, ...]
    temperature: float = 1.0
    alpha: float = 1.0
    masked: bool = False

    @property
    def wanted(self) -> Wanted:
        """The logits."""
        return Wanted(plain=not self.masked, masked=self.masked, logits=True)

    def heads(self, student: Arch, teacher: Arch, key: Array) -> Params:
        """Return nothing: both have an output layer.

        Raises:
            InputError: one has none, or the settings are out of range.
        """
        if student.head is None or teacher.head is None:
            who = "teacher" if teacher.head is None else "student"
            raise InputError(f"the {who} has no output layer whose clusters could be compared; compare hidden layers")
        if not self.temperature > 0 or not 0 <= self.alpha <= 1:
            given = f"temperature {self.temperature:g} and alpha {self.alpha:g}"
            raise InputError(f"distillation: {given}; give more than 0 and a share from 0 to 1")
        check_frames(student, teacher, 1)
        return {}

    def __call__(self, heads: Params, output: Output, taught: Taught, labels: Array, mask: Array) -> tuple[Array, Sums]:
        """Return the loss; reported beside it: `hard`, `soft`, and `teacher`, its own cross-entropy."""
        said = taught.masked if self.masked else taught.plain
        assert said is not None
        assert said.logits is not None
        assert output.logits is not None
        labels = labels[..., None] if labels.ndim == 2 else labels
        valid = frame_mask(output.last_lengths, labels.shape[1])
        valid = valid & mask if self.masked else valid
        theirs = by_set(said.logits, self.clusters)
        hard, soft, teacher = [], [], []
        for i, (mine, their) in enumerate(zip(by_set(output.logits, self.clusters), theirs, strict=True)):
            target = labels[..., i]
            known = valid & (target >= 0)
            hard.append(mean(surprise(mine, target)[0], known))
            teacher.append(mean(surprise(their, target)[0], known))
            soft.append(mean(divergence(their / self.temperature, mine / self.temperature), valid))
        value = (1 - self.alpha) * sum(hard, zero()) + self.alpha * sum(soft, zero())
        told = {"loss": value, "hard": sum(hard, zero()), "soft": sum(soft, zero()), "teacher": sum(teacher, zero())}
        return value, once(told)


@lru_cache(maxsize=2)  # all students of a run ask one teacher
def teach(
    arch: Arch, wanted: Wanted, *, dropout: bool = False, dtype: Any = jnp.float32, stack: Stack = "unroll"
) -> Callable[[Params, Arrays, Array | None], Taught]:
    """Compile a teacher: `(params, batch, key) -> Taught`.

    It runs in evaluation mode; with `dropout` it drops by `key`, as the study's code did by mistake.
    """

    @jax.jit
    def ask(params: Params, batch: Arrays, key: Array | None) -> Taught:
        def say(mask: Array | None) -> Said:
            noise = key if dropout else None
            inputs, lengths = batch["inputs"], batch["lengths"]
            out = apply(arch, params, inputs, lengths, mask=mask, key=noise, dtype=dtype, stack=stack)
            hidden = {str(i): out.aligned[i] for i in wanted.layers} | ({LAST: out.last} if wanted.last else {})
            return Said(out.logits if wanted.logits else None, hidden)

        return Taught(say(None) if wanted.plain else None, say(batch["mask"]) if wanted.masked else None)

    return ask


def distilling(
    arch: Arch,
    loss: Distillation,
    *,
    view: View = as_seen,
    dtype: Any = jnp.float32,
    stack: Stack = "unroll",
) -> Objective:
    """Return the objective of a student: `loss` of its output and what the teacher said, `batch[TAUGHT]`.

    Where the loss compares no logits, the output layer learns the labels on its own: no gradient of it goes further.

    Args:
        arch: of the student as the view gives it.
        loss: how it learns.
        view: how the loss sees the student's parameters, without the heads.
        dtype: of the computation.
        stack: see `jaxssl.models.model.apply`.
    """

    def objective(params: Any, held: Any, batch: Arrays, key: Array | None) -> tuple[Array, Sums]:
        student, heads = split(params)
        mask = batch["mask"] if loss.masked else None
        seen, inputs, lengths = view(student, held), batch["inputs"], batch["lengths"]
        output = apply(arch, seen, inputs, lengths, mask=mask, key=key, dtype=dtype, stack=stack)
        return compared(arch, loss, seen, heads, output, batch)

    return objective


def compared(
    arch: Arch, loss: Distillation, params: Params, heads: Params, output: Output, batch: Arrays
) -> tuple[Array, Sums]:
    """Return the loss of an output, and what to report; where it compares no logits, the output layer's own beside it.

    Args:
        arch: of the student.
        loss: how it learns.
        params: the student's.
        heads: what is trained beside them.
        output: of the student.
        batch: what it heard, and what the teacher said of it.
    """
    taught: Any = jax.lax.stop_gradient(batch[TAUGHT])
    value, sums = loss(heads, output, taught, batch["labels"], batch["mask"])
    if arch.head is not None and not loss.wanted.logits:
        alone = _output_layer(arch, params, output, batch["labels"])
        value, sums = value + alone, sums | once({"clusters": alone})
    return value, sums


def check_frames(student: Arch, teacher: Arch, ratio: int) -> None:
    """Raise InputError unless `ratio` frames of the teacher are one of the student."""
    if student.joined != teacher.joined * ratio:
        reduced = f"the student reduces time by {student.joined}, the teacher by {teacher.joined}"
        raise InputError(f"distillation: {reduced}; only FitHuBERT's loss compares frames of two lengths")


def student(view: View) -> View:
    """Let a view see the student's parameters without the heads."""
    return lambda params, held: view(split(params)[0], held)


def joined(student: Params, heads: Params) -> Params:
    """Put the heads beside the student's parameters, to be trained together; no heads leave it as it is."""
    return {**student, HEADS: heads} if heads else student


def split(params: Params) -> tuple[Params, Params]:
    """Return the student's parameters and the heads that `joined` put beside them."""
    return {name: part for name, part in params.items() if name != HEADS}, params.get(HEADS, {})


def _output_layer(arch: Arch, params: Params, output: Output, labels: Array) -> Array:
    """Return the cross-entropy of all valid frames as the output layer alone can change it."""
    logits = predict(arch, params, jax.lax.stop_gradient(output.last))
    labels = labels[..., None] if labels.ndim == 2 else labels
    valid = frame_mask(output.last_lengths, labels.shape[1])
    sizes = arch.head.codewords if isinstance(arch.head, CosineHead) else (logits.shape[-1],)
    parts = enumerate(by_set(logits, sizes))
    return sum((mean(surprise(one, labels[..., i])[0], valid & (labels[..., i] >= 0)) for i, one in parts), zero())


def divergence(teacher: Array, student: Array) -> Array:
    """Return KL(softmax(teacher) ‖ softmax(student)) of each frame, (batch, time)."""
    return optax.losses.kl_divergence_with_log_targets(jax.nn.log_softmax(student), jax.nn.log_softmax(teacher))


def mean(values: Array, counted: Array) -> Array:
    """Average over the counted entries; 0 where there is none."""
    return ratio(values.sum(where=counted), counted.sum().astype(jnp.float32))


def zero() -> Array:
    """Return a float32 zero."""
    return jnp.zeros((), jnp.float32)


def once(values: Mapping[str, Array]) -> Sums:
    """Report values that count once a batch."""
    return {name: (value, jnp.ones((), jnp.float32)) for name, value in values.items()}
