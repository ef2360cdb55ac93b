"""How far a model that fires mixes its weights, learned for a task, so that each has a rate of its own.

Chen et al. 2023 (once-for-all sequence compression): the model is frozen, and the amount learns with what stands on it.
Here that is a linear map of the model's output, each frame brought to mean 0 and deviation 1: CTC where something is
written, softmax of the mean over frames where an utterance is one class. The probes that answer come afterwards, as for
any model, at the amount that was found. Nothing but the task's loss moves it, so a task that needs every frame has 0,
and there is room for every frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from compress.errors import InputError
from experiments.probes.questions import WRITTEN, Question
from jaxssl.data.logmel import Stats
from jaxssl.data.padding import pad
from jaxssl.inference.encode import front_inputs
from jaxssl.inference.source import Model
from jaxssl.models.arch import Arch
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Params, apply
from jaxssl.training.ctc import BLANK, order

RATE, HEAD_RATE = 0.02, 0.03  # of Adam, for the amount and for the map
MOST = 1.98  # an amount is below 2
SMALL = 1e-5  # beside a frame's variance


@dataclass(frozen=True)
class Lessons:
    """Utterances of a task.

    Attributes:
        signals: samples of each.
        answers: symbols of each, (symbols,) integers from 1; of a class, the one number, from 0.
        classes: that an answer's numbers are below.
        written: whether answers are written by CTC.
    """

    signals: list[np.ndarray]
    answers: list[np.ndarray]
    classes: int
    written: bool


def check(models: Sequence[Model]) -> None:
    """Refuse models none of which has an amount to learn.

    Raises:
        InputError: none of them fires.
    """
    if not any(model.arch.firing for model in models):
        named = ", ".join(model.name for model in models)
        raise InputError(f"--amount learned: nothing fires in {named}; leave it out, or give a model that fires")


def lessons(question: Question, signals: tuple[np.ndarray, ...], rows: np.ndarray) -> Lessons:
    """Return what a task asks of the utterances of some numbers."""
    written = question.task in WRITTEN
    number = {symbol: i for i, symbol in enumerate(question.symbols, int(written))}
    answers = [np.array([number[s] for s in question.answers[i]], np.int32) for i in rows.tolist()]
    return Lessons([signals[i] for i in rows.tolist()], answers, len(number) + written, written)


def learned(
    model: Model, given: Lessons, *, updates: int, batch: int, seed: int, tick: Callable[[], Any] = lambda: None
) -> tuple[float, np.ndarray]:
    """Learn an amount, from the arch's own on.

    Args:
        model: that fires; it stays as it is.
        given: what is learned.
        updates: of the amount and the map together.
        batch: utterances of an update.
        seed: of the order of utterances.
        tick: called after each update.

    Returns:
        The amount, and the loss of each update, (updates,): nats a symbol, or of the class.

    Raises:
        InputError: the loss becomes NaN.
    """
    part, width = model.arch.firing, model.arch.width
    assert part is not None
    arch = at(model, part.amount).arch
    head = {"kernel": jnp.zeros((width, given.classes)), "bias": jnp.zeros(given.classes)}
    learns = {"amount": jnp.float32(part.amount), "head": head}
    memory, losses = _optimizer().init(learns), []
    longest, most = max(map(len, given.signals)), max(map(len, given.answers))
    for rows in order(len(given.signals), batch, updates, seed=seed):
        samples, lengths = pad([given.signals[row] for row in rows], to=longest)
        labels = np.stack([np.pad(given.answers[row], (0, most - len(given.answers[row]))) for row in rows])
        counts = np.array([len(given.answers[row]) for row in rows], np.int32)
        told = tuple(map(jnp.asarray, (samples, lengths, labels, counts)))
        learns, memory, loss = _update(arch, given.written, learns, memory, model.params, model.stats, told)
        losses.append(float(loss))
        if not np.isfinite(losses[-1]):
            raise InputError(
                f"{model.name}: the loss of update {len(losses) - 1} of its amount is {losses[-1]}; leave out --amount "
                "learned, or use a model that fires a frame once at most"
            )
        tick()
    return float(learns["amount"]), np.array(losses)


def at(model: Model, amount: float) -> Model:
    """Return the model with another amount of mixing, and room for all that it may fire."""
    part = model.arch.firing
    assert part is not None
    return replace(model, arch=model.arch.refired(replace(part, amount=amount, most=100)))


@partial(jax.jit, static_argnums=(0, 1))
def _update(
    arch: Arch,
    written: bool,
    learns: dict[str, Any],
    memory: Any,
    params: Params,
    stats: Stats | None,
    told: tuple[Array, Array, Array, Array],
) -> tuple[dict[str, Any], Any, Array]:
    samples, lengths, labels, counts = told

    def loss(learns: dict[str, Any]) -> Array:
        inputs = front_inputs(arch, samples, lengths, stats)
        out = apply(arch, params, *inputs, amount=learns["amount"], stack="remat")  # whole utterances leave much
        last, frames = out.end
        last = jax.nn.standardize(last, epsilon=SMALL)
        valid = frame_mask(frames, last.shape[1])
        if not written:
            last = last.mean(1, keepdims=True, where=valid[..., None])
        logits = last @ learns["head"]["kernel"] + learns["head"]["bias"][None, None]
        if not written:
            return optax.softmax_cross_entropy_with_integer_labels(logits[:, 0], labels[:, 0]).mean()
        surplus = 1 - frame_mask(counts, labels.shape[1]).astype(jnp.float32)
        lost = optax.ctc_loss(logits, 1 - valid.astype(jnp.float32), labels, surplus, blank_id=BLANK)
        return (lost / counts.astype(jnp.float32)).mean()

    value, grads = jax.value_and_grad(loss)(learns)
    with jax.numpy_dtype_promotion("standard"):  # optax's bias correction multiplies integers and floats
        updates, memory = _optimizer().update(grads, memory, learns)
    learns = optax.apply_updates(learns, updates)
    return {**learns, "amount": jnp.clip(learns["amount"], 0.0, MOST)}, memory, value


def _optimizer() -> Any:
    each = {"amount": optax.adam(RATE), "head": optax.adam(HEAD_RATE)}
    return optax.partition(each, {"amount": "amount", "head": "head"})
