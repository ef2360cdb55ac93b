"""Prune single weights, groups (2:4) or blocks by magnitude, step by step, and tell what each form saves.

    python -m experiments.weights
    python -m experiments.weights --pattern blocks --size 32
    python -m experiments.weights --pattern groups --size 4 --sparsity 0.25 0.5 0.75
    python -m experiments.weights --schedule paper --model melhubert-20ms --corpus PREPARED
    python -m experiments.weights --model MODEL --audio FOLDER --recover distil

MODEL is any model folder or any checkpoint that docs/families.md lists, compressed before or not; --audio FOLDER is
any speech. What models learn of it is told under --audio, and in a note. A fine-tuned model keeps its CTC layer, and
is asked what it writes of held-out speech that has transcripts.

Masks grow at each event and hold while the model trains on masked prediction. With entries, the dense product
multiplies by zeros all the same: the table shows nominal MACs, the bytes of the smallest encoding (bit mask or CSR,
written as weights.sparse beside the model and read back), and the time as measured, which is the dense model's. With
blocks, maps whose empty blocks pay on this device run as a block-sparse product, only those, and only if the output is
the masked model's to 1e-5; that form is saved under packed/. Groups (N of every M inputs) run dense too: XLA has no
product for them.

The fourth command follows the study's 38 sparsities from update 25,000 on, each held back while the loss still falls
("Is Smaller Always Faster?", arXiv 2211.09949); --gate holds any other schedule's events in the same way. A run that
was broken off goes on with the same command, in the point it was in.

On 52 minutes of LibriSpeech the first command took 8 minutes on two busy cores, with speech and control shared with a
finished experiments.heads. Expected: 60 % of the weights cost 0.01 nats beside the dense model trained as long, 70 %
0.08, 90 % 0.5, and no time is saved.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from compress.address import get
from compress.errors import InputError
from compress.plan import Weights, masks, pruned_arrays
from compress.sparse import Masks, check_sparsity
from experiments.curves.curve import Pruning
from experiments.curves.events import mask_event
from experiments.curves.evidence import sites_of
from experiments.curves.job import Job, open_model, open_pruning, prune
from experiments.curves.points import Fast, Subject
from experiments.curves.schedule import Schedule, arrange
from jaxssl.analysis.calibration import distance
from jaxssl.inference.latency import Load, compile_forward, race, speedup
from jaxssl.inference.specialise import specialise
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params
from jaxssl.runtime.cli import On, main, progress
from jaxssl.runtime.ranges import Count, Inner, Less, Natural
from jaxssl.training.calendar import Gate
from jaxssl.training.study_schedules import PAPER_SPARSITIES, PAPER_WEIGHTS

QUICK = {
    "entries": (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95),
    "blocks": (0.25, 0.5, 0.625, 0.75, 0.8125, 0.875),
    "groups": (0.25, 0.5, 0.75),
}
EQUAL = 1e-5  # largest relative difference between the block-sparse and the masked model's output


@dataclass(frozen=True, kw_only=True)
class Config(Pruning):
    """Prune weights by magnitude."""

    sparsity: Inner[tuple[float, ...]] = ()
    """shares of the prunable weights that are zero, rising, each above 0 and below 1"""
    pattern: Literal["entries", "groups", "blocks"] = "entries"
    """entries: any weight; groups: of every --size inputs the same number goes (2:4 is --size 4 --sparsity 0.5);
    blocks: squares of --size × --size, equally many for each column of blocks"""
    size: Count[int | None] = None
    """of a group (default 4) or a block (default 32)"""
    scope: Literal["model", "layer"] = "model"
    """of entries: one threshold for the whole model, as the study has it, or one for each layer"""
    biases: On = True
    """of entries: prune biases as well, as the study does; they are small and go first"""
    gate: bool = False
    """hold an event back while the loss still falls; --schedule paper always does"""
    smoothing: Less[float] = 0.9998
    """of --gate: weight of the past in the smoothed loss"""
    lookback: Count[int | None] = None
    """of --gate: updates before an event at which the target is taken; default: 0.6 of the distance of events"""
    tolerance: Natural[float] = 0.001
    """of --gate: by how much the loss may have fallen since, in nats"""
    out: Path = Path("runs/weights")
    """folder of the run"""

    @property
    def edge(self) -> int:
        """Size of a group or a block."""
        return self.size or (32 if self.pattern == "blocks" else 4)

    @property
    def label(self) -> str:
        """Name of the curve."""
        names = {
            "entries": "weights",
            "groups": f"groups of {self.edge}",
            "blocks": f"blocks {self.edge} × {self.edge}",
        }
        return names[self.pattern]


def run(config: Config) -> None:
    """Carry out the experiment."""
    model, subject = open_model(config)
    schedule = schedule_of(config, subject)
    for level in {schedule.levels[0], schedule.levels[-1]}:
        _check(config, subject, level)
    subject = replace(subject, masks={**_open(config, subject), **subject.masks})
    job = open_pruning(config, model, subject, schedule, out=config.out)
    prune(
        job,
        lambda subject, level, number: mask_event(subject, step_of(config, level), label=config.label),
        out=config.out,
        technique="weights",
        label=config.label,
        now=_now(config, subject),
        fast=(lambda subject: block_sparse(config, job, subject)) if config.pattern == "blocks" else None,
        notes=_notes(config),
    )


def schedule_of(config: Config, subject: Subject) -> Schedule:
    """Read off the command line when to prune and how far.

    Raises:
        InputError: a sparsity of 1 or more, sparsities that do not rise or are reached already, an event after the last
            update.
    """
    for sparsity in config.sparsity:
        check_sparsity(sparsity)
    now = _now(config, subject)
    quick = [sparsity for sparsity in QUICK[config.pattern] if sparsity > now]
    gate = _gate(config) if config.gate or config.schedule == "paper" else None
    paper = Schedule(PAPER_WEIGHTS, PAPER_SPARSITIES)
    found = arrange(config, config.sparsity, now=now, quick=quick, paper=paper, rising=True, gate=gate)
    if found.levels[0] <= now:
        raise InputError(f"--sparsity {found.levels[0]:g}: {now:.3g} of these weights are zero already; ask for more")
    return found


def step_of(config: Config, level: float) -> Weights:
    """Say an event's pruning in the words of `compress.plan`."""
    return Weights(level, pattern=config.pattern, size=config.edge, select=config.scope, biases=config.biases)


