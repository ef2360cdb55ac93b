"""What was compiled once is there for the next process, and nowhere that the user did not want it."""

import os
import subprocess
import sys

import pytest

from jaxssl.runtime import compiled
from tests.conftest import ROOT

PROGRAM = """
import sys, jax, jax.numpy as jnp
from jaxssl.runtime import compiled
compiled.WORTH = 0.0
print(compiled.remember())
print(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8))))
"""


def run(home, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    kept |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=kept, capture_output=True, text=True, check=True)
    assert done.stderr == ""  # loading a program from disk has nothing to say
    return done.stdout.split()


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    folder, value = run(tmp_path)
    (place,) = (tmp_path / "jaxssl").iterdir()
    assert str(place) == folder
    kept = {file.name: file.stat().st_size for file in place.iterdir() if file.name.endswith("-cache")}
    assert kept
    assert run(tmp_path) == [folder, value]
    assert {file.name: file.stat().st_size for file in place.iterdir() if file.name.endswith("-cache")} == kept


@pytest.mark.parametrize("place", ["", "elsewhere"])
def test_the_environment_decides(tmp_path, place):
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=place and str(tmp_path / place))[0] == "None"
    assert not (tmp_path / "jaxssl").exists()


def test_programs_that_others_could_have_written_are_not_read(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = compiled.place("compiled")
    place.mkdir(parents=True)
    place.chmod(0o770)
    with pytest.warns(UserWarning, match=r"compiled programs are not kept: .*can be written by others \(mode 770\)"):
        assert compiled.remember() is None
