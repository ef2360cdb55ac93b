"""Probes that write: a learned sum of frozen layers, a linear map or a small BiLSTM, and CTC over symbols.

    z = Σ_l softmax(w)_l · (h_l − mean_l) / std_l        logits = head(z); symbol 0 is CTC's blank

`w` starts at 0 and is learned with the rest (Yang et al. 2021, SUPERB, section 3). The loss of an utterance is divided
by its number of symbols and averaged over the batch; gradients are clipped to norm 1. SUPERB
recognises phones by a linear map at rate 1e-2, and characters by a map to 1024 and two BiLSTM layers of 1024 at 1e-4.
It keeps the best of many checkpoints on a development set; here the last update counts, nothing is chosen.

Features come from a `Source`, so they may lie in memory or be computed anew for each batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from compress.errors import InputError

BLANK = 0
CONSTANT = 1e-6  # a dimension that deviates less is constant and tells nothing
CLIP = 1.0  # of the gradient's norm
DECODED = 8  # utterances written down at once

Weights = dict[str, Any]
Source = Callable[[np.ndarray], tuple[Any, Any]]
"""Numbers of utterances → features (layers, batch, frames, width) float32, the same frames at every call, and how many
of them are valid, (batch,) int32."""


@dataclass(frozen=True)
class Head:
    """What is between the sum of layers and the symbols.

    Attributes:
        project: width of a linear map that comes first; 0: none.
        layers: of a bidirectional LSTM; 0: none.
        size: of each of its directions.
    """

    project: int = 0
    layers: int = 0
    size: int = 0


@dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
        updates: by Adam.
        batch: utterances of an update.
        learning_rate: the highest one.
        decay: fall linearly to 0, without which a few hundred updates end in noise; SUPERB's rate is constant.
        head: what is trained, beside the shares of the layers.
        seed: of its weights and of the order of utterances.
    """

    updates: int = 400
    batch: int = 16
    learning_rate: float = 1e-2
    decay: bool = True
    head: Head = Head()
    seed: int = 0


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of every dimension of every layer, each (layers, width), over the training frames."""

    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class Writer:
    """A trained probe.

    Attributes:
        weights: its arrays.
        scale: of the features.
        losses: of each update, in nats a symbol, (updates,).
    """

    weights: Weights
    scale: Scale
    losses: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Share of each layer in the sum, (layers,), adding to 1."""
        return np.asarray(jax.nn.softmax(self.weights["layers"]))


def fit(
    source: Source,
    labels: Sequence[np.ndarray],
    *,
    classes: int,
    scale: Scale,
    recipe: Recipe = Recipe(),
    tick: Callable[[], Any] = lambda: None,
) -> Writer:
    """Train a probe to write symbols.

    Args:
        source: features of utterance i, which has `labels[i]`.
        labels: (symbols,) integers from 1 each.
        classes: labels are below it.
        scale: of the features.
        recipe: how.
        tick: called after each update.

    Raises:
        InputError: there is nothing to train on, a label is out of range, an utterance has too few frames for its
            symbols, or the loss becomes NaN.
    """
    _check(labels, classes, recipe)
    targets, counts = _padded(labels)
    layers, width = scale.mean.shape
    weights = init(layers, width, classes, recipe.head, seed=recipe.seed)
    memory, losses = _optimizer(recipe).init(weights), []
    for rows in order(len(labels), recipe.batch, recipe.updates, seed=recipe.seed):
        features, frames = source(rows)
        if (short := np.asarray(frames) < [needed(labels[row]) for row in rows]).any():
            row = int(rows[short.argmax()])
            raise InputError(f"CTC: {len(labels[row])} symbols of utterance {row} do not fit its frames; leave it out")
        told = jnp.asarray(features), jnp.asarray(frames), jnp.asarray(targets[rows]), jnp.asarray(counts[rows])
        weights, memory, loss = _update(weights, memory, *told, scale.mean, scale.std, recipe=recipe)
        losses.append(float(loss))
        tick()
    if not np.isfinite(losses).all():
        at = int(np.argmin(np.isfinite(losses)))
        raise InputError(
            f"CTC: the loss of update {at} is {losses[at]}; lower the learning rate {recipe.learning_rate:g}"
        )
    return Writer(weights, scale, np.array(losses))


