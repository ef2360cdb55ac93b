"""Pruning runs on a small model: whole curves, resumed to the bit, continued from any compressed model."""

import csv
import json
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.address import flatten
from compress.encoding import decode
from compress.errors import InputError
from experiments import heads, lowrank, rows, weights
from experiments.curves.points import Subject
from experiments.curves.units import schedule_of
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint, cost
from jaxssl.models.arch import Rank, melhubert
from jaxssl.models.model import shapes
from jaxssl.training.corpus import read_heard
from jaxssl.training.study_schedules import PAPER_SPARSITIES, PAPER_WEIGHTS
from jaxssl.training.telemetry import read_journal
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device")
RATES = {"updates_per_s", "audio_s_per_s", "mfu"}
TIMES = {"real_time_factor", "speedup", "speedup_low", "speedup_high", "dense_ms", "point_ms", "bare_ms"}
QUICK = {"every": 3, "batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "stack": "unroll", "shortest": 0.5}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A model without dropout: its random bits are most of what there is to compile."""
    return small.make(tmp_path_factory.mktemp("pruning"), layers=1, dropout=0.0)


def config(experiment, place, out, **changes):
    return experiment.Config(model=str(place.model), corpus=place.corpus, out=out, **{**QUICK, **changes})


@pytest.fixture(scope="session")
def deep(place, tmp_path_factory):
    """The same, of two layers."""
    folder = tmp_path_factory.mktemp("deep") / "model"
    arch, params = checkpoint.load(place.model)
    arch = replace(arch, layers=arch.layers * 2)
    rng = np.random.default_rng(2)
    twin = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params["layers"]["0"])
    checkpoint.save(folder, arch, {**params, "layers": {"0": params["layers"]["0"], "1": twin}})
    return replace(place, model=folder)


def points(out):
    return json.loads((out / "report.json").read_text())["points"]


def model(out, name):
    return checkpoint.load(out / "models" / name)


