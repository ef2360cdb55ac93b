"""Who may import whom, and how long a file may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("compress", "jaxssl", "experiments", "tools", "benchmarks")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
SCRIPTS = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.js"))
COMPRESS = ("compress", "jax", "numpy")
FLAX = tuple(f"jaxssl/models/{name}.py" for name in ("extractor", "layers", "logits", "model"))
COMMANDS = {path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem != "__init__"}
FORBIDDEN = {
    "jaxssl": ("experiments", "tools", "torch", "matplotlib", "transformers"),
    "jaxssl/models": ("jaxssl.data", "jaxssl.training"),
    "jaxssl/data": ("jaxssl.models", "jaxssl.training", "flax"),
    "experiments": ("torch", "transformers", "flax"),
    "tools": ("experiments", "matplotlib"),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # What is copied out with a model becomes a package of another name.
            assert not node.level or path.parent.name == "standalone", f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_and_length(path):
    name = path.relative_to(ROOT).as_posix()
    rules = {bad for room, names in FORBIDDEN.items() if name.startswith(f"{room}/") for bad in names}
    for found in imports(path):
        broken = [bad for bad in rules if f"{found}.".startswith(f"{bad}.")]
        if name.startswith("compress/") and found.split(".")[0] not in {*sys.stdlib_module_names, *COMPRESS}:
            broken.append("anything but jax and numpy")
        if found.startswith("matplotlib") and name != "experiments/reports/canvas.py":
            broken.append("matplotlib")
        if found.startswith("flax") and name not in FLAX:
            broken.append("flax")
        if f"{found}.".split(".")[1] in COMMANDS and found.startswith("experiments."):
            broken.append("a command of experiments; what several use lives in its packages")
        assert not broken, f"{name} imports {found}, against: {broken}"
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_are_short_too(path):
    assert len(path.read_text().splitlines()) <= 400
