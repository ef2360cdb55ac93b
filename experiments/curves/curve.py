"""Settings that every experiment shares which draws a curve of compressed models: model, speech, training, timing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from compress.errors import InputError
from experiments.curves.recovery import Asked
from experiments.curves.schedule import Schedule, Timing
from jaxssl import pretrained
from jaxssl.runtime.cli import On
from jaxssl.runtime.ranges import Count, Crop, Length, Positive, Seconds, Seed, Several, Share, There
from jaxssl.training.settings import Training

Recovery = Literal["predict", "distil", "ctc"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Settings of a curve."""

    model: str = pretrained.DEFAULT
    """model folder, run folder, preset, or checkpoint of another program, compressed in whatever way; or a trained
    model that comes with the package"""
    audio: There[tuple[str, ...]] = ()
    """speech to train on; its targets are those that the model names, else the model's own codewords, where it has an
    output layer, else --clusters; to distil needs none, and ctc takes transcripts; default: the embedded corpus"""
    held_out: There[tuple[str, ...]] = ()
    """speech of others to validate on, labelled likewise; default: a part of --audio"""
    corpus: There[Path | None] = None
    """folder of experiments.prepare, instead of --audio"""
    clusters: Several[int | None] = None
    """clusters of its middle layer that a model without targets and output layer is trained on; one output layer is
    fitted to them in seconds, for the dense model and the compressed, so that losses compare; default: 100"""
    labels: str | None = None
    """name of the labels in --corpus, where there are several"""
    valid: There[Path | None] = None
    """another such folder, of held-out speech; default: a part of the training corpus"""
    batch: Count[int | None] = None
    """utterances of a batch; default: 8, with --schedule paper 4"""
    crop: Crop[float | None] = None
    """longest stretch of an utterance, in seconds; default: 3, with --schedule paper 15"""
    shortest: Length[float | None] = None
    """utterances below that are left out, in seconds; default: 1, with --schedule paper 3.2"""
    learning_rate: Positive[float | None] = None
    """of Adam, constant; default: 2e-4, with --schedule paper 1e-5"""
    control: On = True
    """train the dense model as long, to compare with"""
    probes: On = True
    """probe every point for phones and speakers (embedded corpus)"""
    speakers: There[Path | None] = None
    """folder of speech with known speakers, ten utterances of each, for the probe"""
    save_every: Count[int] = 100
    """updates between two checkpoints, besides those at events"""
    stack: Literal["unroll", "scan", "remat"] = "scan"
    """how equal layers run in training, see experiments.pretrain"""
    seconds: Seconds[float] = 5.0
    """length of the utterance that is timed, in seconds"""
    rounds: Count[int] = 15
    """timed runs of each model, in turns with the dense one"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation, in training and timing"""
    seed: Seed[int] = 0
    """of order, crops, masks, dropout and random weights"""

    @property
    def asked(self) -> Asked:
        """The speech to train on."""
        return Asked(self.corpus, self.labels, self.valid, self.audio, self.held_out, self.clusters)

    def settings(self, last: int, *, paper: bool, log_every: int) -> Training:
        """Return how models are trained: up to update `last`; `paper` changes what was left open to the study's."""
        steps = max(last, 1)
        return Training(
            steps=steps,
            batch=self.batch or (4 if paper else 8),
            crop=self.crop or (15.0 if paper else 3.0),
            shortest=(3.2 if paper else 1.0) if self.shortest is None else self.shortest,
            learning_rate=self.learning_rate or (1e-5 if paper else 2e-4),
            warmup=0.0,
            decay="constant",
            buckets=8 if paper else 1,
            dtype=self.dtype,
            stack=self.stack,
            seed=self.seed,
            valid_every=steps + 1,  # points are what is validated
            save_every=self.save_every,
            log_every=log_every,
            spikes="skip",  # to go back would be to go back behind events, too
        )


HEEDED = {"teacher": ("distil",), "temperature": ("distil", "ctc"), "alpha": ("distil", "ctc"), "masked": ("distil",)}


def check_heeded(config: Curve, hows: Iterable[str], *, flag: str, by: Mapping[str, Sequence[str]] = HEEDED) -> None:
    """Refuse settings that none of the chosen ways to learn looks at.

    Args:
        config: the settings.
        hows: the chosen ways.
        flag: that chooses them.
        by: the ways that look at a setting, by its name; settings that the command does not have count as not given.

    Raises:
        InputError: a setting is given in vain.
    """
    chosen, given = set(hows), {field.name: field.default for field in fields(config)}
    for name, ways in by.items():
        if name in given and getattr(config, name) != given[name] and not chosen & set(ways):
            found, no = getattr(config, name), "no-" * (getattr(config, name) is False)
            words = [] if isinstance(found, bool) else found if isinstance(found, tuple) else [found]
            value = "".join(f" {word}" for word in words)
            raise InputError(
                f"--{no}{name.replace('_', '-')}{value}: it is for {flag} {' and '.join(ways)}, and "
                f"{', '.join(sorted(chosen))} is chosen; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class Pruning(Timing, Curve):
    """Settings that weights, heads and rows share."""

    reset: bool = False
    """forget Adam's moments at each event, as the study does for heads and rows; else they are cut with the weights"""
    recover: Recovery = "predict"
    """what models train on between events: masked prediction; the teacher's clusters (experiments.distill); or, of a
    model with a CTC layer, what is said, and what that layer makes of the dense model"""
    teacher: str | None = None
    """of --recover distil: a model, named like --model; default: the model before it is pruned"""
    temperature: Positive[float] = 1.0
    """of --recover distil and ctc: divides the logits of teacher and student"""
    alpha: Share[float] = 1.0
    """of --recover distil: share of the teacher in the loss, the rest is the clusters' cross-entropy; of ctc: weight of
    the teacher beside the CTC loss"""
    masked: bool = False
    """of --recover distil: both hear masked speech and masked frames count; default: all of it, and every frame"""

    def training(self, schedule: Schedule) -> Training:
        """Return the settings of the run's updates."""
        paper = self.schedule == "paper"
        return self.settings(schedule.calendar.last, paper=paper, log_every=1000 if paper else max(self.every // 2, 1))
