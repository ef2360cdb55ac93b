"""A model that fires: its weights are the original's, no compression is the plain model, nothing is lost in silence."""

import json
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from compress.errors import InputError
from jaxssl.convert import to_huggingface
from jaxssl.inference.encode import encode_all
from jaxssl.models import cost
from jaxssl.models.arch import AveragePooling, IntegrateAndFire, Repeat, hubert_base
from jaxssl.models.keys import Keys
from jaxssl.models.model import apply, shapes
from jaxssl.models.rates.firing import frame_period
from jaxssl.models.shorten import shortened
from tests.archs import ARCHS, MEL, forward, noise, weights

ARCH = ARCHS["firing"]
ROOMY = replace(ARCH, shortening=IntegrateAndFire(3))
LENGTHS = np.array([30, 21], np.int32)
PLAIN = replace(MEL, layers=MEL.layers[:1])


@pytest.fixture(scope="module")
def golden(shared):
    arrays = dict(np.load(shared / "encoders/sequence_compression/cif_ofa.npz"))
    return arrays | {name: arrays[kept] for name, kept in json.loads(str(arrays.pop("aliases_json"))).items()}


def original(golden, part):
    """The part's module with the original's weights, by the names that it has for them."""
    module = part.build(16, rngs=Keys(jax.random.key(0)))
    for name in [name for name in golden if name.startswith("weights/")]:
        source = name.replace("weights/", "cif_subsampler.")
        path, layout = next((r.path, r.layout) for r in part.names["fairseq"] if re.fullmatch(r.pattern, source))
        *inner, last = path.removeprefix("shortening/").split("/")
        owner = getattr(module, inner[0]) if inner else module
        place = getattr(owner, last)
        place[...] = jnp.asarray(layout.convert(golden[name], place.shape))
    return module


def test_weights_and_fired_frames_are_the_original_s(golden):
    """Valid frames are told, which the original knows too: it weighs before it masks, and so hears its padding."""
    short = original(golden, IntegrateAndFire(amount=0.5))(jnp.asarray(golden["x"]), None)
    np.testing.assert_allclose(short.weights, golden["alpha"], atol=1e-5)
    count = golden["lambda_0.5/nomask_train/cif_lengths"]
    np.testing.assert_array_equal(short.lengths, count)
    np.testing.assert_allclose(short.x[:, : count.max()], golden["lambda_0.5/nomask_train/cif_out"], atol=1e-4)


def test_parameters_and_multiplications_are_those_of_the_paper_s_net():
    base, part = replace(hubert_base(), head=None), IntegrateAndFire(most=50)
    arch = replace(base, shortening=part, upsampling=Repeat())
    assert cost.parameters(arch) - cost.parameters(base) == 1_312_769
    frames, fired = 499, 250  # 10 s
    macs, plain = cost.macs(arch, 160_000), cost.macs(base, 160_000)
    assert macs.reduction == frames * (5 * 512**2 + 512) + frames * fired * (512 + 768)
    assert macs.extractor == plain.extractor
    assert macs.ffn * frames == plain.ffn * fired
    assert macs.attention_core * frames**2 == plain.attention_core * fired**2


@partial(jax.jit, static_argnums=0)
def mixing(arch, params, inputs, lengths, amount):
    return apply(arch, params, inputs, lengths, amount=amount)


def test_an_amount_of_nothing_is_the_plain_model(key):
    """Also where padding is, and whatever the net says."""
    params, inputs = weights(ROOMY), noise(ROOMY, key)
    plain = {name: value for name, value in params.items() if name != "shortening"}
    out, wanted = mixing(ROOMY, params, inputs, LENGTHS, np.float32(0)), forward(PLAIN, plain, inputs, LENGTHS)
    np.testing.assert_array_equal(out.lengths[-1], LENGTHS)
    np.testing.assert_allclose(out.logits[0], wanted.logits[0], atol=1e-5)
    np.testing.assert_allclose(out.logits[1, :21], wanted.logits[1, :21], atol=1e-5)


