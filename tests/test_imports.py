"""Who may import whom, what a file may be called, and how long it may be."""

import ast
import re
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("compress", "jaxssl", "experiments", "tools", "benchmarks")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
SCRIPTS = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.js"))
COMPRESS = ("compress", "jax", "numpy")
COMMANDS = {path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem != "__init__"}
UPPER = ("jaxssl.convert", "jaxssl.inference", "jaxssl.analysis", "jaxssl.training")
FORBIDDEN = {
    "jaxssl": ("experiments", "tools", "torch", "matplotlib", "transformers"),
    "jaxssl/runtime": ("jaxssl.models", "jaxssl.data", "jaxssl.pretrained", *UPPER),
    "jaxssl/storage": ("jax", "jaxssl.models", "jaxssl.data", "jaxssl.pretrained", *UPPER),
    "jaxssl/models": ("jaxssl.data", "jaxssl.pretrained", *UPPER),
    "jaxssl/data": ("jaxssl.models", "jaxssl.pretrained", "flax", *UPPER),
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
        if found.startswith("flax") and not name.startswith("jaxssl/models/"):
            broken.append("flax")
        if f"{found}.".split(".")[1] in COMMANDS and found.startswith("experiments."):
            broken.append("a command of experiments; what several use lives in its packages")
        assert not broken, f"{name} imports {found}, against: {broken}"
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_are_short_too(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_top_levels_hold_commands_and_packages_only():
    assert [path.name for path in (ROOT / "jaxssl").glob("*.py")] == ["__init__.py"]
    for name in COMMANDS:
        text = (ROOT / f"experiments/{name}.py").read_text()
        assert 'if __name__ == "__main__":' in text, f"experiments/{name}.py is no command; move it into a package"


def test_no_module_imports_itself_round_a_circle():
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {name: {_module(found, modules) for found in imports(path)} - {None} for name, path in modules.items()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_file_name_means_one_thing():
    """A command may be called as the module that does its work; what is copied out with a model is apart."""
    places = defaultdict(list)
    for path in FILES:
        if path.stem != "__init__" and path.parent != ROOT / "experiments" and path.parent.name != "standalone":
            places[path.stem].append(path.relative_to(ROOT).as_posix())
    assert not {name: found for name, found in places.items() if len(found) > 1}


def _module(found, modules):
    """Return the module that an import reads: the named one, or that which the name is taken from."""
    return found if found in modules else found.rpartition(".")[0] if found.rpartition(".")[0] in modules else None


def test_the_time_of_day_is_only_shown_or_the_age_of_what_others_left():
    """It may be set back or forward while a command runs; what is waited for or counted is so by other clocks."""
    looks = re.compile(r"\btime\.time(_ns)?\b|\bfrom time import\b|\bdatetime\b|\bctime\b|\bgmtime\b|\blocaltime\b")
    found = {path.relative_to(ROOT).as_posix() for path in FILES if looks.search(path.read_text())}
    assert found == {"jaxssl/training/board.py", "jaxssl/data/embedded.py"}
