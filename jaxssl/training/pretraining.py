"""Pre-training by masked prediction: from a prepared corpus to a model folder, alone or in many processes."""

import dataclasses
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax

from compress.errors import InputError
from jaxssl.data.logmel import stats_bytes
from jaxssl.inference.source import in_float, load_model
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import Arch, CosineHead
from jaxssl.models.model import Params, init
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime import files
from jaxssl.runtime.cli import Preempted, console
from jaxssl.runtime.ranges import Natural, There
from jaxssl.storage import fetching, places
from jaxssl.training import distributed, estimate
from jaxssl.training.corpus import Data, check_batches, load_data
from jaxssl.training.fit import Fitted, fit
from jaxssl.training.preparation import Preparation, prepare
from jaxssl.training.settings import Training, claim, own


@dataclass(frozen=True, kw_only=True)
class Pretraining(Training):
    """Train a model by masked prediction."""

    corpus: There[Path | None] = None
    """folder of experiments.prepare, or a .csv of the MelHuBERT study; default: the embedded corpus, prepared inside
    --out"""
    labels: str | None = None
    """name of the labels, where the corpus has several"""
    valid: There[Path | None] = None
    """another such folder or .csv, of held-out speech; default: the corpus's own validation part"""
    arch: str = "melhubert-tiny"
    """preset: melhubert-tiny, melhubert-mini, melhubert-20ms, hubert-base, …"""
    model: str | None = None
    """model to go on training instead of fresh weights; its output layer is made new if the labels are others"""
    learn: Literal["all", "head"] = "all"
    """head: the output layer only; the rest of --model stays as it is"""
    unmasked: Natural[float] = 0.0
    """weight, in the loss, of frames that are not hidden (those that are have 1): 0 as HuBERT's; more where the labels
    come from a better model, which can then be learned from what is heard, too"""
    out: Path = Path("runs/pretrain")
    """folder of the run"""


@dataclass(frozen=True)
class Trained:
    """What a finished run has: the model's shape, the speech it learned from, and the last parameters."""

    arch: Arch
    data: Data
    fitted: Fitted


def pretrain(config: Pretraining, show: Callable[[Trained], None]) -> None:
    """Train a model, or go on where a run stopped, and save it as `models/final` of the run's folder.

    Args:
        config: what to train, on what, and how.
        show: called in the main process at the end, when the model is saved, before `report.json` is.

    Raises:
        InputError: corpus, model and settings do not fit, or no gradient has been finite for long.
        Preempted: SIGTERM came; all is saved.
    """
    distributed.initialize(config.coordinator, config.processes, config.process, timeout_s=config.timeout)
    stopped: Preempted | None = None
    with distributed.guard():
        try:
            _train(config, show)
        except Preempted as told:  # no failure that the guard should tell: all processes saved and stop
            stopped = told
        distributed.sent(config.out)
    if stopped is not None:
        raise stopped


def _train(config: Pretraining, show: Callable[[Trained], None]) -> None:
    claim(config.out, config)
    corpus = config.corpus or _embedded(config.out / "prepared")
    arch, params, stats = _model(config)
    data = load_data(corpus, arch, labels=config.labels, valid=config.valid, stats=stats)
    data = dataclasses.replace(data, unmasked=config.unmasked)
    arch, params = _fitting(arch, params, data, seed=config.seed)
    check_batches(data, config)
    own(config.out, config)
    console.print(f"{config.model or config.arch}: {cost.parameters(arch):,} parameters", markup=False)
    if config.learn == "head":
        body = {name: part for name, part in params.items() if name != "head"}
        fitted = fit(config.out, arch, {"head": params["head"]}, data, config, view=_join, held=body, passes=1.0)
    else:
        fitted = fit(config.out, arch, params, data, config)
    if distributed.is_main():
        _finish(config, Trained(arch, data, fitted), show)


def _join(learned: Params, held: Params) -> Params:
    return {**held, **learned}


def _embedded(folder: Path) -> Path:
    if distributed.is_main():
        prepare(Preparation(out=folder))
    distributed.barrier("corpus prepared")
    if (url := places.url(folder)) and not distributed.is_main():
        fetching.bring(url)
    return folder


def _model(config: Pretraining) -> tuple[Arch, Params | None, Any]:
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


def _finish(config: Pretraining, trained: Trained, show: Callable[[Trained], None]) -> None:
    arch, data, fitted = trained.arch, trained.data, trained.fitted
    extra = {"stats.npy": stats_bytes(data.stats)} if data.stats else {}
    origin = {"made_by": shlex.join(["python", "-m", "experiments.pretrain", *sys.argv[1:]]), **fitted.valid}
    checkpoint.save(config.out / "models/final", arch, fitted.params, provenance=origin, extra=extra, overwrite=True)
    show(trained)
    files.write_json(config.out / "report.json", {"entropy": data.entropy, "valid": fitted.valid})
    console.print(
        f"wrote {config.out}: models/final, report.json, training.png, metrics.jsonl, tensorboard/", markup=False
    )
