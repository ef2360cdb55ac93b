"""What is known of a model's layers without training anything: CKA to a teacher, clusters against phones, its own task.

CKA     linear, of features (`analysis.similarity`), to the teacher's layer of equal relative depth, on frames 40 ms
        apart of utterances that test
PNMI    of k-means clusters of each layer and phones (Hsu et al. 2021, section IV-E), the centres fitted to frames of
        utterances that train; few frames make it read high, so what chance gives stands beside it
masked  accuracy and loss of the model's own pre-training task, with its own targets
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from experiments.curves.recovery import own_quality
from experiments.probes.listening import period_ms
from jaxssl.analysis.similarity import cka
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.kmeans import assign, fit
from jaxssl.data.quality import quality
from jaxssl.inference.source import Model
from jaxssl.models.arch import Arch
from jaxssl.runtime.cli import progress
from jaxssl.training.probe import Examples

GRID_MS = 40  # a multiple of the models' usual periods
EDGE = 2  # places before an utterance's end that every front end reaches
MOST = 4000  # frames of CKA
CONSTANT = 1e-6  # a layer whose dimensions all vary less is constant but for rounding


def grid(arch: Arch, lengths: Sequence[int], rows: np.ndarray) -> list[np.ndarray] | None:
    """Choose frames at the same times for every model: their places in each utterance.

    Args:
        arch: of the model.
        lengths: samples of each utterance.
        rows: utterances that are looked at; the others give no frames.

    Returns:
        (frames,) ints for each utterance; None where the model has no frame each 40 ms.
    """
    period = period_ms(arch)
    if period is None or GRID_MS % period:
        return None
    wanted = set(rows.tolist())
    counts = [max(n * 1000 // SAMPLE_RATE // GRID_MS - EDGE, 0) * (i in wanted) for i, n in enumerate(lengths)]
    step = -(-sum(counts) // MOST) or 1
    return [np.arange(0, count, step) * GRID_MS // period for count in counts]


def alignment(layers: np.ndarray, teacher: np.ndarray) -> list[float | None]:
    """Return CKA of each layer to the teacher's of equal relative depth; None where a layer does not vary.

    Args:
        layers: (layers, frames, width).
        teacher: (layers, the same frames, width).
    """
    deepest, other = max(len(layers) - 1, 1), len(teacher) - 1
    pairs = [(x, teacher[round(depth * other / deepest)]) for depth, x in enumerate(layers)]
    return [cka(*pair) if all(np.ptp(side, axis=0).max() > CONSTANT for side in pair) else None for pair in pairs]


def cluster_quality(
    train: Examples, test: Examples, *, clusters: int, seed: int, title: str
) -> list[tuple[float, float] | None]:
    """Return PNMI of each layer's clusters and phones, and what it is by chance; None where there is less to cluster.

    Few frames make PNMI read high: 100 clusters that know nothing of 40 phones have 0.21 on 2,500 frames, 0.06 on
    10,000. So all frames count, those too that the centres were fitted to (without their phones), and chance, the same
    with the phones shuffled, stands beside it.
    """
    phones = np.concatenate([train.labels, test.labels])
    shuffled = np.random.default_rng(seed).permutation(phones)
    found: list[tuple[float, float] | None] = []
    with progress(title, len(train.features)) as tick:
        for known, unknown in zip(train.features, test.features, strict=True):
            try:
                centres = fit(known, clusters=clusters, seed=seed, restarts=1)
                labels = assign(np.concatenate([known, unknown]), centres)[0]
                found.append((quality(phones, labels).pnmi, quality(shuffled, labels).pnmi))
            except InputError:
                found.append(None)
            tick()
    return found


def masked_prediction(model: Model, audio: Path | None, *, out: Path) -> dict[str, Any] | None:
    """Return `loss`, `masked_accuracy` and the targets' `entropy`; None where nobody knows the model's targets.

    Args:
        model: a model; compressed ones are asked for the targets of the model they come from.
        audio: speech; None: the embedded corpus.
        out: an existing folder, for what is prepared meanwhile.
    """
    if model.targets is None or model.arch.head is None:
        return None
    with tempfile.TemporaryDirectory(dir=out) as folder:
        return own_quality(replace(model, name=model.targets), audio, out=Path(folder) / "speech")


def check_clusters(clusters: int) -> None:
    """Refuse a number of clusters that tells nothing.

    Raises:
        InputError: fewer than two.
    """
    if clusters < 2:
        raise InputError(f"--clusters {clusters}: PNMI needs 2 clusters or more; HuBERT's are 100 or 500")
