"""Train the model that comes with the package, in stages, and pack it.

    python -m experiments.teacher --audio TRAIN --valid HELD_OUT
    python -m experiments.teacher --audio TRAIN speech --valid HELD_OUT --targets whisper --out runs/whisper-teacher
    python -m experiments.teacher --audio TRAIN speech --valid HELD_OUT --start melhubert-mini --out runs/own-teacher

TRAIN and HELD_OUT are folders of speech of different speakers, `speech` what `experiments.synthesise` made. By itself
(--targets own): stage 1 predicts k-means clusters of log-Mel, stage 2 goes on with clusters of the middle layer of
stage 1 (HuBERT, section II.A); with --start a third stage goes on from that model with clusters of its own middle
layer. With --targets whisper: one stage predicts clusters of a layer of Whisper tiny.en's encoder (the extra `real`).
That is masked prediction in form, but the clusters come from a model that learned from transcripts, so what is trained
is no purely self-supervised model. At last, in every case, the output layer alone learns clusters of a middle layer of
the finished encoder, so that its targets can be made on any speech from the model itself.

In the stage with Whisper's clusters all frames count (--unmasked 1): where hidden ones alone did, 240 updates from the
package's model taught its probes nothing, and 120 more with all did (docs/results.md). In stages with its own, hidden
frames alone count, for it can already tell the clusters of what it hears.

With 52 minutes of LibriSpeech the first command takes about 45 minutes on two CPU cores; a run that was broken off goes
on. The numbers to expect are in the model card beside the weights.
"""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from compress.errors import InputError
from experiments.reports import trained
from experiments.transcripts.decoder import published
from jaxssl import pretrained
from jaxssl.data import prepared
from jaxssl.data.arrays import read_array
from jaxssl.data.kmeans import assign
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from jaxssl.pretrained import Labeller, Pretrained
from jaxssl.runtime import ranges
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Count, Natural, Positive, There
from jaxssl.training.label_source import layer_source
from jaxssl.training.preparation import Preparation, prepare
from jaxssl.training.pretraining import Pretraining, pretrain

LIMIT = 12e6  # bytes of the packed model
TIES = 0.01  # share of frames so near to two centres that rounding decides, where a device hears several at once


@dataclass(frozen=True)
class Config:
    """Train and pack the package's own model."""

    audio: There[tuple[str, ...]]
    """speech to train on: folders, globs, files, .tsv manifests"""
    valid: There[tuple[str, ...]]
    """speech of other speakers to validate on"""
    targets: Literal["own", "whisper"] = "own"
    """clusters to predict: of log-Mel and then of its own layer, or of Whisper tiny.en's encoder"""
    out: Path = Path("runs/teacher")
    """folder of the runs"""
    pack: Path = Path("runs/teacher/packed")
    """folder of the packed model"""
    first: Count[tuple[int, int]] = (600, 100)
    """updates and clusters of stage 1"""
    second: Count[tuple[int, int]] = (1600, 200)
    """updates and clusters of stage 2"""
    third: Count[tuple[int, int, int]] = (20_000, 500, 3)
    """updates, clusters and layer of the stage of --targets whisper (Whisper's layer) or of --start (its own)"""
    start: str | None = None
    """model that this stage begins from, as melhubert-mini; default: fresh weights"""
    unmasked: Natural[float] = 1.0
    """weight of frames that are not hidden, in the loss of the stage of --targets whisper"""
    learning_rate: Positive[float] = 1e-3
    """highest learning rate of every stage"""
    frames: Count[int] = 300_000
    """frames that k-means is fitted to at most"""
    last: Count[int] = 300
    """updates of the output layer alone"""
    layer: Natural[int] = 4
    """layer that stage 2 and the output layer take their clusters from"""


def run(config: Config) -> None:
    """Train the stages, then the output layer, and pack."""
    ranges.check(config)
    _check_heeded(config)
    encoder = _encoder(config)
    _prepare(config, f"{encoder}:{config.layer}", "own", config.second[1])
    _train(config, head := config.out / "head", "own", config.last, str(encoder))
    pack(head, config.out / "train", labels="own", layer=config.layer, out=config.pack)


