"""The library of kernels is built by whatever compiler there is, and run only if nobody else can have written it."""

import os
import subprocess
import sys

import pytest

from jaxssl.runtime import native
from jaxssl.runtime.native import build
from tests.conftest import ROOT


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    if not native.ready():
        pytest.skip("no C++ compiler")


PROGRAM = """
from jaxssl.runtime import native
from jaxssl.models import choice
print(native.ready(), choice.kernels())
"""


def run(home, **environment):
    kept = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr, {file: file.stat().st_mtime_ns for file in home.rglob("*.so")}


@pytest.mark.slow
def test_a_second_process_takes_what_the_first_built(tmp_path):
    first = run(tmp_path)
    assert first[:2] == ("True native", "")
    assert len(first[2]) == 1
    assert run(tmp_path) == first


@pytest.mark.slow
def test_a_compiler_of_several_words(tmp_path):
    assert run(tmp_path, CXX="env c++")[:2] == ("True native", "")


def test_without_a_compiler(tmp_path):
    assert run(tmp_path, CXX="") == ("False XLA", "", {})
    assert run(tmp_path, PATH="") == ("False XLA", "", {})


def script(folder, name, text):
    """A compiler that is a shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


# For want of a library's end, `-o`'s value is the compiler's last word.
BROKEN = {
    "says why": ("echo cannot compile today >&2; exit 3", "cannot compile today"),
    "says nothing": ("exit 3", "it said nothing (exit status 3)"),
    "says blank lines": ("printf '\\n \\n' >&2; exit 3", "it said nothing"),
    "says no text": ("printf '\\377\\376 no' >&2; exit 3", "no"),
    "writes nothing": ("true", "cannot open shared object file"),
    "writes no library": ('for last; do :; done; echo no > "$last"', "file too short"),
    "writes a library without kernels": ('for last; do :; done; echo "" | cc -x c -shared -o "$last" -', "attention"),
}


def warned(monkeypatch, home, compiler):
    """Return the one warning that building with this compiler gives."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match="not built") as told:
        assert build.shared_object() is None
    (warning,) = told
    return str(warning.message)


@pytest.mark.parametrize(("text", "why"), BROKEN.values(), ids=BROKEN)
def test_a_compiler_that_fails_is_named(tmp_path, monkeypatch, text, why):
    """One warning, and the plain path; nothing half done is left for a later run to load."""
    compiler = script(tmp_path, "broken", text)
    message = warned(monkeypatch, tmp_path, compiler)
    assert f"not built by {compiler}" in message
    assert why in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["broken"]


def test_a_compiler_that_cannot_be_started_is_named(tmp_path, monkeypatch):
    assert "No such file" in warned(monkeypatch, tmp_path, "no-such-compiler")
    assert "No closing quotation" in warned(monkeypatch, tmp_path, "g++ 'x")


def test_a_compiler_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PATIENCE", 0.3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", script(tmp_path, "hangs", "sleep 60 & sleep 60"))
    with pytest.warns(UserWarning, match="it took over 0.3 s"):
        assert build.shared_object() is None


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """What a compiler that copies a ready library built, and how often it was started."""
    ready = build.shared_object()
    count = tmp_path / "count"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    text = f'for last; do :; done; echo x >> {count}; cp {ready} "$last"'
    monkeypatch.setenv("CXX", script(tmp_path, "copies", text))
    built = build.shared_object()
    return built, lambda: len(count.read_text().splitlines())


@pytest.mark.parametrize("harm", ["cut short", "a bit flipped", "no digest", "another digest"])
def test_what_is_not_what_was_built_is_built_again(planted, harm):
    library, builds = planted
    assert build.shared_object() == library
    assert builds() == 1
    good, digest = library.read_bytes(), library.with_suffix(".sha256")
    match harm:
        case "cut short":
            library.write_bytes(good[:-100])
        case "a bit flipped":
            library.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        case "no digest":
            digest.unlink()
        case "another digest":
            digest.write_text("0" * 64)
    assert build.shared_object() == library
    assert builds() == 2
    assert library.read_bytes() == good


@pytest.mark.parametrize("harm", ["open folder", "open library", "open digest", "a link"])
def test_what_others_could_have_written_is_not_run(planted, harm):
    """A library there with the right name would run its constructor in every process that loads it."""
    library, builds = planted
    folder, digest = library.parent, library.with_suffix(".sha256")
    match harm:
        case "open folder":
            folder.chmod(0o777)
        case "open library":
            library.chmod(0o666)
        case "open digest":
            digest.chmod(0o622)
        case "a link":
            library.rename(folder / "elsewhere")
            library.symlink_to(folder / "elsewhere")
    with pytest.warns(UserWarning, match="remove it"):
        assert build.shared_object() is None
    assert builds() == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_not_run(planted):
    library, _ = planted
    os.chown(library, 12345, -1)
    with pytest.warns(UserWarning, match="belongs to user 12345, not to 0"):
        assert build.shared_object() is None
