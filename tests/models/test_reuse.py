"""Reused attention maps and reduced time, against computations by hand; and what cannot be reused is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.depth import keep_layers
from compress.errors import InputError
from compress.plan import Heads, Sites, run
from jaxssl.analysis.attention_maps import attention_maps
from jaxssl.analysis.calibration import moments
from jaxssl.analysis.saliency import context_gradient
from jaxssl.inference.encode import timing
from jaxssl.models.arch import Blocks, ClusterHead, LogMel, Rank
from jaxssl.models.describe import describe
from jaxssl.models.inner_maps import map_inputs
from jaxssl.models.model import apply, shapes
from jaxssl.models.sites import axes, entries, matrices
from jaxssl.training.losses import MaskedPrediction
from tests.archs import BASE, MEL, REUSING, STUDENT, fresh, noise, transformer_layer

A, R = transformer_layer(4, 24), transformer_layer(4, 24, reuse=True)
SOFT_AND_REUSING = transformer_layer(4, 24, reuse=True, softened=True)


def lively(arch, seed=0):
    """Parameters of a size that trained ones have; drawn without a program to compile."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * draw.standard_normal(x.shape)).astype(np.float32), shapes(arch))


def dense(block, x):
    kernel = block["kernel"] if "kernel" in block else np.tensordot(block["down"], block["up"], 1)
    return np.tensordot(x, kernel, 1) + block["bias"]


def test_reused_maps_weigh_the_values_of_each_layer(key):
    """By hand, one row, one head and one frame at a time, in a padded batch: layers 1 and 2 on layer 0's maps."""
    params, x, lengths = lively(REUSING), noise(REUSING, key, frames=9), (5, 9)
    heard, _ = jax.jit(lambda p, x, n: map_inputs(REUSING, p, x, n))(params, x, jnp.array(lengths))
    heard = {path: np.asarray(value, np.float64) for path, value in heard.items()}
    first = params["layers"]["0"]["attention"]
    for row, length in enumerate(lengths):
        q, k = (dense(first[name], heard[f"layers/0/attention/{name}"][row, :length]) for name in "qk")
        for layer in "012":
            v = dense(params["layers"][layer]["attention"]["v"], heard[f"layers/{layer}/attention/v"][row, :length])
            for head, frame in np.ndindex(2, length):
                weights = np.exp(k[:, head] @ q[frame, head] / np.sqrt(REUSING.layers[0].mixer.head_dim))
                expected = weights @ v[:, head] / weights.sum()
                found = heard[f"layers/{layer}/attention/out"][row, frame, head]
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_softened_maps_are_the_softmax_of_maps(key):
    """Layer 1 weighs its values by the softmax of layer 0's shares, in a padded row too; layer 0 does not."""
    layers = (replace(A, mixer=replace(A.mixer, softened=True)), R)
    soft, hard = (replace(MEL, layers=each, head=None) for each in (layers, (A, R)))
    params, x, lengths = lively(soft), noise(soft, key, frames=9), jnp.array([5, 9])

    def run_(params, arch):
        return *map_inputs(arch, params, x, lengths), *attention_maps(arch, params, x, lengths)

    heard, _, shares, _ = jax.jit(run_, static_argnums=1)(params, soft)
    plain, _, made, _ = jax.jit(run_, static_argnums=1)(params, hard)
    np.testing.assert_allclose(heard["layers/0/attention/out"], plain["layers/0/attention/out"], rtol=1e-4, atol=1e-5)
    v = dense(params["layers"]["1"]["attention"]["v"], heard["layers/1/attention/v"][0, :5])
    weights = np.exp(made[0][0, :, :5, :5])
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(shares[1][0, :, :5, :5], weights, rtol=1e-4, atol=1e-5)
    expected = np.einsum("hqk,khd->qhd", weights, v)
    np.testing.assert_allclose(heard["layers/1/attention/out"][0, :5], expected, rtol=1e-4, atol=1e-4)


