"""Neighbours that are alike merge: by hand, as laws, and beside what else a model may be."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.edit import cut, mask
from compress.errors import InputError
from jaxssl.inference.prepack import prepared
from jaxssl.models import cost
from jaxssl.models.arch import AveragePooling, KeyMerging, LogMel, Repeat, SummaryMixing
from jaxssl.models.arch_json import from_json, to_json
from jaxssl.models.describe import describe
from jaxssl.models.model import apply, shapes
from jaxssl.models.shorten import shortened
from jaxssl.models.sites import axes
from tests.archs import MEL, WAVLM, beside_noise, forward, noise, transformer_layer, weights

PLAIN = replace(MEL, layers=(transformer_layer(4, 24),) * 2)


def merging(*kept, base=PLAIN, **more):
    """The model with so many of 1000 frames kept before each layer; None: it hears all."""
    parts = (part and KeyMerging(part) for part in kept)
    layers = (replace(layer, shortening=part) for layer, part in zip(base.layers, parts, strict=True))
    return replace(base, layers=tuple(layers), upsampling=Repeat(), **more)


ARCH = merging(None, 600)
LENGTHS = np.array([30, 21], np.int32)


def by_hand(x, keys, left, sizes=None):
    """Join the pairs that are most alike one after the other; return the means, their sizes, and each frame's place."""
    time = len(x)
    sizes = np.ones(time) if sizes is None else sizes
    flat = keys.reshape(time, -1).astype(np.float64)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    alike = (unit[1:] * unit[:-1]).sum(1)
    joined = np.zeros(time, bool)
    joined[1 + np.argsort(-alike, kind="stable")[: time - left]] = True
    runs = np.cumsum(~joined) - 1
    merged = [np.average(x[runs == run], axis=0, weights=sizes[runs == run]) for run in range(left)]
    return np.stack(merged), np.array([sizes[runs == run].sum() for run in range(left)]), runs


def drawn(*, batch=2, time=24, width=6, seed=0):
    draw = np.random.default_rng(seed)
    x, keys = (draw.standard_normal((batch, time, *shape)).astype(np.float32) for shape in ((width,), (2, 3)))
    return jnp.asarray(x), jnp.asarray(keys)


def run(kept):
    """The part's module as a function of arrays."""
    module = KeyMerging(kept).build(6, rngs=None)

    def call(x, lengths, keys, sizes):
        short = module(x, lengths, keys, sizes)
        return short.x, short.lengths, short.sizes, short.restore(short.x)

    return jax.jit(call)


@pytest.mark.parametrize("sized", [False, True])
def test_the_most_alike_neighbours_become_their_weighted_mean(sized):
    (x, keys), lengths = drawn(), np.array([24, 15], np.int32)
    sizes = np.random.default_rng(1).integers(1, 5, (2, 24)).astype(np.float32) if sized else None
    z, left, whole, back = run(400)(x, lengths, keys, sizes)
    assert (z.shape, left.tolist()) == ((2, 10, 6), [10, 6])
    for row, (n, m) in enumerate(zip(lengths, left, strict=True)):
        mean, sums, runs = by_hand(*(np.asarray(a[row, :n]) for a in (x, keys)), m, sizes[row, :n] if sized else None)
        np.testing.assert_allclose(z[row, :m], mean, atol=1e-5)
        np.testing.assert_allclose(whole[row, :m], sums)
        np.testing.assert_allclose(back[row, :n], mean[runs], atol=1e-5)


def test_frames_that_are_equal_merge_to_themselves():
    """Runs of equal frames are found whole, and are what they were."""
    (x, keys), runs = drawn(batch=1, time=8), np.array([3, 1, 5, 2, 1, 4, 7, 1])
    long = [jnp.repeat(a, runs, axis=1) for a in (x, keys)]
    z, _, whole, back = run(333)(long[0], None, long[1], None)  # 8 of 24
    np.testing.assert_allclose(z, x, rtol=1e-6)
    np.testing.assert_array_equal(whole[0], runs)
    np.testing.assert_allclose(back, long[0], rtol=1e-6)


def test_to_merge_nothing_changes_nothing(key):
    x, keys = drawn()
    np.testing.assert_array_equal(run(1000)(x, None, keys, None)[0], x)
    params, inputs, whole = weights(PLAIN), noise(PLAIN, key), merging(1000, 1000)
    one, two = (forward(arch, params, inputs, LENGTHS).last for arch in (whole, PLAIN))
    np.testing.assert_allclose(one[0], two[0], atol=1e-5)
    np.testing.assert_allclose(one[1, :21], two[1, :21], atol=1e-5)


def test_padding_beside_an_utterance_changes_nothing(key):
    arch = merging(700, 600, norm_first=True)
    alone, together, frames = beside_noise(arch, weights(arch), key)
    assert int(together.last_lengths[0]) == frames == 20
    np.testing.assert_array_equal([n[0] for n in alone.lengths], [n[0] for n in together.lengths])
    np.testing.assert_allclose(together.last[0, :frames], alone.last[0], atol=1e-5, rtol=1e-4)


def test_layers_hear_what_is_kept_and_the_output_all(key):
    arch = merging(700, 600, norm_first=True)
    out = forward(arch, weights(arch), noise(arch, key), LENGTHS)
    assert [h.shape[1] for h in out.hidden] == [21, 21, 13]
    assert [n.tolist() for n in out.lengths] == [[21, 15], [21, 15], [13, 9]]
    assert [arch.reduced(30, layer=layer) for layer in (0, 1, None)] == [21, 13, 30]
    assert {h.shape for h in out.aligned} == {(2, 30, arch.width)}
    assert out.last_lengths.tolist() == [30, 21]


