"""Write a compressed model for where it will run, and show that it still computes the same.

    python -m tools.export MODEL exported
    python -m tools.export runs/heads/models/heads-4 exported --format torch onnx onnx-int8 stablehlo --audio SPEECH
    python -m tools.export models/hubert exported --format huggingface

MODEL is a model folder or the name of a model of the package. OUT gets a folder for each form, and export.json:

    torch             model.py, config.json, model.safetensors: PyTorch without us, any architecture; s3prl's expert.py
    onnx              model.onnx for ONNX Runtime, batch and length free
    onnx-int8         the same, its linear maps in int8: weights by channel, activations quantised as they come
    onnx-stream       model.onnx of a chunk of --chunk ms and a state, which comes out again; stream.json says how late
                      frames are. For models that can stream: attention of a limited context, Mamba one way, …
    stablehlo         model.jax for jax.export, batch and length free, for CPU, CUDA and TPU
    huggingface       for transformers' own class (HubertModel, WavLMModel, …), where it can be the architecture
    huggingface-code  for transformers' AutoModel, trust_remote_code=True: as torch, any architecture of these
    dphubert          model.pth for DPHuBERT's own code, where layers, heads and channels may differ

Every form is read back from disk and run on speech (noise, without --audio) in a batch with padding. It must agree with
our own output to 1e-4 of the largest value (int8's error is told, not limited), or it is not written. Then all forms
are timed in turns with ours on one utterance. A form that cannot be the model is refused in a line; the others are
written, and the exit code says that one is missing.

A CTC layer that stands beside a model (ctc/) goes along: as `logits` in torch and onnx, for AutoModelForCTC and its
tokenizer in both forms of Hugging Face; onnx-stream, stablehlo and dphubert are the encoder alone. transformers'
Whisper hears 30 s whatever it is given, and is compared on that.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jaxssl.runtime import ranges
from jaxssl.runtime.ranges import Count, Positive, Stretch, There

if not __package__:  # started as a file: find this project's packages beside tools/, not inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from compress.errors import InputError
from jaxssl import pretrained
from jaxssl.convert.to_ctc import outputs
from jaxssl.data import audio
from jaxssl.data.logmel import load_stats
from jaxssl.data.padding import pad
from jaxssl.inference.latency import Load, Program, race, speedup
from jaxssl.inference.prepack import prepared
from jaxssl.inference.specialise import dequantized
from jaxssl.models import checkpoint
from jaxssl.models.arch import SAMPLE_RATE
from jaxssl.runtime.cli import command
from tools.pytorch.formats import FORMATS, Given, Run, check_installed, heard

Form = Literal["torch", "onnx", "onnx-int8", "onnx-stream", "stablehlo", "huggingface", "huggingface-code", "dphubert"]
Expected = tuple[jax.Array, jax.Array]  # an encoder's output and the valid frames of each row
ALONE = ("onnx-stream", "stablehlo", "dphubert")  # forms without a CTC layer
TOLERANCE = 1e-4  # of the largest value of the output
COMPARED = 10 * SAMPLE_RATE  # samples of an utterance that outputs are compared on


@dataclass(frozen=True)
class Options:
    """Deploy a model.

    Attributes:
        model: folder of a model, or the name of one of the package.
        out: a new folder.
        format: forms to write.
        audio: speech to compare on; default: noise.
        chunk: of onnx-stream: what it takes at once, in ms.
        seconds: length of the utterance that is timed.
        rounds: timed runs of each form, in turns.
    """

    model: tyro.conf.Positional[str]
    out: tyro.conf.Positional[Path]
    format: tuple[Form, ...] = ("torch", "onnx", "stablehlo")
    audio: There[tuple[Path, ...]] = ()
    chunk: Positive[float] = 320.0
    seconds: Stretch[float] = 5.0
    rounds: Count[int] = 15


def run(options: Options) -> list[dict[str, Any]]:
    """Write every form that can be the model, prove it, time it.

    Returns:
        A row each; those that were not written say why under `refused`.

    Raises:
        InputError: there is no such model, a form's program is not installed, or no form can be the model: it differs,
            or cannot be written.
        OSError: the folder cannot be written; nothing is left behind.
    """
    if options.out.exists():
        raise InputError(f"{options.out}: already there; choose another folder or remove it")
    ranges.check(options)
    given = replace(read(options.model), chunk=options.chunk)
    for name in options.format:
        check_installed(name)
    samples, lengths = _speech(options.audio)
    ours: Run = _ours(given)
    if given.ctc and (without := [name for name in options.format if name in ALONE]):
        print(f"{', '.join(without)}: the encoder alone, without its CTC layer", file=sys.stderr)
    plain = jax.jit(given.forward)(jnp.asarray(samples), jnp.asarray(lengths))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{options.out.name}.", dir=options.out.parent) as staging:
        runs, rows = {"jax": ours}, [{"form": "jax", "error": 0.0, "bytes": _bytes(given)}]
        refused: list[dict[str, Any]] = []
        for name in dict.fromkeys(options.format):
            print(f"writing {name}", file=sys.stderr)
            folder = Path(staging) / "all" / name
            folder.mkdir(parents=True)
            try:
                run = FORMATS[name](given, folder)
                error = _proven(name, run, _expected(name, given, plain, samples, lengths), samples, lengths)
            except InputError as reason:
                print(f"not written: {reason}", file=sys.stderr)
                shutil.rmtree(folder)
                refused.append({"form": name, "refused": str(reason)})
                continue
            runs[name] = run
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            rows.append({"form": name, "error": error, "bytes": size})
        if not rows[1:]:
            raise InputError("; ".join(row["refused"] for row in refused))
        rows = [{**row, **timing} for row, timing in zip(rows, _timed(runs, options), strict=True)] + refused
        told = {"model": options.model, "compared_on": [str(path) for path in options.audio] or "noise", "forms": rows}
        (Path(staging) / "all" / "export.json").write_text(json.dumps(told, indent=1))
        shutil.move(Path(staging) / "all", options.out)
    return rows


def read(place: str) -> Given:
    """Read a model folder, or a model of the package, in float32: what is rounded on the way out is rounded once.

    Raises:
        InputError: there is none.
    """
    if place in pretrained.names() and not Path(place).exists():
        found = pretrained.read(place)
        return Given(found.arch, found.params, found.stats)
    arch, params = dequantized(*checkpoint.load(place))
    path = Path(place) / "stats.npy"
    if arch.front.features and not path.is_file():
        raise InputError(f"{path}: missing; a log-Mel model is deployed with the statistics of its features")
    ctc = {f"ctc/{file.name}": file.read_bytes() for file in sorted((Path(place) / "ctc").glob("*"))}
    return Given(arch, params, load_stats(path) if path.is_file() else None, outputs(ctc) if ctc else None)


def _proven(name: str, run: Run, expected: Expected, samples: np.ndarray, lengths: np.ndarray) -> float:
    """Return how far a form's output is from ours.

    Raises:
        InputError: too far.
    """
    error = difference(run(samples, lengths), *map(np.asarray, expected))
    if not error <= TOLERANCE and name != "onnx-int8":
        raise InputError(f"{name}: differs from ours by {error:.1e}, more than {TOLERANCE:.0e}")
    return error


def difference(found: np.ndarray, expected: np.ndarray, frames: np.ndarray) -> float:
    """Return the largest difference in valid frames, as a share of the largest value there."""
    pairs = [(found[row, :count], expected[row, :count]) for row, count in enumerate(frames.tolist())]
    return max(float(np.abs(a - b).max()) for a, b in pairs) / max(float(np.abs(b).max()) for _, b in pairs)


def _expected(name: str, given: Given, plain: Expected, samples: np.ndarray, lengths: np.ndarray) -> Expected:
    """Return our output and frames of what a form hears, where that is not what `plain` is of."""
    fed = heard(name, given, samples, lengths)
    return plain if fed[0] is samples else given.forward(*map(jnp.asarray, fed))


def _ours(given: Given) -> Run:
    ready = prepared(given.arch, given.params)
    program = jax.jit(replace(given, arch=ready[0], params=ready[1]).forward)
    return lambda samples, lengths: np.asarray(program(samples, lengths.astype(np.int32))[0])


def _speech(places: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    if places:
        signals = [audio.read(file).samples[:COMPARED] for file in audio.find(places)[:4]]
    else:
        rng = np.random.default_rng(0)
        signals = [(0.1 * rng.normal(size=count)).astype(np.float32) for count in (48_000, 33_333)]
    samples, lengths = pad(signals)
    return np.asarray(samples, np.float32), np.asarray(lengths, np.int64)


def _timed(runs: Mapping[str, Run], options: Options) -> list[dict[str, Any]]:
    """Time all forms in turns on one utterance of noise."""
    load = Load(options.seconds)
    samples = (0.1 * np.random.default_rng(1).normal(size=(1, round(options.seconds * SAMPLE_RATE)))).astype(np.float32)
    lengths = np.array([samples.shape[1]])
    programs = {
        name: Program(partial(_once, each, samples, lengths), load, 0.0, 0.0, None) for name, each in runs.items()
    }
    timings = race(programs, rounds=options.rounds, settle=True)
    found = []
    for timing in timings.values():
        ratio = speedup(timings["jax"], timing)
        times = {"milliseconds": 1e3 * timing.median, "real_time_factor": timing.real_time_factor}
        found.append({**times, "speedup": ratio.median, "speedup_low": ratio.low, "speedup_high": ratio.high})
    return found


def _once(run: Run, samples: np.ndarray, lengths: np.ndarray) -> None:
    run(samples, lengths)


def _bytes(given: Given) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(given.params))


def _table(rows: Sequence[Mapping[str, Any]], seconds: float) -> list[str]:
    lines = [f"{'form':<16} {'bytes':>13} {'largest error':>14} {f'ms for {seconds:g} s':>12} {'against jax':>20}"]
    for row in rows:
        ratio = f"{row['speedup']:.2f} ({row['speedup_low']:.2f}–{row['speedup_high']:.2f})"
        lines.append(
            f"{row['form']:<16} {row['bytes']:>13,} {row['error']:>14.1e} {row['milliseconds']:>12.1f} {ratio:>20}"
        )
    return lines


def show(rows: Sequence[Mapping[str, Any]], options: Options) -> None:
    """Print what was written.

    Raises:
        InputError: a form that was asked for was not.
    """
    written = [row for row in rows if "refused" not in row]
    print("\n".join(_table(written, options.seconds)))
    print(f"wrote {options.out}: {', '.join(row['form'] for row in written[1:])}, export.json")
    if refused := [row for row in rows if "refused" in row]:
        raise InputError(
            f"{len(refused)} of {len(rows) - 1} forms not written: {'; '.join(r['refused'] for r in refused)}"
        )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code, see `jaxssl.runtime.cli.command`."""
    return command(lambda options: show(run(options), options), Options, __doc__, args=args, remember=False)


if __name__ == "__main__":
    sys.exit(main())
