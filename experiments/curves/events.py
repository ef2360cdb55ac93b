"""One step of a plan on a model in training: parameters, masks and moments go together, and a proof that it is right.

A `compress.plan` step says what to do; an event is what comes of it: masks, and an edit that serves parameters and the
optimiser's moments alike. Before a cut model is used, its output is compared with the masked model's on speech.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from compress.address import Axis, Tree, flatten, unflatten
from compress.edit import cut, mask
from compress.plan import WEIGHTS_ALONE, Evidence, Heads, Layers, LowRank, Rows, Shorter, Step, Weights, axes_of, keeps
from compress.plan import masks as masks_of
from compress.plan import run as run_plan
from compress.select import Keep
from compress.sparse import Masks
from experiments.curves.evidence import evidence, sites_below, sites_of
from experiments.curves.fired import begun
from experiments.curves.job import Job
from experiments.curves.points import Subject
from experiments.curves.sweep import Event
from jaxssl.analysis.calibration import distance
from jaxssl.models.describe import describe
from jaxssl.models.shorten import by_step
from jaxssl.runtime.cli import console, progress

EQUAL = 1e-5  # largest relative difference between the masked and the slim model's output


def compressed(job: Job, subject: Subject, step: Step) -> Subject:
    """Compress a model by one step, without training; masks of what is left stay."""
    match step:
        case Heads() | Rows():
            return unit_event(job, subject, step).after(subject)
        case Weights():
            return mask_event(subject, step, label="weights").after(subject)
        case LowRank():
            told = evidence(subject.arch, job.speech, job.model.stats)
            params = run_plan((step,), subject.seen, sites=sites_below(subject.arch), evidence=told)
            return Subject(describe(subject.arch, params), params, _fitting(subject.masks, params))
        case Layers(keep):
            params = run_plan((step,), subject.params, sites=sites_below(subject.arch))
            return Subject(describe(subject.arch, params), params, _renumbered(subject.masks, keep))
        case Shorter(ratio, at, "fire"):
            return begun(job, subject, at).at(ratio)
        case Shorter():
            return Subject(*by_step(subject.arch, subject.params, step), subject.masks)


def unit_event(job: Job, subject: Subject, step: Heads | Rows, evidence: Evidence = WEIGHTS_ALONE) -> Event:
    """Choose what stays, and show that the cut model computes what the masked one does.

    The event tells by axis which heads of the model before it are kept.

    Raises:
        RuntimeError: it does not.
    """
    at = sites_of(subject.arch)
    mine, kept = axes_of(step, at), keeps(step, subject.seen, at, evidence)

    def edit(tree: Tree) -> Tree:
        return reduce(lambda tree, axis: cut(tree, axis, kept[axis.name]), mine, tree)

    masked = reduce(lambda tree, axis: mask(tree, axis, kept[axis.name]), mine, subject.seen)
    slim = edit(subject.seen)
    one, two = (subject.arch, masked), (describe(subject.arch, slim), slim)
    heard = job.speech.held_out[:1]  # one batch is enough to tell a wrong cut, and quicker than what is cut
    with progress("slim beside masked", len(heard)) as tick:
        error = distance(one, two, heard, stats=job.model.stats, tick=tick).relative[-1]
    if not error <= EQUAL:
        raise RuntimeError(f"{step}: masked and slim model differ by {error:.1e}, more than {EQUAL:.0e}")
    counts = " ".join(str(len(kept[axis.name])) for axis in mine)
    console.print(f"{step.kind} kept by layer: {counts}; slim equals masked to {error:.1e} on speech", markup=False)
    told: dict[str, Any] = {"masked_equals_slim": error}
    if isinstance(step, Heads):  # so that experiments.heads_atlas need not guess; units are too many for a table's line
        told["kept"] = {axis.name: list(kept[axis.name]) for axis in mine}
    return Event(_cut_masks(subject.masks, mine, kept), edit, told)


def mask_event(subject: Subject, step: Weights, *, label: str) -> Event:
    """Let the masks grow to a sparsity."""
    grown = masks_of(step, subject.seen, sites_of(subject.arch), before=subject.masks)
    masks = {**subject.masks, **grown}
    dropped = sum(int(np.size(mask) - np.count_nonzero(mask)) for mask in masks.values())
    total = sum(int(np.size(mask)) for mask in masks.values())
    console.print(f"{label}: {dropped:,} of {total:,} weights are zero", markup=False)
    return Event(masks, told={"sparsity": dropped / total})


def _cut_masks(masks: Masks, mine: Sequence[Axis], kept: Mapping[str, Keep]) -> Masks:
    """Cut the masks as the arrays they belong to."""
    tree = unflatten(masks)
    for axis in mine:
        leaves = tuple((path, at) for path, at in axis.leaves if path in masks)
        tree = cut(tree, replace(axis, leaves=leaves), kept[axis.name])
    return flatten(tree)


def _fitting(masks: Masks, params: Tree) -> Masks:
    """Keep the masks of arrays that are as they were; what was factorised has none."""
    left = flatten(params)
    return {path: mask for path, mask in masks.items() if path in left and mask.shape == left[path].shape}


def _renumbered(masks: Masks, keep: Sequence[int]) -> Masks:
    """Move the masks with their layers; those of layers that go, go."""
    tree = unflatten(masks)
    layers = tree.pop("layers", {})
    kept = {str(new): layers[str(old)] for new, old in enumerate(keep) if str(old) in layers}
    return flatten({**tree, "layers": kept})
