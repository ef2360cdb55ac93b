"""Store a model in 16 and in 8 bits a weight, without training: what it forgets, weighs, and whether it is faster.

    python -m experiments.int8
    python -m experiments.int8 --model runs/combine/models/8-rows-128 --out runs/int8-small
    python -m experiments.int8 --model MODEL --corpus PREPARED --seconds 15 --rounds 31

Three points: the model as it is, `bfloat16` (all its weights; they are computed with in --dtype) and `int8` (the dense
maps of the layers: weights with a scale for each output channel, inputs quantised frame by frame, integer products;
front end, projection, positions, norms and output layer stay float32). Where the front end convolves samples there is
a fourth, `int8-convolutions`: its convolutions behind the first are int8, too, window by window. Each is saved as a
model, evaluated on held-out speech, probed, counted and timed in turns with the dense one; bytes are those of the
smallest encoding. The last lines say of each whether its held-out loss can be told from the dense model's, by a paired
bootstrap over utterances, and whether it pays in time: whether three of four runs were faster. Any compressed model can
be given; packed maps are unpacked, and what was zero stays zero.

Expected: 20 to 40 seconds for the default model with --no-probes. Measured on two CPU cores with AVX-512 and VNNI: int8
weighs 6.2 MB of 20.3 (of what stays float32 most is the positional convolution), its held-out loss cannot be told from
the dense model's (+0.0003 nats, −0.0003 to +0.0008), and it is 1.65 times as fast (quartiles 1.58 to 1.68); bfloat16
weighs 10.2 MB, moves the loss by nothing that can be told, and is as fast as float32, which it is computed in. Of a
small waveform model int8 convolutions cost +0.0003 nats (−0.0002 to +0.0008), and made it 2.11 instead of 1.19 times as
fast. Without VNNI or AMX int8 runs by JAX's own products. Other devices have not been measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.quantize import bfloat16
from experiments.curves.curve import Curve
from experiments.curves.job import draw, open_job, open_model
from experiments.curves.points import Bench, Subject
from experiments.curves.schedule import Schedule
from jaxssl.inference.specialise import quantized
from jaxssl.runtime.cli import console, main
from jaxssl.training.calendar import Calendar

ELSEWHERE = "ONNX Runtime has int8 kernels of its own; python -m tools.export MODEL OUT --format onnx-int8 times them"


@dataclass(frozen=True, kw_only=True)
class Config(Curve):
    """Store a model in fewer bits; nothing is trained, so that settings of training only say how it is evaluated."""

    out: Path = Path("runs/int8")
    """folder of the run"""


def run(config: Config) -> None:
    """Carry out the experiment."""
    model, subject = open_model(config)
    bits = (16.0, 8.0, 8.0) if model.arch.front.convolutions() else (16.0, 8.0)
    schedule = Schedule(Calendar((), 0), bits)
    training = config.settings(0, paper=False, log_every=1)
    job = open_job(config, model, subject, schedule, training, out=config.out)
    dense, told = job.subject, list[str]()  # with its output layer, where one was fitted
    small = {
        "bfloat16": Subject(dense.arch, bfloat16(dense.seen), {}),
        "int8": Subject(*quantized(dense.arch, dense.seen), {}),
    }
    if dense.arch.front.convolutions():
        small["int8-convolutions"] = Subject(*quantized(dense.arch, dense.seen, convolutions=True), {})

    def points(bench: Bench) -> None:
        for (name, each), bits in zip(small.items(), schedule.levels, strict=True):
            bench.point(name, each, level=bits, step=0, told={})
        told.extend(line for row in bench.rows()[1:] for line in verdict(bench, row))

    draw(job, points, ends=(), out=config.out, technique="int8", label="fewer bits", now=32, notes=told)
    for line in told:
        console.print(line, markup=False)


def verdict(bench: Bench, row: Mapping[str, Any]) -> list[str]:
    """Say of a point what it costs in quality, paired by utterance, and whether it pays in time."""
    name, dense, mine = row["name"], bench.heard("dense"), bench.heard(row["name"])
    above = mine.above(dense)
    lost, low, high = (above[f"loss_difference{end}"] for end in ("", "_low", "_high"))
    how = "is worse than" if low > 0 else "is better than" if high < 0 else "cannot be told from"
    more = f"{lost:+.4f} nats of held-out loss ({low:+.4f} to {high:+.4f})"
    ratio = f"{row['speedup']:.2f} × as fast (quartiles {row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
    lines = [f"{name}: {how} the dense model, {more}"]
    pays = "pays in time" if row["speedup_low"] > 1 else "does not pay in time, only in bytes,"
    lines.append(f"{name}: {pays} through XLA on this device: {ratio} as the dense model")
    return [*lines, f"{name}: {ELSEWHERE}"] if name == "int8" else lines


if __name__ == "__main__":
    main(run, Config, __doc__)
