"""What a model, its speech and its loss tell the steps of a plan: where it can be compressed, what each part is worth.

`compress.plan` knows no model; here are the functions that it is handed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from compress.address import Axis, Matrix, Tree
from compress.lowrank import Decomposition, decompose
from compress.plan import Evidence, Score, Sites
from compress.score import contributions
from jaxssl.analysis.calibration import moments_to_decompose, unit_moments
from jaxssl.analysis.saliency import context_gradient
from jaxssl.data.logmel import Stats
from jaxssl.inference.source import Speech
from jaxssl.models import cost
from jaxssl.models.arch import Arch
from jaxssl.models.describe import describe
from jaxssl.models.sites import axes, matrices
from jaxssl.runtime.cli import progress
from jaxssl.runtime.spread import collect, spread
from jaxssl.training.corpus import Data, hearing, loader, pretraining_loss
from jaxssl.training.settings import Training

NAMES = ("inputs", "lengths", "labels", "mask")  # of a batch's arrays that a loss takes


@dataclass(frozen=True)
class Labelled:
    """Training batches that scores by gradient look at.

    Attributes:
        data: labelled speech.
        training: settings of the batches.
        number: of the event; the batches depend on nothing else, so that a resumed run draws the same.
        count: how many, at most.
    """

    data: Data
    training: Training
    number: int = 0
    count: int = 8

    def batches(self, arch: Arch) -> list[dict[str, Any]]:
        """Draw them, as a model of that arch hears them."""
        with loader(self.data, self.training) as feed:
            drawn = [feed.batch(self.number, i % feed.steps) for i in range(min(self.count, feed.steps))]
        heard = hearing(arch, self.data)
        return [dict(heard({name: jnp.asarray(getattr(batch, name)) for name in NAMES})) for batch in drawn]


def sites_of(arch: Arch) -> Sites:
    """List where a model can be compressed."""
    return Sites(axes(arch), matrices(arch))


def sites_below(base: Arch) -> Callable[[Tree], Sites]:
    """Return what reads the sites off any tree that compression made of a model."""
    return lambda tree: sites_of(describe(base, tree))


def evidence(
    base: Arch,
    speech: Speech,
    stats: Stats | None,
    *,
    labelled: Labelled | None = None,
    measure: Literal["params", "macs"] = "params",
) -> Evidence:
    """Listen and count for the steps of a plan, when they ask.

    Args:
        base: arch of the model before the plan.
        speech: to calibrate on: scores by activation, ranks that are aware.
        stats: of the log-Mel features, for models that take them.
        labelled: of scores by gradient; None: there are none.
        measure: of the units' costs.
    """

    def listened(tree: Tree, listen: Callable[..., dict[str, Any]], asked: Any) -> dict[str, Any]:
        with progress("listening", len(speech.calibration)) as tick:
            return listen(describe(base, tree), tree, speech.calibration, asked, stats=stats, tick=tick)

    def scores(tree: Tree, score: Score, mine: Sequence[Axis]) -> Mapping[str, np.ndarray]:
        arch = describe(base, tree)
        if score == "activation":
            read = listened(tree, unit_moments, {path: axis.size for axis in mine if axis.size for path in axis.feeds})
            return contributions(tree, mine, matrices(arch), read)
        if labelled is None:
            return Evidence().scores(tree, score, mine)  # refuses
        loss = pretraining_loss(arch, labelled.data)
        kind: Any = mine[0].name.rpartition("/")[2]
        return context_gradient(arch, tree, labelled.batches(arch), loss, kind=kind, normalise=False)

    def decompositions(tree: Tree, maps: Sequence[Matrix]) -> Mapping[str, Decomposition]:
        seen = listened(tree, moments_to_decompose, maps)
        with (
            progress("decomposing", len(maps)) as tick,
            spread(lambda matrix: decompose(tree, matrix, seen.get(matrix.path)), maps) as found,
        ):
            return {each.matrix.path: each for each in collect(found, tick)}

    return Evidence(scores, decompositions, lambda tree: cost.unit_costs(describe(base, tree), measure))
