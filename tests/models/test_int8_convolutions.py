"""Convolutions of samples in int8: windows are quantised one by one, so that chunks and padding change nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten, get, put
from compress.errors import InputError
from compress.quantize import bfloat16, quantize, simulate
from jaxssl.convert.to_torch import state
from jaxssl.inference import streaming
from jaxssl.inference.prepack import prepared
from jaxssl.inference.source import Model, in_float
from jaxssl.inference.specialise import dequantized, quantized
from jaxssl.models import checkpoint, choice, cost, supernet
from jaxssl.models.arch import Waveform
from jaxssl.models.arch_json import from_json, to_json
from jaxssl.models.describe import describe
from jaxssl.models.fronts import strided_conv
from jaxssl.models.model import apply, shapes
from jaxssl.models.sites import channels, matrices
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.step import start
from tests.archs import ARCHS, BASE, CONVS, LARGE, MEL, beside_noise, forward, fresh, noise, transformer_layer
from tests.models.test_int8 import assert_same, by_hand

WAVES = {name: arch for name, arch in ARCHS.items() if arch.front.convolutions()}
every_wave = pytest.mark.parametrize("arch", list(WAVES.values()), ids=list(WAVES))
alone = pytest.mark.parametrize("arch", [BASE, LARGE, ARCHS["student"]], ids=["base", "large", "student"])


def in_int8(arch, params):
    """Make the convolutions int8, and no dense map."""
    for matrix in arch.front.convolutions():
        params = quantize(params, matrix)
    return describe(arch, params), params


def test_only_fronts_that_convolve_samples_have_some():
    assert {type(arch.front) for arch in WAVES.values()} == {Waveform}
    assert not any(isinstance(arch.front, Waveform) for name, arch in ARCHS.items() if name not in WAVES)


@every_wave
def test_fresh_weights_are_quantised_fresh_weights(arch):
    wanted = replace(arch, front=replace(arch.front, int8=True))
    found, params = in_int8(arch, fresh(arch))
    assert found == wanted == from_json(to_json(wanted))
    assert_same(params, fresh(wanted))
    assert {p: (s.shape, s.dtype) for p, s in flatten(shapes(wanted)).items()} == {
        p: (leaf.shape, leaf.dtype) for p, leaf in flatten(params).items()
    }
    kinds = [params["front"]["convs"][str(i)]["conv"]["kernel"].dtype.name for i in range(len(arch.front.convs))]
    assert kinds == ["float32", *["int8"] * (len(kinds) - 1)]
    scales = sum(conv.channels for conv in arch.front.convs[1:])
    assert cost.parameters(wanted) == cost.parameters(arch) + scales
    assert cost.macs_per_second(wanted) == cost.macs_per_second(arch)


@every_wave
def test_with_the_dense_maps_all_of_it_is_int8(arch):
    if any(matrix.blocks for matrix in matrices(arch)):
        pytest.skip("maps in blocks are not int8 as well")
    wide, params = quantized(arch, fresh(arch), convolutions=True)
    inner = [matrix for matrix in matrices(wide) if matrix.path.startswith("layers/")]
    assert all(matrix.int8 for matrix in (*inner, *wide.front.convolutions()))
    assert not quantized(arch, fresh(arch))[0].front.int8
    assert dequantized(wide, params)[0] == arch


@alone
def test_the_front_end_is_that_of_plain_numpy(arch, key, monkeypatch):
    wide, params = in_int8(arch, fresh(arch))
    inputs = noise(arch, key)
    found, heard = forward(wide, params, inputs), []

    def instead(*given):
        heard.append(given[1].shape)
        return by_hand(*given)

    monkeypatch.setattr(strided_conv, "int8_product", instead)
    expected = apply(wide, params, inputs)
    assert heard == [matrix.shape for matrix in wide.front.convolutions()]
    np.testing.assert_allclose(found.last, expected.last, atol=1e-4 * float(jnp.abs(expected.last).max()))


@alone
def test_it_stays_near_float_and_is_what_was_simulated(arch, key):
    params, inputs = fresh(arch), noise(arch, key)
    wide, whole = in_int8(arch, params)
    high, low = forward(arch, params, inputs).last, forward(wide, whole, inputs).last
    assert 0 < float(jnp.linalg.norm(low - high) / jnp.linalg.norm(high)) < 0.05
    expected = params
    for matrix in arch.front.convolutions():
        expected = simulate(expected, matrix)
    back, floats = dequantized(wide, whole)
    assert back == arch
    assert_same(floats, expected)
    for name, array in state(wide, whole, None).items():
        np.testing.assert_array_equal(array, state(arch, expected, None)[name])


@alone
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prepared_it_computes_the_same(arch, key, dtype):
    wide, params = in_int8(arch, fresh(arch))
    inputs = noise(arch, key)
    plain = forward(wide, params, inputs, dtype=dtype).last.astype(jnp.float32)
    ready = prepared(wide, params, dtype=dtype)
    program = str(jax.make_jaxpr(lambda x: apply(*ready, x, dtype=dtype).last)(inputs))
    kernels = len(wide.front.convolutions()) if choice.packs(int8=True) else 0
    assert program.count("jaxssl_int8") == kernels
    found = forward(*ready, inputs, dtype=dtype).last.astype(jnp.float32)
    far = float(jnp.linalg.norm(found - plain) / jnp.linalg.norm(plain))
    # A sum in another order may round an input to the next step.
    assert far < (2e-3 if dtype == "float32" else 0.03)


def test_padding_beside_an_utterance_changes_nothing(key):
    wide, params = in_int8(ARCHS["wave-uneven"], fresh(ARCHS["wave-uneven"]))
    one, together, frames = beside_noise(wide, params, key)
    np.testing.assert_allclose(together.last[0, :frames], one.last[0], atol=2e-3)


def test_a_stream_gives_what_the_whole_utterance_gives():
    front = Waveform(CONVS, norm="layer", bias=True)
    arch = replace(LARGE, front=front, layers=(transformer_layer(4, 24, left=3, right=1),), mask_embedding=False)
    wide, params = in_int8(arch, fresh(arch))
    inputs = noise(arch, 0, frames=12)
    lengths = np.array([inputs.shape[1]] * 2, np.int32)
    whole = forward(wide, params, inputs, lengths)
    found = streaming.stream(wide, params, inputs, 4 * streaming.unit(wide), lengths)
    np.testing.assert_allclose(found.last[:, : whole.last.shape[1]], whole.last, atol=2e-3)


def test_what_is_saved_is_what_is_loaded(tmp_path):
    wide, params = quantized(BASE, fresh(BASE), convolutions=True)
    checkpoint.save(tmp_path / "model", wide, bfloat16(params))
    again, loaded = checkpoint.load(tmp_path / "model")
    assert again == wide
    assert_same(loaded, bfloat16(params))
    model = Model("model", again, loaded, None, True)
    assert "weights that are int8 and bfloat16 in model are float32 here" in in_float(model).notes[-1]


def test_what_cannot_be_is_refused(key):
    wide, params = in_int8(BASE, fresh(BASE))
    with pytest.raises(InputError, match="front: its convolutions are int8, and a cut would leave their scales"):
        channels(wide)
    with pytest.raises(InputError, match=r"front/convs/1/conv: int8 already.*dequantize first"):
        in_int8(wide, params)
    with pytest.raises(InputError, match=r"kernel: int8 has no gradient; of an int8 map\? dequantize the model"):
        start(params, Optimizer().build(), seed=0)
    with pytest.raises(InputError, match="subnets need a float32 front end"):
        supernet.check_supernet(replace(wide, head=None))
    path = "front/convs/2/conv/kernel"
    half = quantize(fresh(BASE), BASE.front.convolutions()[0])
    with pytest.raises(InputError, match=f"{path}: the arch wants int8, the parameters have float32"):
        apply(wide, put(params, path, get(fresh(BASE), path)), noise(BASE, key))
    with pytest.raises(InputError, match=f"{path}"):
        describe(BASE, half)
    with pytest.raises(InputError, match="int8 maps have no gradient"):
        jax.jvp(lambda x: apply(wide, params, x).last, (noise(BASE, key),), (noise(BASE, key),))


def test_a_model_without_them_is_quantised_as_ever():
    assert_same(quantized(MEL, fresh(MEL), convolutions=True)[1], quantized(MEL, fresh(MEL))[1])
