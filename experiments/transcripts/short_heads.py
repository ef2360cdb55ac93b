"""Attention heads of fewer dimensions, as LiteASR makes them (Kamahori et al. 2025): scores and sums get cheaper too.

Of a head, scores are (x Wq + bq) · (y Wk), and its part of the output is a mean of (x Wv + bv) times Wo. Either is a
product of two maps with d dimensions between them, and r dimensions are the best r singular directions where speech
really goes. With the Gram matrices of queries, E[q qᵀ] = A², and of keys about their mean, which no softmax sees, B²,
and A B = U Σ Vᵀ, queries become q A⁻¹ U √Σ and keys k B⁻¹ V √Σ, cut to r: no other heads of r dimensions have scores
nearer to these, where queries and keys are independent. LiteASR takes the principal components of queries and of keys
apart, each without what the other makes of it. Values likewise: of the sums that a head hands on, about their mean, and
of what Wo makes of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from compress.address import Tree, get, put

Heard = tuple[np.ndarray, np.ndarray]  # of a map's input: E[x xᵀ] and E[x]
DAMPING = 1e-6  # of a Gram matrix's mean power, so that what speech never does can be divided by


def shorten(
    params: Mapping[str, Any],
    layers: Iterable[str],
    moments: Mapping[str, np.ndarray],
    means: Mapping[str, np.ndarray],
    size: int,
) -> Tree:
    """Bring all heads of some layers to fewer dimensions.

    Args:
        params: the tree; q, k, v and out are dense maps.
        layers: paths of attention, as `layers/0/attention`.
        moments: E[x xᵀ] of each map's input by path, (fan_in, fan_in).
        means: E[x], (fan_in,).
        size: dimensions of a head, no more than there are.
    """
    tree: Tree = dict(params)
    for path in layers:
        old = {name: get(tree, f"{path}/{name}") for name in ("q", "k", "v", "out")}
        inputs, sums = (_heard(f"{path}/{name}", moments, means) for name in ("q", "out"))
        for name, new in _shortened(old, inputs, sums, size).items():
            tree = put(tree, f"{path}/{name}", jax.device_put(new))
    return tree


def _heard(path: str, moments: Mapping[str, np.ndarray], means: Mapping[str, np.ndarray]) -> Heard:
    return moments[path].astype(np.float64), means[path].astype(np.float64)


def _shortened(old: Mapping[str, Any], inputs: Heard, sums: Heard, size: int) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of q, k, v and out, given what goes into q and into out."""
    arrays = {name: {key: np.asarray(x, np.float64) for key, x in each.items()} for name, each in old.items()}
    _, heads, now = arrays["q"]["kernel"].shape
    made: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in ("q", "k", "v", "out")}
    moved = arrays["out"]["bias"].copy()
    for head in range(heads):
        mine = {name: {key: x[..., head, :] for key, x in arrays[name].items()} for name in ("q", "k", "v")}
        queries, keys = _scores(mine["q"], mine["k"], inputs, size)
        queries = queries * (size / now) ** 0.5  # the module divides scores by the root of the new size
        part = slice(head * now, (head + 1) * now)
        mean = sums[1][part]
        spread = sums[0][part, part] - np.outer(mean, mean)
        values, back = _values(spread, arrays["out"]["kernel"][head], size)
        moved += (mean @ (np.eye(now) - values @ back)) @ arrays["out"]["kernel"][head]
        for name, turn in (("q", queries), ("k", keys), ("v", values)):
            made[name].append({key: x @ turn for key, x in mine[name].items()})
        made["out"].append({"kernel": back @ arrays["out"]["kernel"][head]})
    found = {
        name: {key: np.stack([one[key] for one in made[name]], -2) for key in old[name]} for name in ("q", "k", "v")
    }
    found["out"] = {"kernel": np.stack([one["kernel"] for one in made["out"]]), "bias": moved}
    return {name: {key: x.astype(np.float32) for key, x in each.items()} for name, each in found.items()}


def _scores(
    query: Mapping[str, np.ndarray], key: Mapping[str, np.ndarray], inputs: Heard, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what turns a head's queries and keys into shorter ones, both (head_dim, size)."""
    moment, mean = inputs
    centre = mean @ query["kernel"] + query["bias"]
    spread = moment - np.outer(mean, mean)
    one, one_inverse = _root(query["kernel"].T @ spread @ query["kernel"] + np.outer(centre, centre))
    other, other_inverse = _root(key["kernel"].T @ spread @ key["kernel"])
    left, values, right = np.linalg.svd(one @ other)
    half = np.sqrt(values[:size])
    return one_inverse @ left[:, :size] * half, other_inverse @ right[:size].T * half


def _values(spread: np.ndarray, out: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what makes a head's values shorter, (head_dim, size), and what turns them back, (size, head_dim)."""
    root, inverse = _root(spread)
    axes = np.linalg.svd(root @ out, full_matrices=False)[0][:, :size]
    return inverse @ axes, axes.T @ root


def _root(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the symmetric root of a Gram matrix and its inverse."""
    damped = gram + np.eye(len(gram)) * max(DAMPING * np.trace(gram) / len(gram), 1e-30)
    values, axes = np.linalg.eigh((damped + damped.T) / 2)
    values = np.sqrt(np.maximum(values, values[-1] * 1e-14))
    return (axes * values) @ axes.T, (axes / values) @ axes.T
