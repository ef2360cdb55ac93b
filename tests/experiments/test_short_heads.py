"""Heads of fewer dimensions: the best scores and sums of that many, where speech goes."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import get
from experiments.transcripts import planner
from experiments.transcripts.short_heads import shorten
from experiments.transcripts.spoken import Spoken
from experiments.transcripts.ways import Fitting, compressed, parse
from jaxssl.inference.latency import Load, Program
from jaxssl.models import cost
from jaxssl.models.arch import Sinusoids
from jaxssl.models.inner_maps import map_inputs
from jaxssl.runtime import files
from tests.archs import ARCHS, forward, fresh, noise, transformer_layer

ARCH = replace(ARCHS["whisper"], layers=(transformer_layer(4, 24, key_bias=False),), position=Sinusoids("halves"))
PLACE = "layers/0/attention"


@pytest.fixture(scope="module")
def fitting():
    batches = tuple((row[None], jnp.asarray([row.shape[0]])) for row in noise(ARCH, 2, batch=3, frames=30))
    return Fitting(ARCH, fresh(ARCH), batches)


@pytest.fixture(scope="module")
def heard(fitting):
    """What goes into q and into out, (frames, fan_in)."""
    each = [map_inputs(ARCH, fitting.params, *batch)[0] for batch in fitting.batches]
    paths = {"q": f"{PLACE}/q", "out": f"{PLACE}/out"}
    return {
        name: np.concatenate([np.asarray(one[path], np.float64).reshape(-1, 16) for one in each])
        for name, path in paths.items()
    }


def best(product, size):
    left, values, right = np.linalg.svd(product, full_matrices=False)
    return left[:, :size] * values[:size] @ right[:size]


def turned(params, name, x, head):
    """Apply a head's map to inputs."""
    found = get(params, f"{PLACE}/{name}")
    y = x @ np.asarray(found["kernel"], np.float64)[:, head]
    return y + np.asarray(found["bias"], np.float64)[head] if "bias" in found else y


def shortened(fitting, size):
    return shorten(fitting.params, [PLACE], fitting.moments, fitting.means, size)


def test_all_dimensions_change_nothing(fitting):
    samples = fitting.batches[0][0]
    one, other = (forward(ARCH, params, samples).last for params in (fitting.params, shortened(fitting, 4)))
    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3])
def test_scores_are_the_nearest(fitting, heard, size):
    after, x = shortened(fitting, size), heard["q"]
    for head in range(4):

        def scores(params, root, head=head):
            keys = turned(params, "k", x, head)
            return turned(params, "q", x, head) @ (keys - keys.mean(0)).T / root**0.5

        wanted = best(scores(fitting.params, 4), size)
        np.testing.assert_allclose(scores(after, size), wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("size", [1, 3])
def test_sums_are_the_nearest(fitting, heard, size):
    after = shortened(fitting, size)
    wanted, found = np.zeros((len(heard["out"]), 16)), np.zeros((len(heard["out"]), 16))
    for head in range(4):
        sums = heard["out"][:, 4 * head : 4 * head + 4]
        before, back = (np.asarray(get(tree, f"{PLACE}/out")["kernel"], np.float64) for tree in (fitting.params, after))
        old, new = (np.asarray(get(tree, f"{PLACE}/v")["kernel"], np.float64) for tree in (fitting.params, after))
        product = sums @ before[head]
        wanted += best(product - product.mean(0), size) + product.mean(0)
        found += sums @ np.linalg.pinv(old[:, head]) @ new[:, head] @ back[head]
    moved = [np.asarray(get(tree, f"{PLACE}/out")["bias"]) for tree in (after, fitting.params)]
    np.testing.assert_allclose(found + moved[0] - moved[1], wanted, atol=1e-3 * np.abs(wanted).max())


def test_attention_gets_cheaper(fitting):
    arch, params = compressed(fitting, parse("short=2"))
    assert (arch.layers[0].heads, arch.layers[0].mixer.head_dim) == (4, 2)
    assert np.isfinite(np.asarray(forward(arch, params, fitting.batches[0][0]).last)).all()
    frames = ARCH.layers[0].mixer.core_macs(50, 16)
    assert arch.layers[0].mixer.core_macs(50, 16) == frames / 2
    assert cost.parameters(arch) < cost.parameters(ARCH)


def test_a_plan_is_the_nearest_that_is_fast_enough(fitting, tmp_path):
    files.write_json(
        tmp_path / "candidates.json",
        [
            {"share": 1.0, "seconds": None, "time": 1.0, "error": 0.0},
            {"share": 0.5, "seconds": None, "time": 0.7, "error": 0.3},
            {"share": 1.0, "seconds": 10.0, "time": 0.5, "error": 0.1},
            {"share": 0.5, "seconds": 10.0, "time": 0.4, "error": 0.4},
        ],
    )
    plans = planner.Planner(tmp_path, fitting, (), np.zeros((1, 0), np.float32), 1)
    names = {time: plans.choose(time) for time in (0.9, 0.45, 0.3)}
    assert {time: way and way.name for time, way in names.items()} == {
        0.9: "input-10",
        0.45: "shared-0.5+input-10",
        0.3: None,
    }


def test_plans_are_timed_and_compared(fitting, tmp_path, monkeypatch):
    """By a clock that counts samples: what fits a short window is heard there, the others in the whole one."""
    monkeypatch.setattr(planner, "SHARES", (1.0, 0.5))
    monkeypatch.setattr(planner, "PARTS", (1.0, 0.5))
    real = planner.listener

    def listener(arch, params, samples):
        found = real(arch, params, samples)
        return replace(found, program=Program(lambda: None, Load(samples), 0, 0, None))

    class Ratio:
        def __init__(self, value):
            self.median = value

    monkeypatch.setattr(planner, "listener", listener)
    monkeypatch.setattr(planner, "race", lambda programs, rounds: {k: v.load.seconds for k, v in programs.items()})
    monkeypatch.setattr(planner, "speedup", lambda one, other: Ratio(one / other))
    spoken = [Spoken(str(n), np.zeros(n, np.float32), "") for n in (3200, 9600, 12_800, 19_200)]
    rows = np.asarray(noise(ARCH, 3, batch=2, frames=20))[:, : 20 * ARCH.front.hop]
    found = planner.Planner(tmp_path, fitting, spoken, rows, 1).candidates()
    assert [(each["share"], each["seconds"], each["time"]) for each in found] == [
        (1.0, None, 1.0),
        (1.0, 0.6, 0.75),
        (0.5, None, 1.0),
        (0.5, 0.6, 0.75),
    ]
    assert found[0]["error"] == 0
    assert found[2]["error"] > 0
    assert files.read_json(tmp_path / "candidates.json") == found
