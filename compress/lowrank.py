"""Dense maps of low rank: decompose once, then truncate or factorise at any rank.

Plain SVD minimises ‖W − UV‖ (Eckart & Young). Given the second moment C = E[x xᵀ] of the map's inputs, the
activation-aware form minimises E‖x(W − UV)‖², the error where speech really goes. In both, with `factors` the pair
of thin matrices, truncate(p, d, r) is factorise(p, d, r) with the product taken: same function, dense shape.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from compress.address import Matrix, Tree, get, put
from compress.blocks import unpacked_kernel
from compress.errors import InputError
from compress.quantize import check_float

# Relative to the inputs' mean power: keeps directions that calibration never saw from being free to break.
DAMPING = 1e-6
WEIGHTS = ("kernel", "down", "up", "blocks", "index")  # the names of a map's arrays, in any of its forms
PLAIN: Mapping[str, Any] = MappingProxyType({})  # no moments: the plain SVD of every map


@dataclass(frozen=True)
class Heard:
    """What a map makes of speech: all that decomposing it asks, if it has no fewer inputs than outputs.

    Its outputs' moment is as small as they are few, where that of a wide input costs most of the listening.

    Attributes:
        outputs: second moment E[(xW)ᵀ xW] of what the map makes of its inputs, without its bias, (fan_out, fan_out).
        power: mean square of the inputs, E‖x‖² / fan_in.
    """

    outputs: np.ndarray
    power: float


Moment = np.ndarray | Heard  # E[x xᵀ] of a map's inputs, (fan_in, fan_in), or of its outputs


@dataclass(frozen=True)
class Decomposition:
    """A map's matrix as a sum of rank-one terms, most important first.

    left[:, :r] @ right[:r] is the best rank-r approximation; at full rank it is the matrix itself. Each term's weight
    is split evenly, ‖left[:, i]‖ == ‖right[i]‖, which for the plain SVD is the root of a singular value on each side;
    so moments m and c · m (louder speech) give the same factors.

    Attributes:
        matrix: which map.
        spectrum: singular values, descending, (max_rank,); of W, or of C^½ W when activation-aware.
        left: (fan_in, terms), float64; as many terms as were asked for, max_rank of all.
        right: (terms, fan_out), float64.
    """

    matrix: Matrix
    spectrum: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def factors(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Return `down: (*in, rank)` and `up: (rank, *out)`, float32.

        Raises:
            InputError: the rank is below 1, above the map's greatest or above the terms that are there.
        """
        check_rank(self.matrix, rank)
        if rank > (terms := len(self.right)):
            raise InputError(f"{self.matrix.path}: rank {rank} of {terms} terms; decompose it into more")
        shape, inputs = self.matrix.shape, self.matrix.inputs
        down = self.left[:, :rank].reshape(*shape[:inputs], rank)
        up = self.right[:rank].reshape(rank, *shape[inputs:])
        return down.astype(np.float32), up.astype(np.float32)


@dataclass(frozen=True)
class Fit:
    """How well a rank stands for a map.

    Attributes:
        energy: share of the weights' squared norm that is explained, 1 − error².
        error: ‖W − UV‖ / ‖W‖.
        speech_error: the same of the outputs on calibration speech, ‖X(W − UV)‖ / ‖XW‖; None without any.
    """

    energy: float
    error: float
    speech_error: float | None


def dense_kernel(params: Mapping[str, Any], matrix: Matrix) -> np.ndarray:
    """Return a map as one float64 matrix, (fan_in, fan_out), the product when it is factorised, unpacked when packed.

    Raises:
        InputError: the tree holds the map in other arrays or shapes than `matrix` says, or in int8.
    """
    if matrix.blocks is not None:
        return unpacked_kernel(params, matrix).astype(np.float64)
    rank, ins, outs = matrix.rank, matrix.shape[: matrix.inputs], matrix.shape[matrix.inputs :]
    if rank is None:
        return _array(params, f"{matrix.path}/kernel", matrix.shape).reshape(matrix.fan_in, matrix.fan_out)
    down = _array(params, f"{matrix.path}/down", (*ins, rank)).reshape(matrix.fan_in, rank)
    return down @ _array(params, f"{matrix.path}/up", (rank, *outs)).reshape(rank, matrix.fan_out)


