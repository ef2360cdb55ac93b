"""Train a model by masked prediction, from a prepared corpus to a model that loads everywhere.

    python -m experiments.pretrain
    python -m experiments.pretrain --corpus prepared --arch melhubert-mini --steps 2000
    python -m experiments.pretrain --plan --arch hubert-large --chip tpu-v5e

The first command makes the embedded corpus, labels it by k-means and trains a tiny model: about two minutes on two CPU
cores. Expected: the validation loss falls well below the entropy of the labels. The same command goes on where a
broken-off run stopped, to the bit on one device. `tensorboard --logdir runs` shows it. The third prints what memory,
traffic and time many chips would take, by arithmetic; docs/pods.md says how to launch there.
"""

from dataclasses import dataclass
from functools import partial

from experiments.reports import tables, trained
from jaxssl.runtime.cli import main
from jaxssl.training import estimate
from jaxssl.training.pretraining import Pretraining, pretrain


@dataclass(frozen=True, kw_only=True)
class Config(Pretraining):
    """Train a model by masked prediction."""

    plan: bool = False
    """print what memory, traffic and time 8 to 1024 chips would take, and train nothing"""
    chip: str = "tpu-v5e"
    """of --plan"""


def run(config: Config) -> None:
    """Train, and save the model; or print what training on many chips would take."""
    if config.plan:
        rows = estimate.rows(config.arch, chip=config.chip)
        tables.show(f"{config.arch} on {config.chip}, by arithmetic", rows, estimate.COLUMNS)
    else:
        pretrain(config, partial(trained.show, out=config.out))


if __name__ == "__main__":
    main(run, Config, __doc__)
