"""Train a model by masked prediction, from a prepared corpus to a model that loads everywhere.

    python -m experiments.pretrain
    python -m experiments.pretrain --corpus prepared --arch melhubert-mini --steps 2000
    python -m experiments.pretrain --plan --arch hubert-large --chip tpu-v5e

The first command makes the embedded corpus, labels it by k-means and trains a tiny model: about two minutes on two CPU
cores. Expected: the validation loss falls well below the entropy of the labels. The same command goes on where a
broken-off run stopped, to the bit on one device. `tensorboard --logdir runs` shows it. The third prints what memory,
traffic and time many chips would take, by arithmetic; docs/pods.md says how to launch there.
"""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from compress.errors import InputError
from experiments import prepare
from experiments.reports import pictures, tables
from jaxssl.data.logmel import stats_bytes
from jaxssl.inference.source import in_float, load_model
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import Arch, CosineHead, LogMel
from jaxssl.models.model import Params, init
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files
from jaxssl.runtime.cli import Preempted, console, main
from jaxssl.training import distributed, estimate
from jaxssl.training.corpus import Data, load_data
from jaxssl.training.fit import Fitted, fit
from jaxssl.training.settings import Training, claim


@dataclass(frozen=True, kw_only=True)
class Config(Training):
    """Train a model by masked prediction."""

    corpus: Path | None = None
    """folder of experiments.prepare, or a .csv of the MelHuBERT study; default: the embedded corpus, prepared inside
    --out"""
    labels: str | None = None
    """name of the labels, where the corpus has several"""
    valid: Path | None = None
    """another such folder or .csv, of held-out speech; default: the corpus's own validation part"""
    arch: str = "melhubert-tiny"
    """preset: melhubert-tiny, melhubert-mini, melhubert-20ms, hubert-base, …"""
    model: str | None = None
    """model to go on training instead of fresh weights; its output layer is made new if the labels are others"""
    learn: Literal["all", "head"] = "all"
    """head: the output layer only; the rest of --model stays as it is"""
    out: Path = Path("runs/pretrain")
    """folder of the run"""
    plan: bool = False
    """print what memory, traffic and time 8 to 1024 chips would take, and train nothing"""
    chip: str = "tpu-v5e"
    """of --plan"""


SUMMARY = {
    "part": "part",
    "loss:.3f": "loss",
    "entropy:.3f": "entropy of labels",
    "masked_accuracy:.1%": "masked accuracy",
    "unmasked_accuracy:.1%": "unmasked accuracy",
}


def run(config: Config) -> None:
    """Train, and save the model."""
    if config.plan:
        rows = estimate.rows(config.arch, chip=config.chip)
        tables.show(f"{config.arch} on {config.chip}, by arithmetic", rows, estimate.COLUMNS)
        return
    distributed.initialize(config.coordinator, config.processes, config.process, timeout_s=config.timeout)
    stopped: Preempted | None = None
    with distributed.guard():
        try:
            _train(config)
        except Preempted as told:  # no failure that the guard should tell: all processes saved and stop
            stopped = told
    if stopped is not None:
        raise stopped


def _train(config: Config) -> None:
    claim(config.out, config)
    corpus = config.corpus or _embedded(config.out / "prepared")
    arch, params, stats = _model(config)
    data = load_data(corpus, arch.front, labels=config.labels, valid=config.valid, stats=stats)
    arch, params = _fitting(arch, params, data, seed=config.seed)
    console.print(f"{config.model or config.arch}: {cost.parameters(arch):,} parameters", markup=False)
    if config.learn == "head":
        body = {name: part for name, part in params.items() if name != "head"}
        fitted = fit(config.out, arch, {"head": params["head"]}, data, config, view=_join, held=body, passes=1.0)
    else:
        fitted = fit(config.out, arch, params, data, config)
    if distributed.is_main():
        _finish(config, arch, data, fitted)


def _join(learned: Params, held: Params) -> Params:
    return {**held, **learned}


def _embedded(folder: Path) -> Path:
    if distributed.is_main():
        prepare.run(prepare.Config(out=folder))
    distributed.barrier("corpus prepared")
    return folder


def _model(config: Config) -> tuple[Arch, Params | None, Any]:
    if config.model is not None:
        found = in_float(load_model(config.model, seed=config.seed))
        return found.arch, found.params, found.stats
    return estimate.named(config.arch, PRESETS, "model")(), None, None


def _fitting(arch: Arch, params: Params | None, data: Data, *, seed: int) -> tuple[Arch, Params]:
    """Give the model an output layer for these labels; weights that it has already stay."""
    head = arch.head
    if head is None:
        raise InputError("this model has no output layer to train with; take one that was pre-trained, or a preset")
    if isinstance(head, CosineHead):
        wanted: Arch = dataclasses.replace(arch, head=dataclasses.replace(head, codewords=(data.clusters,)))
    else:
        wanted = dataclasses.replace(arch, head=dataclasses.replace(head, clusters=data.clusters))
    if params is not None and wanted == arch:
        return arch, params
    fresh = init(wanted, jax.random.key(seed))
    return wanted, fresh if params is None else {**params, "head": fresh["head"]}


def _finish(config: Config, arch: Arch, data: Data, fitted: Fitted) -> None:
    last: dict[str, Any] = next((row for row in reversed(fitted.rows) if row["part"] == "train"), {})
    rows = [{**last, "part": "train"}, {**fitted.valid, "part": "held out"}]
    rows = [{**row, "entropy": data.entropy} for row in rows]
    tables.show("after the last update", rows, SUMMARY)
    extra = {"stats.npy": stats_bytes(data.stats)} if isinstance(arch.front, LogMel) and data.stats else {}
    origin = {"made_by": shlex.join(["python", "-m", "experiments.pretrain", *sys.argv[1:]]), **fitted.valid}
    checkpoint.save(config.out / "models/final", arch, fitted.params, provenance=origin, extra=extra, overwrite=True)
    pictures.draw_training(config.out / "training.png", fitted.rows, entropy=data.entropy, title=str(config.out))
    files.write_json(config.out / "report.json", {"entropy": data.entropy, "valid": fitted.valid})
    console.print(
        f"wrote {config.out}: models/final, report.json, training.png, metrics.jsonl, tensorboard/", markup=False
    )


if __name__ == "__main__":
    main(run, Config, __doc__)
