"""Factorise a model's dense maps, run them as two thin products, and see what it costs and saves.

    python -m experiments.lowrank --rank 128
    python -m experiments.lowrank --rank 64 --steps 50
    python -m experiments.lowrank --rank 64 128 256 --model MODEL --audio FOLDER

MODEL is a model folder, a run folder, a preset (random weights), or a checkpoint of fairseq, Hugging Face, s3prl or the
MelHuBERT study; without it, the trained MelHuBERT that comes with the package is used, and the embedded corpus as
speech. With --steps, each factorised model is trained on, and so is the dense one, as a control; held-out loss and
masked accuracy are told before and after.

The first command takes about a minute on two CPU cores, the second about four. Expected: the activation-aware error is
below that of the plain SVD at every rank, training recovers most of what factorising lost (errors of the output are
told before it), and the timing follows the MACs only in part (attention itself and the positional convolution stay).
"""

import dataclasses
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from compress.address import Matrix
from compress.errors import InputError
from compress.lowrank import Decomposition, decompose, factorise, fit
from compress.plan import match_paths
from experiments.curves.measures import Row
from experiments.curves.recovery import open_recovery
from experiments.curves.targets import Ranks, Target, check, parse, ranks_for
from experiments.reports import pictures, tables
from jaxssl.analysis.calibration import distance, moments
from jaxssl.data.logmel import stats_bytes
from jaxssl.inference.latency import Load, Timing, compile_forward, machine, race, speedup
from jaxssl.inference.source import Model, Speech, in_float, load_model, load_speech, with_stats
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import Arch
from jaxssl.models.describe import describe
from jaxssl.models.model import Params
from jaxssl.models.sites import matrices
from jaxssl.runtime import files
from jaxssl.runtime.cli import console, follow, main, progress

Method = Literal["svd", "activation"]


@dataclass(frozen=True)
class Config:
    """Factorise a model's dense maps and measure the result beside the dense model."""

    rank: tuple[int, ...] = ()
    """ranks to try, one model each; 128 when neither --energy nor --budget is given"""
    energy: tuple[float, ...] = ()
    """shares of each map's squared singular values to keep, in (0, 1]"""
    budget: tuple[str, ...] = ()
    """whole-model budgets shared over the maps: params=40e6, or macs=3e9 (per second of speech)"""
    steps: int = 0
    """updates of recovery training after factorising"""
    corpus: Path | None = None
    """prepared speech to recover on; default: the embedded corpus, with the model's own targets"""
    labels: str | None = None
    """name of the labels in --corpus, where there are several"""
    batch: int = 8
    """utterances of a batch in the recovery"""
    learning_rate: float = 3e-4
    """highest learning rate of the recovery"""
    model: str | None = None
    """model folder, run folder, preset or checkpoint; default: the trained model that comes with the package"""
    where: str = "layers/*"
    """glob on the maps to factorise, as layers/*/ffn/*; commas separate alternatives"""
    method: tuple[Method, ...] = ("svd", "activation")
    """svd: least error of the weights; activation: least error of the outputs on calibration speech"""
    audio: tuple[str, ...] = ()
    """speech for calibration and for the output error: files, folders, .tsv manifests; default: embedded corpus"""
    limit: int = 20
    """utterances used of --audio, spread evenly over it"""
    out: Path = Path("runs/lowrank")
    """folder for table, CSV, plot, report.json and the models"""
    seed: int = 0
    """of random weights, and of the recovery's order, crops, masks and dropout"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation, in the timing and in the output error"""
    seconds: float = 5.0
    """length of the utterance that is timed, in seconds"""
    rounds: int = 11
    """timed runs of each model"""


@dataclass(frozen=True)
class Variant:
    """One way to factorise the model."""

    name: str
    method: Method
    ranks: Ranks


