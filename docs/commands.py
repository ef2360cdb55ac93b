"""Write docs/commands.md: every command with the first line of what its `--help` says.

    python -m docs.commands

`tests/test_commands.py` fails while the page is stale or a command stands in no group.
"""

import io
import os
import runpy
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest.mock import patch

PAGE = Path(__file__).with_name("commands.md")
GROUPS = {
    "Convert": ("tools.convert_torch",),
    "Compress": (
        "experiments.lowrank",
        "experiments.heads",
        "experiments.rows",
        "experiments.weights",
        "experiments.int8",
        "experiments.distill",
        "experiments.sequence",
        "experiments.mixers",
        "experiments.contexts",
        "experiments.exits",
        "experiments.elastic",
        "experiments.joint",
        "experiments.combine",
        "experiments.plan",
        "experiments.whisper",
    ),
    "Compare": (
        "experiments.tradeoff",
        "experiments.latency",
        "experiments.lengths",
        "experiments.streaming",
        "experiments.blocks",
        "experiments.agreement",
        "benchmarks.forward",
        "benchmarks.training",
        "benchmarks.scaling",
        "benchmarks.accelerator",
        "benchmarks.bucket_reads",
    ),
    "Train": ("experiments.synthesise", "experiments.prepare", "experiments.pretrain", "experiments.teacher"),
    "Look inside": ("experiments.align", "experiments.probe", "experiments.card", "experiments.heads_atlas"),
    "Deploy": ("tools.export",),
}
INTRODUCTION = """\
# Commands

One line for each, from its own `--help`, which has examples, what to expect and every option:

    python -m experiments.heads --help

Commands run from the root of this repository, in the environment that `make lowrank` makes (`. .venv/bin/activate`).
This page is written by `python -m docs.commands`.
"""


def helps() -> dict[str, str]:
    """Ask every command for its help; return the texts by name."""
    with patch.dict(os.environ, {"COLUMNS": "120"}):
        return {name: _help(name) for names in GROUPS.values() for name in names}


def _help(name: str) -> str:
    # In this process, because the commands share imports that take seconds.
    text = io.StringIO()
    with patch.object(sys, "argv", [name, "--help"]), redirect_stdout(text), suppress(SystemExit):
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    return text.getvalue()


def page(texts: Mapping[str, str]) -> str:
    """Return the page that these helps make."""
    parts = [INTRODUCTION]
    for group, names in GROUPS.items():
        rows = [f"| `python -m {name}` | {summary(texts[name])} |" for name in names]
        parts.append("\n".join((f"## {group}", "", "| command | what it does |", "|---|---|", *rows, "")))
    return "\n".join(parts)


def summary(text: str) -> str:
    """Return the first paragraph of a help's description, which follows the usage and a blank line."""
    return " ".join(text.split("\n\n")[1].split())


if __name__ == "__main__":
    PAGE.write_text(page(helps()))
