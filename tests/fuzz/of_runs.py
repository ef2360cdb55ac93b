"""Run folders, arrays and caches that runs keep, and command lines."""

import json
import os
import shutil
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from compress import encoding
from docs.commands import GROUPS
from experiments import tradeoff
from experiments.curves import planning, retime, survivors
from experiments.curves.runs import read_curves
from experiments.curves.sweep import Trail
from jaxssl import pretrained
from jaxssl.data.logmel import Stats, load_stats, stats_bytes
from jaxssl.models import arch_json
from jaxssl.runtime import cli, files
from jaxssl.training import lesson, output_layer, telemetry
from jaxssl.training.corpus import read_heard
from jaxssl.training.distillation import Wanted
from jaxssl.training.settings import claim
from tests.archs import ARCHS, weights
from tests.fuzz import mutate
from tests.fuzz.spoil import Draw, Spoil, Target, as_json, as_text, one_of
from tests.settings import settings_of


def runs() -> list[Target]:
    edits = {"report.json": as_json, "config.json": as_json, "models/dense/provenance.json": as_json}
    growing = {
        "curve.csv": lambda c, d: as_text(c.replace(b",", b"\t"), d).replace(b"\t", b","),
        "config.json": as_json,
    }
    return [
        Target("run", partial(_run, finished=True), one_of(edits), _compare, 6),
        Target("growing run", partial(_run, finished=False), one_of(growing), _compare, 3),
        Target(
            "plan like a run",
            partial(_run, finished=True),
            one_of({"config.json": as_json}),
            lambda f: planning.like(f, ["macs=50%"], f),
            2,
        ),
        Target("settings of a run", partial(_run, finished=True), one_of({"config.json": as_json}), _claim, 2),
        Target("points of heads", _pruned, one_of({"points.json": as_json, "config.json": as_json}), _survivors, 3),
        Target("journal", _journal, one_of({"metrics.jsonl": as_text}), _continue, 3),
        Target("finished points", _pruned, one_of({"points.json": as_json}), _names, 2),
        Target("seed of a run", _pruned, one_of({"config.json": as_json}), _dense, 2),
        Target("trail", _trail, one_of({"a.json": as_json}), _follow, 3),
        Target("held out", _held_out, one_of({"a.npz": mutate.npz}), lambda f: read_heard(f / "a.npz").summary(), 2),
    ]


def _run(folder: Path, *, finished: bool) -> None:
    from tests.experiments.curves import HEADS, write

    write(folder, HEADS, finished=finished)
    files.write_json(folder / "config.json", files.plain(planning.Config(budget=("macs=50%",))) | {"clusters": 9})
    (folder / "models/dense").mkdir(parents=True)
    files.write_json(folder / "models/dense/provenance.json", {"command": "/x/experiments/heads.py --keep 4"})


def _compare(folder: Path) -> object:
    curves = read_curves(folder)
    shown, measures, _ = tradeoff.measures_of(curves, absolute=False)
    tables = [row for key in measures for row in tradeoff.at_equal_time(curves, (0.5, 0.9), key)]
    html = tradeoff.page.write(curves, tables, measures=measures, title="x", notes=[], command="x")
    return shown, tradeoff.marked(curves, "valid_loss"), len(html)


def _claim(folder: Path) -> object:
    return claim(folder, planning.Config(budget=("macs=50%",), clusters=9))


def _pruned(folder: Path) -> None:
    rows = [
        {"name": "dense", "heads": [4, 4]},
        {"name": "heads-3", "heads": [3, 3], "kept": {f"layers/{i}/attention/heads": [0, 1, 3] for i in (0, 1)}},
    ]
    files.write_json(folder / "points.json", rows)
    files.write_json(folder / "config.json", {"schedule": "quick"})


def _survivors(folder: Path) -> object:
    return survivors.read_points(folder, ARCHS["base"], weights(ARCHS["base"]))


def _names(folder: Path) -> object:
    return [row["name"] for row in files.read_rows(folder / "points.json", "name")]


def _dense(folder: Path) -> object:
    return retime._dense(SimpleNamespace(folder=folder, source="a"))


def _trail(folder: Path) -> None:
    files.write_json(folder / "a.json", {**asdict(Trail(["layers/0/ffn/fc1/kernel"])), "told": {"zeros": 0.5}})


def _follow(folder: Path) -> object:
    """Read a trail as a run does that goes on, and ask of it what that run asks first."""
    path = folder / "a.json"
    trail = Trail.read(files.read_object(path)) if path.is_file() else Trail([])
    return trail.done, trail.due