def test_the_amount_of_a_call_is_in_place_of_the_arch_s(key):
    params, inputs = weights(ROOMY), noise(ROOMY, key)
    said = forward(ROOMY, params, inputs, LENGTHS)
    outs = [mixing(ROOMY, params, inputs, LENGTHS, np.float32(amount)) for amount in (0.2, 1, 1.6)]
    np.testing.assert_allclose(outs[1].last, said.last, atol=1e-6)
    counts = [out.lengths[-1].tolist() for out in outs]
    assert counts[0] > counts[1] > counts[2]
    for out in outs:  # what guidance is for is unmixed
        np.testing.assert_allclose(out.weights, said.weights, atol=1e-6)


def alone(part, *, width=6):
    """The part's module with fresh weights, and two utterances for it."""
    x = np.random.default_rng(0).standard_normal((2, 30, width)).astype(np.float32)
    return part.build(width, rngs=Keys(jax.random.key(0))), jnp.asarray(x)


def test_training_draws_the_amount_of_each_batch():
    module, x = alone(IntegrateAndFire(3, drawn="uniform"))
    still, _ = alone(IntegrateAndFire(3))
    run = jax.jit(lambda key: module(x, LENGTHS, Keys(key)).lengths)
    counts = [tuple(run(jax.random.key(seed)).tolist()) for seed in range(12)]
    assert len(set(counts)) > 3
    assert max(counts) > (24, 16)  # near no compression
    np.testing.assert_array_equal(module(x, LENGTHS).lengths, still(x, LENGTHS, Keys(jax.random.key(0))).lengths)


def test_gradients_reach_the_amount():
    """Which a task may learn: a rate of its own (Chen et al. 2023)."""

    def value(amount):
        module, x = alone(IntegrateAndFire(3))
        module.amount = nnx.Intermediate(amount)
        return jnp.square(module(x, LENGTHS).x).sum()

    gradient = jax.jit(jax.grad(value))(jnp.float32(0.8))
    assert np.isfinite(gradient)
    assert gradient != 0


def test_amounts_are_drawn_as_published():
    """Mean and ends of what 4000 keys give; periods are uniform from 20 to 90 ms."""
    keys = jax.random.split(jax.random.key(0), 4000)
    for drawn, low, high in (("uniform", 0, 1), ("period", 0, 1), ("both", 0, 2)):
        found = np.asarray(jax.jit(jax.vmap(IntegrateAndFire(drawn=drawn).draw))(keys))
        assert low <= found.min() < low + 0.01
        assert high - 0.01 < found.max() < high
        spread = frame_period(found, rate=2 / 9) if drawn == "period" else found
        middle = 55 if drawn == "period" else (low + high) / 2
        np.testing.assert_allclose(np.mean(spread), middle, rtol=0.03)
    assert IntegrateAndFire(amount=0.5).draw(keys[0]) == 0.5


def test_an_amount_is_refused_where_nothing_fires(key):
    with pytest.raises(InputError, match="the model fires nothing"):
        apply(PLAIN, weights(PLAIN), noise(PLAIN, key), amount=jnp.float32(1))


def loud(params):
    """Weights of nearly one, so that nearly every frame fires."""
    net = params["shortening"]
    return {**params, "shortening": {**net, "score": 0 * net["score"], "score_bias": np.full(1, 9, np.float32)}}


def test_what_there_is_no_room_for_is_told(key):
    """The utterance's output is no numbers, beside it nothing changes, and encoding says why."""
    params, inputs = loud(weights(ARCH)), noise(ARCH, key)
    out = forward(ARCH, params, inputs, np.array([30, 9], np.int32))
    assert np.isnan(out.last[0]).all()
    assert np.isfinite(out.last[1]).all()  # whose nine frames have room for nine
    assert np.isfinite(forward(ROOMY, params, inputs, LENGTHS).last).all()
    with pytest.raises(InputError, match="utterance 0: more frames fire than the arch has room for"):
        list(encode_all(ARCH, params, [np.asarray(inputs[0])]))