def test_time_reduction_is_a_strided_product(key):
    """Frames 2t and 2t + 1 side by side, times one matrix; of 29 frames the last is left over."""
    arch = replace(STUDENT, layers=())
    params, x = lively(arch), noise(arch, key, frames=29)
    plain = {name: value for name, value in params.items() if name != "reduction"}
    hidden = jax.jit(lambda p: apply(replace(arch, time_reduction=1), p, x).hidden[0])(plain)
    hidden = np.asarray(hidden, np.float64)
    assert hidden.shape == (2, 29, 16)
    pairs = hidden[:, :28].reshape(2, 14, 32)
    expected = pairs @ params["reduction"]["kernel"].reshape(32, 16) + params["reduction"]["bias"]
    out = jax.jit(lambda p, n: apply(arch, p, x, n))(params, jnp.array([x.shape[1], x.shape[1] - 80]))
    assert out.lengths[-1].tolist() == [14, 13]
    np.testing.assert_allclose(out.hidden[0][0], expected[0], rtol=1e-4, atol=1e-5)


def test_a_hidden_reduced_frame_hides_all_that_it_is_made_of(key):
    """Of 29 frames the last is in no reduced one, and is not hidden."""
    arch = replace(STUDENT, layers=())
    params, x = lively(arch), noise(arch, key, frames=29)
    mask = jax.random.bernoulli(key, 0.5, (2, 14))
    whole = jnp.pad(jnp.repeat(mask, 2, axis=1), ((0, 0), (0, 1)))
    run_ = jax.jit(lambda mask: apply(arch, params, x, mask=mask).features)
    np.testing.assert_array_equal(run_(mask), run_(whole))
    assert not np.allclose(run_(mask), run_(jnp.zeros_like(whole)))


def test_scan_is_unroll(key):
    """Among layers that lend their maps, reuse them, and do neither."""
    arch = replace(MEL, layers=(A, A, R, R, R, A, A), head=None)
    params, x, lengths = lively(arch), noise(arch, key, frames=6), jnp.array([4, 6])

    def last(params, stack):
        return apply(arch, params, x, lengths, stack=stack).last[0, :4]

    one, two = (jax.jit(last, static_argnums=1)(params, stack) for stack in ("unroll", "scan"))
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    scans = str(jax.make_jaxpr(lambda p: last(p, "scan"))(params)).count("scan[")
    assert scans == 2  # R R and the A A at the end; a layer whose maps are reused runs alone


def test_gradients_flow_through_reused_maps_rematerialised_or_not(key):
    """The q and k of the layer that lends feel the layers that reuse, though its own output is cut off."""
    arch = replace(MEL, layers=(A, R, R, R), head=None)
    params, x = lively(arch), noise(arch, key, batch=1, frames=5)
    params["layers"]["0"]["attention"]["out"]["kernel"] *= 0

    def value(lender, stack):
        layers = {**params["layers"], "0": {**params["layers"]["0"], "attention": lender}}
        return 10 * jnp.square(apply(arch, {**params, "layers": layers}, x, stack=stack).last).sum()

    gradient = jax.jit(jax.grad(value), static_argnums=1)
    one, two = (gradient(params["layers"]["0"]["attention"], stack) for stack in ("unroll", "remat"))
    for name in ("q", "k"):
        np.testing.assert_allclose(two[name]["kernel"], one[name]["kernel"], rtol=1e-3, atol=1e-4)
        assert float(jnp.abs(one[name]["kernel"]).max()) > 1e-3


def test_a_reused_map_is_not_dropped_again(key):
    """With attention dropout alone, a model whose only layer with scores has no values to weigh is deterministic."""
    quiet = replace(MEL.dropout, hidden=0.0, activation=0.0, attention=0.5)
    arch = replace(MEL, layers=(A, R), dropout=quiet, head=None)
    params = lively(arch)
    params["layers"]["0"]["attention"]["out"]["kernel"] *= 0
    x = noise(arch, key)
    run_ = jax.jit(lambda k: apply(arch, params, x, key=k).last)
    one, two = map(run_, jax.random.split(key))
    np.testing.assert_array_equal(one, two)


def test_heads_are_pruned_with_those_that_reuse_their_maps(key):
    def sites(tree):
        return Sites(axes(describe(REUSING, tree)), matrices(describe(REUSING, tree)))

    small = describe(REUSING, run([Heads(1)], lively(REUSING), sites=sites))
    assert [(layer.mixer.heads, layer.mixer.reuse) for layer in small.layers] == [(1, False), (1, True), (1, True)]
    heads = axes(REUSING)[0]
    assert heads.feeds == tuple(f"layers/{i}/attention/out" for i in range(3))
    assert [axis.name for axis in axes(REUSING)] == [heads.name, *(f"layers/{i}/ffn/hidden" for i in range(3))]