def test_sizes_are_carried_to_the_next_merging():
    x, keys = drawn(batch=1)
    first, _, sizes, _ = run(500)(x, None, keys, None)
    second, _, whole, _ = run(400)(first, None, keys[:, :12], sizes)
    assert whole.sum() == 24
    np.testing.assert_allclose((second * whole[..., None]).sum(1), x.sum(1), atol=1e-5)


def test_a_merging_model_is_described_cut_and_prepared_as_any(key):
    arch, params, inputs = ARCH, weights(ARCH), noise(ARCH, key)
    assert from_json(to_json(arch)) == describe(arch, shapes(arch)) == arch
    masked = slim = params
    for axis in axes(arch):
        masked, slim = mask(masked, axis, (0, 2)), cut(slim, axis, (0, 2))
    small = describe(arch, slim)
    np.testing.assert_allclose(forward(arch, masked, inputs).last, forward(small, slim, inputs).last, atol=2e-5)
    np.testing.assert_allclose(
        forward(*prepared(arch, params), inputs).last, forward(arch, params, inputs).last, atol=2e-5
    )


def test_multiplications_are_those_of_fewer_frames_and_of_keys_for_all():
    arch, half = melhubert_like(None, 500), melhubert_like(None, None)
    whole, short = cost.macs(half, 160_000), cost.macs(arch, 160_000)
    frames, keys = arch.front.frames(160_000), 64 * 64
    assert short.reduction == frames * keys
    assert whole.ffn - short.ffn == (frames - arch.reduced(frames, layer=1)) * 2 * 64 * 256
    assert cost.parameters(arch) == cost.parameters(half)
    inputs = jax.ShapeDtypeStruct((1, frames, arch.front.size), jnp.float32)
    compiled = jax.jit(lambda p, x: apply(arch, p, x).last).lower(shapes(arch), inputs).compile()
    assert 1.0 <= compiled.cost_analysis()["flops"] / (2 * short.total) < 1.25
    macs = cost.unit_costs(arch, "macs")
    for axis in (axis for axis in axes(arch) if axis.name.startswith("layers/1")):
        less = jax.tree.map(lambda leaf: leaf, cut(weights(arch), axis, range(axis.size - 1)))
        saved = cost.macs_per_second(arch).total - cost.macs_per_second(describe(arch, less)).total
        assert saved == pytest.approx(macs[axis.name], rel=1e-9)


def melhubert_like(*kept):
    layers = (transformer_layer(4, 256, head_dim=16),) * 2
    return merging(*kept, base=replace(PLAIN, width=64, front=LogMel(40, 2), layers=layers, head=None))


def test_gradients_are_finite_where_keys_are_zeros(key):
    params = weights(ARCH)
    silent = jax.tree.map(jnp.zeros_like, params["layers"]["1"]["attention"]["k"])
    params["layers"]["1"]["attention"]["k"] = silent
    inputs = noise(ARCH, key)
    grads = jax.jit(jax.grad(lambda p: jnp.square(apply(ARCH, p, inputs, LENGTHS).last).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.abs(grads["layers"]["0"]["ffn"]["fc1"]["kernel"]).max() > 0


def test_a_trained_model_is_given_it_as_it_is():
    arch, params = shortened(PLAIN, weights(PLAIN), AveragePooling(2), {1: KeyMerging(500)})
    assert jax.tree.structure(params) == jax.tree.structure(shapes(arch)) == jax.tree.structure(weights(PLAIN))
    assert (arch.reduced(30, layer=1), arch.reduced(30)) == (8, 30)


def test_a_program_of_any_length_is_exported():
    batch, frames = jax.export.symbolic_shape("batch, frames", constraints=["frames >= 1"])
    inputs = jax.ShapeDtypeStruct((batch, frames, ARCH.front.size), np.float32)
    params, x = weights(ARCH), noise(ARCH, 0)
    found = jax.export.export(jax.jit(lambda x, n: apply(ARCH, params, x, n).last))(
        inputs, jax.ShapeDtypeStruct((batch,), np.int32)
    )
    np.testing.assert_allclose(found.call(x, LENGTHS), forward(ARCH, params, x, LENGTHS).last, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (merging(None, 1001), "layers/1: 1001 of 1000 frames stay; give 1 to 1000"),
        (replace(ARCH, upsampling=None), "frames that merge have no fixed number of frames a second; give the arch"),
        (
            replace(ARCH, layers=(ARCH.layers[0], replace(ARCH.layers[1], mixer=SummaryMixing(1, 4, 4)))),
            "layers/1: frames merge by its keys, and it has no heads that have some; name another layer",
        ),
    ],
)
def test_what_cannot_merge_is_refused(arch, message):
    with pytest.raises(InputError, match=re.escape(message)):
        shapes(arch)


def test_gated_attention_has_keys(key):
    base = replace(WAVLM, layers=WAVLM.layers[:1])
    arch = merging(500, base=base)
    out = forward(arch, weights(arch), noise(arch, key))
    assert out.hidden[-1].shape[1] == -(-out.last.shape[1] // 2)
    assert np.isfinite(out.last).all()
