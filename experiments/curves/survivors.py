"""Which of a model's heads each point of a pruning run kept, and whether they differ from heads drawn by chance.

A run of `experiments.heads` records at each point what it kept of the model before. Where that is not recorded, a kept
head is found by its weights, which training between events moved a little: it must be far nearer to one head of the
dense model than to any other, and no two may be nearest to the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.address import Axis, get
from compress.errors import InputError
from compress.select import Keep
from jaxssl.inference.specialise import dequantized, unpacked
from jaxssl.models import checkpoint
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params
from jaxssl.models.sites import axes
from jaxssl.runtime.files import read_json

FAR_BETTER = 0.5  # largest share of the distance to the second nearest head that the nearest may be at


@dataclass(frozen=True)
class Point:
    """A point of a run, and the heads of the dense model that it kept, by axis.

    Attributes:
        name: of the point.
        kept: by name of the axis, ascending indices.
        doubt: where heads were found by their weights, the largest share that a distance to the nearest head is of the
            distance to the second; None where the run recorded them.
    """

    name: str
    kept: Mapping[str, Keep]
    doubt: float | None = None


def head_axes(arch: Arch) -> list[Axis]:
    """List the axes of heads that are there; a head whose map later layers reuse is one with theirs."""
    return [axis for axis in axes(arch) if axis.size and axis.name.endswith("/heads")]


def read_points(folder: Path, arch: Arch, params: Params) -> tuple[list[Point], list[str]]:
    """Read which heads of a model each point of a run kept, in the order of the run.

    Args:
        folder: of a run of `experiments.heads`, finished or not.
        arch: of the model that the run pruned.
        params: the model, unpacked.

    Returns:
        The points, and a line for each that is left out because its heads cannot be told by their weights.

    Raises:
        InputError: no such run, a run of another model, or one that pruned no head; or what it recorded cannot be.
    """
    rows, once = _rows(folder)
    mine = [layer.heads for layer in arch.layers]
    _check_model(folder, rows, arch, params)
    points, notes = list[Point](), list[str]()
    before: Mapping[str, Keep] = _all(arch)
    for row in (row for row in rows if row["heads"] != mine):
        if "kept" in row:
            points.append(_recorded(folder, row, before))
            before = before if once else points[-1].kept
            continue
        try:
            points.append(_matched(folder / "models" / row["name"], row["name"], arch, params))
        except InputError as error:
            notes.append(f"left out: {error}")
    if not points and not notes:
        raise InputError(f"{folder}: none of its {len(rows)} points has fewer heads; name a run of experiments.heads")
    return points, notes


def nearest(found: np.ndarray, among: np.ndarray) -> tuple[Keep, float]:
    """Tell which of `among: (m, size)` each of `found: (n, size)` was before it moved a little.

    Returns:
        An index for each, and the largest share that a distance to the nearest is of the distance to the second.

    Raises:
        InputError: they are of another size, two have the same nearest, the nearest are out of order, or one is at more
            than half the distance of the second.
    """
    if not len(found):
        return (), 0.0
    if found.shape[1] != among.shape[1]:
        raise InputError(f"its heads have {found.shape[1]} weights, the model's {among.shape[1]}; prune that model")
    far = np.stack([np.linalg.norm(among - one, axis=1) for one in found])
    best, (first, *rest) = far.argmin(1), np.sort(far, axis=1).T
    doubt = float((first / np.maximum(rest[0], 1e-30)).max()) if rest else 0.0
    if (np.diff(best) <= 0).any() or not doubt <= FAR_BETTER:
        raise InputError(
            f"its {len(found)} heads are nearest to {best.tolist()} of {len(among)}, at {doubt:.2f} of the distance to "
            f"the second (limit {FAR_BETTER}), which tells nothing; prune again: runs record now what they keep"
        )
    return tuple(map(int, best)), doubt


@dataclass(frozen=True)
class Chance:
    """What a permutation test found.

    Attributes:
        kept: mean of the kept heads' values.
        expected: the same on average over draws.
        higher: chance of drawing a mean as high, one-sided.
        differs: chance of drawing a mean as far from what is expected, two-sided.
        permutations: draws.
    """

    kept: float
    expected: float
    higher: float
    differs: float
    permutations: int


def by_chance(values: Sequence[np.ndarray], kept: Sequence[Keep], *, permutations: int, seed: int) -> Chance:
    """Ask whether kept heads have higher values than as many heads of each layer drawn by chance.

    The statistic is the mean over all kept heads. Values change places within layers only, so that neither how layers
    differ nor how many heads each kept can make a difference. With n draws of which b are as extreme as what is there,
    p is (b + 1) / (n + 1) (Phipson and Smyth 2010), never 0; it is 1 where every layer kept all or none.

    Args:
        values: by layer, (heads,).
        kept: by layer, indices.
        permutations: draws.
        seed: of the draws.

    Raises:
        InputError: no head is kept, or there are no draws.
    """
    total = sum(map(len, kept))
    if not total or permutations < 1:
        raise InputError(f"{total} heads and {permutations} permutations: a test needs 1 or more of each")
    rng, drawn = np.random.default_rng(seed), np.zeros(permutations)
    for layer, keep in zip(values, kept, strict=True):
        places = rng.permuted(np.broadcast_to(layer, (permutations, len(layer))), axis=1)
        drawn += places[:, : len(keep)].sum(1)
    found = sum(float(layer[list(keep)].sum()) for layer, keep in zip(values, kept, strict=True))
    expected = sum(float(layer.mean()) * len(keep) for layer, keep in zip(values, kept, strict=True) if len(keep))
    slack = 1e-9 * sum(float(np.abs(layer).sum()) for layer in values)  # sums in another order are the same sum
    higher = int((drawn >= found - slack).sum())
    differs = int((np.abs(drawn - expected) >= abs(found - expected) - slack).sum())
    return Chance(
        kept=found / total,
        expected=expected / total,
        higher=(higher + 1) / (permutations + 1),
        differs=(differs + 1) / (permutations + 1),
        permutations=permutations,
    )


def _rows(folder: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return a run's points, and whether each was pruned straight from the dense model."""
    try:
        rows = read_json(folder / "points.json")
        path = folder / "config.json"
        settings = read_json(path) if path.is_file() else {}
        found = [{**row, "name": str(row["name"]), "heads": [int(count) for count in row["heads"]]} for row in rows]
        return found, settings.get("schedule") == "once"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"{folder}: no points of a pruning run ({error}); name a run of experiments.heads") from None