def _journal(folder: Path) -> None:
    rows = [{"step": i, "part": "train", "loss": 2.0 - i / 10} for i in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _continue(folder: Path) -> object:
    with telemetry.Journal(folder, after=3) as journal:
        journal.write(4, "train", {"loss": 1.0})
    return telemetry.read_journal(folder)


def _held_out(folder: Path) -> None:
    np.savez(folder / "a.npz", losses=np.ones(6), correct=np.ones(6), frames=np.full(6, 9.0))


def arrays() -> list[Target]:
    wanted = Wanted(True, False, (1,))
    return [
        Target(
            "stats",
            lambda f: (f / "a.npy").write_bytes(stats_bytes(Stats(np.zeros(5, np.float32), np.ones(5, np.float32)))),
            one_of({"a.npy": mutate.npy}),
            lambda f: load_stats(f / "a.npy"),
            2,
        ),
        Target(
            "answers",
            lambda f: np.savez(f / "a.npz", **{"plain/hidden/1": np.ones((2, 3, 4), np.float32)}),
            one_of({"a.npz": mutate.npz}),
            lambda f: lesson._read(f / "a.npz", wanted),
            3,
        ),
        Target(
            "output layer",
            lambda f: np.savez(f / "a.npz", kernel=np.ones((4, 3), np.float32), bias=np.ones(3, np.float32)),
            one_of({"a.npz": mutate.npz}),
            lambda f: output_layer._read(f / "a.npz"),
            2,
        ),
        Target("encoded", _encode, one_of({"a": mutate.encoded}), _decode, 3),
        Target("encoded bytes", _encode, one_of({"a": mutate.damaged}), _decode),
        Target("package", _package, one_of(PACKAGE), _read_package, 4),
        Target(
            "arch",
            lambda f: (f / "arch.json").write_text(json.dumps(OLD)),
            one_of({"arch.json": as_json}),
            _old_arch,
            3,
        ),
    ]


def _encode(folder: Path) -> None:
    sparse = np.where(np.arange(600).reshape(20, 30) % 7, 0, 1).astype(np.float32)
    (folder / "a").write_bytes(encoding.encode({"a": {"b": sparse}, "c": np.arange(9, dtype=np.int32)}))


def _decode(folder: Path) -> object:
    return encoding.decode((folder / "a").read_bytes()) if (folder / "a").is_file() else None


PACKAGE = {
    "arch.json": as_json,
    "weights.safetensors": mutate.safetensors,
    "stats.npy": mutate.npy,
    "labeller.npz": mutate.npz,
}


def _package(folder: Path) -> None:
    (folder / "x").mkdir()
    arch = replace(ARCHS["mel"], layers=ARCHS["mel"].layers[:1])
    stats = Stats(np.zeros(5, np.float32), np.ones(5, np.float32))
    labeller = pretrained.Labeller(1, np.zeros((3, 16), np.float32))
    for name, content in pretrained.files(pretrained.Pretrained(arch, weights(arch), stats, labeller)).items():
        (folder / "x" / name).write_bytes(content)
    for name in PACKAGE:
        shutil.move(folder / "x" / name, folder / name)


def _read_package(folder: Path) -> object:
    here = pretrained.HERE
    pretrained.HERE = folder.parent
    try:
        return pretrained.read(folder.name) if (folder / "arch.json").is_file() else None
    finally:
        pretrained.HERE = here


OLD = {
    "front": {"bins": 5, "stack": 2, "kind": "logmel"},
    "width": 16,
    "head_dim": 4,
    "norm_first": False,
    "position_kernel": 7,
    "position_groups": 2,
    "dropout": {},
    "head": None,
    "layers": [{"heads": 4, "ffn": 24, "ranks": {"q": 3}, "packed": {}, "reuse": False, "int8": False}],
}


def _old_arch(folder: Path) -> object:
    path = folder / "arch.json"
    return arch_json.from_json(files.read_json(path)) if path.is_file() else None


def commands() -> list[Target]:
    lines = {
        "experiments.lowrank": "--rank 4 8 --energy 0.5 --budget params=40e6 --steps 2 --crop 2.5 --seed 1 --out x",
        "experiments.combine": "--plan rows=512@3:distil heads=2 --every 3 --out x",
        "experiments.tradeoff": "/tmp /etc --share 0.5 0.8 --seconds 3 --rounds 4",
        "tools.export": "x y --seconds 2",
    }
    whole = [
        Target(f"line of {name}", partial(_line, words), one_of({"words": as_text}), partial(_parse, name), 3)
        for name, words in lines.items()
    ]
    return [
        *whole,
        *(
            Target(f"command {name}", partial(_line, "--help"), _one_setting(name), partial(_parse, name))
            for name in COMMANDS
        ),
    ]


COMMANDS = [name for names in GROUPS.values() for name in names]
PLACES = (
    "/dev/full",
    "/dev/zero",
    "/dev/null",
    "/dev/null/x",
    "/proc/self/mem",
    "/tmp",
    "nowhere",
    "/",
    ".",
    "~",
    "-",
    "--",
)
PLACES += (
    "\udcff",
    "x" * 10**5,
    "a\0*",
    "[",
    "*" * 300,
    "x/" * 2000,
    "input/pipe",
    "-h",
    "=",
    "--out",
    "1",
    "0.5",
    "2",
    "none",
)


def _line(words: str, folder: Path) -> None:
    (folder / "words").write_text(words)


def _one_setting(name: str) -> Spoil:
    """Write a command line with one or two settings, of values that they are not meant to have."""

    def spoil(folder: Path, draw: Draw) -> int:
        os.mkfifo(folder / "pipe")  # nobody will ever write into it
        words = []
        for flag in draw.choices([field.name for field in fields(settings_of(name))], k=draw.choice((1, 1, 2))):
            words += [f"--{flag.replace('_', '-')}"] * (draw.randrange(8) > 0)
            words += draw.choices((*mutate.WORDS, *PLACES), k=draw.choice((0, 1, 1, 1, 1, 2)))
        (folder / "words").write_text(SEPARATOR.join(words), "utf-8", "surrogateescape", newline="")
        return 0

    return spoil


SEPARATOR = "\x1f"  # between words, which may hold blanks


def _parse(name: str, folder: Path) -> object:
    path = folder / "words"
    text = path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else ""
    words = text.split(SEPARATOR if SEPARATOR in text else " ")
    try:
        return cli.read(settings_of(name), words)
    except SystemExit as left:
        if left.code:
            raise
        return "help"
