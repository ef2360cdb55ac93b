"""Plans of stages: read, refused, carried out, resumed."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from experiments import combine
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import KeyMerging, Rank, Repeat, StridedConvolution, melhubert, melhubert_mini
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device", "untimed")
QUICK = {"every": 2, "batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "stack": "unroll", "shortest": 0.5}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("combine"), layers=2, dropout=0.0)


def config(place, out, **changes):
    return combine.Config(model=str(place.model), corpus=place.corpus, out=out, **{**QUICK, **changes})


PLAN = ("layers=1@1:distil", "heads=3", "rank=4", "rows=10@3", "weights=0.5")


def points(out):
    return json.loads((out / "report.json").read_text())["points"]


@pytest.mark.slow
def test_stages_follow_each_other(place, tmp_path):
    """Half the layers by distillation, then heads; the control is as old as each point."""
    out = tmp_path / "combine"
    combine.run(config(place, out, plan=("layers=1@1:distil", "heads=3@1")))
    _, *rows = points(out)
    assert [(row["name"], row["step"], row["heads"]) for row in rows] == [("1-layers-1", 1, [4]), ("2-heads-3", 2, [3])]
    assert rows[0]["control_loss"] != rows[1]["control_loss"]


@pytest.mark.slow
def test_every_stage_is_a_point_and_a_broken_run_goes_on(place, tmp_path, monkeypatch):
    """Five kinds one after the other; broken off in the fourth, the last model is the unbroken run's to the bit."""
    whole, broken = tmp_path / "whole/combine", tmp_path / "broken/combine"
    combine.run(config(place, whole, plan=PLAN))
    _, *rows = points(whole)
    assert [row["name"] for row in rows] == ["1-layers-1", "2-heads-3", "3-rank-4", "4-rows-10", "5-weights-0.5"]
    assert [row["step"] for row in rows] == [1, 3, 5, 8, 10]
    for row in rows:
        arch, params = checkpoint.load(whole / "models" / row["name"])
        assert cost.parameters(arch) == row["parameters"] == sum(x.size for x in jax.tree.leaves(params))
        assert np.isfinite([row["loss_before"], row["valid_loss"], row["control_loss"]]).all()
    assert [(layer.mixer.heads, layer.ffn.size, layer.ffn.fc1) for layer in arch.layers] == [(3, 10, Rank(4))]
    layer = [
        np.asarray(leaf) for path, leaf in flatten(params).items() if path.startswith("layers/") and "norm" not in path
    ]
    assert sum((leaf == 0).sum() for leaf in layer) == pytest.approx(0.5 * sum(leaf.size for leaf in layer), abs=1)

    real = combine.trained

    def killed(job, folder, *given):
        if "rows" in folder.name:
            raise KeyboardInterrupt
        return real(job, folder, *given)

    with monkeypatch.context() as patch:
        patch.setattr(combine, "trained", killed)
        with pytest.raises(KeyboardInterrupt):
            combine.run(config(place, broken, plan=PLAN))
    combine.run(config(place, broken, plan=PLAN))
    one, two = (flatten(checkpoint.load(run / "models/5-weights-0.5")[1]) for run in (whole, broken))
    assert all(np.array_equal(one[path], two[path]) for path in one)


@pytest.mark.slow
def test_sequences_made_shorter_combine_with_the_other_kinds(place, tmp_path):
    """Behind the front end and before a layer, then heads, a rank and rows of what hears fewer frames."""
    out = tmp_path / "combine"
    combine.run(config(place, out, plan=("ratio=2,front,convolution", "ratio=2,merge", "heads=3", "rank=4", "rows=10")))
    _, *rows = points(out)
    names = ["1-ratio-2-convolution-front", "2-ratio-2-merge-layer-1", "3-heads-3", "4-rank-4", "5-rows-10"]
    assert [row["name"] for row in rows] == names
    assert [row["frames_per_s"] for row in rows] == [25, 12.5, 12.5, 12.5, 12.5]
    macs = [row["macs_g_per_s"] for row in rows]
    assert macs == sorted(macs, reverse=True)
    assert np.isfinite([[row["loss_before"], row["valid_loss"], row["control_loss"]] for row in rows]).all()
    arch, params = checkpoint.load(out / "models" / names[-1])
    assert (arch.shortening, arch.upsampling) == (StridedConvolution(2), Repeat())
    assert [layer.shortening for layer in arch.layers] == [None, KeyMerging(500)]
    assert [(layer.heads, layer.ffn.size, layer.ffn.fc1) for layer in arch.layers] == [(3, 10, Rank(4))] * 2
    assert not np.array_equal(params["shortening"]["kernel"][0], np.eye(params["shortening"]["kernel"].shape[1]) / 2)


