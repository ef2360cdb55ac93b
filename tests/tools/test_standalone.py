"""The PyTorch module that goes with an exported model: any architecture computes what ours does."""

import importlib
import json
from functools import partial

import jax
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert.to_torch import state
from jaxssl.data.logmel import Stats
from jaxssl.inference.encode import encode
from jaxssl.models.arch import LogMel
from jaxssl.models.arch_json import to_json
from tests.archs import ARCHS, EXPORTED, LIMITED, SOFTENED, SUMMARY, weights

TOLERANCE = 1e-4
KNOWN = {**EXPORTED, "softened": SOFTENED, "limited": LIMITED}


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


def test_a_mixer_that_the_module_has_not_is_refused():
    with pytest.raises(InputError, match="layers/0: the PyTorch module has attention only, and no summary_mixing"):
        state(SUMMARY, weights(SUMMARY), None)
