"""Runs of every kind as curves, and all their points timed again in turns."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.errors import InputError
from experiments.curves import retime
from experiments.curves.runs import read_curves, spoken
from jaxssl.models import checkpoint, cost
from jaxssl.models.model import shapes
from jaxssl.runtime import files
from tests.archs import MEL, transformer_layer
from tests.experiments.curves import HEADS, MACHINE, ROWS, compare, row, write


def lowrank_report(folder, *, trained):
    """Write what experiments.lowrank does: all methods in one list, losses only after training."""
    rows = []
    for name, method, time, size, error in (
        ("dense", "dense", 1.0, 1000, 0.0),
        ("rank 4, svd", "svd", 0.6, 400, 0.5),
        ("rank 8, svd", "svd", 0.8, 600, 0.3),
        ("rank 4, activation", "activation", 0.6, 400, 0.2),
    ):
        made = row(name, time, 2 + error, method=method, parameters=size, output_error=error, loss_before=2 + 2 * error)
        dropped = ("level", "step", *(() if trained else ("valid_loss", "masked_accuracy", "loss_before")))
        rows.append({key: value for key, value in made.items() if key not in dropped})
    folder.mkdir()
    files.write_json(folder / "config.json", {"model": "melhubert-mini", "rank": [4, 8]})
    told = {"notes": ["a note"], "model": "melhubert-mini", "machine": MACHINE, "models": rows, "maps": []}
    files.write_json(folder / "report.json", told)
    return folder


@pytest.mark.parametrize("trained", [True, False])
def test_a_low_rank_run_is_a_curve_for_each_method(tmp_path, three, trained):
    folder = lowrank_report(tmp_path / "lowrank", trained=trained)
    plain, aware = read_curves(folder)
    assert [r["name"] for r in plain.rows] == ["dense", "rank 8, svd", "rank 4, svd"]  # the smallest last
    assert [r["name"] for r in aware.rows] == ["dense", "rank 4, activation"]
    assert (plain.technique, plain.label, aware.label) == (
        "lowrank",
        "low rank, plain SVD",
        "low rank, activation-aware",
    )
    found = compare(tmp_path, (folder, three[1]), share=(0.7,))
    table = {r["measure"]: r for r in found["equal_time"]}
    assert table["output_error"][plain.label] == pytest.approx(0.4)
    assert table["output_error"]["wins"] == aware.label  # the lowest error wins
    assert table["valid_loss"][plain.label] == (pytest.approx(2.4) if trained else None)
    assert table["valid_loss"]["heads"] == pytest.approx(2.6)
    assert len(found["points"]) == 8
    assert any("bytes of low rank, plain SVD and low rank, activation-aware" in note for note in found["notes"])


def test_a_run_may_be_one_point_without_a_dense_model(tmp_path, three):
    write(tmp_path / "distill", (row("student-2", 0.5, 2.3, control_loss=1.0),), label="distilled")
    found = compare(tmp_path, (tmp_path / "distill", three[1]), share=(0.9, 0.4))
    losses = [r["distilled"] for r in found["equal_time"] if r["measure"] == "valid_loss"]
    assert losses == [pytest.approx(2.3), None]
    assert found["notes"] == []


def test_commands_are_told_as_they_are_typed(tmp_path):
    folder = write(tmp_path / "heads", HEADS)
    assert read_curves(folder)[0].command == ""
    (folder / "models/heads-3").mkdir(parents=True)
    files.write_json(folder / "models/heads-3/provenance.json", {"command": "/home/me/experiments/heads.py --keep 4"})
    assert read_curves(folder)[0].command == "python -m experiments.heads --keep 4"
    assert spoken("'/a b/experiments/rows.py' --out x") == "python -m experiments.rows --out x"
    assert spoken("pytest tests/experiments") == "pytest tests/experiments"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved models of three shapes."""
    folder = tmp_path_factory.mktemp("models")
    layers = {"dense": transformer_layer(4, 24), "cut": transformer_layer(1, 24), "small": transformer_layer(4, 3)}
    archs = {name: replace(MEL, layers=(layer,), head=None) for name, layer in layers.items()}
    for name, arch in archs.items():
        checkpoint.save(folder / name, arch, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes(arch)))
    return folder, archs


def place_models(run, models, **names):
    for name, model in names.items():
        target = run / name.replace("__", "/").replace("_", "-")
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(models / model)


def test_all_points_are_timed_again_in_turns(tmp_path, models, monkeypatch, capsys):
    saved, archs = models
    heads, rows = write(tmp_path / "heads", HEADS), write(tmp_path / "rows", ROWS[:2], machine={**MACHINE, "cores": 9})
    place_models(heads, saved, models__dense="dense", models__heads_3="cut", models__heads_1="dense")
    place_models(rows, saved, models__dense="dense", models__rows_9="cut", packed__rows_9="small")
    compiled, real = [], retime.compile_forward
    monkeypatch.setattr(retime, "compile_forward", lambda *a, **k: (compiled.append(a[0]), real(*a, **k))[1])
    before = (heads / "report.json").read_bytes()
    found = compare(tmp_path, (heads, rows), retime=True, seconds=0.1, rounds=3)
    assert compiled == [archs["dense"], archs["cut"], archs["small"]]  # each shape once; packed where there is one
    points = {(p["run"], p["name"]): p for p in found["points"]}
    for key in (("heads", "dense"), ("rows", "dense"), ("heads", "heads-1")):
        assert points[key]["speedup"] == points[key]["speedup_low"] == points[key]["promised_speedup"] == 1
        assert points[key]["real_time_factor"] == points["heads", "dense"]["real_time_factor"]
    for point in points.values():
        assert point["real_time_factor_low"] <= point["real_time_factor"] <= point["real_time_factor_high"]
        assert point["real_time_factor"] == pytest.approx(point["point_ms"] / 100)
        assert point["memory_bytes"] > 0
        assert point["time"] == pytest.approx(1 / point["speedup"])
    promised = cost.macs(archs["dense"], 1600).total / cost.macs(archs["small"], 1600).total
    assert points["rows", "rows-9"]["promised_speedup"] == pytest.approx(promised)
    assert "all points were timed again in turns" in capsys.readouterr().out
    assert not any("different cores" in note for note in found["notes"])
    assert "real-time factor, all timed in turns" in (tmp_path / "out/tradeoff.html").read_text()
    assert (heads / "report.json").read_bytes() == before


def test_a_point_without_its_model_cannot_be_timed_again(tmp_path, models):
    heads = write(tmp_path / "heads", HEADS)
    place_models(heads, models[0], models__dense="dense", models__heads_3="cut")
    with pytest.raises(InputError, match="heads-1 has no model in packed/ or models/") as caught:
        compare(tmp_path, (heads,), retime=True)
    assert str(caught.value).startswith(str(heads))
    assert "\n" not in str(caught.value)
