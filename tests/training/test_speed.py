"""What is timed is a whole training step on data like training's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.inference.latency import Load, Program, race
from jaxssl.models import cost
from jaxssl.models.arch import Dropout, melhubert
from jaxssl.models.model import apply, shapes
from jaxssl.models.zoo import PRESETS
from jaxssl.training import speed
from tests.archs import BASE, LARGE, MEL, UNEVEN, weights

LOAD = Load(0.5, 3)


@pytest.mark.parametrize("arch", [BASE, LARGE, MEL], ids=["base", "large", "mel"])
def test_the_example_is_a_batch_that_fits(arch):
    batch, loss = speed.example(arch, LOAD), speed.objective(arch)

    def value(params):
        output = apply(arch, params, batch["inputs"], batch["lengths"], mask=batch["mask"])
        return loss(output, batch["labels"], batch["mask"])[0]

    assert jax.eval_shape(value, shapes(arch)).shape == ()
    assert (batch["lengths"] == batch["inputs"].shape[1]).all()
    assert batch["labels"].min() >= 0
    labels = batch["labels"].reshape(-1, len(loss.clusters))
    assert (labels.max(0) < loss.clusters).all()
    assert batch["mask"].any(1).all()


@pytest.mark.parametrize(("name", "share"), [("melhubert-20ms", 0.5), ("melhubert-10ms", 0.5), ("hubert-base", 0.55)])
def test_masks_are_those_of_pretraining(name, share):
    """Spans that cover a share p of the frames with overlaps cover about 1 − exp(−p) of them."""
    mask = speed.example(PRESETS[name](), Load(15.0, 8))["mask"]
    assert mask.mean() == pytest.approx(share, abs=0.05)
    longest = max(len(run) for row in mask for run in "".join(map(str, row.astype(int))).split("0"))
    assert longest >= (5 if name == "melhubert-20ms" else 10)


def test_the_seed_decides():
    one, same, other = (speed.example(MEL, LOAD, seed=seed) for seed in (0, 0, 1))
    for name in ("inputs", "labels", "mask"):
        np.testing.assert_array_equal(one[name], same[name])
        assert not np.array_equal(one[name], other[name])


@pytest.mark.slow
def test_every_stack_is_a_whole_update(key):
    """Each program holds parameters and moments, and the given parameters stay readable."""
    arch = replace(MEL, layers=MEL.layers[:2], dropout=Dropout(0.0, 0.0))  # its random bits compile slowly
    params = weights(arch)
    before = jax.tree.map(np.array, params)
    ticks: list[int] = []
    stacks = ("unroll", "scan")
    programs = speed.compile_steps(arch, params, LOAD, stacks=stacks, dtype=jnp.bfloat16, tick=lambda: ticks.append(1))
    assert tuple(programs) == stacks
    assert len(ticks) == 2
    for program in programs.values():
        assert program.compile_s > 0
        assert program.memory_bytes is None or program.memory_bytes > 3 * 4 * cost.parameters(arch)
    timings = race(programs, rounds=2, warmup=0)
    assert {len(timing.seconds) for timing in timings.values()} == {2}
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_an_update_is_three_forward_passes():
    arch = melhubert()
    assert speed.macs(arch, Load(15.0, 4)) == 12 * cost.macs(arch, 240_000).total
    assert speed.macs(arch, Load(15.0, 4)) / 3 / 60 > 85e6 * 50  # a frame of 20 ms meets every weight


def test_models_without_output_and_utterances_without_frames_are_refused():
    with pytest.raises(InputError, match="no output layer"):
        speed.objective(UNEVEN)
    with pytest.raises(InputError, match="0.01 s give 0 frames"):
        speed.example(MEL, Load(0.01, 1))


def test_programs_settle_before_they_are_timed():
    """Each runs twice in its turn, and once is timed."""
    order: list[str] = []
    programs = {name: Program(lambda name=name: order.append(name), LOAD, 0.0, 0.0, None) for name in "ab"}
    timings = race(programs, rounds=2, warmup=0, settle=True)
    assert order == list("aabb" * 2)
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 2, "b": 2}