def run(config: Config) -> None:
    """Carry out the experiment and write its report."""
    if not config.method:
        raise InputError("--method: name svd, activation or both")
    targets = parse(config.rank, config.energy, config.budget)
    files.claim(config.out)
    if config.steps < 0:
        raise InputError(f"--steps {config.steps}: 0 trains nothing, more recovers")
    model = in_float(load_model(config.model, seed=config.seed))
    chosen = _choose(model.arch, config.where)
    check(targets, chosen)
    speech = load_speech(config.audio, limit=config.limit)
    model = with_stats(model, speech)
    notes = [*model.notes, *speech.notes]
    for note in notes:
        console.print(f"note: {note}", markup=False)

    found, seen = analyse(model, chosen, speech, config.method)
    variants = [variant for method in config.method for variant in _plan(targets, method, model.arch, found[method])]
    maps = [row for variant in variants for row in map_rows(model.params, variant, found[variant.method], seen)]
    tables.show("every map", maps, MAP_COLUMNS)

    built = {v.name: _build(model, v, found[v.method]) for v in variants}
    trained, quality = _recover(config, model, built) if config.steps else (built, {})
    files.own(config.out, config)
    timings = time_side_by_side({"dense": (model.arch, model.params), **built}, config)
    rows = [_row("dense", "dense", model, (model.arch, model.params), timings, config, speech)]
    for variant in variants:
        rows.append(_row(variant.name, variant.method, model, built[variant.name], timings, config, speech))
    for row in rows:
        row |= quality.get(row["name"], {})
        row["bytes"] = _save(config, row["name"], model, trained.get(row["name"], (model.arch, model.params)))
    tables.show(f"{model.name}, {config.dtype}, {config.seconds:g} s × 1", rows, COLUMNS)
    if quality:
        tables.show(f"held-out speech, {config.steps} updates of training; dense: the control", rows, QUALITY)
    tables.show("relative error by layer (0: input of the first)", *_by_layer(rows, "layer_errors"))
    tables.show("cosine by layer", *_by_layer(rows, "layer_cosines"))
    _write(config, model, notes, maps, rows)


MAP_COLUMNS = {
    "variant": "variant",
    "path": "map",
    "shape": "shape",
    "rank": "rank",
    "energy:.3f": "energy kept",
    "error:.3f": "weight error",
    "speech_error:.3f": "speech error",
}
COLUMNS = {
    "name": "model",
    "parameters:,": "parameters",
    "macs_g_per_s:.3f": "MACs G/s",
    "bytes:,": "bytes on disk",
    "real_time_factor:.4f": "real-time factor",
    "speedup:.2f": "speed-up",
    "speedup_low:.2f": "quartile 1",
    "speedup_high:.2f": "quartile 3",
    "output_error:.4f": "output error",
    "output_cosine:.4f": "cosine",
}


QUALITY = {
    "name": "model",
    "loss_before:.3f": "loss before training",
    "valid_loss:.3f": "after",
    "accuracy_before:.1%": "masked accuracy before training",
    "masked_accuracy:.1%": "after",
}


def analyse(
    model: Model, chosen: Sequence[Matrix], speech: Speech, methods: Sequence[Method]
) -> tuple[dict[Method, dict[str, Decomposition]], dict[str, np.ndarray]]:
    """Listen to the calibration speech, then decompose every chosen map once per method.

    Returns:
        Decompositions by method and path, and the inputs' second moments by path.
    """
    with progress("listening", len(speech.calibration)) as tick:
        seen = moments(model.arch, model.params, speech.calibration, stats=model.stats, tick=tick)
    found: dict[Method, dict[str, Decomposition]] = {}
    for method in methods:
        bar = follow(chosen, f"decomposing ({method})", total=len(chosen))
        found[method] = {
            m.path: decompose(model.params, m, seen[m.path] if method == "activation" else None) for m in bar
        }
    return found, seen


