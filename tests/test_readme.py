"""The README is short and does what it says; the pages that it leads to name what is there."""

import importlib.util
import re
import shlex
import subprocess

import pytest

from tests.processes import ROOT, finish

README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "jaxssl").rglob("*.md")])
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
GIVEN = {"checkpoint.pt": "fairseq/hubert_base_tiny.pt", "speech": "speech/librispeech_examples_3"}  # what a user has


def name(path):
    return path.relative_to(ROOT).as_posix()


def commands(text=README):
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]


def test_it_is_a_screen_and_a_half():
    assert len(README.splitlines()) <= 120
    assert len(README.split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    named = {line.split()[1] for line in commands(text) if line.startswith("make ")}
    named |= set(re.findall(r"`(?:[A-Z]+=\S* )?make ([a-z]+)", text))
    assert named <= targets
    if page.name == "README.md":
        assert {"lowrank", "test"} <= named


@pytest.mark.slow  # they compress, train and export the model of the package
def test_commands_run(shared, tmp_path):
    for called, there in GIVEN.items():
        (tmp_path / called).symlink_to(shared / there)
    ran = 0
    for line in commands():
        if "tools.export" in line and not importlib.util.find_spec("onnxruntime"):
            continue  # it needs `make torch`, as the text says
        if line.startswith("python "):
            done = finish(*shlex.split(line)[1:], cwd=tmp_path)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            ran += 1
        else:
            assert not line or line.startswith("make "), f"a command nobody tests: {line}"
    assert ran >= 4


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_python_runs(text, tmp_path):
    done = finish("-c", text, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_of_other_pages_can_be_read(page):
    for kind, text in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL):
        if kind == "python":
            compile(text, name(page), "exec")
        else:
            done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
            assert done.returncode == 0, f"{text}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target, heading in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if target.startswith("http"):
            continue
        found = page.parent / target if target else page
        assert found.is_file(), f"{name(page)}: {target}"
        assert not heading or heading in headings(found.read_text()), f"{name(page)}: {target}#{heading}"


def headings(text):
    """Anchors of a page, as forges make them: lower case, dashes for blanks, no other signs."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_in_code_are_there(page):
    """`jaxssl.models.choice` is a module, `compress.errors.InputError` a name in one, `tests/archs.py` a file."""
    for code in re.findall(r"`([^`\n]+)`", page.read_text()):
        if match := re.fullmatch(r"((?:compress|jaxssl|experiments|tools|benchmarks)(?:\.\w+)+)(?: .*)?", code):
            assert named(match[1].split(".")), f"{name(page)}: `{code}`"
        elif re.fullmatch(r"(?:compress|jaxssl|experiments|tools|benchmarks|tests|docs)/[\w./-]*", code):
            assert (ROOT / code).exists(), f"{name(page)}: `{code}`"


def named(parts):
    """Whether dotted parts are a package, a module or a name that a module has in its text."""
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        if length == len(parts) and path.is_dir():
            return True
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return all(re.search(rf"\b{part}\b", file.read_text()) for part in parts[length:])
    return False


def test_names_that_are_not_there_are_found():
    assert named(["jaxssl", "models"])
    assert named(["compress", "errors", "InputError"])
    assert not named(["compress", "errors", "OutputError"])
    assert not named(["jaxssl", "native"])
    assert headings("# What did **not** work\n\n## int8\n") == {"what-did-not-work", "int8"}
