"""Measure a GPU or a TPU in one call of nine minutes: forward passes and updates in bfloat16, beside PyTorch's.

    python -m benchmarks.accelerator
    python -m benchmarks.accelerator --arch hubert-large --batch 32 --minutes 5
    python -m benchmarks.accelerator --arch melhubert-tiny --seconds 1 --batch 2     # a try on a CPU

For a machine that is lent by the minute: `benchmarks.forward` and then `benchmarks.training`, each model in its turn,
with a share of the time for each; what is not measured by then is left out with a line. Forward passes are timed beside
PyTorch with fused attention, torch.compile by max-autotune, and transformers where it has the model; updates beside
PyTorch's with fused attention and fused Adam. A TPU is measured
alone, and of ours what runs first, for one process has it at a time. Peak memory and the share of the fastest large
product (MFU) stand in the tables, and in what the two write below --out.

Goals: 60 % of that product forwards and 50 % in training on an H100 or H200. A product in 8 bits of floating point is
none that these models have, so no such time is told.
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks import forward, training
from compress.errors import InputError
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files, ranges
from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Count, Positive, Stretch
from jaxssl.training.estimate import named

FORWARD = 0.5  # share of the time for forward passes
RIVALS: tuple[forward.System, ...] = ("pytorch", "compiled", "transformers")


@dataclass(frozen=True)
class Config:
    """Measure an accelerator in one call."""

    arch: tuple[str, ...] = ("hubert-base", "hubert-large")
    """presets"""
    seconds: Stretch[float] = 15.0
    """length of an utterance, in seconds"""
    batch: Count[int] = 16
    """utterances in one pass and in one update; one alone is timed forwards, too"""
    rounds: Count[int] = 5
    """timed turns of each program"""
    minutes: Positive[float] = 8.5
    """within which everything is measured"""
    out: Path = Path("runs/bench-accelerator")
    """folder of the reports"""


def run(config: Config) -> None:
    """Carry both benchmarks out, a part of the time for each."""
    ranges.check(config)
    if not config.arch:
        raise InputError("--arch: name one or more")
    for name in config.arch:
        named(name, PRESETS, "model")
    files.claim(config.out)
    files.own(config.out, config)
    forward.run(_passes(config))
    for name in config.arch:
        training.run(_updates(config, name))
    written = ", ".join(("forward/", *(f"training-{name}/" for name in config.arch)))
    console.print(f"wrote {config.out}: {written}", markup=False)


def _passes(config: Config) -> forward.Config:
    return forward.Config(
        arch=config.arch,
        seconds=(config.seconds,),
        batch=tuple(dict.fromkeys((1, config.batch))),
        system=RIVALS,
        compressed=False,
        dtype=("bfloat16",),
        rounds=config.rounds,
        minutes=FORWARD * config.minutes,
        out=config.out / "forward",
    )


def _updates(config: Config, name: str) -> training.Config:
    return training.Config(
        arch=name,
        seconds=config.seconds,
        batch=config.batch,
        dtype="bfloat16",
        rounds=config.rounds,
        minutes=(1 - FORWARD) * config.minutes / len(config.arch),
        out=config.out / f"training-{name}",
    )


if __name__ == "__main__":
    main(run, Config, __doc__)