def decompose(
    params: Mapping[str, Any], matrix: Matrix, moment: Moment | None = None, *, terms: int | None = None
) -> Decomposition:
    """Decompose a map, dense or factorised already.

    Works on the smaller Gram matrix in float64, several times faster than an SVD; singular values below 1e-8 of the
    greatest are not resolved, which is less than float32 weights hold.

    Args:
        params: the tree.
        matrix: which map; it needs inputs and outputs.
        moment: second moment E[x xᵀ] of the map's inputs, (fan_in, fan_in), or what it makes of them, where it has no
            more outputs than inputs; None for the plain SVD.
        terms: the most important ones that are kept, all of the spectrum in any case; None: all.

    Raises:
        InputError: the map is empty, its weights or the moment are not finite, or the moment's size is another.
    """
    kernel = dense_kernel(params, matrix)
    _check(matrix, kernel, moment)
    if matrix.fan_in < matrix.fan_out:
        assert not isinstance(moment, Heard)  # which was checked
        return _from_left(matrix, kernel, moment, terms)
    return _from_right(matrix, kernel, moment, terms)


def truncate(params: Mapping[str, Any], decomposition: Decomposition, rank: int) -> Tree:
    """Lower a map's rank in place: a dense kernel of the same shape, to see what the rank costs in quality."""
    down, up = decomposition.factors(rank)
    return _replace(params, decomposition.matrix, {"kernel": jax.device_put(np.tensordot(down, up, 1))})


def factorise(params: Mapping[str, Any], decomposition: Decomposition, rank: int) -> Tree:
    """Store and run a map as two thin products, `down` and `up`; the bias stays.

    Smaller and faster only when `matrix.pays(rank)`; callers leave the map dense otherwise.
    """
    down, up = decomposition.factors(rank)
    return _replace(params, decomposition.matrix, jax.device_put({"down": down, "up": up}))


def decompose_maps(
    params: Mapping[str, Any], matrices: Iterable[Matrix], moments: Mapping[str, Moment] = PLAIN
) -> dict[str, Decomposition]:
    """Decompose a set of maps, once for any rank.

    Args:
        params: the tree.
        matrices: which maps.
        moments: second moments of the maps' inputs by path; the plain SVD of a map that has none.

    Returns:
        Decompositions by path; errors as `decompose`.
    """
    return {matrix.path: decompose(params, matrix, moments.get(matrix.path)) for matrix in matrices}


def factorise_maps(
    params: Mapping[str, Any], decompositions: Mapping[str, Decomposition], ranks: int | Mapping[str, int | None]
) -> Tree:
    """Factorise a set of maps where that makes them smaller; the others stay as they are.

    factorise_maps(p, decompose_maps(p, matrices, moments), r) is what every plan and experiment of low rank does.

    Args:
        params: the tree that was decomposed.
        decompositions: of the maps by path, as `decompose_maps` returns them.
        ranks: one rank for all, or one for each path, None for a map that stays as it is.

    Raises:
        InputError: a rank is below 1 or above a map's greatest.
    """
    tree: Tree = dict(params)
    for path, found in decompositions.items():
        rank = ranks if isinstance(ranks, int) else ranks.get(path)
        if rank is None:
            continue
        check_rank(found.matrix, rank)
        if found.matrix.pays(rank):
            tree = factorise(tree, found, rank)
    return tree


def fit(params: Mapping[str, Any], decomposition: Decomposition, rank: int, moment: Moment | None = None) -> Fit:
    """Measure what a rank loses, on the weights and, given the second moment that it was decomposed with, on speech."""
    kernel = dense_kernel(params, decomposition.matrix)
    check_rank(decomposition.matrix, rank)
    lost = kernel - decomposition.left[:, :rank] @ decomposition.right[:rank]
    error = float(np.linalg.norm(lost)) / max(float(np.linalg.norm(kernel)), 1e-30)
    speech = None
    if isinstance(moment, Heard):
        speech = _lost_outputs(decomposition.right[:rank], moment)
    elif moment is not None:
        speech = float(np.sqrt(_power(lost, moment) / max(_power(kernel, moment), 1e-30)))
    return Fit(energy=1 - error**2, error=error, speech_error=speech)


def check_rank(matrix: Matrix, rank: int) -> None:
    """Raise InputError when a rank is below 1 or above the map's greatest."""
    if not 1 <= rank <= matrix.max_rank:
        raise InputError(
            f"{matrix.path}: rank {rank} is impossible for {matrix.fan_in} × {matrix.fan_out}; "
            f"use 1 to {matrix.max_rank}"
        )


def _from_left(matrix: Matrix, kernel: np.ndarray, moment: np.ndarray | None, terms: int | None) -> Decomposition:
    root, inverse = (None, None) if moment is None else _root(_damped(moment))
    seen = kernel if root is None else root @ kernel
    spectrum, basis = _eigen(seen @ seen.T, terms)
    left = basis if inverse is None else inverse(basis)
    return Decomposition(matrix, spectrum, *_balanced(left, basis.T @ seen))


