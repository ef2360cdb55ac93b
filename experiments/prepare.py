"""Prepare a corpus for training: manifest, log-Mel features, their statistics, and k-means labels with their quality.

    python -m experiments.prepare --audio FOLDER --out prepared
    python -m experiments.prepare --audio FOLDER --out prepared --labels mfcc --clusters 100
    python -m experiments.prepare --audio FOLDER --out prepared --labels runs/stage1:8 --clusters 512
    python -m experiments.prepare --audio OTHER --out held-out --like prepared
    python -m experiments.prepare --audio FOLDER --out SHARED --coordinator HOST0:8476 --processes N --process I

FOLDER is LibriSpeech, any folder or glob of audio, or a manifest.tsv; without --audio the embedded corpus is made and
used. The third command labels by a layer of a model (0 is the input of the first). The fourth labels another corpus
with the centres and statistics of the first, as held-out speech needs. A run that was broken off goes on where it
stopped; labels that are there already are kept.

The last command runs on each of N hosts, I from 0 to N - 1, which see one folder SHARED; TPU pods and SLURM need no
more than the first, see docs/pods.md. Each host takes shards of `--shard` minutes of speech. The files are the same to
the byte for any number of processes. When a process dies, the others end with code 3 and one line that names it; the
same command, with any number of processes, then makes what is missing. `--plan` tells what time and bytes it will take.

An hour of speech takes about 4 s for features and 6 s for 100 clusters each 20 ms on two CPU cores, and 29 MB on disk;
the last command divides the first, and of the second all but k-means (up to a minute or two for wide layers), by N.
Expected: 251 utterances of LibriSpeech train-clean-100 (52 minutes) have an inertia of about 10.7 for 80 numbers a
frame; the embedded corpus (20 minutes) has 10.4, a phone purity of 0.49 and a PNMI of 0.49.
"""

from dataclasses import dataclass

from experiments.reports import tables
from jaxssl.runtime.cli import console, main
from jaxssl.training import preparation, preparation_rates
from jaxssl.training.preparation import Preparation


@dataclass(frozen=True)
class Config(Preparation):
    """Prepare a corpus for training."""

    plan: bool = False
    """print what time and bytes this corpus, 960 and 60,000 hours would take on --processes, from rates measured here
    in some seconds, and prepare nothing"""


def run(config: Config) -> None:
    """Prepare a corpus; or print what it would take."""
    if not config.plan:
        preparation.run(config)
        return
    preparation.check(config)
    rates = preparation_rates.measure(config)
    many = f"{config.processes or 1} process{'es' * ((config.processes or 1) > 1)}"
    tables.show(
        f"{many}, each as fast as this one", preparation_rates.rows(rates, config), preparation_rates.columns(rates)
    )
    console.print(preparation_rates.ABOUT, markup=False)


if __name__ == "__main__":
    main(run, Config, __doc__)
