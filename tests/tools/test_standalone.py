"""The PyTorch module that goes with an exported model: any architecture computes what ours does."""

import importlib
import json
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from jaxssl.convert.to_torch import state
from jaxssl.data.logmel import Stats
from jaxssl.inference.encode import encode
from jaxssl.models.arch import (
    AveragePooling,
    ConvolutionModule,
    FeedForward,
    IntegrateAndFire,
    KeyMerging,
    Layer,
    LogMel,
    Macaron,
    Mamba,
    Mamba2,
    NoFeedForward,
    Repeat,
    SummaryMixing,
)
from jaxssl.models.arch_json import to_json
from jaxssl.models.mixers.summaries import FAR
from tests.archs import ARCHS, LIMITED, MEL, SOFTENED, weights

TOLERANCE = 1e-4


def conformer(convolution, macaron):
    return Layer(Mamba(3, state=2, rank=2), NoFeedForward(), macaron=macaron, convolution=convolution)


MIXED = {
    "decay": Layer(SummaryMixing(1, 4, 3, 3, 5, decay=0.8), FeedForward(9)),
    "window": Layer(SummaryMixing(2, 4, 3, 3, 5, window=(2, 1)), FeedForward(9)),
    "so far": Layer(SummaryMixing(1, 4, 3, 3, 5, window=(FAR, 0)), FeedForward(9)),
    "lite": Layer(SummaryMixing(2, 0, 8, 0, 5, mode="lite", norm=True), FeedForward(9)),
    "norms": Layer(SummaryMixing(2, 4, 3, 3, 5, norm=True), NoFeedForward()),
    "no unit": Layer(SummaryMixing(1, 0, 0, 3, 0), FeedForward(9)),
    "no hidden unit": Layer(SummaryMixing(1, 4, 3), FeedForward(9)),
    "no channel": Layer(Mamba(0, state=5, rank=2), FeedForward(9)),
    "halved": Layer(Mamba(7, state=5, rank=2, directions="inner", halved=True), FeedForward(9)),
    "no channel of a Conformer": conformer(ConvolutionModule(0, 3), Macaron(0)),
    "cut channels": conformer(ConvolutionModule(5, 3, normed=8), None),
    "no head": Layer(Mamba2(0, 3, 5), FeedForward(9)),
    "cut heads": Layer(Mamba2(2, 3, 5, groups=2, normed=4), FeedForward(9)),
    "one side of heads": Layer(Mamba2(0, 3, 5, directions="external", back=2), FeedForward(9)),
    "one side": Layer(Mamba(0, state=5, rank=2, directions="external", back=4), FeedForward(9)),
}
KNOWN = {**ARCHS, "softened": SOFTENED, "limited": LIMITED}
KNOWN |= {name: replace(MEL, layers=(layer,), norm_first=layer.conformer) for name, layer in MIXED.items()}
MERGING, FIRING = replace(MEL, upsampling=Repeat()), ARCHS["firing"]
KNOWN |= {
    "merging": replace(MERGING, layers=tuple(replace(each, shortening=KeyMerging(600)) for each in MEL.layers)),
    "merging means": replace(
        MERGING,
        layers=(MEL.layers[0], replace(MEL.layers[1], shortening=KeyMerging(1)), MEL.layers[2]),
        shortening=AveragePooling(2),
        norm_first=True,
    ),
    "firing less": replace(FIRING, shortening=IntegrateAndFire(3, amount=1.4, tail="round")),
    "firing often": replace(FIRING, shortening=IntegrateAndFire(1, threshold=0.3, amount=0.5, most=100)),
    "no room": replace(FIRING, shortening=IntegrateAndFire(3, amount=0.0, most=40)),
    "firing, then merging": replace(FIRING, layers=(MEL.layers[0], replace(MEL.layers[1], shortening=KeyMerging(700)))),
}


@pytest.fixture(scope="module")
def module(torch):
    return importlib.import_module("tools.pytorch.standalone.model")


def exported(torch, module, arch, params, stats):
    model = module.Model(json.loads(json.dumps(to_json(arch))))
    model.load_state_dict({name: torch.tensor(array) for name, array in state(arch, params, stats).items()})
    return model.eval()


@partial(jax.jit, static_argnums=0)
def heard(arch, params, samples, lengths, stats):
    """Run our model by one program for each architecture; with all of an utterance valid it is as without lengths."""
    return encode(arch, params, samples, lengths, stats=stats)


@pytest.mark.parametrize("arch", KNOWN.values(), ids=KNOWN.keys())
@pytest.mark.parametrize("padded", [False, True])
def test_every_layer_is_ours(torch, module, arch, padded):
    params = weights(arch)
    stats = (
        Stats(*np.random.default_rng(0).uniform(1, 2, (2, arch.front.bins))) if isinstance(arch.front, LogMel) else None
    )
    samples = 0.1 * np.random.default_rng(0).standard_normal((2, 2000), np.float32)
    lengths = np.array([2000, 1300]) if padded else None
    ours = heard(arch, params, samples, np.array([2000, 1300 if padded else 2000]), stats)
    with torch.no_grad():
        theirs = exported(torch, module, arch, params, stats)(
            torch.tensor(samples), None if lengths is None else torch.tensor(lengths)
        )
    (end, ends), lengths = ours.end, ours.lengths
    if padded:
        assert theirs["lengths"].tolist() == np.asarray(ends).tolist()
    for one, other, valid in zip(
        (*ours.hidden, end), (*theirs["hidden"], theirs["last"]), (*lengths, ends), strict=True
    ):
        for row, count in enumerate(np.asarray(valid)):
            np.testing.assert_allclose(one[row, :count], other[row, :count], atol=TOLERANCE)


def test_whisper_refuses_what_it_has_no_positions_for(torch, module):
    arch = ARCHS["whisper"]
    model = exported(torch, module, arch, weights(arch), None)
    with torch.no_grad():
        assert model(torch.zeros(1, arch.front.most))["last"].shape[1] == arch.front.longest
        with pytest.raises(ValueError, match="19360 samples are longer than 60 frames"):
            model(torch.zeros(1, arch.front.most + 1))


@pytest.mark.parametrize("frames", [1, 63, 64, 65, 200, 4097])
def test_a_scan_is_the_recurrence_at_any_length(torch, frames):
    scan, draw = importlib.import_module("tools.pytorch.standalone.mixers").scan, np.random.default_rng(frames)
    share, x = draw.uniform(0.5, 1, (2, frames, 3)), draw.normal(size=(2, frames, 3))
    state, wanted = np.zeros((2, 3)), []
    for t in range(frames):
        state = share[:, t] * state + x[:, t]
        wanted.append(state)
    np.testing.assert_allclose(scan(torch.tensor(share), torch.tensor(x)), np.stack(wanted, 1), atol=1e-12)


def test_a_scan_says_what_it_cannot_take(torch):
    scan = importlib.import_module("tools.pytorch.standalone.mixers").scan
    with pytest.raises(ValueError, match="65 frames are more than 64"):
        scan(torch.ones(1, 65, 1), torch.ones(1, 65, 1), 1)
