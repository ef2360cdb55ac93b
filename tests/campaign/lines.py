"""Commands of some seconds each that write in every way we have, and what must be the same at their ends."""

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.address import flatten
from jaxssl.models import checkpoint
from jaxssl.training.telemetry import read_journal
from tests.experiments.small import Small
from tests.processes import start

TRAINED = {"batch": 4, "shortest": 0.5, "save_every": 3}
CURVES = {**TRAINED, "seconds": 0.5, "rounds": 1, "stack": "unroll", "no-probes": True}
RATES = ("updates_per_s", "audio_s_per_s", "mfu", "machine", "notes", "verdict")  # of a run, not of what it made
TIMES = ("_ms", "_ms_low", "_ms_high")
BEGINNINGS = ("real_time_", "speedup")
PASSING = ("checkpoints", "tensorboard", "recovery", "once")  # folders that a run needs while it is under way
MEASURED = ("provenance.json", "config.json", "options.json")  # times, and paths of the run itself
PICTURES = (".png", ".svg", ".html")


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        name: of the command, as users say it.
        settings: its flags and their values; True: a flag without one.
        inputs: which of the small corpus's folders it takes, by flag.
    """

    name: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]

    def words(self, place: Small, out: Path) -> list[str]:
        """Write it down, for `python -m`."""
        found = [f"experiments.{self.name}", "--out", str(out)]
        for flag, part in self.inputs.items():
            found += [f"--{flag}", str(getattr(place, part))]
        for flag, value in self.settings.items():
            values = [] if value is True else value if isinstance(value, tuple) else (value,)
            found += [f"--{flag.replace('_', '-')}", *map(str, values)]
        return found

    def start(self, place: Small, out: Path, *, dies: int | None = None, **settings: str):
        """Start it; `dies` is the change of the file system at which it is killed, 0: none, but they are counted."""
        words = self.words(place, out)
        before = [] if dies is None else ["tests.campaign.dying", str(out.parent), str(dies)]
        return start("-m", *before, *words, **settings)


BOTH = {"corpus": "corpus", "model": "model"}
COMMANDS = (
    Command("pretrain", {**TRAINED, "steps": 18, "buckets": 1, "log_every": 4, "valid_every": 9}, BOTH),
    Command("weights", {**CURVES, "sparsity": (0.3, 0.6), "every": 4}, BOTH),
    Command("heads", {**CURVES, "keep": (3, 2), "every": 4, "recover": "distil", "no-control": True}, BOTH),
    Command("plan", {**CURVES, "budget": "params=80%", "steps": 4, "batches": 1, "no-uniform": True}, BOTH),
    Command(
        "prepare",
        {"clusters": 5, "restarts": 1, "valid": 0.2, "labels": ("logmel", "mfcc")},
        {"audio": "audio"},
    ),
    Command(
        "lowrank",
        {**TRAINED, "rank": 2, "method": "svd", "steps": 8, "rounds": 1, "limit": 2, "seconds": 0.2},
        {**BOTH, "audio": "audio"},
    ),
)


def ends(folder: Path) -> dict[str, Any]:
    """Say what a finished command left: arrays and tables to the bit, and the names of all files; times are left out.

    What is only needed under way counts not: checkpoints, and the training folders of points.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part in PASSING for part in name.parts[:-1]) or not path.is_file():
            continue
        if "params" in name.parts:
            found[str(Path(*name.parts[: name.parts.index("params")]))] = _model(path)
        elif not name.parts[-1].startswith("events"):
            found[str(name)] = _content(path)
    return found


def _model(path: Path) -> dict[str, str]:
    while path.name != "params":
        path = path.parent
    arch, params = checkpoint.load(path.parent)
    return {"arch": str(arch)} | {key: _digest(np.asarray(leaf).tobytes()) for key, leaf in flatten(params).items()}


def _content(path: Path) -> Any:
    if path.name in MEASURED:
        return "there"
    match path.suffix:
        case ".npz":
            with np.load(path) as arrays:
                return {key: _digest(arrays[key].tobytes()) for key in arrays}
        case ".json":
            return _untimed(json.loads(path.read_text()))
        case ".jsonl":
            return _untimed(read_journal(path.parent))
        case ".csv":
            with path.open(newline="") as file:
                return _untimed(list(csv.DictReader(file)))
        case suffix:
            return "there" if suffix in PICTURES else _digest(path.read_bytes())


def _untimed(value: Any) -> Any:
    """Leave out what is measured anew in every run."""
    if isinstance(value, list):
        return [_untimed(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if k not in RATES and not k.endswith(TIMES) and not k.startswith(BEGINNINGS)}
    return {key: _untimed(each) for key, each in kept.items()}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say in which files two ends differ."""
    names = sorted(found.keys() | wanted.keys())
    lines = []
    for name in names:
        if name not in found or name not in wanted:
            lines.append(f"{name}: only in the {'broken' if name in found else 'unbroken'} run")
        elif found[name] != wanted[name]:
            lines.append(f"{name}: {str(found[name])[:300]} instead of {str(wanted[name])[:300]}")
    return lines
