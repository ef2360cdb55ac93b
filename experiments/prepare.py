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
same command, with any number of processes, then makes what is missing.

An hour of speech takes about 4 s for features and 6 s for 100 clusters each 20 ms on two CPU cores, and 29 MB on disk.
Expected: 251 utterances of LibriSpeech train-clean-100 (52 minutes) have an inertia of about 10.7 for 80 numbers a
frame; the embedded corpus (20 minutes) has 10.4, a phone purity of 0.49 and a PNMI of 0.49.
"""

from jaxssl.runtime.cli import main
from jaxssl.training.preparation import Preparation, run

if __name__ == "__main__":
    main(run, Preparation, __doc__)
