"""The main job end to end on a small trained-shaped model, and every way to ask for what cannot be."""

import csv
import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from experiments import latency, lowrank
from experiments.curves import points as curve_points
from experiments.curves.runs import read_curves
from experiments.reports import canvas, methods
from jaxssl.data.demo import utterances
from jaxssl.data.logmel import load_stats
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import LogMel
from jaxssl.models.model import init
from jaxssl.runtime.cli import command
from tests.archs import BASE, MEL, weights
from tests.processes import finish, start

MODEL = replace(MEL, front=LogMel(40, 2), layers=MEL.layers[:1])
BUDGET = 3300  # parameters; of the dense model 4,500


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "mel"
    checkpoint.save(folder, MODEL, weights(MODEL))
    return folder


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    for i, samples in enumerate(utterances(4)):
        soundfile.write(folder / f"{i}.flac", samples[:17600], 16000)
    return folder


@pytest.fixture(scope="module")
def settings(model, audio, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "lowrank"
    asked = lowrank.Config(rank=(4, 8), budget=(f"params={BUDGET}",), energy=(0.7,), model=str(model), out=out)
    return replace(asked, audio=(str(audio),), rounds=3, seconds=0.3)


@pytest.fixture(scope="module")
def compiled():
    """Shapes that were compiled to be timed, in the run of `finished`."""
    return []


@pytest.fixture(scope="module")
def finished(settings, compiled):
    real = curve_points.compile_forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curve_points, "compile_forward", lambda *a, **k: (compiled.append(a[0]), real(*a, **k))[1])
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
        assert len(row["layer_errors"]) == len(row["layer_cosines"]) == 2
        assert row["output_error"] == row["layer_errors"][-1]
        assert row["real_time_factor"] > 0
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert sum(row["macs_by_part"].values()) == pytest.approx(row["macs_g_per_s"] * 1e9)
        assert not {"valid_loss", "phone_accuracy"} & row.keys()  # no labels, and no probes unless asked for
    with (finished / "curve.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == list(rows)
    with (finished / "layers.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)][::2] == list(rows)
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_models_of_one_shape_are_compiled_and_timed_once(finished, compiled):
    shapes = {row["name"]: checkpoint.load(finished / "models" / row["name"])[0] for row in points(finished)}
    times = {row["name"]: row["point_ms"] for row in points(finished)}
    assert times["rank-4-svd"] == times["rank-4-activation"] != times["rank-8-svd"]
    assert shapes["rank-4-svd"] == shapes["rank-4-activation"]
    assert len(compiled) == len(set(compiled)) == 1 + len(set(shapes.values()))  # and the one without any head or unit


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
        assert len(list(csv.DictReader(file))) == 8 * 6


def test_a_map_that_would_grow_is_named_and_dense(finished):
    maps = json.loads((finished / "report.json").read_text())["maps"]
    eight = {row["path"]: row["rank"] for row in maps if row["variant"] == "rank-8-svd"}
    assert eight["layers/0/attention/q"] == "dense"
    assert eight["layers/0/ffn/fc1"] == 8
    assert len(eight) == 6


def test_saved_models_are_what_the_report_says(finished):
    rows = points(finished)
    for row in rows:
        arch, params = checkpoint.load(finished / "models" / row["name"])
        assert cost.parameters(arch) == row["parameters"] == sum(x.size for x in jax.tree.leaves(params))
        kept = load_stats(finished / "models" / row["name"] / "stats.npy")
        assert kept.mean.shape == (40,)
    budget = [row["parameters"] for row in rows if row["name"].startswith(f"params-{BUDGET}")]
    assert len(budget) == 2
    assert all(BUDGET - 40 <= parameters <= BUDGET for parameters in budget)


def test_knowing_the_inputs_lowers_their_error(finished):
    maps = json.loads((finished / "report.json").read_text())["maps"]
    by = {(row["variant"], row["path"]): row for row in maps}
    pairs = [
        (row, by[row["variant"].replace("svd", "activation"), row["path"]])
        for row in maps
        if "rank-4-svd" in row["variant"]
    ]
    assert len(pairs) == 6
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
        ({"rank": (0,)}, "--rank 0: give 1 to"),
        ({"rank": (-4,)}, "--rank -4: give 1 to"),
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
    done = finish("-m", "experiments.lowrank", "--rank", "17", "--model", model, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: layers/0/attention/q: rank 17 is impossible for 16 × 16; use 1 to 16")
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_is_one_line(model, audio, tmp_path, capsys):
    (tmp_path / "file").touch()
    words = ["--rank", "4", "--model", str(model), "--audio", str(audio), "--out", str(tmp_path / "file/run")]
    assert command(lowrank.run, lowrank.Config, "", args=words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_full_disk_is_one_line_and_leaves_no_half_model(model, audio, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", full)
    words = ["--rank", "4", "--model", str(model), "--audio", str(audio), "--out", str(tmp_path / "run")]
    assert command(lowrank.run, lowrank.Config, "", args=[*words, "--seconds", "0.3", "--rounds", "3"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("arch.json"))
    assert not (tmp_path / "run/report.json").exists()


def test_help_shows_defaults_and_units(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit) as left:
        command(lowrank.run, lowrank.Config, lowrank.__doc__, args=["--help"])
    assert not left.value.code
    said = capsys.readouterr().out
    for expected in ("--rank", "per second of speech", "runs/lowrank", "default: 5.0", "in seconds"):
        assert expected in said


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
        "--rounds",
        "20000",  # which take far longer than the signal
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


def test_the_smallest_model_is_a_curve_s_last(finished):
    for curve in read_curves(finished):
        sizes = [row["parameters"] for row in curve.rows]
        assert len(sizes) == 5
        assert sizes == sorted(sizes, reverse=True)


def test_without_recovery_no_point_of_the_picture_is_hollow(finished, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(canvas, "finish", lambda figure, *_: drawn.append(figure))
    methods.draw(tmp_path / "a.png", points(finished), level="", title="a", caption="", names=lowrank.NAMES)
    assert not any(line.get_markerfacecolor() == "w" for line in drawn[0].axes[0].lines)