def map_rows(
    params: Params, variant: Variant, found: Mapping[str, Decomposition], seen: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Describe what a variant does to each map, one row each; a map that would grow is left as it is."""
    rows = []
    for path, rank in variant.ranks.items():
        matrix = found[path].matrix
        row = {"variant": variant.name, "path": path, "shape": f"{matrix.fan_in} × {matrix.fan_out}"}
        if rank is None:
            rows.append({**row, "rank": matrix.rank or "dense", "energy": 1.0, "error": 0.0, "speech_error": 0.0})
        else:
            rows.append({**row, "rank": rank, **vars(fit(params, found[path], rank, seen.get(path)))})
    return rows


def time_side_by_side(models: Mapping[str, tuple[Arch, Params]], config: Config) -> dict[str, Timing]:
    """Time each distinct shape once, all in turns; models of one shape share a timing."""
    load, distinct = Load(config.seconds), {arch: (name, params) for name, (arch, params) in models.items()}
    programs = {
        arch: compile_forward(arch, params, load, dtype=jnp.dtype(config.dtype))
        for arch, (_, params) in follow(distinct.items(), "compiling", total=len(distinct))
    }
    with progress("timing side by side", config.rounds + 2) as tick:
        timings = race({distinct[a][0]: p for a, p in programs.items()}, rounds=config.rounds, tick=tick)
    return {name: timings[distinct[arch][0]] for name, (arch, _) in models.items()}


def _choose(arch: Arch, where: str) -> tuple[Matrix, ...]:
    paths = match_paths(where, matrices(arch))
    return tuple(matrix for matrix in matrices(arch) if matrix.path in paths)


def _plan(targets: Sequence[Target], method: Method, arch: Arch, found: Mapping[str, Decomposition]) -> list[Variant]:
    return [Variant(f"{target}, {method}", method, ranks_for(target, arch, found)) for target in targets]


def _build(model: Model, variant: Variant, found: Mapping[str, Decomposition]) -> tuple[Arch, Params]:
    params = model.params
    for path, rank in variant.ranks.items():
        if rank is not None:
            params = factorise(params, found[path], rank)
    return describe(model.arch, params), params


def _recover(
    config: Config, model: Model, built: Mapping[str, tuple[Arch, Params]]
) -> tuple[dict[str, tuple[Arch, Params]], dict[str, dict[str, float]]]:
    """Train each factorised model on; return them, and the quality of all before and after.

    The dense model is trained as long, as a control: it has not heard this speech either.
    """
    with tempfile.TemporaryDirectory(dir=config.out) as runs:
        recovery = open_recovery(
            model,
            corpus=config.corpus,
            labels=config.labels,
            steps=config.steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            seed=config.seed,
            out=Path(runs),
        )
        recovered, quality = {}, {}
        for name, (arch, params) in {"dense": (model.arch, model.params), **built}.items():
            before = recovery.quality(arch, params)
            console.print(f"training on: {name}", markup=False)
            recovered[name] = arch, recovery(name, arch, params)
            after = recovery.quality(*recovered[name])
            quality[name] = {"loss_before": before["valid_loss"], "accuracy_before": before["masked_accuracy"], **after}
        del recovered["dense"]
    return recovered, quality


def _row(
    name: str,
    method: str,
    model: Model,
    built: tuple[Arch, Params],
    timings: Mapping[str, Timing],
    config: Config,
    speech: Speech,
) -> dict[str, Any]:
    arch, params = built
    ratio = speedup(timings["dense"], timings[name])
    with progress(f"error of {name}", len(speech.held_out)) as tick:
        far = distance(
            (model.arch, model.params),
            built,
            speech.held_out,
            stats=model.stats,
            dtype=jnp.dtype(config.dtype),
            tick=tick,
        )
    parts = cost.macs_per_second(arch)
    return {
        "name": name,
        "method": method,
        "parameters": cost.parameters(arch),
        "nonzero": cost.nonzero(params),
        "macs_g_per_s": parts.total / 1e9,
        "real_time_factor": timings[name].real_time_factor,
        "median_s": timings[name].median,
        "p90_s": timings[name].p90,
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "output_error": far.relative[-1],
        "output_cosine": far.cosine[-1],
        "layer_errors": far.relative,
        "layer_cosines": far.cosine,
        "macs_by_part": dataclasses.asdict(parts),
    }


def _by_layer(rows: Sequence[Row], key: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Turn per-layer lists into table rows, and the columns to show them by."""
    flat = [{"name": row["name"], **{str(i): x for i, x in enumerate(row[key])}} for row in rows[1:]]
    return flat, {"name": "model", **{f"{i}:.3f": str(i) for i in range(len(rows[0][key]))}}


def _save(config: Config, name: str, model: Model, built: tuple[Arch, Params]) -> int:
    """Save a variant under the run, or the dense model just to weigh it; return its bytes on disk."""
    if name == "dense":
        with tempfile.TemporaryDirectory(dir=config.out) as temporary:
            checkpoint.save(Path(temporary) / "dense", *built)
            return checkpoint.size_on_disk(Path(temporary) / "dense")
    folder = config.out / "models" / name.replace(", ", "-").replace(" ", "-")
    origin = {"made_from": model.name, "by": name, "where": config.where, "command": shlex.join(sys.argv)}
    origin |= {"targets": model.targets} if model.targets else {}
    extra = {} if model.stats is None else {"stats.npy": stats_bytes(model.stats)}
    checkpoint.save(folder, *built, provenance=origin, extra=extra, overwrite=True)
    return checkpoint.size_on_disk(folder)


def _write(config: Config, model: Model, notes: Sequence[str], maps: Sequence[Row], rows: Sequence[Row]) -> None:
    out = config.out
    files.write_csv(out / "maps.csv", maps)
    files.write_csv(out / "tradeoff.csv", rows)
    caption = notes[0] if not model.trained else f"{config.dtype}, {config.seconds:g} s × 1"
    runs: dict[str, list[Row]] = {
        method: [rows[0], *(row for row in rows[1:] if row["method"] == method)] for method in config.method
    }
    quality = [key for key in ("valid_loss", "output_error") if key in rows[-1]]
    title = f"Low rank: {model.name}"
    pictures.draw_curves(out / "tradeoff.png", runs, quality=quality, before=True, title=title, caption=caption)
    values = {"notes": notes, "model": model.name, "machine": machine(jnp.dtype(config.dtype))}
    files.write_json(out / "report.json", {**values, "models": rows, "maps": maps})
    console.print(f"wrote {out}: report.json, tradeoff.csv, maps.csv, tradeoff.png, models/", markup=False)


if __name__ == "__main__":
    main(run, Config, __doc__)
