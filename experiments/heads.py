"""Prune attention heads for real, step by step, and draw the curve.

    python -m experiments.heads
    python -m experiments.heads --score gradient --select model
    python -m experiments.heads --schedule once --every 0 --keep 6 4 2
    python -m experiments.heads --schedule paper --model melhubert-20ms --corpus PREPARED
    python -m experiments.heads --model runs/rows/models/rows-512 --out runs/heads-after-rows
    python -m experiments.heads --model MODEL --audio FOLDER --recover distil

MODEL is any model folder or any checkpoint that docs/families.md lists, compressed before or not; --audio FOLDER is
any speech. What models learn of it is told under --audio, and in a note. A fine-tuned model keeps its CTC layer, and
is asked what it writes of held-out speech that has transcripts.

Between two events the model trains on masked prediction; at an event heads are cut out of q, k, v and the output map,
and Adam's moments with them. Before a cut model is used, its output is compared with the masked model's on speech.
Every point is saved as a model of its own, evaluated, probed, counted and timed in turns with the dense one; a run that
was broken off goes on with the same command, in the point it was in. The fourth command follows the study's table (11
events from update 1,000 on, one head of every layer each; with --score gradient --select model its data-driven form:
the 12 lowest of the model) to the update.

On 52 minutes of LibriSpeech the first command took 17 minutes on two busy CPU cores, preparing the speech and the
control included. Expected: 4 of 8 heads cost 0.01 nats beside the dense model trained as long, and run 1.2 times as
fast; where the time gains less than 0.8 of what MACs promise, the run says what stayed.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.curves.schedule import Schedule
from experiments.curves.units import UnitPruning, run_units
from jaxssl.runtime.cli import main
from jaxssl.training.study_schedules import PAPER_HEADS, PAPER_HEADS_KEPT

PAPER = Schedule(PAPER_HEADS, PAPER_HEADS_KEPT)


@dataclass(frozen=True, kw_only=True)
class Config(UnitPruning):
    """Prune attention heads."""

    out: Path = Path("runs/heads")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    run_units(config, "heads", out=config.out, technique="heads", paper=PAPER)


if __name__ == "__main__":
    main(run, Config, __doc__)
