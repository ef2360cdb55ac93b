"""What frozen features know: linear probes on a learned sum of layers, and how sure their accuracy is.

    z = Σ_l softmax(w)_l · (h_l − mean_l) / std_l        logits = z · kernel + bias

`w` starts at 0 and is learned with the rest (Yang et al. 2021, SUPERB, section 3); a single layer is itself. Means and
deviations are the training rows'. The loss is cross-entropy plus l2 / 2 · ‖kernel‖², minimised over all rows at once by
L-BFGS from zero, so nothing depends on an order of batches; l2 is chosen on a part of the training rows.

>>> rng = np.random.default_rng(0)
>>> labels = np.arange(40) % 2
>>> features = rng.normal(size=(3, 40, 5)).astype(np.float32)
>>> features[1, :, 0] += 8 * labels
>>> rows = Examples(features, labels, np.arange(40) // 2)
>>> found = frame_probe(rows, rows, classes=2, seed=0)
>>> found.accuracy, int(found.weights.argmax())
(1.0, 1)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from compress.errors import InputError

FRAME_L2 = (1e-2, 1e-3, 1e-4, 1e-5)  # from strong to weak, each fit beginning where the one before it ended
UTTERANCE_L2 = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
SMALLEST_GRADIENT = 1e-4  # norm at which a fit is finished; far below what moves an accuracy
CONSTANT = 1e-6  # a dimension that deviates less is constant and tells nothing


@dataclass(frozen=True)
class Examples:
    """Rows to classify.

    Attributes:
        features: (layers, rows, width) float32, one slice a layer; one layer for plain features.
        labels: (rows,) integers from 0.
        units: (rows,) integers; rows that belong together (frames of one utterance, voices of one sentence) share one
            and are resampled, or held out, together.
    """

    features: np.ndarray
    labels: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class Score:
    """What a probe got right on the test rows.

    Attributes:
        accuracy: share of rows that are right.
        low: lower end of the 95 % bootstrap interval over units; with every row right it is 1 too, however few.
        high: upper end.
        correct: right rows of each unit, units in ascending order, (units,).
        total: rows of each unit, (units,).
        weights: share of each layer in the sum, (layers,), adding to 1.
        l2: regularisation chosen.
    """

    accuracy: float
    low: float
    high: float
    correct: np.ndarray
    total: np.ndarray
    weights: np.ndarray
    l2: float


@dataclass(frozen=True)
class Difference:
    """How much more accurate one system is than another on the same rows, with its 95 % interval."""

    mean: float
    low: float
    high: float


def regress(
    features: np.ndarray, labels: np.ndarray, *, classes: int, l2: float = 1e-3, iterations: int = 60
) -> tuple[np.ndarray, np.ndarray]:
    """Fit softmax regression to rows, `features: (rows, width)`; the arguments are `frame_probe`'s.

    Returns:
        kernel (width, classes) and bias (classes,) float32, for features as they are.

    Raises:
        InputError: as `frame_probe`.
    """
    rows = Examples(features[None], labels, np.arange(len(labels)))
    _check_rows("train", rows, classes)
    mean, std = _spread(rows.features)
    known, every = jnp.asarray((rows.features - mean) / std), _counting(np.ones(len(labels), bool))
    told = {"features": known, "labels": jnp.asarray(labels, jnp.int32), "iterations": iterations}
    state = _fit(_zeros(rows.features, classes), every, jnp.float32(l2), **told)
    _, kernel, bias = (np.asarray(part) for part in _parts(state, known.shape))
    kernel = kernel / std[0, 0][:, None]
    return kernel, bias - mean[0, 0] @ kernel


def pool(hidden: np.ndarray) -> np.ndarray:
    """Average the valid frames of an utterance, (layers, frames, width) → (layers, width).

    SUPERB's speaker head is linear → mean over frames → linear. Means pass through linear maps, so it is softmax
    regression on this; without the middle map it has no random start and is stable with a handful of utterances.
    """
    return hidden.mean(1)


def frame_probe(
    train: Examples,
    test: Examples,
    *,
    classes: int,
    seed: int,
    l2: Sequence[float] = FRAME_L2,
    iterations: int = 60,
    tick: Callable[[], Any] = lambda: None,
) -> Score:
    """Classify frames by softmax regression; `l2` is chosen on a fifth of the training units.

    Args:
        train: rows to fit.
        test: rows to count, never fitted.
        classes: labels are below it.
        seed: of the part held out and of the bootstrap.
        l2: regularisations to try, strong to weak.
        iterations: of L-BFGS at most.
        tick: called after each regularisation and after the last fit.

    Raises:
        InputError: shapes disagree, a label is out of range, a feature is not finite, or one unit is all there is.
    """
    _check(train, test, classes, l2)
    units = np.unique(train.units)
    if len(units) < 2:
        raise InputError(f"probe: {len(units)} training unit, 2 are needed to choose l2; give more utterances")
    held = np.random.default_rng(seed).permutation(units)[: max(1, len(units) // 5)]
    return _probe(train, test, [np.isin(train.units, held)], classes, seed, l2, iterations, tick)


def utterance_probe(
    train: Examples,
    test: Examples,
    *,
    classes: int,
    seed: int,
    l2: Sequence[float] = UTTERANCE_L2,
    folds: int = 4,
    iterations: int = 60,
    tick: Callable[[], Any] = lambda: None,
) -> Score:
    """Classify utterances, one `pool`ed row each, by softmax regression (SUPERB's speaker identification).

    `l2` is chosen by cross-validation over `folds` parts of the training rows, each with its share of every class,
    because a single part of a few utterances says too little; there are as many parts as the classes of several
    utterances have at least, and the only utterance of a class is in none. Arguments and errors are `frame_probe`'s.
    """
    _check(train, test, classes, l2)
    counts = np.bincount(train.labels)
    several = counts[counts > 1]
    if not several.size or folds < 2:
        found = f"{len(train.labels)} training utterances of {np.count_nonzero(counts)} classes in {folds} folds"
        raise InputError(f"probe: {found}; give 2 utterances or more of some class, and 2 folds")
    most = min(folds, int(several.min()))
    place = np.full(len(train.labels), -1)  # the only one of a class trains in every fold
    rng = np.random.default_rng(seed)
    for label in np.unique(train.labels):
        rows = rng.permutation(np.flatnonzero(train.labels == label))
        place[rows] = np.arange(len(rows)) % most if len(rows) > 1 else -1
    parts = [place == fold for fold in range(most)]
    return _probe(train, test, parts, classes, seed, l2, iterations, tick)


def interval(
    correct: np.ndarray, total: np.ndarray, *, seed: int, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Bootstrap Σ correct / Σ total over units (percentile interval; Bisani & Ney 2004).

    Args:
        correct: (units,); may be negative in a difference.
        total: (units,).
        seed: of the resampling.
        level: of confidence.
        resamples: of the units, with replacement.

    Raises:
        InputError: there are no units, or the two differ in number.
    """
    if len(correct) != len(total) or not len(total):
        raise InputError(f"bootstrap: {len(correct)} counts for {len(total)} units; give one of each, at least one")
    times = np.random.default_rng(seed).multinomial(len(total), np.full(len(total), 1 / len(total)), size=resamples)
    low, high = np.quantile((times @ correct) / (times @ total), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference(one: Score, other: Score, *, seed: int) -> Difference:
    """Compare two systems by a paired bootstrap: both are seen on the same resampled units.

    Raises:
        InputError: they were not tested on the same rows.
    """
    if not np.array_equal(one.total, other.total):
        rows = f"{one.total.sum()} and {other.total.sum()} rows in {len(one.total)} and {len(other.total)} units"
        raise InputError(f"paired bootstrap: tested on {rows}; test both systems on the same rows")
    more = one.correct - other.correct
    low, high = interval(more, one.total, seed=seed)
    return Difference(float(more.sum() / one.total.sum()), low, high)


def together(scores: Sequence[Score], *, seed: int) -> Score:
    """Count probes that were tested on different units as one; l2 is the first one's, layers are averaged."""
    if len(scores) == 1:
        return scores[0]
    correct, total = (np.concatenate([getattr(score, key) for score in scores]) for key in ("correct", "total"))
    low, high = interval(correct, total, seed=seed)
    weights = np.mean([score.weights for score in scores], axis=0)
    return Score(float(correct.sum() / total.sum()), low, high, correct, total, weights, scores[0].l2)


def _probe(
    train: Examples,
    test: Examples,
    parts: Sequence[np.ndarray],
    classes: int,
    seed: int,
    l2: Sequence[float],
    iterations: int,
    tick: Callable[[], Any],
) -> Score:
    """Choose l2 by held-out cross-entropy over `parts` (masks of rows), fit all rows, count the test rows."""
    known, unknown = _standardise(train.features, test.features)
    features, labels = jnp.asarray(known), jnp.asarray(train.labels, jnp.int32)
    fit = partial(_fit, features=features, labels=labels, iterations=iterations)
    loss = partial(_loss, features=features, labels=labels, l2=jnp.float32(0))
    states, tried, losses = [_zeros(train.features, classes)] * len(parts), [], []
    for strength in map(jnp.float32, l2):
        states = [fit(state, _counting(~part), strength) for state, part in zip(states, parts, strict=True)]
        pairs = zip(states, parts, strict=True)
        losses.append(sum(float(loss(state, weights=_counting(part))) * part.sum() for state, part in pairs))
        tried.append(states[0])
        tick()
    best = int(np.argmin(losses))
    state = fit(tried[best], _counting(np.ones(len(train.labels), bool)), jnp.float32(l2[best]))
    tick()
    shares, kernel, bias = (np.asarray(part) for part in _parts(state, unknown.shape))
    right = (np.tensordot(shares, unknown, 1) @ kernel + bias[None]).argmax(-1) == test.labels
    return _score(right, test.units, shares, l2[best], seed)


def _score(right: np.ndarray, units: np.ndarray, weights: np.ndarray, l2: float, seed: int) -> Score:
    _, place = np.unique(units, return_inverse=True)
    correct, total = np.bincount(place, right).astype(int), np.bincount(place)
    return Score(float(right.mean()), *interval(correct, total, seed=seed), correct, total, weights, l2)


def _zeros(features: np.ndarray, classes: int) -> Array:
    layers, _, width = features.shape
    return jnp.zeros(layers + (width + 1) * classes)


def _counting(rows: np.ndarray) -> Array:
    """Weigh the rows of a mask equally, the others with 0; one program then serves every choice of rows."""
    return jnp.asarray(rows / rows.sum(), jnp.float32)


def _parts(state: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Split a state for features of `shape` into shares of the layers, kernel (width, classes) and bias."""
    layers, _, width = shape
    kernel, bias = jnp.split(state[layers:].reshape(width + 1, -1), [width])
    return jax.nn.softmax(state[:layers]), kernel, bias[0]


@partial(jax.jit, static_argnames="iterations")
def _fit(start: Array, weights: Array, l2: Array, *, features: Array, labels: Array, iterations: int) -> Array:
    """Minimise the loss by L-BFGS; states are flat, for a tree of parameters takes half again as long to compile."""
    loss, solver = partial(_loss, features=features, labels=labels, weights=weights, l2=l2), optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: Any) -> Any:
        state, memory, count, _ = carry
        value, grad = value_and_grad(state, state=memory)
        updates, memory = solver.update(grad, memory, state, value=value, grad=grad, value_fn=loss)
        return state + updates, memory, count + 1, jnp.linalg.norm(grad)

    def unfinished(carry: Any) -> Array:
        return (carry[2] < iterations) & (carry[3] > SMALLEST_GRADIENT)

    first = (start, solver.init(start), jnp.int32(0), jnp.float32(jnp.inf))
    return jax.lax.while_loop(unfinished, step, first)[0]


@jax.jit
def _loss(state: Array, features: Array, labels: Array, weights: Array, l2: Array) -> Array:
    """Return the cross-entropy in nats, rows weighed by `weights: (rows,)`, and the penalty."""
    precise = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    shares, kernel, bias = _parts(state, features.shape)
    logits = precise("nw,wc->nc", precise("l,lnw->nw", shares, features), kernel) + bias[None]
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (entropy * weights).sum() + l2 / 2 * jnp.square(kernel).sum()


def _standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, std = _spread(train)
    return (train - mean) / std, (test - mean) / std


def _spread(train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of each dimension of each layer, (layers, 1, width)."""
    mean = train.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
    std = train.std(1, keepdims=True, dtype=np.float64).astype(np.float32)
    return mean, np.where(std > CONSTANT, std, np.float32(np.inf))  # a constant dimension becomes 0, in test rows too


def _check(train: Examples, test: Examples, classes: int, l2: Sequence[float]) -> None:
    if not l2 or min(l2) < 0:
        raise InputError(f"probe: l2 {tuple(l2)}; name at least one, none below 0")
    for name, rows in (("train", train), ("test", test)):
        _check_rows(name, rows, classes)
    (layers, _, width), (others, _, other) = train.features.shape, test.features.shape
    if (layers, width) != (others, other):
        raise InputError(f"probe: {layers} × {width} features in train, {others} × {other} in test; use one model")


def _check_rows(name: str, rows: Examples, classes: int) -> None:
    shape, labels = rows.features.shape, rows.labels
    if len(shape) != 3 or not all(shape):
        raise InputError(f"probe: {name} features of shape {shape}; give (layers, rows, width), none of them 0")
    if labels.shape != (shape[1],) or rows.units.shape != (shape[1],):
        raise InputError(f"probe: {name} has {shape[1]} rows, {labels.shape} labels and {rows.units.shape} units")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"probe: {name} labels go from {labels.min()} to {labels.max()}, outside 0 to {classes - 1}")
    if bad := int(np.count_nonzero(~np.isfinite(rows.features))):
        raise InputError(f"probe: {bad} of {rows.features.size} {name} features are not finite; look at the model")
