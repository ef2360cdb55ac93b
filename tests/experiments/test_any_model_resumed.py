"""A one-command run that is killed goes on, whatever was found or fitted for it, and ends the same."""

import json
import random
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
import safetensors.numpy
import soundfile

from compress.address import flatten
from jaxssl.data.demo import synthesize
from jaxssl.models import checkpoint
from jaxssl.models.arch import Conv, Dropout, Waveform
from jaxssl.models.model import shapes
from jaxssl.training.corpus import read_heard
from jaxssl.training.ctc_layer import ARRAYS, SYMBOLS
from tests.archs import LARGE, transformer_layer
from tests.experiments.small import reach
from tests.processes import finish, start

CONVS = (Conv(6, 10, 5), *(Conv(6, 3, 2),) * 4, *(Conv(6, 2, 2),) * 2)
ARCH = replace(
    LARGE,
    front=Waveform(CONVS, norm="layer"),
    layers=(transformer_layer(4, 24),) * 2,
    dropout=Dropout(0, 0, 0, 0, 0),
    head=None,
)
ASKED = ["--clusters", 4, "--schedule", "once", "--every", 48, "--keep", 12, "--batch", 2, "--crop", 1, "--shortest"]
ASKED += [0.5, "--seconds", 0.5, "--rounds", 1, "--no-probes", "--no-control", "--save-every", 6, "--stack", "unroll"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A fine-tuned model without an output layer, and utterances with what is said in them."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "audio").mkdir()
    for i in range(4):
        soundfile.write(folder / f"audio/u{i}.flac", synthesize(1.0, seed=i), 16000)
    said = ("TEA", "EAST", "SEAT", "AT")
    (folder / "audio/u.trans.txt").write_text("".join(f"u{i} {word}\n" for i, word in enumerate(said)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes(ARCH))
    symbols = {"symbols": ["<pad>", "|", "A", "E", "S", "T"]}
    layer = safetensors.numpy.save({"kernel": rng.normal(size=(ARCH.width, 6)).astype(np.float32)})
    checkpoint.save(folder / "model", ARCH, params, extra={ARRAYS: layer, SYMBOLS: json.dumps(symbols).encode()})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["distil", "ctc"])
def test_a_killed_run_ends_the_same(place, tmp_path, recover):
    """Clusters, the output layer, what the teacher said and what is said: each is there again, or made again alike."""
    words = ["-m", "experiments.rows", "--model", place / "model", "--audio", place / "audio", "--recover", recover]
    words += ASKED
    whole, broken = tmp_path / "one/run", tmp_path / "other/run"
    assert finish(*words, "--out", whole).returncode == 0
    with start(*words, "--out", broken) as process:
        reach(process, 24)
        time.sleep(random.Random(recover).uniform(0, 0.02))
        process.kill()
        process.communicate(timeout=300)
    done = finish(*words, "--out", broken)
    assert "resuming after update" in done.stdout, done.stderr
    one, two = (list(map(untimed, json.loads((out / "report.json").read_text())["points"])) for out in (broken, whole))
    assert one == two
    assert [row["name"] for row in one] == ["dense", "rows-12"]
    assert all(row["ctc_loss"] > 0 for row in one)
    for name in ("dense", "rows-12"):
        assert arrays_of(broken, name) == arrays_of(whole, name)


def untimed(row):
    """Leave out what is measured anew in every run: times."""
    return {k: v for k, v in row.items() if not k.endswith("_ms") and not k.startswith(("real_time_", "speedup"))}


def arrays_of(out, name):
    """Return a model's arrays, and what it made of each held-out utterance, as bytes."""
    flat = flatten(checkpoint.load(out / "models" / name)[1])
    heard = vars(read_heard(out / "held-out" / f"{name}.npz"))
    return {key: np.asarray(value).tobytes() for key, value in (flat | heard).items()}
