"""The page of commands is what their `--help` says, and no text names a command or a flag that is not there."""

import json
import re
from pathlib import Path

import pytest

from docs.commands import GROUPS, PAGE, page, summary
from tests.processes import finish

ROOT = Path(__file__).resolve().parents[1]
STARTED_BY_OTHERS = {"benchmarks.updates", "benchmarks.passes", "benchmarks.about"}  # without a help of their own
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/results.md", "docs/pods.md", "Makefile")
LIST = "-h, --help"  # where the list of a help's options begins
COMMAND = re.compile(r"\b((?:experiments|tools|benchmarks)\.\w+)((?:[ \t]+[^\s`#|]+)*)")


@pytest.fixture(scope="module")
def texts():
    """What every command says of itself, asked in one process that is not this one."""
    code = "import json; from docs.commands import helps; print(json.dumps(helps()))"
    done = finish("-c", code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_command_stands_in_one_group():
    files = (path for room in ("experiments", "tools", "benchmarks") for path in (ROOT / room).glob("*.py"))
    found = {f"{path.parent.name}.{path.stem}" for path in files if '__name__ == "__main__"' in path.read_text()}
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(found - STARTED_BY_OTHERS)


def test_the_page_is_what_the_commands_say(texts):
    assert PAGE.read_text() == page(texts), "docs/commands.md is stale: say python -m docs.commands"
    for name, text in texts.items():
        assert len(summary(text)) <= 120, f"{name} begins with more than one line"


def invocations(text):
    """Commands with the words after them, in code of a page: blocks, indented lines and spans that may wrap."""
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)))
    lines = re.sub(r"\\\n", " ", text).splitlines()
    for code in (*spans, *lines):
        for name, words in COMMAND.findall(code):
            yield name, re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", words)


def options(text):
    """Flags of a command: what its help lists, without the examples above the list."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text[text.index(LIST) :]))


@pytest.mark.parametrize("name", PAGES)
def test_pages_name_flags_that_commands_have(texts, name):
    found = list(invocations((ROOT / name).read_text()))
    if name in ("README.md", "Makefile", "docs/results.md", "docs/pods.md"):
        assert found
    for command, flags in found:
        if command in texts:
            assert set(flags) <= options(texts[command]), f"{name}: {command}"


def test_helps_name_flags_that_commands_have(texts):
    for name, text in texts.items():
        examples = [found for found in invocations(text[: text.index(LIST)]) if found[0] in texts]
        for command, flags in examples:
            assert set(flags) <= options(texts[command]), f"help of {name}: {command}"


def test_a_flag_that_nobody_has_is_found():
    indented = "    python -m experiments.heads --keep 6 --kep 4  # --no"
    assert list(invocations(indented)) == [("experiments.heads", ["--keep", "--kep"])]
    wrapped = "say `python -m\nexperiments.rows --round\n64`, or"
    assert ("experiments.rows", ["--round"]) in invocations(wrapped)
    assert options("usage: x [-h]\n\n  x --old\n\noptions\n  -h, --help  show this\n  --new INT") == {"--help", "--new"}
