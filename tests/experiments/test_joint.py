"""Distilling and pruning at once, as a run."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from experiments import joint
from experiments.curves.points import Subject
from jaxssl.models import checkpoint, cost
from jaxssl.models.model import apply
from jaxssl.models.sites import axes, channels
from jaxssl.training import gates
from tests.archs import BASE, MAMBA2, fresh, noise
from tests.experiments import small

pytestmark = pytest.mark.usefixtures("one_device", "untimed")
QUICK = {"steps": 4, "after": 1, "batch": 4, "seconds": 0.5, "rounds": 2, "probes": False, "stack": "unroll"}
QUICK |= {"shortest": 0.5, "control": False, "gate_rate": 3.0, "ramp": 0.1}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return small.make(tmp_path_factory.mktemp("joint"), layers=1, dropout=0.0)


def config(place, out, **changes):
    return joint.Config(model=str(place.model), corpus=place.corpus, out=out, **{**QUICK, **changes})


def test_units_in_front_of_a_norm_have_no_gates():
    """For no weights behind it could stand for one; feed-forward units of the same model have some."""
    assert {axis.name for axis in axes(MAMBA2) if axis.normed} == {
        f"layers/{place}" for place in ("0/mamba2/inner", "1/mamba2/inner", "1/mamba2/back")
    }
    assert [axis.name for axis in joint.axes_of(joint.Config(), MAMBA2)] == ["layers/0/ffn/hidden"]


@pytest.mark.slow
def test_a_point_is_slim_and_learned(place, tmp_path):
    out = tmp_path / "joint"
    joint.run(config(place, out, target=(0.4,)))
    dense, row = json.loads((out / "report.json").read_text())["points"]
    arch, params = checkpoint.load(out / "models/joint-0.4")
    assert cost.parameters(arch) == row["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert row["gone"] == pytest.approx(1 - row["parameters"] / dense["parameters"])
    assert row["gone"] == pytest.approx(0.4, abs=0.01)
    assert 0 < row["learned"] < 1
    assert (row["target"], row["step"]) == (0.4, 5)
    assert set(params) == {"project", "position", "norm", "layers", "head"}


@pytest.mark.slow
def test_the_cut_model_computes_what_the_gated_one_did(key):
    """Heads, units and channels at once, some gates half open; of a convolution one channel stays at least."""
    params, x, found = fresh(BASE), noise(BASE, key), (*channels(BASE), *axes(BASE))
    draw = np.random.default_rng(0)
    logits = {axis.name: jnp.asarray(draw.normal(0, 3, axis.size), jnp.float32) for axis in found}
    slim = joint.slim(Subject(BASE, params, {}), found, logits, 0.4)
    stay = gates.chosen(BASE, found, logits, 0.4)
    seen = gates.gated(params, found, {name: gates.settled(values, stay[name]) for name, values in logits.items()})
    np.testing.assert_allclose(apply(BASE, seen, x).last, apply(slim.arch, slim.params, x).last, atol=1e-5)
    assert 1 - cost.parameters(slim.arch) / cost.parameters(BASE) == pytest.approx(0.4, abs=0.02)  # a unit is as much
    empty = joint.slim(Subject(BASE, params, {}), found, logits, 0.999).arch
    assert [conv.channels for conv in empty.front.convs] == [1, 1, 1, 12]
    assert [(layer.mixer.heads, layer.ffn.size) for layer in empty.layers] == [(0, 0)] * 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": (0.99,)}, "all that has gates is"),
        ({"target": (0.0,)}, "--target 0.0: give above 0, to below 1"),
        ({"target": (0.5, 0.3)}, "rising shares"),
        ({"target": ()}, "rising shares"),
        ({"steps": 0}, "--steps 0"),
        ({"ramp": 2.0}, "--ramp 2"),
    ],
)
def test_impossible_targets_are_refused(place, tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as caught:
        joint.run(replace(config(place, tmp_path / "run"), **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
