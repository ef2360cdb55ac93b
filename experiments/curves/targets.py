"""What a low-rank experiment aims at: a rank, a share of energy, or a budget, and the ranks that follow."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import numpy as np

from compress.address import Matrix
from compress.errors import InputError
from compress.lowrank import Decomposition, check_rank
from compress.ranks import allocate, check_budget, rank_for_energy
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.runtime.ranges import AMOUNT, Written

T = TypeVar("T")
Ranks = Mapping[str, int | None]


@dataclass(frozen=True)
class Target:
    """What one column of the trade-off asks for."""

    kind: Literal["rank", "energy", "params", "macs"]
    value: float

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


def _budget(text: str) -> Target:
    kind, _, number = text.partition("=")
    value = float(number)
    if kind not in ("params", "macs") or value not in AMOUNT:
        raise ValueError(text)
    return Target("params" if kind == "params" else "macs", value)


Budget = Annotated[T, Written(_budget, "params=40e6 or macs=3e9 (per second of speech)")]


def parse(rank: Sequence[int], energy: Sequence[float], budget: Sequence[str]) -> list[Target]:
    """Read what is asked for off the command line, each once; rank 128 when nothing is.

    Raises:
        InputError: two would have one name.
        ValueError: a budget is not written as `Budget` wants it, which is told where the command line is read.
    """
    targets = [Target("rank", r) for r in rank] + [Target("energy", e) for e in energy]
    targets += [_budget(text) for text in budget]
    targets = list(dict.fromkeys(targets)) or [Target("rank", 128)]
    if twice := [str(t) for t, count in Counter(map(str, targets)).items() if count > 1]:
        raise InputError(f"{twice[0]}: two targets are that to six digits, and models go by it; give one of them")
    return targets


def check(targets: Sequence[Target], arch: Arch, chosen: Sequence[Matrix]) -> None:
    """Refuse ranks, energies and budgets that cannot be before any work is done.

    Args:
        targets: what is asked for.
        arch: the model's, as it is.
        chosen: the maps to factorise.

    Raises:
        InputError: a rank that a map cannot have, a share that is none, a budget below what stays or below rank 1.
    """
    for target in targets:
        match target.kind:
            case "rank":
                for matrix in chosen:
                    check_rank(matrix, int(target.value))
            case "energy":
                rank_for_energy(np.ones(1), target.value)
            case "params" | "macs":
                check_budget(chosen, _entries(target, arch, chosen))


def ranks_for(target: Target, arch: Arch, found: Mapping[str, Decomposition]) -> Ranks:
    """Choose each map's rank; None leaves it as it is, where a factorisation would not make it smaller.

    Args:
        target: what is asked for.
        arch: the model's, as it is; a budget is for all of it.
        found: the maps to factorise, decomposed, by path.

    Raises:
        InputError: the budget is below what the rest of the model takes.
    """
    match target.kind:
        case "rank":
            wanted = {path: int(target.value) for path in found}
        case "energy":
            wanted = {path: rank_for_energy(d.spectrum, target.value) for path, d in found.items()}
        case "params" | "macs":
            return allocate(list(found.values()), _entries(target, arch, [d.matrix for d in found.values()]))
    return {path: rank if found[path].matrix.pays(rank) else None for path, rank in wanted.items()}


def highest_rank(targets: Sequence[Target], matrix: Matrix) -> int:
    """Return the highest rank that `ranks_for` can choose for a map, 1 where it chooses none."""
    paying = (matrix.size - 1) // (matrix.fan_in + matrix.fan_out)
    asked = max(int(target.value) if target.kind == "rank" else matrix.max_rank for target in targets)
    return max(min(paying, asked, matrix.max_rank), 1)


def _entries(target: Target, arch: Arch, chosen: Sequence[Matrix]) -> float:
    """Turn a budget for the whole model into entries to spend on the chosen maps."""
    mine = sum(matrix.size for matrix in chosen)
    if target.kind == "params":
        rest, unit = cost.parameters(arch) - mine, 1.0
    else:
        seconds = sum(cost.UTTERANCES) / SAMPLE_RATE
        if len({arch.reduced(1000 * arch.grouped, layer=i) for i in range(len(arch.layers))}) > 1:
            raise InputError("--budget macs: the layers differ in their number of frames; give --budget params")
        unit = sum(arch.frames(samples, layer=0) for samples in cost.UTTERANCES) / seconds
        rest = cost.macs_per_second(arch).total - mine * unit
    if target.value <= rest:
        raise InputError(f"--budget {target.kind}={target.value:g}: what stays dense alone takes {rest:g}; raise it")
    return (target.value - rest) / unit
