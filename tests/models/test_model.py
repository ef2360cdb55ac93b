"""Laws of the forward pass, on every small architecture."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten, put
from compress.errors import InputError
from compress.lowrank import dense_kernel
from jaxssl.models.arch import FULL, Dropout, PositionalConvolution, Waveform
from jaxssl.models.describe import describe
from jaxssl.models.inner_maps import map_inputs
from jaxssl.models.model import apply, init, shapes
from jaxssl.models.sites import matrices
from tests.archs import (
    ARCHS,
    BASE,
    LARGE,
    MEL,
    beside_noise,
    forward,
    fresh,
    noise,
    transformer_layer,
    weights,
    without_layers,
)

every_arch = pytest.mark.parametrize("arch", list(ARCHS.values()), ids=list(ARCHS))


@every_arch
def test_describe_inverts_init(arch, key):
    assert describe(arch, jax.eval_shape(lambda: init(arch, key))) == arch


@every_arch
def test_describe_needs_only_what_shapes_cannot_tell(arch, key):
    base = replace(without_layers(arch), width=0, mask_embedding=not arch.mask_embedding)
    base = replace(base, project=None if arch.project else FULL, time_reduction=3)
    if isinstance(arch.front, Waveform):
        base = replace(base, front=replace(arch.front, feature_norm=not arch.front.feature_norm))
    assert describe(base, jax.eval_shape(lambda: init(arch, key))) == arch


@every_arch
def test_shapes_are_those_of_init(arch, key):
    expected = {path: leaf.shape for path, leaf in flatten(shapes(arch)).items()}
    drawn = jax.eval_shape(lambda: init(arch, key))
    assert {path: leaf.shape for path, leaf in flatten(drawn).items()} == expected


@every_arch
def test_output_carries_every_layer(arch, key):
    inputs = noise(arch, key)
    out = forward(arch, weights(arch), inputs)
    heard = arch.front.heard(inputs.shape[1])
    frames = [arch.reduced(heard, layer=layer) for layer in (0, *range(len(arch.layers)))]
    assert out.features.shape == (2, arch.shortened(heard), arch.width)
    assert [h.shape for h in out.hidden] == [(2, count, arch.width) for count in frames]
    if arch.regular:
        assert [lengths.tolist() for lengths in out.lengths] == [[count, count] for count in frames]
    else:  # there is room for more than fires
        assert all(0 < n <= count for lengths, count in zip(out.lengths, frames, strict=True) for n in lengths.tolist())
    assert out.last.shape == (2, arch.reduced(heard), arch.width)
    assert out.last_lengths.tolist() == [arch.reduced(heard)] * 2
    assert all(h.shape == out.last.shape for h in out.aligned)
    assert (out.logits is None) == (arch.head is None)
    assert all(bool(jnp.isfinite(h).all()) for h in out.hidden)


@every_arch
def test_padding_beside_an_utterance_changes_nothing(arch, key):
    """The law of batching: f([x, longer])[0] == f([x])[0], whatever stands in the padding."""
    alone, together, frames = beside_noise(arch, weights(arch), key)
    assert int(together.last_lengths[0]) == frames
    (one, count), (two, counts) = alone.end, together.end
    assert int(counts[0]) == int(count[0]) == one.shape[1]
    np.testing.assert_allclose(two[0, : one.shape[1]], one[0], atol=1e-5, rtol=1e-4)


@every_arch
def test_full_lengths_are_no_lengths(arch, key):
    params, inputs = weights(arch), noise(arch, key)
    full = jnp.full(2, inputs.shape[1])
    np.testing.assert_allclose(
        forward(arch, params, inputs, full).end[0], forward(arch, params, inputs).end[0], atol=1e-5, rtol=1e-4
    )


@every_arch
def test_jit_changes_nothing_and_numpy_arrays_will_do(arch, key):
    params, inputs = weights(arch), noise(arch, key)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    by_itself = apply(arch, params, np.asarray(inputs))
    np.testing.assert_allclose(by_itself.end[0], forward(arch, params, inputs).end[0], atol=1e-5, rtol=1e-4)


@every_arch
def test_bfloat16_stays_near_float32(arch, key):
    params, inputs = fresh(arch), noise(arch, key)
    low = forward(arch, params, inputs, dtype=jnp.bfloat16).last
    assert low.dtype == jnp.bfloat16
    high = forward(arch, params, inputs).last
    assert float(jnp.linalg.norm(low.astype(jnp.float32) - high) / jnp.linalg.norm(high)) < 0.05


def test_without_a_key_nothing_is_random_and_with_one_it_is(key):
    params, inputs = weights(MEL), noise(MEL, key)
    one, two = jax.random.split(key)
    assert jnp.array_equal(forward(MEL, params, inputs).last, forward(MEL, params, inputs).last)
    assert jnp.array_equal(forward(MEL, params, inputs, key=one).last, forward(MEL, params, inputs, key=one).last)
    assert not jnp.array_equal(forward(MEL, params, inputs, key=one).last, forward(MEL, params, inputs, key=two).last)


def test_dropout_keeps_the_mean(key):
    """E[dropout(x)] == x: over many draws the projected features average to the undropped ones."""
    arch = replace(BASE, dropout=Dropout(0.0, 0.0, 0.0, features=0.5, layer=0.0))
    params, inputs = weights(arch), noise(arch, key, batch=1)
    draw = jax.jit(jax.vmap(lambda k: apply(arch, params, inputs, key=k).features))
    mean = draw(jax.random.split(key, 2000)).mean(0)
    plain = forward(arch, params, inputs).features
    np.testing.assert_allclose(mean, plain, atol=0.12 * float(jnp.abs(plain).max()))


def test_layer_drop_skips_whole_layers(key):
    arch = replace(MEL, dropout=Dropout(0.0, 0.0, 0.0, 0.0, layer=1.0))
    out = forward(arch, weights(arch), noise(arch, key), key=key)
    assert all(jnp.array_equal(h, out.hidden[0]) for h in out.hidden)


def test_masked_frames_take_the_embedding_or_zero(key):
    mask = jnp.zeros((2, 30), bool).at[:, 3:7].set(True)
    params = weights(BASE)
    features = forward(BASE, params, noise(BASE, key), mask=mask).features
    np.testing.assert_array_equal(features[:, 3:7], jnp.broadcast_to(params["mask_embedding"], (2, 4, 16)))

    params = weights(MEL)
    features = forward(MEL, params, noise(MEL, key), mask=mask).features
    np.testing.assert_allclose(features[:, 3:7], jnp.broadcast_to(params["project"]["bias"], (2, 4, 16)), atol=1e-6)


def test_normalised_models_do_not_hear_loudness(key):
    params, inputs = weights(LARGE), noise(LARGE, key)
    out, louder = (forward(LARGE, params, x).last for x in (inputs, 3 * inputs + 1))
    np.testing.assert_allclose(louder, out, atol=1e-3)


def test_cosine_logits_are_bounded_by_the_temperature(key):
    logits = forward(BASE, weights(BASE), noise(BASE, key)).logits
    assert logits.shape[-1] == 14
    assert float(jnp.abs(logits).max()) <= 10 * (1 + 1e-5)


def test_an_empty_block_is_its_output_bias(key):
    """heads == 0 and ffn == 0 are legal: with zero biases such a pre-LN layer is the identity."""
    arch = replace(LARGE, layers=(transformer_layer(0, 0),))
    out = forward(arch, init(arch, key), noise(arch, key))
    np.testing.assert_array_equal(out.hidden[1], out.hidden[0])


def test_gradients_reach_every_parameter(key):
    for arch in (replace(arch, layers=arch.layers[:1]) for arch in (BASE, LARGE, MEL)):
        params, inputs = weights(arch), noise(arch, key)
        mask = jnp.zeros((2, 30), bool).at[:, 3:7].set(True)
        loss = partial(lambda arch, *given: (apply(arch, *given[:2], mask=given[2]).logits ** 2).sum(), arch)
        grads = jax.jit(jax.grad(loss))(params, inputs, mask)
        silent = {path for path, g in flatten(grads).items() if not bool((g != 0).any())}
        assert not silent, silent


@every_arch
def test_map_inputs_are_what_the_maps_see(arch, key):
    """Through the public arrays: features = project(heard), and every map that runs is heard."""
    params, inputs = weights(arch), noise(arch, key)
    heard, lengths = map_inputs(arch, params, inputs)
    assert set(heard) >= {m.path for m in matrices(arch) if m.max_rank}
    out = forward(arch, params, inputs)
    for project in (m for m in matrices(arch) if m.path == "project"):
        kernel = jnp.asarray(dense_kernel(params, project), jnp.float32)
        features = heard["project"] @ kernel + params["project"]["bias"][None, None]
        there = np.arange(features.shape[1])[None] < np.asarray(out.features_lengths)[:, None]
        np.testing.assert_allclose(np.where(there[..., None], features, 0), out.features, atol=1e-5)
    counts = {f"layers/{i}": n for i, n in enumerate(out.lengths[1:])} | {"project": out.features_lengths}
    for path, found in lengths.items():
        expected = next((n for place, n in counts.items() if f"{path}/".startswith(f"{place}/")), out.last_lengths)
        assert found.tolist() == expected.tolist()


def test_the_first_path_that_differs_is_named(key):
    params = put(weights(MEL), "layers/1/ffn/fc1/kernel", jnp.zeros((16, 23)))
    with pytest.raises(InputError, match=r"layers/1/ffn/fc1/kernel.*\(16, 24\).*\(16, 23\)"):
        apply(MEL, params, noise(MEL, key))


def test_a_missing_and_a_surplus_array_are_named(key):
    params = weights(MEL)
    with pytest.raises(InputError, match="head/project"):
        apply(MEL, {name: value for name, value in params.items() if name != "head"}, noise(MEL, key))
    with pytest.raises(InputError, match="surplus"):
        apply(MEL, {**params, "surplus": jnp.zeros(3)}, noise(MEL, key))


@pytest.mark.parametrize(("arch", "shape"), [(BASE, (2, 30, 10)), (MEL, (2, 300)), (MEL, (2, 30, 9)), (BASE, (1, 20))])
def test_inputs_of_the_wrong_form_are_refused(arch, shape, key):
    with pytest.raises(InputError):
        apply(arch, weights(arch), jnp.zeros(shape))


def test_an_impossible_arch_is_refused(key):
    with pytest.raises(InputError, match=r"16.*3"):
        init(replace(MEL, position=PositionalConvolution(7, 3)), key)
    with pytest.raises(InputError, match="layers/0"):
        init(replace(MEL, layers=(transformer_layer(-1, 4),)), key)