def _check_model(folder: Path, rows: Sequence[Mapping[str, Any]], arch: Arch, params: Params) -> None:
    """Refuse a run whose dense model is another one, by its shape and, where it is there, by its weights."""
    mine = [layer.heads for layer in arch.layers]
    for row in rows:
        if len(row["heads"]) != len(mine) or (row["name"] == "dense" and row["heads"] != mine):
            raise InputError(f"{folder}: {row['name']} has heads {row['heads']}, the model {mine}; name that model")
    if not checkpoint.is_model(folder / "models" / "dense"):
        return
    other = checkpoint.load(folder / "models" / "dense")[1]
    for axis in head_axes(arch):
        if not np.array_equal(_vectors(other, axis), _vectors(params, axis)):
            raise InputError(f"{folder}: {axis.name} of its dense model has other weights than this; name that model")


def _all(arch: Arch) -> dict[str, Keep]:
    return {axis.name: tuple(range(axis.size)) for axis in head_axes(arch)}


def _recorded(folder: Path, row: Mapping[str, Any], before: Mapping[str, Keep]) -> Point:
    """Turn what a point kept of the model before it into heads of the dense model."""
    try:
        kept = {name: tuple(there[i] for i in row["kept"][name]) for name, there in before.items()}
        counts = {name: row["heads"][int(name.split("/")[1])] for name in kept}
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(f"{folder}: what {row['name']} kept is not of this model ({error}); name that model") from None
    for name, count in counts.items():
        if len(kept[name]) != count:
            raise InputError(f"{folder}: {row['name']}: {name} kept {len(kept[name])} and has {count}; run it again")
    return Point(row["name"], kept)


def _matched(place: Path, name: str, arch: Arch, params: Params) -> Point:
    """Find a point's heads by their weights."""
    other, arrays = dequantized(*unpacked(*checkpoint.load(place)))
    found = {axis.name: _vectors(arrays, axis) for axis in head_axes(other)}
    kept, doubts = {}, [0.0]
    for axis in head_axes(arch):
        among = _vectors(params, axis)
        try:
            kept[axis.name], doubt = nearest(found.get(axis.name, among[:0]), among)
        except InputError as error:
            raise InputError(f"{place}: {axis.name}: {error}") from None
        doubts.append(doubt)
    return Point(name, kept, max(doubts))


def _vectors(params: Params, axis: Axis) -> np.ndarray:
    """Put everything that belongs to each unit of an axis side by side, (axis.size, …)."""
    parts = [np.moveaxis(np.asarray(get(params, path)), at, 0).reshape(axis.size, -1) for path, at in axis.leaves]
    return np.concatenate(parts, axis=1)
