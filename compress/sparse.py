"""Masks of weights: single entries, N of every M inputs, square blocks, or the zeros that are there already.

A set of masks is a flat dict, path to a boolean array of that tensor's shape, true where the entry stays. All scores
are magnitudes; of equals the lower position goes first. Masks only grow: with `before`, the entries that it drops are
dropped again and count among those asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import jax.numpy as jnp
import numpy as np

from compress.address import Matrix, Tree, get, put
from compress.errors import InputError
from compress.quantize import check_float

Masks = dict[str, Any]
GONE = -1  # key of an entry that is dropped already, below those of all magnitudes; its bin is the last
INFINITE = 0x7F800000  # key of infinity; above are what is not a number
BINS = 1 << 16


def check_sparsity(sparsity: float) -> None:
    """Refuse what is no share between 0 and 1, both excluded.

    Raises:
        InputError: it is none.
    """
    if not 0 < sparsity < 1:  # so that NaN is refused
        hint = f"; {sparsity:g} % is {sparsity / 100:g}" if 1 < sparsity < 100 else ""
        raise InputError(f"sparsity {sparsity} is no share of the weights; use more than 0 and less than 1{hint}")


def entry_masks(
    params: Mapping[str, Any], groups: Sequence[Sequence[str]], sparsity: float, *, before: Masks | None = None
) -> Masks:
    """Drop the smallest entries of each group: exactly round(sparsity · N) of its N.

    One group with everything is the study's global pruning ("Is Smaller Always Faster?"); one a layer gives each
    layer a threshold of its own. On the same weights, and with `before` on any, the masks of a higher sparsity are
    subsets of those of a lower.

    Args:
        params: the tree.
        groups: paths of tensors; each group has one threshold over |w|. Equals go in the order of the paths.
        sparsity: share of each group's entries that is dropped, in (0, 1).
        before: masks that these continue; paths outside the groups are left aside.

    Returns:
        A mask for every path of the groups.

    Raises:
        InputError: the sparsity is no share or less than `before` has already, a path is missing or named twice, its
            mask is not of its shape, or a weight is int8 or not a number.
    """
    check_sparsity(sparsity)
    named = list(chain.from_iterable(groups))
    if twice := sorted({path for path in named if named.count(path) > 1}):
        raise InputError(f"{twice[0]}: named twice in the groups; a tensor has one threshold")
    return {path: mask for group in groups for path, mask in _smallest(params, group, sparsity, before or {})}


def n_of_m_masks(
    params: Mapping[str, Any], matrices: Sequence[Matrix], keep: int, of: int, *, before: Masks | None = None
) -> Masks:
    """Keep the `keep` greatest |w| of every `of` consecutive inputs of each output (2:4 is keep 2, of 4).

    A factorised map is two matrices, `down` with fan_in inputs and `up` with rank inputs. Where `before` leaves fewer
    than `keep` of a group, those few stay. Biases are left alone.

    Raises:
        InputError: `keep` is not in 1 … of − 1, `of` does not divide the inputs, `before` drops more than is asked for,
            or a weight is not a number.
    """
    if not 1 <= keep < of:
        raise InputError(f"cannot keep {keep} of every {of} inputs; keep 1 to {of - 1} of 2 or more")

    def pattern(path: str, keys: np.ndarray) -> np.ndarray:
        _check_divides(path, of, inputs=keys.shape[0])
        grouped = keys.reshape(keys.shape[0] // of, of, keys.shape[1])
        return _without_lowest(grouped, of - keep, axis=1).reshape(keys.shape)

    return _matrix_masks(params, matrices, before or {}, pattern)


def block_masks(
    params: Mapping[str, Any], matrices: Sequence[Matrix], sparsity: float, size: int, *, before: Masks | None = None
) -> Masks:
    """Keep in each output column of `size` × `size` blocks the same number, those of greatest L2 norm.

    kept = max(1, round((1 − sparsity) · input blocks)), so that a block-sparse product does equal work for every
    column. The L2 norm, because the squared norms of what is dropped add up to ‖W − mask(W)‖²: no other choice of as
    many blocks a column is nearer to W. A factorised map is two matrices, `down` and `up`. Where `before` leaves
    fewer blocks of a column, those few stay. Biases are left alone.

    Raises:
        InputError: the sparsity is no share, `size` does not divide inputs and outputs, `before` drops more than is
            asked for, or a weight is not a number.
    """
    check_sparsity(sparsity)
    if size < 1:
        raise InputError(f"blocks of {size} × {size} are none; use a size of 1 or more")

    def pattern(path: str, keys: np.ndarray) -> np.ndarray:
        _check_divides(path, size, inputs=keys.shape[0], outputs=keys.shape[1])
        ins, outs = (n // size for n in keys.shape)
        blocks = keys.reshape(ins, size, outs, size)
        gone = blocks == GONE
        power = np.square(np.where(gone, np.float32(0), blocks.view(np.float32)), dtype=np.float64).sum((1, 3))
        power[gone.all((1, 3))] = GONE
        kept = max(1, round((1 - sparsity) * ins))
        stays = _without_lowest(power, max(ins - kept, 0), axis=0)
        return np.broadcast_to(stays[:, None, :, None], blocks.shape).reshape(keys.shape)

    return _matrix_masks(params, matrices, before or {}, pattern)


def zero_masks(params: Mapping[str, Any], matrices: Sequence[Matrix]) -> Masks:
    """Read off the zeros of a pruned model, so that what is zero stays zero.

    Maps without an exact zero in their weights get no mask, their biases neither: a fresh bias is zero and not pruned.

    Raises:
        InputError: a map is int8, where what was only small is zero too.
    """
    masks: Masks = {}
    for matrix in matrices:
        stays = {path: _array(params, path) != 0 for path in _weights(matrix)}
        if not all(mask.all() for mask in stays.values()):
            biases = [f"{matrix.path}/bias"] if matrix.bias else []
            masks |= {**stays, **{bias: np.asarray(get(params, bias)) != 0 for bias in biases}}
    return masks


def apply_masks(params: Mapping[str, Any], masks: Mapping[str, Any]) -> Tree:
    """Zero the entries that are dropped; shapes stay, and dropped entries get no gradient.

    The masks may be traced: this is a `view` of a training step, with the masks as what it holds.

    Raises:
        InputError: a mask's path is missing from the tree, or the mask is not of its tensor's shape.
    """
    tree: Tree = dict(params)
    for path, mask in masks.items():
        array = get(params, path)
        _check_mask(path, mask, array)
        tree = put(tree, path, jnp.where(mask, array, jnp.zeros_like(array)))
    return tree


def _smallest(
    params: Mapping[str, Any], paths: Sequence[str], sparsity: float, before: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield one group's masks; keys are worked out anew in each pass, as holding them all takes longer."""

    def keys() -> Iterator[np.ndarray]:
        return (_keys(params, path, before) for path in paths)

    high = sum((np.bincount(_upper(part), minlength=BINS) for part in keys()), np.zeros(BINS, np.int64))
    gone, total = int(high[GONE]), int(high.sum())
    drop = round(sparsity * total)
    _check_grows(", ".join(paths[:1]) + " and others" * (len(paths) > 1), total, gone, drop)
    threshold, equal = _threshold(keys, high[:GONE], drop - gone)
    for path, part in zip(paths, keys(), strict=True):
        stays = part >= threshold
        if equal:
            lowest = np.flatnonzero(part == threshold)[:equal]
            stays.reshape(-1)[lowest] = False
            equal -= lowest.size
        yield path, stays


