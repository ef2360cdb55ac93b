"""Low rank by outputs, LiteASR's way (Kamahori et al. 2025): keep the principal components of what a map gives.

Of y = xW + b let μ be the mean of x, C its covariance, and V the first eigenvectors of Wᵀ C W, which is y's covariance.
Then y is about (y − E y) V Vᵀ + E y, that is, two thin products xWV and ·Vᵀ, and another bias, b + μ (W − W V Vᵀ).

That is the activation-aware form of `compress.lowrank` about the mean: there C is E[xᵀx] and the bias stays. No pair of
thin maps and bias of that rank has outputs nearer to the dense map's on the speech that was heard. A map without bias,
as Whisper's keys, keeps none: what is the same for all keys changes no attention.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from compress.address import Matrix, Tree, get, put
from compress.lowrank import Decomposition, decompose_maps, dense_kernel, factorise


def decompose(
    params: Mapping[str, Any],
    matrices: Iterable[Matrix],
    moments: Mapping[str, np.ndarray],
    means: Mapping[str, np.ndarray],
) -> dict[str, Decomposition]:
    """Decompose maps by the covariance of their outputs.

    Args:
        params: the tree.
        matrices: which maps.
        moments: E[x xᵀ] of each map's input by path, (fan_in, fan_in).
        means: E[x], (fan_in,).

    Returns:
        Decompositions by path; the squares of a spectrum are the variances of the outputs' components.
    """
    spread = {path: moments[path] - np.outer(means[path], means[path]) for path in moments}
    return decompose_maps(params, matrices, spread)


def factorise_outputs(
    params: Mapping[str, Any],
    found: Mapping[str, Decomposition],
    ranks: Mapping[str, int | None],
    means: Mapping[str, np.ndarray],
) -> Tree:
    """Factorise maps where that makes them smaller, and move their biases; the others stay as they are.

    Args:
        params: the tree that was decomposed.
        found: `decompose` of it.
        ranks: of each map; None: it stays.
        means: as `decompose` had them.
    """
    tree: Tree = dict(params)
    for path, each in found.items():
        rank = ranks.get(path)
        if rank is None or not each.matrix.pays(rank):
            continue
        lost = dense_kernel(params, each.matrix) - each.left[:, :rank] @ each.right[:rank]
        tree = factorise(tree, each, rank)
        if each.matrix.bias:
            bias = np.asarray(get(tree, path)["bias"])
            moved = bias + (means[path].astype(np.float64) @ lost).reshape(bias.shape)
            tree = put(tree, path, {**get(tree, path), "bias": jax.device_put(moved.astype(np.float32))})
    return tree