def write(writer: Writer, source: Source, utterances: int) -> list[np.ndarray]:
    """Write down utterances 0, 1, … of a source: the best symbol of each frame, repeats joined, blanks left out."""
    written = []
    for start in range(0, utterances, DECODED):
        rows = np.arange(start, start + DECODED)
        features, frames = source(rows % utterances)  # filled up, so that one program does
        told = jnp.asarray(features), jnp.asarray(frames)
        best = np.asarray(_best(writer.weights, *told, writer.scale.mean, writer.scale.std))
        pairs = zip(best, np.asarray(frames), strict=True)
        written += [decode(line[:count]) for line, count in pairs][: utterances - start]
    return written


def decode(best: np.ndarray) -> np.ndarray:
    """Join what repeats and leave blanks out (Graves et al. 2006).

    >>> decode(np.array([0, 3, 3, 0, 3, 1, 1, 0, 2])).tolist()
    [3, 3, 1, 2]
    """
    begins = np.diff(best, prepend=-1) != 0
    return best[begins & (best != BLANK)]


def needed(labels: np.ndarray) -> int:
    """Count the frames that symbols need at least: one each, and a blank between equal neighbours.

    >>> needed(np.array([1, 1, 2]))
    4
    """
    return len(labels) + int((np.diff(labels) == 0).sum())


def order(utterances: int, batch: int, updates: int, *, seed: int) -> Iterator[np.ndarray]:
    """Yield the utterances of each update, (batch,): all of them in a new order, again and again."""
    rng, queue = np.random.default_rng(seed), np.empty(0, int)
    for _ in range(updates):
        while len(queue) < batch:
            queue = np.concatenate([queue, rng.permutation(utterances)])
        yield queue[:batch]
        queue = queue[batch:]