def _threshold(keys: Callable[[], Iterable[np.ndarray]], high: np.ndarray, drop: int) -> tuple[int, int]:
    """Find the key below which all are dropped, and how many that equal it are.

    Two counts, of the upper and of the lower 16 bits, find the `drop`-th key in time that does not depend on how many
    are equal; `np.partition` is as fast only where few are.
    """
    if not drop:
        return 0, 0
    first, below = _find(high, drop)
    low = np.zeros(BINS, np.int64)
    for part in keys():
        flat = part.reshape(-1)
        low += np.bincount(flat[flat >> 16 == first] & (BINS - 1), minlength=BINS)
    second, more = _find(low, drop - below)
    return first << 16 | second, drop - below - more


def _find(counts: np.ndarray, number: int) -> tuple[int, int]:
    """Return the bin of the `number`-th thing, counted from 1, and how many things are in the bins before it."""
    upto = np.cumsum(counts)
    at = int(np.searchsorted(upto, number))
    return at, int(upto[at] - counts[at])


def _upper(keys: np.ndarray) -> np.ndarray:
    """Return the upper 16 bits of each key, flat; GONE's are the last bin."""
    return keys.reshape(-1).view(np.uint32) >> 16


def _matrix_masks(
    params: Mapping[str, Any],
    matrices: Sequence[Matrix],
    before: Mapping[str, Any],
    pattern: Callable[[str, np.ndarray], np.ndarray],
) -> Masks:
    """Mask every map's matrices by a pattern: (path, keys (inputs, outputs)) to what stays, of the same shape."""
    masks: Masks = {}
    for matrix in matrices:
        for path, shape in _weights(matrix).items():
            keys = _keys(params, path, before)
            if keys.size != shape[0] * shape[1]:
                raise InputError(f"{path}: shape {keys.shape} is no matrix {shape}; read the maps off this tree again")
            stays, alive = pattern(path, keys.reshape(shape)).reshape(keys.shape), keys != GONE
            _check_grows(path, keys.size, int((~alive).sum()), int((~stays).sum()))
            masks[path] = stays & alive
    return masks


