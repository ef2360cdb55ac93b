"""Timing pre-training from the command line."""

import json
import sys
from dataclasses import replace

import pytest

from compress.errors import InputError
from experiments import latency
from jaxssl.inference.latency import Load
from jaxssl.models.arch import Dropout
from jaxssl.runtime import cli
from jaxssl.training import speed
from tests.archs import MEL
from tests.processes import finish

ARCH = replace(MEL, layers=MEL.layers[:1], dropout=Dropout(0.0, 0.0))


@pytest.fixture
def presets(monkeypatch):
    monkeypatch.setattr(latency, "PRESETS", {"mel": lambda: ARCH})
    monkeypatch.setattr(latency, "matmul_peak", lambda dtype: 1e9)


def config(out, **words):
    words = {"arch": ("mel",), "stack": ("unroll",), "seconds": (0.4,), "batch": (2,), "rounds": 2, **words}
    return latency.Config(train=True, out=out, **words)


@pytest.mark.slow
def test_updates_are_timed_beside_pytorch(presets, torch, tmp_path):
    threads = torch.get_num_threads()
    latency.run(config(tmp_path))
    torch.set_num_threads(threads)
    written = json.loads((tmp_path / "report.json").read_text())
    rows = written["points"]
    assert [(row["model"], row["stack"]) for row in rows] == [("mel", "pytorch"), ("mel", "unroll")]
    assert rows[0]["speedup"] == 1
    for row in rows:
        assert row["steps_per_s"] * row["step_s"] == pytest.approx(1)
        assert row["audio_s_per_s"] == pytest.approx(0.8 / row["step_s"])
        assert row["mfu"] == pytest.approx(speed.macs(ARCH, Load(0.4, 2)) / row["step_s"] / 1e9)
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert (row["compile_s"] is None) == (row["stack"] == "pytorch")
    assert torch.__version__ in written["pytorch"]
    assert written["matmul_gmacs_per_s"] == 1


def test_without_pytorch_a_line_says_so(presets, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    latency.run(config(tmp_path))
    assert "PyTorch is not installed" in capsys.readouterr().out
    rows = json.loads((tmp_path / "report.json").read_text())["points"]
    assert [row["stack"] for row in rows] == ["unroll"]
    assert {row["speedup"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"arch": ("gone",)}, "no model is called 'gone'; there are mel"),
        ({"arch": ()}, "name one or more"),
        ({"stack": ()}, "name one or more"),
        ({"rounds": 0}, "--rounds 0: give 1 to"),
        ({"batch": ()}, "name one or more"),
        ({"batch": (0,)}, "--batch 0: give 1 to"),
        ({"seconds": (0.01,)}, "--seconds 0.01: give 0.025 to 3600"),
        ({"model": "runs/x"}, "--train times presets"),
        ({"against": "runs/x"}, "--train times presets"),
    ],
)
def test_what_cannot_be_timed_is_refused(presets, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        latency.run(config(tmp_path / "out", **words))
    assert not (tmp_path / "out").exists()


def test_defaults_differ_by_what_is_timed():
    assert latency.Config().loads[:3] == (Load(1.0, 1), Load(1.0, 4), Load(5.0, 1))
    assert latency.Config(train=True).loads == (Load(15.0, 4),)
    assert latency.Config(batch=(2,)).loads[1] == Load(5.0, 2)
    assert {latency.Config(train=train).precision for train in (False, True)} == {latency.jnp.dtype("float32")}
    assert latency.Config(dtype="bfloat16").precision == latency.jnp.bfloat16


@pytest.mark.parametrize(("words", "train"), [([], False), (["--train"], True)])
def test_train_is_a_flag(words, train, monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["latency", *words, "--stack", "scan"])
    cli.main(seen.append, latency.Config, "")
    assert [(found.train, found.stack) for found in seen] == [(train, ("scan",))]


def test_training_is_timed_where_nothing_reads_audio():
    """A machine with a GPU may have jax and PyTorch and little else."""
    done = finish("-c", BARE)
    assert done.returncode == 0, done.stderr


BARE = """
import sys
absent = "librosa soundfile grain sklearn espeakng_loader tensorboardX matplotlib safetensors transformers".split()
sys.modules.update(dict.fromkeys(absent))
from experiments import latency
from jaxssl.training import speed, step
latency._check(latency.Config(train=True))
"""
