"""The arithmetic of plans against what XLA and the sharding rule say."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from compress.errors import InputError
from jaxssl.models import cost
from jaxssl.models.arch import (
    HUBERT_CONVS,
    Arch,
    ClusterHead,
    CosineHead,
    Dropout,
    LogMel,
    PositionalConvolution,
    Waveform,
    hubert_large,
    melhubert,
)
from jaxssl.models.model import apply, shapes
from jaxssl.training.estimate import CHIPS, COLUMNS, Work, activation_bytes, operations, rows, state_bytes, traffic
from jaxssl.training.sharding import make_mesh, shardings
from tests.archs import transformer_layer

SMALL = Arch(
    LogMel(),
    256,
    (transformer_layer(4, 1024, head_dim=64),) * 2,
    dropout=Dropout(activation=0.1),
    head=ClusterHead(64),
)
STILL = replace(SMALL, dropout=Dropout(0.0, 0.0))
WAVE = Arch(
    Waveform(HUBERT_CONVS[:3]),
    64,
    (transformer_layer(1, 64, head_dim=64),),
    position=PositionalConvolution(16),
    dropout=Dropout(0.0, 0.0),
    head=CosineHead(16, (50,)),
)


@pytest.mark.parametrize(
    ("arch", "remat", "crop"),
    [(SMALL, False, 5.13), (STILL, True, 5.13), (WAVE, False, 1.0)],
    ids=["mel", "mel-remat", "wave"],
)
def test_activations_are_what_xla_sets_aside(arch, remat, crop):
    """Within a quarter, for a small model on a CPU in float32."""
    samples, rows = round(crop * 16000), 2
    frames = arch.front.frames(samples)
    shape = (rows, samples) if isinstance(arch.front, Waveform) else (rows, frames, arch.front.size)

    def value(params, inputs, mask, key):
        stack = "remat" if remat else "unroll"
        out = apply(arch, params, inputs, mask=mask, key=key, stack=stack)
        return jax.nn.log_softmax(out.logits).mean()

    given = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((rows, frames), jnp.bool_)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = jax.jit(jax.grad(value)).lower(shapes(arch), *given, key).compile()
    expected = activation_bytes(arch, Work(seconds=rows * crop, crop=crop, remat=remat, width=4))
    assert 0.75 < expected / compiled.memory_analysis().temp_size_in_bytes < 1.25


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_the_state_is_what_the_sharding_rule_puts_on_a_device(fsdp):
    arch = melhubert(layers=2)
    where = shardings(shapes(arch), make_mesh(fsdp=fsdp))
    pieces = jax.tree.map(lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)), shapes(arch), where)
    found = state_bytes(arch, fsdp)
    assert found["parameters"] == found["gradients"] == 4 * sum(jax.tree.leaves(pieces))
    assert found["moments"] == 2 * found["parameters"]


def test_without_fsdp_every_chip_has_all():
    assert sum(state_bytes(hubert_large(), 1).values()) == 16 * cost.parameters(hubert_large())


def test_traffic():
    arch = hubert_large()
    size = 4 * cost.parameters(arch)
    assert traffic(arch, 1, 1, island=256).total == 0
    data = traffic(arch, 8, 1, island=256)  # one sum of all gradients
    assert data.total == data.reduce == pytest.approx(2 * 7 / 8 * size)
    full = traffic(arch, 8, 8, island=256)  # two gathers and one scatter of nearly all
    assert full.gather == 2 * full.scatter
    assert full.gather + full.scatter == pytest.approx(3 * 7 / 8 * size, rel=0.01)
    assert full.reduce < 0.01 * size
    mixed = traffic(arch, 16, 8, island=256)  # each chip sums its eighth with one other
    assert mixed.reduce == pytest.approx(2 * 1 / 2 * size / 8, rel=0.05)
    islands = traffic(arch, 32, 1, island=8)  # an eighth of everything goes around four islands
    assert islands.reduce == pytest.approx(data.reduce)
    assert islands.network == pytest.approx(2 * 3 / 4 * size / 8)


def test_operations():
    """Six per MAC; the layers' forward pass again when they are rematerialised."""
    arch, work = melhubert(), Work(seconds=30.0, remat=False)
    forward = 2 * cost.macs(arch, 240_000).total * 2
    assert operations(arch, work) == pytest.approx(3 * forward)
    assert 3.8 * forward < operations(arch, replace(work, remat=True)) < 4 * forward


def test_memory_decides_how_far_parameters_are_spread():
    """The first degree that fits; with more memory, none."""
    (row,) = rows("hubert-large", chips=(64,), batch_s=7200)
    assert (row["fits"], row["fsdp"]) == ("yes", 2)
    assert row["memory_gib"] * 2**30 < CHIPS["tpu-v5e"].memory
    assert rows("hubert-large", chips=(64,), batch_s=7200, fsdp=1)[0]["fits"] == "no"
    assert rows("hubert-large", chips=(64,), batch_s=7200, chip="tpu-v5p")[0]["fsdp"] == 1


@pytest.mark.parametrize("preset", ["melhubert-20ms", "hubert-large"])
def test_plans_hang_together(preset):
    found = rows(preset, batch_s=7200)
    assert [row["chips"] for row in found] == [8, 16, 32, 64, 128, 256]  # 512 chips would get 14 s each
    for row in found:
        assert {column.partition(":")[0] for column in COLUMNS} <= row.keys()
        assert row["state_gib"] <= row["state_data_gib"]
        assert row["memory_gib"] == pytest.approx(row["state_gib"] + row["activations_gib"])
        assert row["step_ms"] == pytest.approx(row["compute_ms"] + row["traffic_ms"])
    speech, efficiency = ([row[key] for row in found] for key in ("speech", "efficiency"))
    assert speech == sorted(speech)
    assert efficiency == sorted(efficiency, reverse=True)


def test_bad_input():
    with pytest.raises(InputError, match="no model is called 'hubert'; there are hubert-base"):
        rows("hubert")
    with pytest.raises(InputError, match="no chip is called 'v5'; there are tpu-v4"):
        rows("hubert-base", chip="v5")
    with pytest.raises(InputError, match="--fsdp 3 does not divide 8 chips"):
        rows("hubert-base", chips=(8,), fsdp=3)
    with pytest.raises(InputError, match="only 8 are joined by fast links"):
        rows("hubert-base", chips=(32,), chip="h100", fsdp=16)