def _check_heeded(config: Config) -> None:
    """Refuse settings of stages that are not asked for."""
    whisper = config.targets == "whisper"
    stages = {"unmasked": ("--targets whisper", whisper)}
    stages |= {"third": ("--targets whisper or --start", whisper or config.start is not None)}
    for name, (flags, there) in stages.items():
        if not there and (given := getattr(config, name)) != getattr(Config, name):
            raise InputError(f"--{name} {given}: it is for {flags}; add that, or leave it out")


def _encoder(config: Config) -> Path:
    """Train the stages of the targets that were asked for, and return the last one's run."""
    if config.targets == "whisper":
        return _by_clusters(config, str(published()), name="whisper", unmasked=config.unmasked)
    if config.start:
        return _by_clusters(config, config.start, name="third", unmasked=0.0)
    return _by_itself(config)


def _by_itself(config: Config) -> Path:
    """Train on clusters of log-Mel, then on those of a layer of what came of it."""
    stages = [config.out / name for name in ("stage1", "stage2")]
    _prepare(config, "logmel", "stage1", config.first[1])
    _train(config, stages[0], "stage1", config.first[0], None)
    _prepare(config, f"{stages[0]}:{config.layer}", "stage2", config.second[1])
    _train(config, stages[1], "stage2", config.second[0], str(stages[0]))
    return stages[1]


def _by_clusters(config: Config, source: str, *, name: str, unmasked: float) -> Path:
    """Train on clusters of a layer of a trained model, from --start."""
    steps, clusters, layer = config.third
    _prepare(config, f"{source}:{layer}", name, clusters)
    _train(config, stage := config.out / "stage3", name, steps, config.start, unmasked=unmasked)
    return stage


def pack(model: Path, corpus: Path, *, labels: str, layer: int, out: Path) -> None:
    """Write a model as the package carries it, with the labeller that makes its targets.

    Raises:
        InputError: the labels are not those that `layer` of the model and the centres give, or the files are too large.
    """
    found = load_model(str(model), seed=0)
    centres = read_array(corpus / "labels" / f"{labels}.centres.npy", axes=2)
    _check(str(model), prepared.load(corpus), labels, layer, centres)
    arch, params = checkpoint.load(next((model / "models").iterdir()))
    assert found.stats is not None
    written = pretrained.files(Pretrained(arch, params, found.stats, Labeller(layer, centres)))
    if (total := sum(map(len, written.values()))) > LIMIT:
        raise InputError(f"{model}: {total:,} bytes packed, the package takes {LIMIT:,.0f}; train a smaller one")
    out.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        (out / f".{name}").write_bytes(content)
        os.replace(out / f".{name}", out / name)
    console.print(f"packed {total:,} bytes into {out}", markup=False)


def _check(model: str, corpus: prepared.Prepared, labels: str, layer: int, centres: np.ndarray) -> None:
    again, _ = assign(layer_source(f"{model}:{layer}", corpus).of(0), centres)
    there = corpus.labels(labels)[0]
    wrong = int((again != there).sum()) if len(again) == len(there) else len(there)
    if wrong > TIES * len(there):
        raise InputError(f"labels {labels}: {wrong} of {len(there)} are not what layer {layer} of {model} gives")


def _prepare(config: Config, labels: str, name: str, clusters: int) -> None:
    settings = Preparation(
        audio=config.audio,
        out=config.out / "train",
        labels=(labels,),
        name=name,
        clusters=clusters,
        frames=config.frames,
        valid=0.0,
    )
    prepare(settings)
    prepare(replace(settings, audio=config.valid, out=config.out / "held-out", like=settings.out))


def _train(config: Config, out: Path, labels: str, steps: int, model: str | None, *, unmasked: float = 0.0) -> None:
    settings = Pretraining(
        corpus=config.out / "train",
        valid=config.out / "held-out",
        labels=labels,
        arch="melhubert-mini",
        model=model,
        learn="head" if labels == "own" else "all",
        steps=steps,
        learning_rate=config.learning_rate,
        unmasked=unmasked,
        shortest=3.2,
        valid_every=200,
        save_every=200,
        out=out,
    )
    pretrain(settings, partial(trained.show, out=settings.out))


if __name__ == "__main__":
    main(run, Config, __doc__)