def test_what_would_fire_nothing_fires_once(key):
    params = weights(ARCH)
    net = params["shortening"]
    quiet = {**params, "shortening": {**net, "score_bias": np.full(1, -20, np.float32)}}
    out = forward(ROOMY, quiet, noise(ARCH, key), np.array([30, 1], np.int32))
    assert out.lengths[-1].tolist() == [1, 1]
    assert out.last_lengths.tolist() == [30, 1]
    assert np.isfinite(out.last).all()


def test_a_fired_frame_with_anything_hidden_in_it_is_hidden(golden):
    short = original(golden, IntegrateAndFire())(jnp.asarray(golden["x"]), None)
    mask = np.zeros((3, 60), bool)
    mask[:, 20:30] = True
    hidden = np.asarray(short.hide(jnp.asarray(mask)))
    sums = np.cumsum(golden["alpha"].astype(np.float64), 1)
    for row in range(3):
        first, last = int(sums[row, 19]), int(sums[row, 29])
        np.testing.assert_array_equal(np.flatnonzero(hidden[row]), np.arange(first, last + 1))


def test_a_model_begins_with_means_of_four():
    part = IntegrateAndFire(3)
    arch, started = shortened(PLAIN, weights(PLAIN), part, {})
    assert jax.tree.structure(started) == jax.tree.structure(shapes(arch))
    module, x = alone(part, width=PLAIN.front.size)
    graph, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, started["shortening"])
    short, means = nnx.merge(graph, state)(x, None), alone(AveragePooling(4))[0](x, None)
    assert short.lengths.tolist() == [7, 7]
    np.testing.assert_allclose(short.x[:, :7], means.x, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shortening": IntegrateAndFire(4)}, "shortening: a convolution of 4 taps has no middle one"),
        ({"shortening": IntegrateAndFire(threshold=0.0)}, "a threshold of 0.0 always fires"),
        ({"shortening": IntegrateAndFire(amount=2.0)}, "weights mixed by 2.0; give an amount from 0 to below 2"),
        ({"shortening": IntegrateAndFire(most=101)}, "at most 101 of 100 frames fire; give 1 to 100"),
        ({"shortening": IntegrateAndFire(drawn="both", most=80)}, "amounts are drawn down to 0, and 80 of 100 frames"),
        ({"upsampling": None}, "what fires has no fixed number of frames a second; give the arch an upsampling"),
    ],
)
def test_what_cannot_fire_is_refused(change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        shapes(replace(ARCH, **change))


def test_a_fixed_way_back_is_refused():
    with pytest.raises(InputError, match="no fixed number of frames one"):
        shortened(PLAIN, weights(PLAIN), IntegrateAndFire(3), {}, learned=True)


def test_a_program_of_any_length_is_exported():
    batch, frames = jax.export.symbolic_shape("batch, frames", constraints=["frames >= 20"])
    inputs = jax.ShapeDtypeStruct((batch, frames, ARCH.front.size), np.float32)
    lengths = jax.ShapeDtypeStruct((batch,), np.int32)
    params, run = weights(ARCH), jax.jit(lambda x, n: apply(ARCH, params, x, n).last)
    found = jax.export.export(run)(inputs, lengths)
    x, n = noise(ARCH, 0), np.array([30, 21], np.int32)
    np.testing.assert_allclose(found.call(x, n), forward(ARCH, params, x, n).last, atol=1e-5)


def test_what_others_cannot_be_is_not_exported():
    arch = replace(hubert_base(), shortening=IntegrateAndFire(), upsampling=Repeat(), head=None)
    with pytest.raises(InputError, match="reduces time"):
        to_huggingface.folder(arch, shapes(arch))