def test_a_head_counts_in_every_layer_that_reuses_its_map():
    """Where only the second layer lets the heads through, the loss feels them all the same."""
    arch = replace(MEL, layers=(transformer_layer(3, 0), transformer_layer(3, 0, reuse=True)), head=ClusterHead(5))
    params, draw = lively(arch), np.random.default_rng(0)
    params["layers"]["0"]["attention"]["out"]["kernel"] *= 0
    batch = {
        "inputs": jnp.asarray(draw.standard_normal((1, 8, 10)), jnp.float32),
        "lengths": jnp.array([8]),
        "labels": jnp.asarray(draw.integers(0, 5, (1, 8))),
        "mask": jnp.ones((1, 8), bool),
    }
    found = context_gradient(arch, params, [batch], MaskedPrediction((5,)), normalise=False)
    assert list(found) == ["layers/0/attention/heads"]
    assert (found["layers/0/attention/heads"] > 1e-4).all()


def test_what_is_not_there_is_not_listed():
    paths = {matrix.path for matrix in matrices(STUDENT)}
    assert {"layers/0/attention/q", "layers/1/attention/v"} <= paths
    assert not paths & {"project", "layers/1/attention/q", "layers/1/attention/k"}
    assert {path.rsplit("/", 1)[0] for group in entries(STUDENT) for path in group} == paths


def test_moments_are_means_over_frames_before_and_after_reduction(key):
    arch = replace(BASE, layers=(transformer_layer(1, 2),), time_reduction=2, head=None)
    params, batch = lively(arch), (noise(arch, key), jnp.array([1220, 820]))  # 30 and 20 frames
    found = moments(arch, params, [batch])
    heard, lengths = jax.jit(lambda p: map_inputs(arch, p, *batch))(params)
    for path, counts in (("project", (30, 20)), ("layers/0/ffn/fc1", (15, 10))):
        assert lengths[path].tolist() == list(counts)
        x = np.concatenate([np.asarray(heard[path][row, :n], np.float64) for row, n in enumerate(counts)])
        np.testing.assert_allclose(found[path], x.T @ x / len(x), rtol=1e-3, atol=1e-4)


def test_frames_are_the_encoders():
    assert [STUDENT.frames(n) for n in (60, 99, 100, 1220)] == [0, 0, 1, 15]
    assert STUDENT.frames(np.array([1220, 820])).tolist() == [15, 10]
    assert replace(MEL, front=LogMel(), time_reduction=3).frames(16_000) == 16
    reads = timing(STUDENT)
    assert (reads.field, reads.hop) == (100, 80)
    assert [(n - reads.field) // reads.hop + 1 for n in range(20, 1300)] == [STUDENT.frames(n) for n in range(20, 1300)]
    assert (timing(replace(MEL, time_reduction=3)).field, timing(replace(MEL, time_reduction=3)).hop) == (3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (A, SOFT_AND_REUSING)}, "layers/1: softened and reusing; the layer that makes"),
        ({"layers": (R, A)}, "layers/0: reuses attention maps, and no layer is before it"),
        ({"layers": (A, transformer_layer(3, 24, reuse=True))}, "layers/1: 3 heads reuse the maps of 4 in layers/0"),
        ({"layers": (A, transformer_layer(4, 24, reuse=True, q=Rank(2)))}, "layers/1: .*no q and k"),
        ({"layers": (A, transformer_layer(4, 24, reuse=True, k=Blocks(4, 1)))}, "layers/1: .*no q and k"),
        ({"project": None}, "features 10 wide, width 16"),
        ({"time_reduction": 0}, "time_reduction 0"),
    ],
)
def test_an_impossible_arch_is_refused(change, message, key):
    with pytest.raises(InputError, match=message):
        fresh(replace(MEL, **change))


def test_maps_that_lost_their_layer_are_missed():
    with pytest.raises(InputError, match="layers/0: reuses attention maps"):
        describe(REUSING, keep_layers(lively(REUSING), (1, 2)))


def test_too_few_frames_to_reduce_are_refused():
    arch = replace(MEL, time_reduction=4)
    with pytest.raises(InputError, match="3 frames are too few to make one of 4"):
        apply(arch, lively(arch), jnp.zeros((1, 3, 10)))
    with pytest.raises(InputError, match="60 samples are too few"):
        apply(STUDENT, lively(STUDENT), jnp.zeros((1, 60)))
