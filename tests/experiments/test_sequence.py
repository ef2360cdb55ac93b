"""Models that hear shorter sequences, as a run."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from compress.errors import InputError
from experiments import rows, sequence
from experiments.curves import on_speech
from experiments.curves.runs import read_curves
from jaxssl.models import checkpoint
from jaxssl.models.arch import AveragePooling, KeyMerging, Repeat, StridedConvolution
from jaxssl.models.shorten import shortened
from tests.archs import MEL, forward
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device", "untimed")
QUICK = {"steps": 2, "batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "stack": "unroll", "shortest": 0.5}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("sequence"), layers=2, dropout=0.0)


def config(place, out, **changes):
    return sequence.Config(model=str(place.model), corpus=place.corpus, out=out, **{**QUICK, **changes})


@pytest.mark.slow
def test_each_ratio_way_and_place_is_a_point_from_the_dense_model(place, tmp_path):
    out = tmp_path / "sequence"
    asked = config(place, out, ratio=(2, 3), by=("mean", "convolution"), at=("front", "1"))
    sequence.run(asked)
    dense, *points = json.loads((out / "report.json").read_text())["points"]
    assert [row["name"] for row in points] == [
        f"ratio-{ratio}-{way}-{at}"
        for at in ("front", "layer-1")
        for way in ("mean", "convolution")
        for ratio in (2, 3)
    ]
    for row in points:
        assert row["macs_g_per_s"] < dense["macs_g_per_s"]
        assert row["frames_per_s"] == pytest.approx(50 / row["level"])
        assert row["loss_difference_low"] <= row["loss_difference"] <= row["loss_difference_high"]
    pairs = zip(points[::4], points[2::4], strict=True)  # a convolution that has not learned is a mean
    assert all(one["loss_before"] == pytest.approx(two["loss_before"], abs=1e-4) for one, two in pairs)
    arch, params = checkpoint.load(out / "models/ratio-3-convolution-layer-1")
    assert (arch.layers[1].shortening, arch.upsampling) == (StridedConvolution(3), Repeat())
    started = np.eye(16)[None] / 3
    assert 1e-5 < np.abs(params["layers"]["1"]["shortening"]["kernel"] - started).max() < 0.01  # it learns on
    curves = read_curves(out)
    assert [(each.technique, each.label) for each in curves] == [
        ("sequence", f"shorter sequences, {way}-{at}") for at in ("front", "layer-1") for way in ("mean", "convolution")
    ]
    assert [[row["level"] for row in each.points] for each in curves] == [[1, 2, 3]] * 4
    told = (out / "curve.csv").read_bytes()
    sequence.run(asked)  # finished: nothing is done again
    assert (out / "curve.csv").read_bytes() == told


@pytest.mark.slow
def test_frames_fire_at_each_rate_by_one_model_each_and_by_one_for_all(place, tmp_path, capsys):
    out = tmp_path / "fire"
    asked = config(place, out, ratio=(2, 4), by=("fire", "once"), at=("front",))
    with pytest.MonkeyPatch.context() as patch:  # what runs over speech is compiled for one point only, the inner one
        patch.setattr(on_speech, "_run", lambda *_: lambda: time.sleep(1e-4))
        sequence.run(asked)
    points = json.loads((out / "report.json").read_text())["points"][1:]
    assert [row["name"] for row in points] == [f"ratio-{n}-{by}-front" for by in ("fire", "once") for n in (2, 4)]
    assert {each.name for each in (out / "recovery").iterdir()} == {
        "ratio-2-fire-front",
        "ratio-4-fire-front",
        "once-front",
    }
    for row in points:
        assert row["frames_per_s"] == pytest.approx(50 / row["level"], rel=0.1)
        assert row["fewest_frames_per_s"] <= row["frames_per_s"] <= row["most_frames_per_s"]
        assert row["most_frames_per_s"] <= row["room_frames_per_s"] < 50
        assert 0 < row["speech_speedup_low"] <= row["speech_speedup"] <= row["speech_speedup_high"]
        assert np.isfinite([row["loss_before"], row["valid_loss"]]).all()
        (roomy, params), (fast, same) = (checkpoint.load(out / kind / row["name"]) for kind in ("models", "packed"))
        assert (roomy.shortening.most, fast.shortening.most) == (100, round(2 * row["room_frames_per_s"]))
        assert roomy.shortening.amount == fast.shortening.amount == row["amount"]
        np.testing.assert_array_equal(params["shortening"]["kernel"], same["shortening"]["kernel"])
    first, second = (checkpoint.load(out / f"models/ratio-{n}-once-front")[1] for n in (2, 4))
    np.testing.assert_array_equal(first["head"]["project"]["kernel"], second["head"]["project"]["kernel"])
    told = (out / "curve.csv").read_bytes()
    sequence.run(asked)  # finished: nothing is done again
    assert (out / "curve.csv").read_bytes() == told
    inner = replace(asked, out=tmp_path / "inner", ratio=(2,), at=("1",), guide=("smoothed",))
    sequence.run(inner)
    points = json.loads((inner.out / "report.json").read_text())["points"][1:]
    assert [row["frames_per_s"] for row in points] == pytest.approx([25, 25], rel=0.1)
    names = {f"{name}-smoothed-layer-1" for name in ("ratio-2-fire", "once")}
    assert {each.name for each in (inner.out / "recovery").iterdir()} == names
    capsys.readouterr()
    sequence.run(replace(asked, out=tmp_path / "lost", ratio=(2,), by=("fire",), steps=0, room=0.5))
    assert "of 3 held-out utterances fire more and would be lost; give a larger --room" in capsys.readouterr().out


@pytest.mark.slow
def test_neighbours_that_are_alike_merge_without_training(place, tmp_path):
    out = tmp_path / "merge"
    sequence.run(config(place, out, ratio=(2, 3), by=("merge",), steps=0))
    _, *points = json.loads((out / "report.json").read_text())["points"]
    assert [row["name"] for row in points] == ["ratio-2-merge-layer-1", "ratio-3-merge-layer-1"]
    assert [row["frames_per_s"] for row in points] == pytest.approx([25, 16.7])
    assert all(row["loss_difference"] not in (None, 0) for row in points)
    arch, params = checkpoint.load(out / "models/ratio-3-merge-layer-1")
    assert (arch.layers[1].shortening, arch.upsampling) == (KeyMerging(334), Repeat())
    assert "shortening" not in params["layers"]["1"]


@pytest.mark.slow
def test_a_shorter_model_is_shortened_again_and_pruned(place, tmp_path):
    out = tmp_path / "one"
    sequence.run(config(place, out, ratio=(2,), steps=0))
    shorter = out / "models/ratio-2-mean-front"
    sequence.run(replace(config(place, tmp_path / "two", ratio=(2,), at=("1",), steps=0), model=str(shorter)))
    arch, params = checkpoint.load(tmp_path / "two/models/ratio-2-mean-layer-1")
    assert (arch.shortening, arch.layers[1].shortening, arch.grouped) == (AveragePooling(2), AveragePooling(2), 4)
    assert forward(arch, params, np.zeros((1, 9, 80), np.float32)).last.shape == (1, 9, 16)
    again = rows.Config(
        model=str(shorter), corpus=place.corpus, out=tmp_path / "rows", keep=(8,), schedule="once", every=0
    )
    quick = {name: value for name, value in QUICK.items() if name != "steps"}
    rows.run(replace(again, **quick))
    _, point = json.loads((tmp_path / "rows/report.json").read_text())["points"]
    assert point["masked_equals_slim"] < 1e-5


def test_other_segments_guide_what_fires_and_must_be_known(place, tmp_path):
    asked = config(place, tmp_path / "run", by=("fire", "mean"), guide=("labels", "smoothed"), ratio=(4,), at=("1",))
    found = sequence.variants_of(asked, replace(MEL, layers=MEL.layers * 2))
    names = ["ratio-4-fire-layer-1", "ratio-4-fire-smoothed-layer-1", "ratio-4-mean-layer-1"]
    assert [str(variant) for variant in found] == names
    with pytest.raises(InputError, match="no phone times, and so of 11 of 11 utterances; take speech that has them"):
        sequence.run(replace(asked, guide=("phones",)))


def test_a_sequence_that_is_shorter_by_then_does_not_fire(place, tmp_path):
    arch, params = checkpoint.load(place.model)
    checkpoint.save(tmp_path / "model", *shortened(arch, params, AveragePooling(2), {}))
    asked = replace(config(place, tmp_path / "run", by=("fire",), at=("1",)), model=str(tmp_path / "model"))
    with pytest.raises(InputError, match="frames fire where labels change, and there are fewer frames than labels"):
        sequence.run(asked)


def test_places_are_the_front_and_the_middle_where_none_is_named(place, tmp_path):
    found = sequence.variants_of(config(place, tmp_path, ratio=(4, 2)), replace(MEL, layers=MEL.layers * 2))
    assert [str(variant) for variant in found] == [
        f"ratio-{ratio}-mean-{at}" for at in ("front", "layer-3") for ratio in (2, 4)
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"at": ("7",)}, "--at 7: give front, or the number of a layer, 0 to 1"),
        ({"at": ("middle",)}, "--at middle"),
        ({"by": ()}, "nothing is asked for"),
        ({"by": ("once",), "recover": "distil"}, "--by once --recover distil: labels guide what fires"),
        ({"by": ("fire",), "upsample": "learned"}, "--by fire --upsample learned: no fixed number"),
        ({"by": ("mean", "merge"), "at": ("front",)}, "--by merge --at front: frames merge by the keys of a layer"),
        ({"by": ("merge",), "upsample": "learned"}, "--by merge --upsample learned: no fixed number"),
        ({"room": 2.0}, "--room 2.0: it is for --by fire and once"),
        ({"guide": ("phones", "labels")}, "--guide phones labels: it is for --by fire and once"),
        ({"by": ("fire",), "guide": ()}, "--guide: nothing is named"),
        ({"ratio": (1,)}, "--ratio 1: give 2 to"),
        (
            {"ratio": (2, 40)},
            "ratio-40-mean-front: one frame would be made of 40, and 0.5 s have 24; give a smaller ratio",
        ),
    ],
)
def test_impossible_places_and_ratios_are_refused(place, tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        sequence.run(config(place, tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