def _weights(matrix: Matrix) -> dict[str, tuple[int, int]]:
    """List the arrays that hold a map's weights and their shapes as matrices, (inputs, outputs)."""
    if matrix.rank is None:
        return {f"{matrix.path}/kernel": (matrix.fan_in, matrix.fan_out)}
    return {f"{matrix.path}/down": (matrix.fan_in, matrix.rank), f"{matrix.path}/up": (matrix.rank, matrix.fan_out)}


def _without_lowest(scores: np.ndarray, drop: int, *, axis: int) -> np.ndarray:
    """Mark all but the `drop` lowest scores along an axis; of equals the lower position goes first."""
    lowest = np.take(np.argsort(scores, axis=axis, kind="stable"), np.arange(drop), axis=axis)
    stays = np.ones(scores.shape, bool)
    np.put_along_axis(stays, lowest, False, axis=axis)
    return stays


def _keys(params: Mapping[str, Any], path: str, before: Mapping[str, Any]) -> np.ndarray:
    """Return the bits of |w| of one tensor, int32, which are ordered as |w| is; GONE where `before` drops the entry."""
    array = _array(params, path)
    keys = np.abs(array, dtype=np.float32, casting="same_kind", order="C").view(np.int32)
    if path in before:
        mask = np.asarray(before[path])
        _check_mask(path, mask, array)
        keys |= mask.astype(np.int32) - 1
    if keys.size and keys.max() > INFINITE:
        raise InputError(f"{path}: {(keys > INFINITE).sum()} of {keys.size} weights are not numbers; did it diverge?")
    return keys


def _array(params: Mapping[str, Any], path: str) -> np.ndarray:
    array = get(params, path)
    if isinstance(array, Mapping):
        raise InputError(f"{path}: a branch of the tree, no tensor; name one of {', '.join(array)} below it")
    return check_float(path, np.asarray(array))


def _check_mask(path: str, mask: Any, array: Any) -> None:
    found, wanted = (getattr(thing, "shape", None) for thing in (mask, array))
    if found != wanted or mask.dtype != bool:
        raise InputError(
            f"{path}: the mask is {getattr(mask, 'dtype', type(mask).__name__)} {found}, the tensor {wanted}; "
            "a mask is boolean and of its tensor's shape"
        )


def _check_divides(path: str, part: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size % part:
            raise InputError(f"{path}: {part} does not divide its {size} {name}; choose a divisor, or leave it out")


def _check_grows(where: str, total: int, gone: int, asked: int) -> None:
    if gone > asked:
        raise InputError(
            f"{where}: {gone} of {total} entries are dropped already, this asks for {asked}; masks only grow: ask for "
            "more, or start without those before"
        )