def _from_right(matrix: Matrix, kernel: np.ndarray, moment: Moment | None, terms: int | None) -> Decomposition:
    # Projecting on right singular vectors needs no root of the moment: C^-½ (C^½ W) V Vᵀ = W V Vᵀ.
    if isinstance(moment, Heard):
        gram = moment.outputs + max(DAMPING * moment.power, 1e-30) * (kernel.T @ kernel)
    else:
        gram = kernel.T @ (kernel if moment is None else _damped(moment) @ kernel)
    spectrum, basis = _eigen(gram, terms)
    return Decomposition(matrix, spectrum, *_balanced(kernel @ basis, basis.T))


def _eigen(gram: np.ndarray, terms: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the roots of all eigenvalues, descending, and the vectors of the first `terms`, (size, terms)."""
    squares, basis = np.linalg.eigh((gram + gram.T) / 2)
    return np.sqrt(np.maximum(squares[::-1], 0)), basis[:, ::-1][:, :terms]


def _balanced(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give both sides of each term the same norm; bounded below, since any positive gain leaves products alone."""
    norms = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
    ours, theirs = (np.maximum(norm, max(float(norm.max()) * 1e-8, 1e-30)) for norm in norms)
    gain = np.sqrt(theirs / ours)
    return left * gain, right / gain[:, None]


def _damped(moment: np.ndarray) -> np.ndarray:
    moment = np.array(moment, np.float64)  # a copy
    moment[np.diag_indices_from(moment)] += max(DAMPING * np.trace(moment) / len(moment), 1e-30)
    return moment


def _root(moment: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Return R with Rᵀ R the moment, and what multiplies by its inverse.

    Every such R gives the same products R⁻¹ U Uᵀ R W. Cholesky's is found in a tenth of the time of one by
    eigenvectors, but not where rounding made an eigenvalue negative; eigenvectors can bound these.
    """
    try:
        lower = np.linalg.cholesky(moment)
    except np.linalg.LinAlgError:
        values, basis = np.linalg.eigh(moment)
        values = np.sqrt(np.maximum(values, values[-1] * 1e-14))
        return (basis * values).T, lambda x: basis @ (x / values[:, None])
    return lower.T, partial(np.linalg.solve, lower.T)


def _lost_outputs(right: np.ndarray, heard: Heard) -> float:
    """Return the error of outputs of which what lies along some rows is kept, (terms, fan_out), orthogonal."""
    outputs = np.asarray(heard.outputs, np.float64)
    rows = right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-300)
    whole = float(np.trace(outputs))
    return float(np.sqrt(max(whole - float(np.vdot(rows, rows @ outputs)), 0.0) / max(whole, 1e-30)))


def _power(kernel: np.ndarray, moment: np.ndarray) -> float:
    # A sum of squares loses nothing in float32, and the product over 3072 inputs is twice as fast there.
    kernel = kernel.astype(np.float32)
    return max(float(np.vdot(kernel, np.asarray(moment, np.float32) @ kernel)), 0.0)


def _check(matrix: Matrix, kernel: np.ndarray, moment: Moment | None) -> None:
    if not kernel.size:
        raise InputError(f"{matrix.path}: {matrix.fan_in} × {matrix.fan_out} is empty; there is nothing to factorise")
    if not np.isfinite(kernel).all():
        raise InputError(f"{matrix.path}: {np.sum(~np.isfinite(kernel))} of {kernel.size} weights are not finite")
    if moment is None:
        return
    side = "outputs" if isinstance(moment, Heard) else "inputs"
    if side == "outputs" and matrix.fan_in < matrix.fan_out:
        raise InputError(f"{matrix.path}: {matrix.fan_in} × {matrix.fan_out} needs the moment of its inputs")
    size, found = (matrix.fan_out, moment.outputs) if isinstance(moment, Heard) else (matrix.fan_in, moment)
    if found.shape != (size, size):
        raise InputError(f"{matrix.path}: the {side}' moment is {found.shape}, the map has {size} {side}")
    if not np.isfinite(found).all():
        raise InputError(f"{matrix.path}: the {side}' moment is not finite; is the calibration speech?")


def _replace(params: Mapping[str, Any], matrix: Matrix, weights: Tree) -> Tree:
    stays = {k: v for k, v in get(params, matrix.path).items() if k not in WEIGHTS}
    return put(params, matrix.path, {**weights, **stays})


def _array(params: Mapping[str, Any], path: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(check_float(path, np.asarray(get(params, path))), np.float64)
    if array.shape != shape:
        raise InputError(f"{path}: shape {array.shape}, expected {shape}; read the maps off this tree again")
    return array