def block_sparse(config: Config, job: Job, subject: Subject) -> Fast:
    """Run maps as block-sparse products where that pays on this device, and show that the output is the same.

    Raises:
        RuntimeError: it is not.
    """
    load, seen = Load(config.seconds), subject.seen
    with progress("which maps does it pay for", 1) as tick:
        arch, params, rows = specialise(
            subject.arch, seen, load, sizes=(config.edge,), rounds=config.rounds, dtype=jnp.dtype(config.dtype)
        )
        tick()
    if arch == subject.arch or not _gains((subject.arch, seen), (arch, params), load, config):
        return Fast(subject.arch, seen, rows)
    pair = (subject.arch, seen), (arch, params)
    error = distance(*pair, job.speech.held_out, stats=job.model.stats, dtype=jnp.dtype(config.dtype)).relative[-1]
    if config.dtype == "float32" and not error <= EQUAL:
        raise RuntimeError(f"block-sparse and masked model differ by {error:.1e}, more than {EQUAL:.0e}")
    return Fast(arch, params, rows, error)


def _gains(masked: tuple[Arch, Params], packed: tuple[Arch, Params], load: Load, config: Config) -> bool:
    """Time both whole models in turns: maps that pay alone may not pay where the others leave less of the cache."""
    programs = {
        name: compile_forward(*model, load, dtype=jnp.dtype(config.dtype))
        for name, model in (("masked", masked), ("packed", packed))
    }
    timings = race(programs, rounds=config.rounds)
    return speedup(timings["masked"], timings["packed"]).median > 1


def _check(config: Config, subject: Subject, level: float) -> None:
    """Refuse a sparsity that cannot be, sizes that do not divide among it, before any work."""
    gone = level * config.edge
    if config.pattern == "groups" and (not 0 < round(gone) < config.edge or abs(gone - round(gone)) > 1e-9):
        raise InputError(f"--sparsity {level:g} takes {gone:g} of every {config.edge}; it must be a whole number")
    masks(step_of(config, level), subject.seen, sites_of(subject.arch), before=subject.masks)


def _paths(config: Config, subject: Subject) -> list[str]:
    """List the arrays that are pruned."""
    groups = pruned_arrays(step_of(config, 0.5), subject.params, sites_of(subject.arch))
    return [path for group in groups for path in group]


def _open(config: Config, subject: Subject) -> Masks:
    """Return masks that drop nothing yet: with them from the start, one compiled program serves the whole run."""
    return {path: np.ones(get(subject.params, path).shape, bool) for path in _paths(config, subject)}


def _now(config: Config, subject: Subject) -> float:
    """Return the share of the prunable weights that masks drop already."""
    paths = _paths(config, subject)
    total = sum(get(subject.params, path).size for path in paths)
    gone = sum(int((~np.asarray(subject.masks[path])).sum()) for path in paths if path in subject.masks)
    return gone / max(total, 1)


def _gate(config: Config) -> Gate:
    if config.schedule == "paper":
        return replace(PAPER_WEIGHTS.gate or Gate(), tolerance=config.tolerance, smoothing=config.smoothing)
    lookback = config.lookback or max(round(0.6 * config.every), 1)
    return Gate(smoothing=config.smoothing, lookback=lookback, tolerance=config.tolerance)


def _notes(config: Config) -> list[str]:
    if config.pattern == "blocks":
        return ["blocks: maps run as block-sparse products where a timing on this device showed a gain, else dense"]
    return ["the time is the dense model's: XLA multiplies by zeros all the same; nominal MACs count what is not zero"]


if __name__ == "__main__":
    main(run, Config, __doc__)
