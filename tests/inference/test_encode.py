"""Utterances of any length give what each gives alone, in their own order, by a few programs."""

import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.logmel import Stats
from jaxssl.inference import encode as encode_module
from jaxssl.inference.encode import encode, encode_all
from jaxssl.models.model import init
from tests.archs import ARCHS

LENGTHS = (4000, 400, 1234, 4000, 2500, 2499, 800, 3999, 1235)


def speech(lengths=LENGTHS):
    rng = np.random.default_rng(0)
    return [rng.normal(size=n).astype(np.float32) for n in lengths]


@pytest.mark.parametrize("batch", [None, 2, 4])
@pytest.mark.parametrize("name", ["base", "large", "mel"])
def test_each_gives_what_it_gives_alone(key, name, batch):
    arch = ARCHS[name]
    params = init(arch, key)
    stats = Stats(np.full(5, 3.0, np.float32), np.full(5, 2.0, np.float32)) if name == "mel" else None
    found = dict(encode_all(arch, params, speech(), stats=stats, batch=batch, programs=3))
    assert sorted(found) == list(range(len(LENGTHS)))
    for i, samples in enumerate(speech()):
        wanted = encode(arch, params, jnp.asarray(samples[None]), stats=stats).last[0]
        np.testing.assert_allclose(found[i], wanted, atol=5e-5)


@pytest.mark.parametrize(("programs", "waste", "most"), [(1, 0.0, 1), (3, 0.0, 3), (8, 0.9, 1)])
def test_few_programs(key, monkeypatch, programs, waste, most):
    shapes, run = set(), encode_module.hear

    def told(*args, **words):
        shapes.add(args[3].shape)
        return run(*args, **words)

    monkeypatch.setattr(encode_module, "hear", told)
    arch = ARCHS["mel"]
    list(encode_all(arch, init(arch, key), speech(), batch=2, programs=programs, waste=waste))
    assert 1 <= len(shapes) <= most
    assert max(shapes) == (2, 4000)


def test_nothing_gives_nothing(key):
    assert list(encode_all(ARCHS["mel"], init(ARCHS["mel"], key), [])) == []


def test_in_bfloat16(key):
    arch = ARCHS["base"]
    found = dict(encode_all(arch, init(arch, key), speech((900, 4000)), dtype=jnp.bfloat16))
    assert all(np.isfinite(each.astype(np.float32)).all() for each in found.values())
    assert found[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (np.zeros(399), r"utterance 1: \(399,\), not a waveform of 400 samples"),
        (np.zeros((1, 4000)), r"utterance 1: \(1, 4000\), not a waveform"),
        (np.array([np.nan, np.inf, *[0.0] * 500]), "utterance 1: 2 of 502 samples are NaN or infinite"),
    ],
)
def test_what_is_no_speech_is_named_before_anything_runs(key, samples, told):
    with pytest.raises(InputError, match=told):
        encode_all(ARCHS["mel"], {}, [np.zeros(500), samples])


def test_an_impossible_batch():
    with pytest.raises(InputError, match="batch 0: run 1 utterance or more"):
        encode_all(ARCHS["mel"], {}, [], batch=0)
