"""Low rank with recovery: intervals before and after, pictures, a broken run."""

import io
import json
import signal
from contextlib import redirect_stdout
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.address import flatten
from experiments import lowrank, tradeoff
from experiments.curves.runs import read_curves
from experiments.reports import canvas, methods
from jaxssl.models import checkpoint, cost
from jaxssl.training import fit
from tests.experiments.small import make


def points(out):
    return json.loads((out / "report.json").read_text())["points"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model without dropout: its random bits are most of what there is to compile."""
    return make(tmp_path_factory.mktemp("place"), layers=1, dropout=0.0)


@pytest.fixture(scope="module")
def recovered(place, tmp_path_factory, one_device, untimed):
    """A run that trains, and what it printed."""
    out, heard = tmp_path_factory.mktemp("runs") / "recovered", io.StringIO()
    config = lowrank.Config(rank=(4,), steps=4, corpus=place.corpus, model=str(place.model), rounds=1, out=out)
    config = replace(config, audio=(str(place.audio),), limit=4, seconds=0.2, batch=4, shortest=0.3, learning_rate=3e-3)
    compiled, make = [], fit.make_step
    with redirect_stdout(heard), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fit, "make_step", lambda arch, *words, **more: compiled.append(arch) or make(arch, *words, **more)
        )
        lowrank.run(config)
    return out, heard.getvalue(), compiled


def test_recovery_is_told_with_intervals_beside_the_control(recovered):
    out, *_ = recovered
    dense, *small = points(out)
    assert (dense["step"], dense["method"], len(small)) == (0, "dense", 2)
    for row in small:
        assert row["step"] == 4
        assert row["loss_before_low"] <= row["loss_before"] <= row["loss_before_high"]
        assert row["valid_loss_low"] <= row["valid_loss"] <= row["valid_loss_high"]
        assert 0 < row["masked_accuracy"] < 1
        assert row["valid_loss"] < row["loss_before"]
        assert row["control_loss"] < dense["valid_loss"]  # the control learns this speech as well
        assert row["loss_difference"] == pytest.approx(row["valid_loss"] - row["control_loss"])
        assert row["difference_before"] == pytest.approx(row["loss_before"] - row["control_loss"])
        assert row["difference_before_low"] <= row["difference_before"] <= row["difference_before_high"]
        arch, params = checkpoint.load(out / "models" / row["name"])
        assert cost.parameters(arch) == row["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert cost.parameters(checkpoint.load(out / "models/dense")[0]) == dense["parameters"]


def test_two_ways_to_factorise_at_one_rank_share_what_is_compiled(recovered):
    *_, compiled = recovered
    assert len(compiled) == len(set(compiled)) <= 2, "the control's shape and the rank's"


def test_what_factorising_costs_is_printed_before_hours_of_training(recovered):
    _, told, _ = recovered
    assert told.index("factorised, before training") < told.index("training the dense model as long")
    assert told.index("training the dense model as long") < told.index("training on: rank-4-svd")
    assert "layers/0/attention/q" not in told


def test_a_run_is_read_as_a_curve_for_each_method(recovered, tmp_path):
    out, *_ = recovered
    plain, aware = read_curves(out)
    assert [row["name"] for row in plain.rows] == ["dense", "rank-4-svd"]
    assert [row["name"] for row in aware.rows] == ["dense", "rank-4-activation"]
    assert (plain.technique, plain.label) == ("lowrank", "low rank, plain SVD")
    (out / "report.json").rename(tmp_path / "report.json")  # as while the run goes on
    try:
        growing = read_curves(out)
        assert [curve.label for curve in growing] == [plain.label, aware.label]
        assert [curve.technique for curve in growing] == ["lowrank", "lowrank"]
        assert [row["valid_loss"] for row in growing[1].rows] == [row["valid_loss"] for row in aware.rows]
    finally:
        (tmp_path / "report.json").rename(out / "report.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tradeoff, "_draw", lambda *_, **__: None)
        tradeoff.run(tradeoff.Config((out,), out=tmp_path / "out", retime=True, rounds=1, seconds=0.2))
    found = json.loads((tmp_path / "out/report.json").read_text())
    assert len(found["points"]) == 4
    assert not any(
        "model's folder" in note for note in found["notes"]
    )  # bytes are of the smallest encoding, as others'


def test_the_picture_has_time_first_and_both_states_of_every_point(recovered, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(canvas, "finish", lambda figure, *_: drawn.append((figure, _[-1])))
    for rows in (points(recovered[0]), points(recovered[0])[:1]):
        methods.draw(tmp_path / "a.png", rows, level="", title="a", caption="", names=lowrank.NAMES)
    (trained, labels), _ = drawn
    time, size = trained.axes
    assert "time" in time.get_xlabel()
    assert "parameters" in size.get_xlabel()
    said = {label.text for label in labels if label.panel is time}
    assert said == {"dense", "rank 4, plain SVD", "rank 4, activation-aware"}
    hollow = [line for line in time.lines if line.get_markerfacecolor() == "w"]
    filled = [line for line in time.lines if line.get_markerfacecolor() not in ("w", "none") and len(line.get_xdata())]
    assert sum(len(line.get_xdata()) for line in hollow) == 3
    assert sum(len(line.get_xdata()) for line in filled if line.get_marker() in "Dos") == 3


@pytest.mark.slow
def test_killed_in_mid_run_it_goes_on_and_ends_the_same(tmp_path):
    place = make(tmp_path, layers=1)  # with dropout, whose random bits must go on, too
    module, settings = "experiments.lowrank", {"rank": (2,), "steps": 40, "save_every": 8, "batch": 4, "rounds": 1}
    settings |= {"audio": place.audio, "limit": 2, "seconds": 0.2, "shortest": 0.3, "no_control": True}
    place.finish(module, tmp_path / "whole", **settings)
    broken = tmp_path / "broken"
    for number, how, code in ((24, signal.SIGTERM, 75), (24, signal.SIGKILL, -9)):  # in the first point, in the second
        found, _, errors = place.interrupt(module, broken, number, how, **settings)
        assert found == code, errors
    assert [row["name"] for row in json.loads((broken / "points.json").read_text())] == ["dense", "rank-2-svd"]
    output, _ = place.finish(module, broken, **settings)
    assert "resuming after update" in output
    assert "measuring rank-2-svd" not in output
    for name in ("maps.csv", "layers.csv"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    one, two = (list(map(untimed, points(out))) for out in (broken, tmp_path / "whole"))
    assert one == two
    assert len(one) == 3
    for row in one:
        assert arrays_of(broken, row["name"]) == arrays_of(tmp_path / "whole", row["name"])


def untimed(row):
    """Leave out what is measured anew in every run: times."""
    return {k: v for k, v in row.items() if not k.endswith("_ms") and not k.startswith(("real_time_", "speedup"))}


def arrays_of(out, name):
    """Return a model's arrays, and what it made of each held-out utterance, as bytes."""
    flat = {
        path: np.asarray(leaf).tobytes() for path, leaf in flatten(checkpoint.load(out / "models" / name)[1]).items()
    }
    with np.load(out / "held-out" / f"{name}.npz") as heard:
        return flat | {key: heard[key].tobytes() for key in heard}


@pytest.mark.slow
@pytest.mark.optimised
def test_recovery_tells_quality_before_and_after(tmp_path, capsys):
    """On the embedded corpus, with the default model's own targets: a few updates bring back some of what was lost."""
    pytest.importorskip("espeakng_loader")
    out = tmp_path / "run"
    config = lowrank.Config(rank=(16,), method=("svd",), steps=6, rounds=2, seconds=1.0, limit=4, out=out)
    lowrank.run(config)
    dense, small = points(out)
    assert small["loss_before"] > dense["valid_loss"]
    assert small["valid_loss"] < small["loss_before"]
    assert small["control_loss"] < dense["valid_loss"]  # the control learns this speech as well
    assert 0 < small["masked_accuracy"] < 1
    assert cost.parameters(checkpoint.load(out / "models/rank-16-svd")[0]) == small["parameters"]
    assert "dense, as long" in capsys.readouterr().out
    files = ["config.json", "report.json", "points.json", "curve.csv", "curve.png", "maps.csv", "layers.csv"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*files, "models", "held-out", "recovery"])
