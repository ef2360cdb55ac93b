"""The main job end to end on a small trained-shaped model, and every way to ask for what cannot be."""

import csv
import io
import json
import signal
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from compress.address import flatten
from compress.errors import InputError
from experiments import latency, lowrank, tradeoff
from experiments.curves import points as curve_points
from experiments.curves.runs import read_curves
from experiments.reports import canvas, ranks
from jaxssl.data.demo import utterances
from jaxssl.data.logmel import load_stats
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import LogMel
from jaxssl.models.model import init
from tests.archs import BASE, MEL
from tests.experiments.small import make
from tests.processes import finish, start

MODEL = {**vars(MEL), "front": LogMel(40, 2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mel"
    arch = type(MEL)(**MODEL)
    checkpoint.save(folder, arch, init(arch, jax.random.key(1)))
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    for i, samples in enumerate(utterances(4)):
        soundfile.write(folder / f"{i}.flac", samples[:24000], 16000)
    return folder


@pytest.fixture(scope="module")
def settings(model, audio, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lowrank"
    asked = lowrank.Config(rank=(4, 8), budget=("params=4000",), energy=(0.7,), model=str(model), out=out)
    return replace(asked, audio=(str(audio),), rounds=3, seconds=0.3)


@pytest.fixture(scope="module")
def finished(settings):
    lowrank.run(settings)
    return settings.out


def points(out):
    return json.loads((out / "report.json").read_text())["points"]


def test_the_report_is_complete(finished):
    report = json.loads((finished / "report.json").read_text())
    rows = {row["name"]: row for row in report["points"]}
    assert next(iter(rows)) == "dense"
    assert len(rows) == 1 + 2 * 4
    assert report["machine"]["dtype"] == "float32"
    assert (report["technique"], report["label"]) == ("lowrank", "low rank")
    assert rows["dense"]["output_error"] == 0
    for row in report["points"]:
        assert len(row["layer_errors"]) == len(row["layer_cosines"]) == 4
        assert row["output_error"] == row["layer_errors"][-1]
        assert row["real_time_factor"] > 0
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert sum(row["macs_by_part"].values()) == pytest.approx(row["macs_g_per_s"] * 1e9)
        assert not {"valid_loss", "phone_accuracy"} & row.keys()  # no labels, and no probes unless asked for
    with (finished / "curve.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == list(rows)
    with (finished / "layers.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)][::4] == list(rows)
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_models_of_one_shape_are_compiled_once(settings, tmp_path, monkeypatch):
    compiled, real = [], curve_points.compile_forward
    monkeypatch.setattr(curve_points, "compile_forward", lambda *a, **k: (compiled.append(a[0]), real(*a, **k))[1])
    lowrank.run(replace(settings, rank=(4,), budget=(), energy=(), out=tmp_path / "run", rounds=1))
    assert len(compiled) == len(set(compiled)) == 3  # dense, bare, and rank 4 of both methods


def test_every_map_is_printed_when_asked_for_and_not_before(finished, settings, capsys):
    """A finished run is told again without measuring anything."""
    before = json.loads((finished / "points.json").read_text())
    lowrank.run(settings)
    short = capsys.readouterr().out
    assert "layers/0/attention/q" not in short
    assert "by layer" not in short
    lowrank.run(replace(settings, maps=True))
    told = capsys.readouterr().out
    assert told.count("layers/0/attention/q") == 8
    assert "relative error by layer" in told
    assert told.index("layers/0/attention/q") > told.index("quality")  # the answer comes first
    assert json.loads((finished / "points.json").read_text()) == before == points(finished)
    with (finished / "maps.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8 * 18


def test_a_map_that_would_grow_is_named_and_dense(finished):
    maps = json.loads((finished / "report.json").read_text())["maps"]
    eight = {row["path"]: row["rank"] for row in maps if row["variant"] == "rank-8-svd"}
    assert eight["layers/0/attention/q"] == "dense"
    assert eight["layers/0/ffn/fc1"] == 8
    assert len(eight) == 18


def test_saved_models_are_what_the_report_says(finished):
    rows = points(finished)
    for row in rows:
        arch, params = checkpoint.load(finished / "models" / row["name"])
        assert cost.parameters(arch) == row["parameters"] == sum(x.size for x in jax.tree.leaves(params))
        kept = load_stats(finished / "models" / row["name"] / "stats.npy")
        assert kept.mean.shape == (40,)
    budget = [row["parameters"] for row in rows if row["name"].startswith("params-4000")]
    assert len(budget) == 2
    assert all(4000 - 40 <= parameters <= 4000 for parameters in budget)


def test_knowing_the_inputs_lowers_their_error(finished):
    maps = json.loads((finished / "report.json").read_text())["maps"]
    by = {(row["variant"], row["path"]): row for row in maps}
    pairs = [
        (row, by[row["variant"].replace("svd", "activation"), row["path"]])
        for row in maps
        if "rank-4-svd" in row["variant"]
    ]
    assert len(pairs) == 18
    for plain, aware in pairs:
        assert aware["speech_error"] <= plain["speech_error"] * (1 + 1e-3)
        assert aware["error"] >= plain["error"] * (1 - 1e-6)


@pytest.mark.slow
def test_a_run_may_be_repeated_and_its_models_timed(finished, model, tmp_path):
    with pytest.raises(InputError, match="holds 9 models"):
        latency.run(latency.Config(model=str(finished), out=tmp_path / "latency"))
    config = latency.Config(
        model=str(finished / "models/rank-4-svd"),
        against=str(model),
        seconds=(0.5, 1.0),
        batch=(1, 2),
        rounds=2,
        out=tmp_path / "latency",
    )
    latency.run(config)
    latency.run(config)
    points = json.loads((tmp_path / "latency/report.json").read_text())["points"]
    assert len(points) == 8
    assert all(p["median_ms"] > 0 and p["memory_mib"] > 0 and p["compile_s"] > 0 for p in points)
    assert {p["speedup"] for p in points[::2]} == {1.0}


@pytest.mark.slow
def test_waveform_models_work_too(tmp_path, audio, key):
    checkpoint.save(tmp_path / "base", BASE, init(BASE, key))
    config = lowrank.Config(
        rank=(4,),
        model=str(tmp_path / "base"),
        audio=(str(audio),),
        out=tmp_path / "run",
        rounds=1,
        where="*/ffn/*",
        seconds=0.3,
    )
    lowrank.run(config)
    maps = json.loads((tmp_path / "run/report.json").read_text())["maps"]
    assert {row["path"] for row in maps} == {f"layers/{i}/ffn/fc{j}" for i in (0, 1) for j in (1, 2)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rank": (0,)}, "rank 0 is impossible"),
        ({"rank": (-4,)}, "rank -4 is impossible"),
        ({"rank": (17,)}, "use 1 to 16"),
        ({"where": "layer/*/ffn"}, "near: layers/"),
        ({"energy": (1.5,)}, "energy 1.5"),
        ({"budget": ("memory=3",)}, "write params="),
        ({"budget": ("params=nan",)}, "write params="),
        ({"budget": ("params=10",)}, "stays dense alone"),
        ({"model": "gone"}, "gone"),
        ({"audio": ("gone.wav",)}, "no such file"),
        ({"method": ()}, "name svd"),
        ({"steps": -1}, "--steps -1"),
        ({"limit": 0}, "--limit 0"),
        ({"rounds": 0}, "--rounds 0"),
        ({"budget": ("params=4000001", "params=4000002")}, "two targets"),
        ({"budget": ("params=4000", "macs=1")}, "stays dense alone"),
        ({"steps": 3}, "3 utterances make no batch of 8"),
        ({"steps": 3, "corpus": Path("gone")}, "gone"),
        ({"probes": True, "speakers": Path("gone")}, "gone"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(model, audio, tmp_path, words, message):
    config = {"model": str(model), "audio": (str(audio),), "out": tmp_path / "run", "rounds": 1, "rank": (4,), **words}
    with pytest.raises(InputError, match=message):
        lowrank.run(lowrank.Config(**config))
    for name in ("report.json", "models", "config.json"):  # nor does the folder belong to what was refused
        assert not (tmp_path / "run" / name).exists()


def test_someone_else_s_folder_is_left_alone(model, audio, tmp_path):
    (tmp_path / "thesis.txt").write_text("words")
    with pytest.raises(InputError, match="not a run folder"):
        lowrank.run(lowrank.Config(rank=(4,), model=str(model), audio=(str(audio),), out=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_command_line_prints_one_line_and_fails(model, tmp_path):
    done = finish("-m", "experiments.lowrank", "--rank", "0", "--model", model, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: layers/0/attention/q: rank 0 is impossible for 16 × 16; use 1 to 16")
    assert len(done.stderr.strip().splitlines()) == 1
    (tmp_path / "file").touch()
    done = finish("-m", "experiments.lowrank", "--rank", 4, "--model", model, "--out", tmp_path / "file/run")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_line_and_leaves_no_half_model(model, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp.StandardCheckpointer, "save", full)
    monkeypatch.setattr(sys, "argv", ["lowrank", "--model", str(model), "--out", str(tmp_path / "run"), "--rank", "4"])
    with pytest.raises(SystemExit) as left:
        lowrank.main(lowrank.run, lowrank.Config, "")
    assert left.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("arch.json"))
    assert not (tmp_path / "run/report.json").exists()


def test_help_shows_defaults_and_units():
    done = finish("-m", "experiments.lowrank", "--help")
    assert done.returncode == 0
    for expected in ("--rank", "per second of speech", "runs/lowrank", "default: 5.0", "in seconds"):
        assert expected in done.stdout


def test_ctrl_c_leaves_nothing_half_written(model, audio, tmp_path):
    words = (
        "--rank",
        *map(str, range(1, 8)),
        "--model",
        str(model),
        "--audio",
        str(audio),
        "--out",
        str(tmp_path / "run"),
    )
    process = start("-m", "experiments.lowrank", *words)
    assert process.stdout is not None
    process.stdout.readline()  # the first note: work has begun
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert not (tmp_path / "run/report.json").exists()
    for file in (tmp_path / "run").rglob("arch.json"):
        checkpoint.load(file.parent)
    assert not [p for p in (tmp_path / "run").rglob(".*") if p.is_dir()]


@pytest.mark.slow
def test_random_weights_are_confessed_first():
    loaded = load_model("melhubert-20ms", seed=3)
    assert not loaded.trained
    assert loaded.notes[0].startswith("weights are random")
    assert cost.parameters(loaded.arch) == 90_231_424
    again = load_model("melhubert-20ms", seed=3)
    assert np.array_equal(loaded.params["project"]["kernel"], again.params["project"]["kernel"])


def test_the_default_is_trained():
    loaded = load_model(None, seed=0)
    assert loaded.trained
    assert loaded.stats is not None
    assert loaded.notes == ()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make(tmp_path_factory.mktemp("place"), layers=1)


@pytest.fixture(scope="module")
def recovered(place, tmp_path_factory, one_device):
    """A run that trains, and what it printed."""
    out, heard = tmp_path_factory.mktemp("runs") / "recovered", io.StringIO()
    config = lowrank.Config(rank=(4,), steps=4, corpus=place.corpus, model=str(place.model), rounds=1, out=out)
    config = replace(config, audio=(str(place.audio),), limit=4, seconds=0.2, batch=4, shortest=0.3, learning_rate=3e-3)
    with redirect_stdout(heard):
        lowrank.run(config)
    return out, heard.getvalue()


def test_recovery_is_told_with_intervals_beside_the_control(recovered):
    out, _ = recovered
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


def test_what_factorising_costs_is_printed_before_hours_of_training(recovered):
    _, told = recovered
    assert told.index("factorised, before training") < told.index("training the dense model as long")
    assert told.index("training the dense model as long") < told.index("training on: rank-4-svd")
    assert "layers/0/attention/q" not in told


def test_a_run_is_read_as_a_curve_for_each_method(recovered, tmp_path):
    out, _ = recovered
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


def test_the_smallest_model_is_a_curve_s_last(finished):
    for curve in read_curves(finished):
        sizes = [row["parameters"] for row in curve.rows]
        assert len(sizes) == 5
        assert sizes == sorted(sizes, reverse=True)


def test_the_picture_has_time_first_and_both_states_of_every_point(recovered, finished, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(canvas, "finish", lambda figure, *_: drawn.append((figure, _[-1])))
    for rows in (points(recovered[0]), points(recovered[0])[:1], points(finished)):
        ranks.draw(tmp_path / "a.png", rows, level="lowrank", title="a", caption="")
    (trained, labels), _, (plain, _) = drawn
    time, size = trained.axes
    assert "time" in time.get_xlabel()
    assert "parameters" in size.get_xlabel()
    said = {label.text for label in labels if label.panel is time}
    assert said == {"dense", "rank 4, plain SVD", "rank 4, activation-aware"}
    hollow = [line for line in time.lines if line.get_markerfacecolor() == "w"]
    filled = [line for line in time.lines if line.get_markerfacecolor() not in ("w", "none") and len(line.get_xdata())]
    assert sum(len(line.get_xdata()) for line in hollow) == 3
    assert sum(len(line.get_xdata()) for line in filled if line.get_marker() in "Dos") == 3
    assert not any(line.get_markerfacecolor() == "w" for line in plain.axes[0].lines)


@pytest.mark.slow
def test_killed_in_mid_run_it_goes_on_and_ends_the_same(place, tmp_path):
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
