"""What ONNX Runtime is given computes what the standalone model does, where float32 is easily lost too."""

import importlib
import json

import numpy as np
import pytest

from jaxssl.convert.to_torch import state
from jaxssl.data.logmel import hamming, triangles
from jaxssl.models.arch_json import to_json
from jaxssl.models.fronts.whisper_frames import hann, slaney_triangles
from tests.archs import ARCHS, weights


@pytest.fixture(scope="module")
def plain(torch):
    return importlib.import_module("tools.pytorch.standalone.model")


@pytest.fixture(scope="module")
def fronts(torch):
    return importlib.import_module("tools.pytorch.standalone.fronts")


@pytest.fixture(scope="module")
def fast(torch):
    return importlib.import_module("tools.pytorch.onnx_model")


def standalone(torch, plain, arch, key):
    model = plain.Model(json.loads(json.dumps(to_json(arch))))
    model.load_state_dict({name: torch.tensor(array) for name, array in state(arch, weights(arch), None).items()})
    return model.eval()


@pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS.keys())
def test_every_layer_is_the_same_whatever_pads_it(torch, plain, fast, key, arch):
    model, faster = standalone(torch, plain, arch, key), fast.faster(standalone(torch, plain, arch, key))
    enough = next(count for count in range(400, 4000, 40) if arch.front.frames(count) >= arch.least)
    more = max(enough - 520, 0)  # for one frame of the shortest sequence
    for count in (560, 561, 1000, 1041, 1080, 2003):
        count, lengths = count + more, torch.tensor([count, 560, 520]) + more
        samples = 0.1 * torch.randn(3, count, generator=torch.Generator().manual_seed(0))
        loud = torch.where(plain.first(lengths, count), samples, torch.tensor(3.0))
        with torch.no_grad():
            expected, found = model(samples, lengths), faster(loud, lengths)
        assert found["lengths"].tolist() == expected["lengths"].tolist()
        layers = range(-1, len(arch.layers))
        for layer, one, other in zip(layers, expected["hidden"], found["hidden"], strict=True):
            for row, frames in enumerate(arch.frames(lengths.numpy(), layer=max(layer, 0))):
                np.testing.assert_allclose(one[row, :frames], other[row, :frames], atol=1e-5)


@pytest.mark.parametrize("taps", [1, 2, 3, 8, 128])
def test_position_is_the_convolution(torch, fast, taps):
    conv = torch.nn.Conv1d(12, 12, taps, padding=taps // 2, groups=3)
    faster = fast.Position(conv)
    for frames in (*range(1, 7), 63, 64):
        x = torch.randn(2, 12, frames, generator=torch.Generator().manual_seed(frames))
        with torch.no_grad():
            np.testing.assert_allclose(faster(x), conv(x)[..., :frames], atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_energies_are_those_of_the_transform(torch, fronts, fast, scale):
    """Noise, and a tone beside which the other bins hear the window alone, against float64."""
    front = fronts.LogMel(40, 2)
    front.window.copy_(torch.tensor(hamming()))
    front.mel.copy_(torch.tensor(triangles(40)))
    rng = np.random.default_rng(0)
    frames = np.stack([rng.normal(size=400), 5 * np.sin(2 * np.pi * 1000 * np.arange(400) / 16_000)]) * 2.0**15 * scale
    frames = frames.astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames.astype(np.float64) * hamming(), 512)))
    found = fast.Waves(front).energies(torch.tensor(frames[None]))[0]
    np.testing.assert_allclose(found.log(), np.log(power @ triangles(40).astype(np.float64)), atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_whispers_energies_are_those_of_the_transform(torch, fronts, fast, scale):
    front = fronts.Listener({"bins": 80, "hidden": 4, "width": 4, "longest": 9})
    front.window.copy_(torch.tensor(hann()))
    front.mel.copy_(torch.tensor(slaney_triangles(80)))
    frames = scale * np.random.default_rng(0).normal(size=(2, 400)).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames.astype(np.float64) * hann())))
    found = fast.Tones(front).energies(torch.tensor(frames[None]))[0].detach()
    np.testing.assert_allclose(found.log(), np.log(power @ slaney_triangles(80).astype(np.float64)), atol=1e-4)


def test_the_norm_survives_a_kernel_that_lets_nothing_through(torch, fronts, fast):
    """A low tone ten thousand times louder than what a kernel of ninth differences hears; float32 is off by 2 there."""
    layer = fronts.ConvLayer(1, {"channels": 2, "kernel": 10, "stride": 5}, bias=False, norm="group")
    differences = np.poly1d([1, -1]) ** 9
    with torch.no_grad():
        layer.conv.weight.copy_(torch.tensor(np.stack([differences.coef, np.eye(10)[3]]))[:, None])
    rng = np.random.default_rng(0)
    samples = np.sin(2 * np.pi * 20 * np.arange(4000) / 16_000) + 1e-4 * rng.normal(size=4000)
    x, lengths = torch.tensor(samples)[None, None].float(), torch.tensor([700])
    with torch.no_grad():
        found = fast.Normed(layer)(x, lengths)[..., :700]
        expected = layer.double()(x.double(), lengths)[..., :700]
    np.testing.assert_allclose(found, expected, atol=0.01)
