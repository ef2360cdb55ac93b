"""The README's code blocks do what they say."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}  # a user's machine has one CPU device


def commands():
    return [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert named
    assert named <= targets


def test_commands_run(shared, tmp_path):
    ran = 0
    for line in commands():
        if "tools.export" in line and not importlib.util.find_spec("onnxruntime"):
            continue  # it needs `make torch`, as the text says
        if line.startswith("python "):
            words = [word.replace("../shared/data", str(shared)) for word in shlex.split(line)[1:]]
            done = subprocess.run(
                [sys.executable, *words], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stderr.decode()}"
            ran += 1
        else:
            assert not line or line.startswith("make "), f"a command nobody tests: {line}"
    assert ran >= 4


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_python_runs(text, tmp_path):
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
