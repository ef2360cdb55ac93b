"""A supernet and its subnets, as a run."""

import json
from dataclasses import replace
from functools import partialmethod

import jax
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from experiments import elastic
from experiments.curves import choosing
from experiments.curves.job import Job
from experiments.curves.points import Subject
from experiments.curves.runs import read_curves
from jaxssl.inference.source import load_model, load_speech, with_stats
from jaxssl.models import checkpoint
from jaxssl.models.arch import melhubert_mini
from jaxssl.models.subnets import space_of
from jaxssl.models.supernet import Subnet, sliced
from jaxssl.training import fit
from jaxssl.training.telemetry import read_journal
from tests.archs import forward, noise, weights
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device", "untimed")
QUICK = {"steps": 2, "batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "stack": "scan", "shortest": 0.5}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("elastic"), layers=3, dropout=0.0)


def config(place, out, **changes):
    return elastic.Config(model=str(place.model), corpus=place.corpus, out=out, **{**QUICK, **changes})


@pytest.mark.slow
def test_subnets_are_points_of_the_supernet_and_alone(place, tmp_path):
    out = tmp_path / "elastic"
    asked = config(place, out, subnet=("width=8", "layers=2,heads=2,ratio=1"), budget=("macs=60%",), random=1)
    elastic.run(asked)
    dense, *points = json.loads((out / "report.json").read_text())["points"]
    names = ["w8-l3-h4-r1.5", "w16-l2-h2-r1"]
    assert [row["name"] for row in points] == [
        *(f"{name}-supernet" for name in names),
        "auto-macs=60%-supernet",
        *(f"{name}-alone" for name in (*names, "auto-macs=60%")),
    ]
    auto = points[2]
    assert auto["macs_g_per_s"] <= 0.6 * dense["macs_g_per_s"]
    for one, two in zip(points[:3], points[3:], strict=True):
        assert one["macs_g_per_s"] == two["macs_g_per_s"]
        assert one["valid_loss"] != two["valid_loss"]
        assert "loss_before" in two
        assert "loss_before" not in one
    arch, params = checkpoint.load(out / "models/w16-l2-h2-r1-supernet")
    assert (arch.width, len(arch.layers), arch.layers[0].heads, arch.layers[0].ffn.size) == (16, 2, 2, 16)
    assert forward(arch, params, noise(arch, 0)).logits.shape == (2, 30, 6)
    assert [curve.label for curve in read_curves(out)] == ["supernet, supernet", "supernet, alone"]
    told = (out / "curve.csv").read_bytes()
    elastic.run(asked)  # finished: nothing is done again
    assert (out / "curve.csv").read_bytes() == told


@pytest.mark.slow
def test_a_supernet_is_used_as_it_is_without_training(place, tmp_path):
    elastic.run(config(place, tmp_path / "run", subnet=("width=8",), steps=0))
    _, point = json.loads((tmp_path / "run/report.json").read_text())["points"]
    arch, params = checkpoint.load(place.model)
    small_arch, cut = sliced(arch, params, Subnet(8, (4,) * 3, (12,) * 3))
    found = checkpoint.load(tmp_path / "run/models/w8-l3-h4-r1.5-supernet")
    assert found[0] == small_arch
    for mine, theirs in zip(jax.tree.leaves(found[1]), jax.tree.leaves(cut), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert point["step"] == 0


@pytest.mark.slow
def test_hidden_layers_teach_a_supernet_without_an_output_layer(place, tmp_path, monkeypatch):
    """In two stages; broken off in each of them, it goes on to the bit."""
    arch = replace(checkpoint.load(place.model)[0], head=None)
    checkpoint.save(tmp_path / "bare", arch, weights(arch))
    words = {"loss": "lighthubert", "largest_first": 4, "steps": 16, "subnet": ("width=8,layers=2,heads=2",)}
    words |= {"alone": False, "control": False, "save_every": 1, "learning_rate": 1e-3}
    asked = [replace(config(place, tmp_path / f"run-{i}" / "out", **words), model=str(tmp_path / "bare")) for i in "01"]
    elastic.run(asked[0])
    told = [row for row in read_journal(asked[0].out / "supernet") if "largest" in row]
    assert [row["largest"] == row["smallest"] for row in told] == [True] * 4 + [False] * 12
    first, last = (np.mean([row["smallest"] for row in rows]) for rows in (told[4:8], told[12:]))
    assert last < first - 0.02
    real = fit.Run.train
    for stop in (2, 9):
        monkeypatch.setattr(fit.Run, "train", partialmethod(broken_off, real, stop))
        with pytest.raises(KeyboardInterrupt):
            elastic.run(asked[1])
    monkeypatch.undo()
    elastic.run(asked[1])
    name = "w8-l2-h2-r1.5-supernet"
    one, two = (flatten(checkpoint.load(each.out / "models" / name)[1]) for each in asked)
    assert all(np.array_equal(one[path], two[path]) for path in one)
    point = json.loads((asked[0].out / "report.json").read_text())["points"][1]
    assert (point["name"], point["step"]) == (name, 16)


def broken_off(run, train, stop, programs, state, *, last):
    state = train(run, programs, state, last=min(last, stop))
    if stop <= last:
        raise KeyboardInterrupt
    return state


def test_order_changes_no_function_and_brings_the_best_first(place):
    arch, params = checkpoint.load(place.model)
    space, speech = space_of(arch), load_speech((str(place.audio),), limit=2)
    job = Job(None, heard(place), Subject(arch, params, {}), None, None, None, speech)
    found = choosing.ordered(job, space)
    inputs = noise(arch, 0)
    np.testing.assert_allclose(
        forward(arch, found.params, inputs).logits, forward(arch, params, inputs).logits, atol=2e-4
    )
    norms = np.linalg.norm(np.asarray(found.params["layers"]["0"]["ffn"]["fc2"]["kernel"]), axis=1)
    first = choosing._places(24, 16, space, heads=False)
    assert sorted(first.tolist()) == list(range(24))
    assert set(first[:6].tolist()) == {0, 1, 2, 3, 4, 5}
    assert norms[first[:8]].mean() > norms[first[-8:]].mean()


def heard(place):
    return with_stats(load_model(str(place.model), seed=0), load_speech((str(place.audio),), limit=2))


def test_what_subnets_take_adds_up():
    taken = choosing.Taken(10.0, 1.0, np.array([0.0, 0.5]), np.array([0.0, 0.25]))
    mini = melhubert_mini()
    space = space_of(replace(mini, layers=mini.layers[:4]))
    rows, rest = taken.rows(3), taken.rest(space, 3)
    whole = rest + sum(row[0] for row in rows)
    assert whole == pytest.approx(9.0)
    assert rest == pytest.approx(9.0 - 3 * 0.75)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"subnet": ("depth=3",)}, "--subnet depth=3: write width=192"),
        ({"subnet": ("width=0",)}, "--subnet width=0: write width=192"),
        ({"subnet": ("width=12.5",)}, "--subnet width=12.5: write"),
        ({"subnet": ("width=18",)}, "width 18: this supernet has multiples of .* up to 16"),
        ({"subnet": ("layers=1",)}, "1 layers: subnets of this supernet have 2 to 3"),
        ({"steps": 0, "loss": "lighthubert"}, "--loss lighthubert: with --steps 0 nothing is trained; leave it out"),
        ({"steps": 0, "random": 3}, "--random 3: with --steps 0 nothing is trained"),
        ({"largest_first": 3}, "--largest-first 3 --steps 2: .* give 0 to 2, or more --steps"),
        ({"taught": (2,)}, "--taught 2: it is for --loss lighthubert, and soft is chosen"),
        ({"masked": False, "loss": "lighthubert"}, "--no-masked: it is for --loss soft, and lighthubert is chosen"),
        ({"taught": (4,), "loss": "lighthubert"}, "--taught 4: the model has 3 layers"),
        ({"width": (8, 4)}, "the largest subnet has width 8"),
        ({"budget": ("rtf=150%",)}, "--budget rtf=150%: the model takes no more"),
    ],
)
def test_impossible_subnets_are_refused(place, tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        elastic.run(config(place, tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
