"""Prune feed-forward units ("rows"; what the paper plots as low-rank approximation), step by step, and draw the curve.

    python -m experiments.rows
    python -m experiments.rows --score activation --round 64
    python -m experiments.rows --schedule once --every 0 --budget params=4e6 params=3e6
    python -m experiments.rows --schedule paper --model melhubert-20ms --corpus PREPARED
    python -m experiments.rows --model runs/heads/models/heads-4 --out runs/rows-after-heads
    python -m experiments.rows --model MODEL --audio FOLDER --recover distil

MODEL is any model folder or any checkpoint that docs/families.md lists, compressed before or not; --audio FOLDER is
any speech. What models learn of it is told under --audio, and in a note. A fine-tuned model keeps its CTC layer, and
is asked what it writes of held-out speech that has transcripts.

As experiments.heads, for the hidden units of the feed-forward blocks: a unit is a column of the first map, its bias and
a row of the second. --round keeps multiples that the device likes, and prints what one unit less costs. The fourth
command follows the study's table: 20 events from update 1,000 on, 128 units of every layer each, 3072 to 512.

On 52 minutes of LibriSpeech the first command took 11 minutes on two busy cores, with speech and control shared with
a finished experiments.heads. Expected: half of the rows cost 0.09 nats beside the dense model trained as long, and run
1.2 to 1.3 times as fast; with few rows, what no pruning touches (log-Mel, positions, norms) is much of the time.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.curves.schedule import Schedule
from experiments.curves.units import UnitPruning, run_units
from jaxssl.runtime.cli import main
from jaxssl.training.study_schedules import PAPER_ROWS, PAPER_ROWS_KEPT

PAPER = Schedule(PAPER_ROWS, PAPER_ROWS_KEPT)


@dataclass(frozen=True, kw_only=True)
class Config(UnitPruning):
    """Prune feed-forward units."""

    out: Path = Path("runs/rows")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    run_units(config, "hidden", out=config.out, technique="rows", paper=PAPER)


if __name__ == "__main__":
    main(run, Config, __doc__)
