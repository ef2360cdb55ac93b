"""A disk that takes no more: one line and exit code 2, whoever writes, and nothing half-written is left."""

import json
import sys

import pytest

from tests.campaign.disk import NAMESPACE, possible
from tests.processes import finish

# A limit on the size of files, which every writer meets as it meets a full disk: by an error of the system.
WRITERS = """
import json, resource, sys, time
from dataclasses import dataclass, replace
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from jaxssl.data.arrays import write_array, write_whole
from jaxssl.models import checkpoint
from jaxssl.runtime import files
from jaxssl.runtime.cli import command
from jaxssl.training.resume import Checkpoints
from jaxssl.training.telemetry import Journal
from tests.archs import MEL, weights

LIMIT = 20_000
out = Path(sys.argv[1])
large = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
arch = replace(MEL, width=64)


def states(place):
    with Checkpoints(place) as saves:
        for number in (1, 2, 3):
            saves.save(number, {"a": jnp.asarray(large)}, {"at": number})
            time.sleep(0.2)


def journal(place):
    with Journal(place) as written:
        for number in range(2000):
            written.write(number, "train", {"loss": 1.0})


WRITERS = {
    "model": lambda place: checkpoint.save(place / "model", arch, weights(arch)),
    "states": states,
    "journal": journal,
    "array": lambda place: write_array(place / "a.npy", large),
    "arrays": lambda place: files.write_arrays(place / "a.npz", {"a": large}),
    "bytes": lambda place: write_whole(place / "a", large.tobytes()),
    "json": lambda place: files.write_json(place / "a.json", large.tolist()),
    "csv": lambda place: files.write_csv(place / "a.csv", [{"a": float(x)} for x in large]),
}


@dataclass(frozen=True)
class Config:
    pass


resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
for name, write in WRITERS.items():
    (out / name).mkdir()
    print(f"\\n== {name}", file=sys.stderr, flush=True)
    code = command(lambda _: write(out / name), Config, "", args=[], remember=False)
    print(json.dumps([name, code]), flush=True)
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Exit code and what was said, by writer; and the folder."""
    out = tmp_path_factory.mktemp("full")
    done = finish("-c", WRITERS, out)
    assert done.returncode == 0, done.stderr
    said = dict(part.split("\n", 1) for part in done.stderr.split("\n== ")[1:])
    codes = dict(json.loads(line) for line in done.stdout.splitlines())
    return {name: (code, said[name].strip()) for name, code in codes.items()}, out


def test_every_writer_ends_in_one_line(written):
    found, _ = written
    assert len(found) == 8
    for name, (code, said) in found.items():
        assert code == 2, f"{name}: {said}"
        *notes, _ = said.splitlines()
        assert all(line.startswith("note: TensorBoard's") for line in notes), f"{name}: {said}"
        assert not notes or name == "journal"
        assert said.endswith("; nothing half-written was kept"), said


def test_nothing_half_written_has_a_name(written):
    _, out = written
    left = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    assert all(name.startswith("journal/") for name in left), left  # which is read as far as it goes
    assert not list(out.rglob("*orbax*"))


# Features of two grids; after the first, something else fills the disk, before any are written.
FILLS = """
import os, subprocess, sys
from pathlib import Path
import numpy as np, soundfile
from jaxssl.data import corpora, features
from jaxssl.runtime.cli import command
from dataclasses import dataclass

place = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], check=True)
(place / "audio").mkdir()
for i in range(3):
    soundfile.write(place / f"audio/{i}.flac", np.sin(np.arange(40 * 16_000) / 9) / 2, 16_000)

@dataclass(frozen=True)
class Config:
    pass

def fill():
    with open(place / "other", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass

def run(_):
    features.prepare(corpora.read([str(place / "audio")]), place / "out", storage="float32", tick=fill)

full = command(run, Config, "", args=[], remember=False)
(place / "other").unlink()
fill = lambda: None
again = command(run, Config, "", args=[], remember=False)
print(full, again, np.load(place / "out/features.npy").shape)
"""


@pytest.mark.slow
def test_a_disk_that_fills_while_features_are_written(tmp_path):
    """Memory holds them until they are whole; a map of the file would end the process without a word."""
    if not possible():
        pytest.skip("needs a user who may mount a disk of memory (unshare --map-root-user --mount)")
    program = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    done = finish("-c", program, *NAMESPACE, sys.executable, "-c", FILLS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 0 (11994, 40)"
    (line,) = done.stderr.splitlines()
    assert line.endswith("features.npy: No space left on device; nothing half-written was kept")
