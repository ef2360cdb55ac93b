"""Ways to factorise a model, a target and a method each: what they do to every map, and how far from dense they are."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from compress.address import Matrix, flatten
from compress.errors import InputError
from compress.lowrank import Decomposition, Moment, decompose, factorise_maps, fit
from compress.plan import match_paths
from experiments.curves.columns import Row
from experiments.curves.points import Subject
from experiments.curves.targets import Ranks, Target, highest_rank, ranks_for
from jaxssl.analysis.calibration import Distance, distances, moments_to_decompose
from jaxssl.inference.source import Model, Speech
from jaxssl.models import cost
from jaxssl.models.arch import Arch
from jaxssl.models.describe import describe
from jaxssl.models.model import Params
from jaxssl.models.sites import matrices
from jaxssl.runtime.cli import progress
from jaxssl.runtime.spread import collect, spread

Method = Literal["svd", "activation"]


@dataclass(frozen=True)
class Variant:
    """One way to factorise the model.

    Attributes:
        target: what it aims at.
        method: svd, the least error of the weights; activation, the least error of the outputs on speech.
        ranks: of each map; None where it stays as it is.
    """

    target: Target
    method: Method
    ranks: Ranks

    @property
    def name(self) -> str:
        """Of the point and of its model's folder, as `rank-64-activation`."""
        return f"{self.target}-{self.method}".replace(" ", "-")


@dataclass(frozen=True)
class Known:
    """What is known of a model's maps.

    Attributes:
        seen: what the chosen maps heard, by path.
        found: decompositions by method and path.
    """

    seen: Mapping[str, Moment]
    found: Mapping[Method, Mapping[str, Decomposition]]


def choose(arch: Arch, where: str) -> tuple[Matrix, ...]:
    """Return the maps that a glob names; those without inputs or outputs are no maps to factorise.

    Raises:
        InputError: it names none.
    """
    paths = match_paths(where, matrices(arch))
    chosen = tuple(matrix for matrix in matrices(arch) if matrix.path in paths and matrix.max_rank)
    if not chosen:
        raise InputError(f"--where {where}: all {len(paths)} maps are empty; name some that have heads or units left")
    return chosen


def analyse(
    model: Model,
    subject: Subject,
    chosen: Sequence[Matrix],
    speech: Speech,
    methods: Sequence[Method],
    targets: Sequence[Target],
) -> Known:
    """Listen to the calibration speech and decompose every chosen map once per method, as far as the targets need.

    The plain SVDs need no speech, and are worked out while the model listens.
    """
    params, seen = subject.seen, dict[str, Moment]()

    def decomposed(matrix: Matrix) -> Decomposition:
        return decompose(params, matrix, seen.get(matrix.path), terms=highest_rank(targets, matrix))

    with progress("listening, decomposing", len(speech.calibration) + len(methods) * len(chosen)) as tick:
        with spread(decomposed, chosen if "svd" in methods else ()) as plain:
            heard = moments_to_decompose(subject.arch, params, speech.calibration, chosen, stats=model.stats, tick=tick)
            known = {"svd": _by_path(collect(plain, tick))}
        seen |= heard
        with spread(decomposed, chosen if "activation" in methods else ()) as aware:
            known["activation"] = _by_path(collect(aware, tick))
    return Known(seen, {method: known[method] for method in methods})


def _by_path(found: Sequence[Decomposition]) -> dict[str, Decomposition]:
    return {each.matrix.path: each for each in found}


def variants_of(targets: Sequence[Target], methods: Sequence[Method], arch: Arch, known: Known) -> list[Variant]:
    """List every target with every method; those of one target follow each other, for they may have one shape."""
    return [Variant(t, method, ranks_for(t, arch, known.found[method])) for t in targets for method in methods]


def build(subject: Subject, variant: Variant, known: Known) -> Subject:
    """Factorise the model; masks of maps that are stored otherwise now are gone."""
    params = factorise_maps(subject.seen, known.found[variant.method], variant.ranks)
    left = flatten(params)
    masks = {path: mask for path, mask in subject.masks.items() if path in left and mask.shape == left[path].shape}
    return Subject(describe(subject.arch, params), params, masks)


def map_rows(params: Params, variants: Sequence[Variant], known: Known) -> list[Row]:
    """Describe what variants do to each map, one row each; a map that would grow is left as it is."""

    def row(each: tuple[Variant, str]) -> Row:
        variant, path = each
        found, rank = known.found[variant.method][path], variant.ranks[path]
        named = {"variant": variant.name, "path": path, "shape": f"{found.matrix.fan_in} × {found.matrix.fan_out}"}
        if rank is None:
            return {**named, "rank": found.matrix.rank or "dense", "energy": 1.0, "error": 0.0, "speech_error": 0.0}
        return {**named, "rank": rank, **vars(fit(params, found, rank, known.seen[path]))}

    pairs = [(variant, path) for variant in variants for path in variant.ranks]
    with progress("errors of the maps", len(pairs)) as tick, spread(row, pairs) as rows:
        return collect(rows, tick)


def itself(arch: Arch) -> Row:
    """Return the columns of the dense model, which is no distance from itself."""
    depth = len(arch.layers) + 1
    far = {"output_error": 0.0, "output_cosine": 1.0, "layer_errors": [0.0] * depth, "layer_cosines": [1.0] * depth}
    return {"method": "dense", **far, "macs_by_part": _macs(arch)}


def apart(model: Model, dense: Subject, others: Sequence[Subject], speech: Speech, *, dtype: str) -> list[Row]:
    """Return the columns that say how far variants are from the dense model on held-out speech, layer by layer.

    Args:
        model: of which all are.
        dense: the reference.
        others: factorised, before any training; all hear an utterance before the next one comes.
        speech: that they hear.
        dtype: of the computation.
    """
    pairs = [(other.arch, other.seen) for other in others]
    with progress("errors of the variants", len(speech.held_out)) as tick:
        reference = dense.arch, dense.seen
        far = distances(reference, pairs, speech.held_out, stats=model.stats, dtype=jnp.dtype(dtype), tick=tick)
    return [_columns(other.arch, each) for other, each in zip(others, far, strict=True)]


def _columns(arch: Arch, far: Distance) -> Row:
    layers = {"layer_errors": list(far.relative), "layer_cosines": list(far.cosine)}
    last = {"output_error": far.relative[-1], "output_cosine": far.cosine[-1]}
    return {**last, **layers, "macs_by_part": _macs(arch)}


def _macs(arch: Arch) -> dict[str, float]:
    return dataclasses.asdict(cost.macs_per_second(arch))
