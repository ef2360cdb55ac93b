"""Every step of the study's schedules at full size, and what one unit costs, by arithmetic alone."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.edit import cut
from jaxssl.models import cost
from jaxssl.models.arch import FULL, melhubert
from jaxssl.models.describe import describe
from jaxssl.models.model import shapes
from jaxssl.models.sites import axes
from tests.archs import ARCHS

SCHEDULES = [("head_schedule", "heads_per_layer", "mixer", "heads", 12), ("row_schedule", "ffn", "ffn", "hidden", 21)]


@pytest.mark.parametrize("period", [20, 10])
@pytest.mark.parametrize(("schedule", "count", "part", "units", "steps"), SCHEDULES)
def test_every_step_of_the_studys_schedules(shared, period, schedule, count, part, units, steps):
    """Parameters and MACs are those of the original code.

    The facts count the MACs of an utterance of X seconds over exactly X · 50 frames (X · 100 at 10 ms), as if frames
    had no width. With windows of 25 ms every 10 ms that many take 240 samples more, 15 ms: n frames of 10 ms need
    (n − 1) · 160 + 400 samples. METHODS §3 and `macs_per_second` count the frames that there really are.
    """
    facts = json.loads((shared / "melhubert/facts/full_size.json").read_text())[f"{period}ms"][schedule]
    full = melhubert(period)
    assert len(facts) == steps
    for step in facts:
        fewer = getattr(full.layers[0], part).resized(units, step[count])
        arch = replace(full, layers=(replace(full.layers[0], **{part: fewer}),) * len(full.layers))
        assert cost.parameters(arch) == step["params"]
        assert step.get("heads_total", 12 * 12) == sum(layer.mixer.heads for layer in arch.layers)
        for length, expected in step["macs_per_s"].items():
            seconds = int(length.removesuffix("s"))
            samples = seconds * 16000 + 240
            assert arch.front.frames(samples) == seconds * 1000 // period
            assert cost.macs(arch, samples).total / seconds == pytest.approx(expected, rel=1e-12)


def one_less(arch, axis):
    """Really cut a unit off parameters of the arch, and read the arch off what is left."""
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes(arch))
    return describe(arch, cut(params, axis, range(axis.size - 1)))


@pytest.mark.parametrize("arch", list(ARCHS.values()), ids=list(ARCHS))
def test_a_unit_costs_what_cutting_it_saves(arch):
    params, macs = cost.unit_costs(arch, "params"), cost.unit_costs(arch, "macs")
    assert list(params) == list(macs) == [axis.name for axis in axes(arch)]
    for axis in axes(arch):
        if axis.size == 0:
            assert params[axis.name] == macs[axis.name] == 0
            continue
        small = one_less(arch, axis)
        assert cost.parameters(arch) - cost.parameters(small) == params[axis.name] > 0
        saved = cost.macs_per_second(arch).total - cost.macs_per_second(small).total
        assert saved == pytest.approx(macs[axis.name], rel=1e-9)


def test_a_unit_of_the_full_size_model_costs_the_published_difference():
    params, macs = cost.unit_costs(melhubert(), "params"), cost.unit_costs(melhubert(), "macs")
    assert params["layers/3/attention/heads"] == 196_800
    assert params["layers/3/ffn/hidden"] * 128 == 196_736
    assert macs["layers/3/attention/heads"] * 12 == pytest.approx((4.936 - 4.780) * 1e9, rel=5e-3)
    assert macs["layers/3/ffn/hidden"] * 12 * 512 == pytest.approx((4.936 - 4.465) * 1e9, rel=2e-3)


def test_the_last_unit_of_a_factorised_map_saves_it_all():
    """Once no unit is left the map does not run: both its halves are saved, and `unit_costs` says so."""
    layer = ARCHS["uneven"].layers[0]
    arch = replace(ARCHS["uneven"], layers=(replace(layer, mixer=layer.mixer.resized("heads", 1)),))
    several = replace(arch, layers=(replace(layer, mixer=layer.mixer.resized("heads", 2)),))
    frames = sum(arch.front.frames(samples) for samples in cost.UTTERANCES) / sum(cost.UTTERANCES) * 16000
    last, one = (cost.unit_costs(each, "macs")["layers/0/attention/heads"] for each in (arch, several))
    mixer = layer.mixer
    assert (mixer.k, mixer.v) == (FULL, FULL)
    assert last - one == pytest.approx(frames * (mixer.q.rank + mixer.out.rank) * arch.width, rel=1e-9)