@pytest.fixture(scope="module")
def headless(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "heads"
    heads.run(config(heads, place, out, keep=(2, 0)))
    return out


def test_every_point_is_a_model_and_a_row(headless):
    dense, *pruned = points(headless)
    assert [row["name"] for row in (dense, *pruned)] == ["dense", "heads-2", "heads-0"]
    assert [row["step"] for row in pruned] == [6, 9]
    for row in pruned:
        arch, params = model(headless, row["name"])
        assert cost.parameters(arch) == row["parameters"] == sum(x.size for x in jax.tree.leaves(params))
        assert [layer.mixer.heads for layer in arch.layers] == row["heads"] == [row["level"]]
        assert row["masked_equals_slim"] <= 1e-5
        assert np.isfinite(row["loss_before"])
        assert np.isfinite(row["valid_loss"])
        assert row["loss_difference"] == pytest.approx(row["valid_loss"] - row["control_loss"])
        assert row["accuracy_difference"] == pytest.approx(row["masked_accuracy"] - row["control_accuracy"])
        assert row["loss_difference_low"] <= row["loss_difference"] <= row["loss_difference_high"]
        assert row["macs_g_per_s"] < dense["macs_g_per_s"]
        assert row["real_time_factor"] > 0
    with (headless / "curve.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["dense", "heads-2", "heads-0"]
    assert (headless / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_control_keeps_what_differences_are_paired_by(headless):
    (control,) = headless.parent.glob("control-*")
    told = json.loads((control / "quality.json").read_text())
    dense, *pruned = points(headless)
    assert (dense["loss_difference"], dense["loss_difference_low"], dense["loss_difference_high"]) == (0, 0, 0)
    for row in pruned:
        kept = read_heard(control / f"held-out/{row['step']}.npz")
        assert kept.summary() == told[str(row["step"])]
        mine = read_heard(headless / f"held-out/{row['name']}.npz")
        assert mine.above(kept).items() <= row.items()


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_without_a_control_no_difference_is_known_but_before_any_update(place, tmp_path):
    heads.run(config(heads, place, tmp_path / "trained", keep=(1,), control=False))
    dense, pruned = points(tmp_path / "trained")
    assert dense["loss_difference"] == 0
    assert "loss_difference" not in pruned
    heads.run(config(heads, place, tmp_path / "cut", keep=(1,), schedule="once", every=0, control=False))
    dense, pruned = points(tmp_path / "cut")
    assert pruned["loss_difference"] == pytest.approx(pruned["valid_loss"] - dense["valid_loss"])


def test_training_went_on_after_the_cut(headless):
    """Moments were cut with the parameters: the journal goes on without a break, and the loss is learned from."""
    steps = [row["step"] for row in read_journal(headless) if row["part"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 9
    assert all(row["valid_loss"] != row["loss_before"] for row in points(headless)[1:])


def test_a_finished_run_is_only_told_again(headless, place, capsys):
    before = points(headless)
    heads.run(config(heads, place, headless, keep=(2, 0)))
    assert points(headless) == before
    assert "measuring" not in capsys.readouterr().out
    with pytest.raises(InputError, match="--keep"):
        heads.run(config(heads, place, headless, keep=(3, 0)))


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_rows_by_budget_leave_layers_uneven(deep, tmp_path):
    dense = cost.parameters(checkpoint.load(deep.model)[0])
    budgets = tuple(f"params={dense - less}" for less in (500, 1100))
    out = tmp_path / "rows"
    rows.run(config(rows, deep, out, budget=budgets, score="gradient", schedule="once", every=0))
    for row, less in zip(points(out)[1:], (500, 1100), strict=True):
        assert dense - less - 40 < row["parameters"] <= dense - less
        assert row["step"] == 0
        assert "loss_before" not in row


@pytest.mark.parametrize(
    "score", ["gradient", *(pytest.param(score, marks=pytest.mark.slow) for score in ("l1", "l2", "activation"))]
)
@pytest.mark.usefixtures("untimed")
def test_every_score_prunes_the_whole_model(deep, tmp_path, score):
    out = tmp_path / score
    heads.run(config(heads, deep, out, keep=(2,), score=score, select="model", schedule="once", every=0))
    (_, row) = points(out)
    assert sum(row["heads"]) == 4
    assert min(row["heads"]) >= 1


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_rounding_keeps_multiples_and_tells_their_price(place, tmp_path):
    out = tmp_path / "rows"
    rows.run(config(rows, place, out, keep=(19, 9), round=8, schedule="once", every=0))
    assert [row["units"] for row in points(out)[1:]] == [[16], [8]]
    notes = json.loads((out / "report.json").read_text())["notes"]
    assert any(note.startswith("un-rounded shapes: ") for note in notes)


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_weights_say_what_masks_save(place, tmp_path):
    out = tmp_path / "weights"
    weights.run(config(weights, place, out, sparsity=(0.5, 0.9)))
    dense, half, most = points(out)
    assert dense["parameters"] == half["parameters"] == most["parameters"]
    assert dense["macs_g_per_s"] == most["macs_g_per_s"]
    assert dense["nominal_macs_g_per_s"] > half["nominal_macs_g_per_s"] > most["nominal_macs_g_per_s"]
    assert dense["bytes"] > half["bytes"] > most["bytes"]
    entries = 4 * (16 * 16 + 16) + 16 * 24 + 24 + 24 * 16 + 16
    for row, sparsity in ((half, 0.5), (most, 0.9)):
        _, params = model(out, row["name"])
        assert dense["nonzero"] - row["nonzero"] == round(sparsity * entries)
        stored = flatten(decode((out / "models" / row["name"] / "weights.sparse").read_bytes()))
        for path, leaf in flatten(params).items():
            np.testing.assert_array_equal(stored[path], leaf, err_msg=path)
    assert any("dense model's" in note for note in json.loads((out / "report.json").read_text())["notes"])


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_masks_hold_while_training_goes_on(place, tmp_path):
    """What one event dropped stays dropped at the next."""
    out = tmp_path / "weights"
    weights.run(config(weights, place, out, sparsity=(0.3, 0.6), scope="layer", biases=False, control=False))
    one, two = (flatten(model(out, name)[1]) for name in ("weights-0.3", "weights-0.6"))
    for path in one:
        if path.startswith("layers/") and path.endswith("/kernel") and "norm" not in path:
            gone = np.asarray(one[path]) == 0
            assert gone.any()
            assert (np.asarray(two[path])[gone] == 0).all()
    assert np.asarray(one["layers/0/ffn/fc1/bias"]).all()


@pytest.mark.parametrize(("pattern", "size"), [("blocks", 8), ("groups", 4)])
@pytest.mark.usefixtures("untimed")
def test_patterns_prune_to_what_was_asked(place, tmp_path, pattern, size):
    out = tmp_path / pattern
    weights.run(config(weights, place, out, pattern=pattern, size=size, sparsity=(0.5,), schedule="once", every=0))
    _, row = points(out)
    assert row["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert load_model(str(out / "models/weights-0.5"), seed=0).arch == checkpoint.load(place.model)[0]


def told(folder):
    return [{name: value for name, value in row.items() if name not in RATES} for row in read_journal(folder)]


def told_points(folder):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in points(folder)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "settings", "breaks"),
    [
        (
            "heads",
            {"keep": (3, 2, 1), "score": "gradient", "select": "model"},
            ((18, signal.SIGKILL, -9), (30, signal.SIGTERM, 75), (42, signal.SIGKILL, -9)),
        ),
        ("weights", {"sparsity": (0.3, 0.6)}, ((18, signal.SIGKILL, -9), (30, signal.SIGTERM, 75))),
    ],
)
def test_a_run_broken_off_in_the_middle_of_its_schedule_ends_the_same(place, tmp_path, experiment, settings, breaks):
    """Killed between events and preempted: every model, row and line is the unbroken run's, to the bit."""
    module = f"experiments.{experiment}"
    settings = {**settings, "every": 12, "batch": 4, "seconds": 0.5, "rounds": 1, "save_every": 3, "stack": "unroll"}
    settings["shortest"] = 0.5
    settings |= {"no-control": True, "no-probes": True}
    place.finish(module, tmp_path / "whole", **settings)
    broken = tmp_path / "broken"
    for number, how, code in breaks:
        found, output, errors = place.interrupt(module, broken, number, how, **settings)
        assert found == code, errors
    output, _ = place.finish(module, broken, **settings)
    assert "resuming after update" in output
    assert told(broken) == told(tmp_path / "whole")
    assert told_points(broken) == told_points(tmp_path / "whole")
    for row in points(broken):
        one, two = (flatten(model(out, row["name"])[1]) for out in (broken, tmp_path / "whole"))
        assert {path: np.asarray(leaf).tobytes() for path, leaf in one.items()} == {
            path: np.asarray(leaf).tobytes() for path, leaf in two.items()
        }


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_any_technique_goes_on_from_any_other(place, tmp_path):
    """Factorise, cut heads, cut rows, prune weights, cut heads again: each from the model that the last one saved."""
    low = lowrank.Config(rank=(8,), method=("svd",), model=str(place.model), audio=(str(place.audio),), rounds=1)
    lowrank.run(replace(low, out=tmp_path / "lowrank", seconds=0.5, limit=4))
    chain = (
        (heads, "heads-3", {"keep": (3,)}),
        (rows, "rows-12", {"keep": (12,)}),
        (weights, "weights-0.5", {"sparsity": (0.5,)}),
        (heads, "heads-1", {"keep": (1,)}),
    )
    last = tmp_path / "lowrank/models/rank-8-svd"
    for number, (experiment, name, levels) in enumerate(chain):
        out = tmp_path / f"{number}"
        experiment.run(replace(config(experiment, place, out, control=False, **levels), model=str(last)))
        last = out / "models" / name
    arch, params = checkpoint.load(last)
    assert {(layer.mixer.heads, layer.ffn.size, layer.ffn.fc1) for layer in arch.layers} == {(1, 12, Rank(8))}
    zeros = [np.mean(np.asarray(flatten(params)[f"layers/0/ffn/fc1/{side}"]) == 0) for side in ("down", "up")]
    assert min(zeros) > 0.2  # what weight pruning took stayed away while heads went


@pytest.mark.parametrize(
    ("experiment", "words", "message"),
    [
        (heads, {"keep": (5,)}, "cannot keep 5 of 4"),
        (heads, {"keep": (-1,)}, "-1"),
        (heads, {"keep": (2, 3)}, "3.* follows 2"),
        (heads, {"keep": (2,), "budget": ("params=3",)}, "give one of them"),
        (heads, {"budget": ("memory=3",)}, "write params="),
        (heads, {"budget": ("params=10",), "schedule": "once"}, "raise it"),
        (heads, {"keep": (2, 1), "at": (3, 9), "last": 5}, "after update 9, training ends at 5"),
        (heads, {"keep": (2, 1), "at": (9, 3)}, "3 comes after 9"),
        (heads, {"keep": (2, 1), "at": (3,)}, "2 kept counts for 1 events"),
        (heads, {"every": 0}, "--every 0"),
        (heads, {"schedule": "paper"}, "cannot keep 11 of 4"),
        (rows, {"keep": (25,)}, "cannot keep 25 of 24"),
        (rows, {"round": 0}, "--round 0"),
        (weights, {"sparsity": (1.0,)}, "1.0"),
        (weights, {"sparsity": (37.0,)}, "37"),
        (weights, {"sparsity": (0.5, 0.2)}, "0.2 follows 0.5"),
        (weights, {"pattern": "blocks", "size": 7}, "7"),
        (weights, {"pattern": "groups", "sparsity": (0.3,)}, "whole number"),
        (weights, {"sparsity": (0.2, 0.4), "gate": True, "lookback": 3}, "looks back"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(place, tmp_path, experiment, words, message):
    with pytest.raises(InputError, match=message) as caught:
        experiment.run(config(experiment, place, tmp_path / "run", **words))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()  # so the corrected command may use it


def test_the_paper_schedules_are_the_studys():
    arch = melhubert()
    for experiment, kind, last, count in ((heads, "heads", 366_000, 11), (rows, "hidden", 510_000, 20)):
        config = experiment.Config(schedule="paper")
        found = schedule_of(config, arch, kind, paper=experiment.PAPER)
        assert found == experiment.PAPER
        assert (found.calendar.last, len(found.levels)) == (last, count)
        training = config.training(found)
        assert (training.batch, training.accumulate, training.learning_rate, training.clip) == (4, 1, 1e-5, 10.0)
        assert (training.warmup, training.decay, training.crop) == (0.0, "constant", 15.0)
    found = weights.schedule_of(weights.Config(schedule="paper"), Subject(arch, shapes(arch), {}))
    assert (found.calendar, found.levels) == (PAPER_WEIGHTS, PAPER_SPARSITIES)
