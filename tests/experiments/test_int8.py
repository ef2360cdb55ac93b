"""A model in fewer bits: measured without training, saved, and taken up again in float by whatever changes it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten, get
from compress.quantize import bfloat16
from compress.sparse import apply_masks, entry_masks
from experiments import int8, rows
from experiments.curves.job import open_model
from jaxssl.inference.source import in_float, load_model
from jaxssl.inference.specialise import dequantized, quantized
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import Conv, Waveform
from jaxssl.models.sites import entries, matrices
from jaxssl.training.corpus import HeldOut
from tests.archs import weights
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device")
QUICK = {"batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "stack": "unroll", "shortest": 0.5}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("int8"), layers=1, dropout=0.0)


def config(experiment, model, place, out, **changes):
    return experiment.Config(model=str(model), corpus=place.corpus, out=out, **{**QUICK, **changes})


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "int8"
    int8.run(config(int8, place.model, place, out))
    return out


def report(out):
    return json.loads((out / "report.json").read_text())


@pytest.mark.slow
def test_three_points_of_one_model(finished):
    dense, half, quarter = report(finished)["points"]
    assert [row["name"] for row in (dense, half, quarter)] == ["dense", "bfloat16", "int8"]
    assert [row["level"] for row in (dense, half, quarter)] == [32, 16, 8]
    assert dense["macs_g_per_s"] == half["macs_g_per_s"] == quarter["macs_g_per_s"]
    assert dense["parameters"] == half["parameters"]
    channels = 4 * 16 + 24 + 16
    assert quarter["parameters"] == dense["parameters"] + channels
    maps = 4 * 16 * 16 + 2 * 16 * 24
    assert dense["bytes"] - quarter["bytes"] == pytest.approx(3 * maps - 4 * channels, abs=800)  # six names more
    assert dense["bytes"] - half["bytes"] == pytest.approx(2 * dense["parameters"], abs=100)
    for row in (half, quarter):
        assert row["valid_loss"] != dense["valid_loss"]
        assert row["valid_loss"] == pytest.approx(dense["valid_loss"], abs=0.1)
        assert row["speedup"] > 0
        arch, params = checkpoint.load(finished / "models" / row["name"])
        assert cost.parameters(arch) == row["parameters"]
        kinds = {leaf.dtype.name for leaf in flatten(params).values()}
        assert kinds == ({"bfloat16"} if row is half else {"int8", "float32"})
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_last_lines_say_what_it_costs_and_whether_it_pays(finished):
    notes = report(finished)["notes"]
    for name in ("bfloat16", "int8"):
        assert sum(note.startswith(f"{name}: ") and "nats of held-out loss" in note for note in notes) == 1
        assert sum(note.startswith(f"{name}: ") and "× as fast" in note for note in notes) == 1


@pytest.mark.slow
def test_a_finished_run_is_only_told_again(finished, place, capsys):
    before = report(finished)
    int8.run(config(int8, place.model, place, finished))
    assert report(finished) == before
    assert "measuring" not in capsys.readouterr().out


@pytest.mark.slow
def test_convolutions_of_samples_are_a_fourth_point(place, tmp_path):
    front = Waveform((Conv(12, 10, 5), Conv(12, 8, 8), Conv(12, 8, 8)), norm="layer")
    arch = replace(checkpoint.load(place.model)[0], front=front)
    checkpoint.save(tmp_path / "model", arch, weights(arch))
    int8.run(config(int8, tmp_path / "model", place, tmp_path / "out"))
    found = report(tmp_path / "out")
    *_, maps, both = found["points"]
    assert [row["name"] for row in found["points"]] == ["dense", "bfloat16", "int8", "int8-convolutions"]
    assert both["parameters"] == maps["parameters"] + 2 * 12
    assert maps["bytes"] - both["bytes"] == pytest.approx(3 * 2 * 8 * 12 * 12 - 4 * 2 * 12, abs=300)  # two names more
    assert both["valid_loss"] == pytest.approx(maps["valid_loss"], abs=0.1)
    assert both["valid_loss"] != maps["valid_loss"]
    assert checkpoint.load(tmp_path / "out/models/int8-convolutions")[0].front == replace(front, int8=True)
    assert any(note.startswith("int8-convolutions: ") and "nats of held-out loss" in note for note in found["notes"])


def told(name, losses, speeds):
    frames = np.full(40, 10.0)
    heard = {"dense": HeldOut(np.full(40, 20.0), frames, frames), name: HeldOut(losses, frames, frames)}
    row = dict(zip(("speedup_low", "speedup", "speedup_high"), speeds, strict=True), name=name)
    return int8.verdict(SimpleNamespace(heard=heard.__getitem__), row)


def test_what_does_not_pay_is_said_plainly():
    noise = np.random.default_rng(0).normal(0, 1, 40)
    quality, pays, _ = told("int8", 21 + noise - noise.mean(), (1.1, 1.2, 1.3))
    assert "int8: is worse than the dense model, +0.1000 nats" in quality
    ratio = "1.20 × as fast (quartiles 1.10 to 1.30) as the dense model"
    assert pays == f"int8: pays in time through XLA on this device: {ratio}"
    for speeds in ((0.4, 0.5, 0.6), (0.9, 1.1, 1.2)):
        quality, pays, elsewhere = told("int8", 20 + noise - noise.mean(), speeds)
        assert "cannot be told from" in quality
        assert "does not pay in time, only in bytes, through XLA on this device" in pays
        assert "python -m tools.export" in elsewhere
        assert "--format onnx-int8" in elsewhere
    assert "is better than" in told("int8", 19 + 0.1 * noise, (1, 1, 1))[0]
    assert not any("tools.export" in line for line in told("bfloat16", 20 + noise, (0.4, 0.5, 0.6)))


@pytest.mark.slow
def test_what_prunes_takes_it_up_in_float(finished, place, tmp_path):
    """From the int8 point, whose weights that were only small are zero, and are not taken for pruned."""
    model = finished / "models/int8"
    opened, subject = open_model(config(rows, model, place, tmp_path / "none"))
    assert subject.arch == checkpoint.load(place.model)[0] == opened.arch
    assert any("int8" in note and "are float32 here" in note for note in opened.notes)
    for path, leaf in flatten(dequantized(*checkpoint.load(model))[1]).items():
        np.testing.assert_array_equal(get(subject.params, path), leaf)
    kernels = [get(subject.params, f"{m.path}/kernel") for m in matrices(subject.arch) if m.path != "project"]
    assert max(float((kernel == 0).mean()) for kernel in kernels) > 1e-3
    assert not subject.masks
    rows.run(config(rows, model, place, tmp_path / "rows", keep=(9,), schedule="once", every=1, control=False))
    point = report(tmp_path / "rows")["points"][1]
    assert point["units"] == [9]
    assert {leaf.dtype.name for leaf in flatten(checkpoint.load(tmp_path / "rows/models/rows-9")[1]).values()} == {
        "float32"
    }


def test_what_was_pruned_before_stays_zero(place, tmp_path):
    arch, params = checkpoint.load(place.model)
    pruned = apply_masks(params, entry_masks(params, entries(arch), 0.5))
    checkpoint.save(tmp_path / "model", *quantized(arch, pruned))
    _, subject = open_model(config(rows, tmp_path / "model", place, tmp_path / "none"))
    assert len(subject.masks) == 12
    for path, mask in subject.masks.items():
        assert not np.asarray(mask)[np.asarray(get(pruned, path)) == 0].any()


def test_models_that_are_float_already_are_left_alone(place, tmp_path):
    model = load_model(str(place.model), seed=0)
    assert in_float(model) is model
    arch, params = checkpoint.load(place.model)
    checkpoint.save(tmp_path / "model", arch, bfloat16(params))
    found = in_float(load_model(str(tmp_path / "model"), seed=0))
    assert {leaf.dtype for leaf in flatten(found.params).values()} == {jnp.dtype("float32")}
    assert found.notes[-1].startswith("weights that are bfloat16 in")
