"""Costs against the published figures, the full-size facts of the original code, and XLA's own count."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxssl.models import cost
from jaxssl.models.arch import LogMel, Rank, hubert_base, hubert_large, melhubert
from jaxssl.models.model import apply, shapes
from tests.archs import ARCHS, transformer_layer, weights


def giga(arch):
    return cost.macs_per_second(arch).total / 1e9


def test_parameters_are_the_published_ones():
    assert cost.parameters(melhubert()) == 90_231_424
    assert cost.parameters(melhubert(10)) == 90_200_704
    assert cost.parameters(melhubert(layers=6)) == 47_704_192
    assert cost.parameters(melhubert(layers=2)) == 19_352_704
    assert cost.parameters(replace(hubert_base(), head=None)) == 94_371_712
    assert cost.parameters(hubert_base()) == 94_697_600
    assert cost.parameters(replace(hubert_large(), head=None)) == 315_435_136
    assert cost.parameters(hubert_large()) == 316_606_336


def test_macs_are_the_published_ones():
    assert giga(melhubert()) == pytest.approx(4.936, rel=2e-3)
    assert giga(melhubert(10)) == pytest.approx(10.78, rel=2e-3)
    seconds = sum(cost.UTTERANCES) / 16000
    assert seconds == pytest.approx(224.86, rel=1e-4)
    assert giga(hubert_base()) * seconds == pytest.approx(1665.4, rel=2e-3)
    assert giga(hubert_large()) * seconds == pytest.approx(4315.7, rel=2e-3)


def test_macs_of_every_head_step():
    published = [4.936, 4.780, 4.624, 4.468, 4.312, 4.156, 4.000, 3.844, 3.688, 3.533, 3.377, 3.221]
    for heads, expected in zip(range(12, 0, -1), published, strict=True):
        arch = replace(melhubert(), layers=(transformer_layer(heads, 3072, head_dim=64),) * 12)
        assert giga(arch) == pytest.approx(expected, rel=2e-3)
        assert cost.parameters(arch) == 90_231_424 - 12 * (12 - heads) * 196_800


def test_macs_of_every_ffn_step():
    for units, expected in {3072: 4.936, 2560: 4.465, 2048: 3.994, 1536: 3.523, 1024: 3.052, 512: 2.581}.items():
        arch = replace(melhubert(), layers=(transformer_layer(12, units, head_dim=64),) * 12)
        assert giga(arch) == pytest.approx(expected, rel=2e-3)
        assert cost.parameters(arch) == 90_231_424 - 12 * (3072 - units) // 128 * 196_736


def test_macs_of_every_depth():
    for layers, expected in {12: 4.936, 6: 2.587, 2: 1.021}.items():
        assert giga(melhubert(layers=layers)) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("name", "period"), [("20ms", 20), ("10ms", 10)])
def test_parameters_of_the_original_code(shared, name, period):
    facts = json.loads((shared / "melhubert/facts/full_size.json").read_text())[name]
    assert cost.parameters(melhubert(period)) == facts["total"]
    assert cost.parameters(replace(melhubert(period), head=None)) == facts["total_without_final_proj"]


def test_a_rank_costs_two_thin_products():
    thin = transformer_layer(12, 3072, head_dim=64, fc1=Rank(128), q=Rank(64))
    dense, thin = melhubert(layers=1), replace(melhubert(), layers=(thin,))
    frames = dense.front.frames(80000)
    saved = cost.macs(dense, 80000).total - cost.macs(thin, 80000).total
    assert saved == frames * (768 * 3072 - 128 * (768 + 3072) + 768 * 768 - 64 * (768 + 768))


@pytest.mark.parametrize("arch", [a for a in ARCHS.values() if a.front.kind == "logmel"])
def test_arithmetic_agrees_with_xla(arch, key):
    """XLA counts a multiply-accumulate as two operations and adds the elementwise ones, so ours is a lower bound that
    the products of a wide model nearly reach."""
    wide = replace(arch, width=64, front=LogMel(40, arch.front.stack), head=None)
    size = 64 // arch.relative.heads if arch.relative else 32
    layers = tuple(
        replace(layer, mixer=replace(layer.mixer, head_dim=size)) if hasattr(layer.mixer, "head_dim") else layer
        for layer in arch.layers
    )
    position = replace(arch.position, kernel=16) if arch.position.kind == "convolution" else arch.position
    wide = replace(wide, layers=layers, position=position)
    frames = 200 // arch.front.stack
    params = jax.eval_shape(lambda: weights(wide))
    inputs = jax.ShapeDtypeStruct((1, frames, wide.front.size), jnp.float32)
    compiled = jax.jit(lambda p, x: apply(wide, p, x).end[0]).lower(params, inputs).compile()
    counted = cost.macs(wide, 400 + 160 * 199).total
    assert frames == wide.front.frames(400 + 160 * 199)
    flops = compiled.cost_analysis()["flops"]
    assert 1.0 <= flops / (2 * counted) < 1.25


def test_nonzero_counts_entries():
    assert cost.nonzero({"a": jnp.array([0.0, 1.0]), "b": {"c": jnp.ones((2, 2))}}) == 5
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(melhubert()))) == cost.parameters(melhubert())