def init(layers: int, width: int, classes: int, head: Head, *, seed: int) -> Weights:
    """Draw a head's weights as PyTorch does: uniform within 1 / √inputs of a map, 1 / √size of an LSTM."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, reach: float) -> np.ndarray:
        return rng.uniform(-reach, reach, shape).astype(np.float32)

    weights: Weights = {"layers": np.zeros(layers, np.float32)}
    if head.project:
        reach, before = width**-0.5, width
        width = head.project
        weights["project"] = {"kernel": draw(before, width, reach=reach), "bias": draw(width, reach=reach)}
    for number in range(head.layers):
        size, reach = head.size, head.size**-0.5
        shapes = {"input": (2, width, 4 * size), "hidden": (2, size, 4 * size), "bias": (2, 4 * size)}
        weights[f"lstm-{number}"] = {name: draw(*shape, reach=reach) for name, shape in shapes.items()}
        width = 2 * size
    weights["output"] = {"kernel": draw(width, classes, reach=width**-0.5), "bias": np.zeros(classes, np.float32)}
    weights["output"]["bias"][BLANK] = np.log(classes)  # about every other frame is a blank; CTC finds that out slowly
    return weights


def logits(weights: Weights, features: Array, frames: Array, mean: Array, std: Array) -> Array:
    """Return the head's outputs, (batch, time, classes); those of padded frames mean nothing.

    Args:
        weights: of the head.
        features: (layers, batch, time, width).
        frames: valid ones, (batch,).
        mean: (layers, width).
        std: (layers, width).
    """
    shares = jax.nn.softmax(weights["layers"])[:, None] / jnp.where(std > CONSTANT, std, jnp.inf)
    offset = (shares * mean).sum(0)
    x = sum(share[None, None] * layer for share, layer in zip(shares, features, strict=True))  # einsum would transpose
    x = x - offset[None, None]
    if "project" in weights:
        x = _dense(weights["project"], x)
    valid = jnp.arange(x.shape[1])[None] < frames[:, None]
    for number in range(sum(name.startswith("lstm-") for name in weights)):
        x = bilstm(weights[f"lstm-{number}"], x, valid)
    return _dense(weights["output"], x)


def bilstm(weights: Weights, x: Array, valid: Array) -> Array:
    """Run an LSTM in both directions from zero states, (batch, time, width) → (batch, time, 2 · size).

    i, f, g, o = W x + U h + b;  c ← σ(f) c + σ(i) tanh(g);  h ← σ(o) tanh(c) (Hochreiter & Schmidhuber 1997, with
    forget gates, as PyTorch numbers them). Frames that are not valid change nothing, so the backward direction begins
    at the last valid one. Both directions go through one scan, which compiles in half the time of two.

    Args:
        weights: `input` (2, width, 4 · size), `hidden` (2, size, 4 · size), `bias` (2, 4 · size); backward is second.
        x: (batch, time, width).
        valid: (batch, time) bool, padding last.
    """

    def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        (h, c), (gates, on) = carry, now
        i, f, g, o = jnp.split(gates + h @ weights["hidden"], 4, axis=-1)
        cell = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jnp.where(on, jax.nn.sigmoid(o) * jnp.tanh(cell), h)
        return (h, jnp.where(on, cell, c)), h

    gates = jnp.einsum("btw,dwg->tdbg", x, weights["input"]) + weights["bias"][None, :, None]
    on = jnp.broadcast_to(valid.T[:, None, :, None], (*gates.shape[:3], 1))
    zero = jnp.zeros((2, len(x), weights["hidden"].shape[1]))
    _, states = jax.lax.scan(step, (zero, zero), (_turned(gates), _turned(on)))
    return jnp.concatenate(jnp.unstack(_turned(states), axis=1), axis=-1).swapaxes(0, 1)


def _turned(x: Array) -> Array:
    """Reverse the time of the backward direction, (time, 2, …)."""
    return jnp.stack([x[:, 0], x[::-1, 1]], axis=1)


@partial(jax.jit, static_argnames="recipe")
def _update(
    weights: Weights,
    memory: Any,
    features: Array,
    frames: Array,
    labels: Array,
    counts: Array,
    mean: Array,
    std: Array,
    *,
    recipe: Recipe,
) -> tuple[Weights, Any, Array]:
    def loss(weights: Weights) -> Array:
        out = logits(weights, features, frames, mean, std)
        padding = (jnp.arange(out.shape[1])[None] >= frames[:, None]).astype(jnp.float32)
        surplus = (jnp.arange(labels.shape[1])[None] >= counts[:, None]).astype(jnp.float32)
        return (optax.ctc_loss(out, padding, labels, surplus, blank_id=BLANK) / counts.astype(jnp.float32)).mean()

    value, grads = jax.value_and_grad(loss)(weights)
    with jax.numpy_dtype_promotion("standard"):  # optax's bias correction multiplies integers and floats
        updates, memory = _optimizer(recipe).update(grads, memory, weights)
    return optax.apply_updates(weights, updates), memory, value


@jax.jit
def _best(weights: Weights, features: Array, frames: Array, mean: Array, std: Array) -> Array:
    return logits(weights, features, frames, mean, std).argmax(-1)


def _optimizer(recipe: Recipe) -> Any:
    rate = recipe.learning_rate
    schedule = optax.linear_schedule(rate, 0.0, recipe.updates) if recipe.decay else rate
    return optax.flatten(optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(schedule)))  # flat compiles sooner


def _dense(weights: Weights, x: Array) -> Array:
    return x @ weights["kernel"] + weights["bias"][None, None]


def _padded(labels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Put labels into one array, blanks behind them; also count them."""
    counts = np.array([len(row) for row in labels], np.int32)
    rows = np.full((len(labels), counts.max()), BLANK, np.int32)
    for row, values in zip(rows, labels, strict=True):
        row[: len(values)] = values
    return rows, counts


def _check(labels: Sequence[np.ndarray], classes: int, recipe: Recipe) -> None:
    if min(recipe.updates, recipe.batch) < 1 or not recipe.learning_rate > 0:
        said = f"{recipe.updates} updates of {recipe.batch} utterances at {recipe.learning_rate:g}"
        raise InputError(f"CTC: {said}; give at least 1 of each, and a rate above 0")
    head = recipe.head
    if min(head.project, head.layers, head.size) < 0 or (head.layers and not head.size):
        raise InputError(f"CTC: {head.layers} LSTM layers of {head.size} after a map to {head.project} are no head")
    if not labels or not all(map(len, labels)):
        empty = sum(not len(row) for row in labels)
        raise InputError(f"CTC: {empty} of {len(labels)} utterances have no symbols; give at least one, all with some")
    low, high = min(row.min() for row in labels), max(row.max() for row in labels)
    if low <= BLANK or high >= classes:
        raise InputError(f"CTC: labels go from {low} to {high}, outside 1 to {classes - 1}")