@pytest.mark.slow
def test_frames_fire_in_a_plan_and_units_go_of_what_hears_them(place, tmp_path):
    out = tmp_path / "combine"
    combine.run(config(place, out, plan=("ratio=2.5,1,fire", "rows=10")))
    _, *rows = points(out)
    assert [row["name"] for row in rows] == ["1-ratio-2.5-fire-layer-1", "2-rows-10"]
    assert rows[0]["frames_per_s"] == pytest.approx(20, rel=0.15)
    assert rows[1]["amount"] == rows[0]["amount"]  # and what fires is another number, for the net hears cut layers
    for row in rows:
        roomy, fast = (checkpoint.load(out / kind / row["name"])[0].firing for kind in ("models", "packed"))
        assert roomy.most == 100 > fast.most == round(2 * row["room_frames_per_s"])
    arch, params = checkpoint.load(out / "models/2-rows-10")
    assert (arch.fires_at, arch.upsampling, arch.layers[1].ffn.size) == (1, Repeat(), 10)
    assert np.abs(params["layers"]["1"]["shortening"]["score"]).max() > 0


def test_the_studys_winner_is_the_default():
    study = melhubert()
    assert combine.default_plan(study) == [
        "layers=6:distil",
        "heads=9",
        "heads=6",
        *(f"rows={512 * part}" for part in (5, 4, 3, 2, 1)),
    ]
    stages = combine.stages_of(combine.Config(), melhubert_mini())
    combine.check(stages, melhubert_mini(), seconds=3.0)
    assert [stage.how for stage in stages[:2]] == ["distil", "predict"]


def test_a_curve_of_one_technique_is_called_by_it():
    def label(*words):
        return combine._label(combine.stages_of(combine.Config(plan=words), melhubert_mini()))

    assert label("svd=96", "svd=48") == "low rank, plain SVD"
    assert label("rank=96") == "low rank, activation-aware"
    assert label("layers=3", "rows=512") == "combined"
    assert label("ratio=2", "ratio=2,front") == "shorter sequences"


def test_a_plan_is_read_from_a_file(place, tmp_path):
    path = tmp_path / "plan.txt"
    path.write_text("# half of it\nlayers=1@7:distil\n\nrows=12  # as narrow as it gets\n")
    stages = combine.stages_of(config(place, None, file=path), melhubert_mini())
    assert [(str(stage), stage.steps, stage.how) for stage in stages] == [
        ("layers-1", 7, "distil"),
        ("rows-12", 2, "predict"),
    ]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (("layers=3",), "2 layers are left by then"),
        (("layers=1", "layers=2"), "1 layers are left by then"),
        (("layers=0",), "keep 1 to 2"),
        (("heads=2.5",), "4 heads are left"),
        (("rows=99",), "24 rows are left"),
        (("rank=400",), "rank 400"),
        (("weights=37",), "37"),
        (("weights=0.5", "weights=0.5"), "0.5 of the weights are zero"),
        (("rows=9@0",), "0 updates"),
        (("rows:9",), "write KIND=VALUE"),
        (("rows=9:guess",), "write KIND=VALUE"),
        (("rows=1.2.3",), "write KIND=VALUE"),
        (("rows=9,1",), "write KIND=VALUE"),
        (("ratio=2,1,guess",), "write KIND=VALUE"),
        (("ratio=1",), "ratio-1-mean-layer-1: one frame of 1: give a whole number from 2, or merge frames"),
        (("ratio=2.5",), "one frame of 2.5: give a whole number"),
        (("ratio=1,1,merge",), "one frame of 1: give more than 1"),
        (("ratio=2,7",), "layers/7: the model has 2 layers; give 0 to 1"),
        (("layers=1", "ratio=2,1"), "layers/1: the model has 1 layers"),
        (("ratio=2,1", "rows=9", "ratio=3"), "layers/1: its input is shortened already"),
        (("ratio=2,1", "layers=1"), "layers-1: layers hear fewer frames from layer 1 on, which would be lost"),
        (("ratio=1,1,fire",), "one frame of 1: give more than 1"),
        (("ratio=2,1,fire:distil",), "ratio-2-fire-layer-1: labels guide what fires, and distil takes none"),
        (("ratio=2.5,1,fire", "rows=9:distil"), "rows-9: labels guide what fires"),
        (("ratio=2,front", "ratio=2,1,fire"), "ratio-2-fire-layer-1: frames fire where labels change, and there are"),
        (("ratio=2,front,fire", "ratio=2,1,fire"), "ratio-2-fire-layer-1: frames fire in 2 places"),
        (("ratio=2,front,merge",), "a front end has none; name a layer"),
        (("ratio=2,1,merge", "heads=0"), "heads-0: frames merge by keys, and no head is left"),
        (("ratio=5,front", "ratio=8"), "one frame would be made of 40, and 0.5 s have 24"),
    ],
)
def test_impossible_plans_are_refused(place, tmp_path, plan, words):
    with pytest.raises(InputError, match=words) as caught:
        combine.run(config(place, tmp_path / "run", plan=plan))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_plans_that_cannot_be_read_are_refused(place, tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for changes, words in (
        ({"file": tmp_path / "none.txt"}, "none.txt: no such file"),
        ({"file": tmp_path}, "cannot be read"),
        ({"file": tmp_path / "empty.txt"}, "no stage"),
        ({"file": tmp_path / "empty.txt", "plan": ("rows=9",)}, "give one of them"),
    ):
        with pytest.raises(InputError, match=words):
            combine.run(replace(config(place, tmp_path / "run"), **changes))
