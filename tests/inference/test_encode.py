"""Utterances of any length give what each gives alone, in their own order, by a few programs."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.logmel import Stats
from jaxssl.inference import encode as encode_module
from jaxssl.inference.encode import encode, encode_all, front_inputs, hear, hear_behind, hear_front, pieces, timing
from jaxssl.models.arch import LogMel
from tests.archs import ARCHS, weights

LENGTHS = (2400, 400, 1234, 2400, 1235, 400, 2400)  # each other one is a program to run alone


def speech(lengths=LENGTHS):
    rng = np.random.default_rng(0)
    return [rng.normal(size=n).astype(np.float32) for n in lengths]


MEL_STATS = Stats(np.full(5, 3.0, np.float32), np.full(5, 2.0, np.float32))


@cache
def alone(name):
    """What each utterance gives by itself, unpadded; one program a length serves all batches."""
    arch, stats = ARCHS[name], MEL_STATS if name == "mel" else None
    run = jax.jit(lambda params, samples: encode(arch, params, samples, stats=stats).last[0])
    return [np.asarray(run(weights(arch), samples[None])) for samples in speech()]


@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("name", ["base", "large", "mel"])
def test_each_gives_what_it_gives_alone(name, batch):
    arch, stats = ARCHS[name], MEL_STATS if name == "mel" else None
    found = dict(encode_all(arch, weights(arch), speech(), stats=stats, batch=batch, programs=2))
    assert sorted(found) == list(range(len(LENGTHS)))
    for i, wanted in enumerate(alone(name)):
        np.testing.assert_allclose(found[i], wanted, atol=5e-5)


@pytest.mark.parametrize("name", ["base", "mel", "firing", "whisper"])
def test_front_end_and_rest_are_the_whole(name):
    arch, stats = ARCHS[name], MEL_STATS if name == "mel" else None
    samples, lengths = jnp.asarray(np.stack(speech([arch.front.samples[1] * 9] * 2))), jnp.array([2000, 1500])
    whole, frames = hear(arch, weights(arch), stats, samples, lengths)
    front = hear_front(arch, weights(arch), stats, samples, lengths)
    rest, same = hear_behind(arch, weights(arch), front)
    np.testing.assert_array_equal(frames, same)
    for row, count in enumerate(frames):
        np.testing.assert_allclose(rest[:, row, :count], whole[:, row, :count], atol=1e-5)


@pytest.mark.parametrize(("programs", "waste", "most"), [(1, 0.0, 1), (3, 0.0, 3), (8, 0.9, 1)])
def test_few_programs(monkeypatch, programs, waste, most):
    shapes = set()

    def told(arch, params, stats, inputs, lengths, **words):
        shapes.add(inputs.shape)
        return np.zeros((len(inputs), 1, arch.width)), np.ones(len(inputs), int)

    monkeypatch.setattr(encode_module, "hear", told)
    arch, waves = ARCHS["mel"], speech((*LENGTHS, 800, 2000, 1999))
    assert len(list(encode_all(arch, weights(arch), waves, batch=2, programs=programs, waste=waste))) == len(waves)
    assert 1 <= len(shapes) <= most
    assert max(shapes) == (2, 2400)


def test_nothing_gives_nothing(key):
    assert list(encode_all(ARCHS["mel"], weights(ARCHS["mel"]), [])) == []


def test_in_bfloat16(key):
    arch = ARCHS["base"]
    found = dict(encode_all(arch, weights(arch), speech((900, 2400)), dtype=jnp.bfloat16, programs=1))
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


def test_layers_features_and_pieces(key):
    """A layer is one of all; features give what their waveform gives; pieces are what each gives alone, joined."""
    arch = ARCHS["mel"]
    params, stats = weights(arch), Stats(np.full(5, 3.0, np.float32), np.full(5, 2.0, np.float32))
    waves, one = speech((4000, 2500)), {"prepare": False, "programs": 1}
    every = dict(encode_all(arch, params, waves, stats=stats, layers="all", **one))
    first = dict(encode_all(arch, params, waves, stats=stats, layers=1, **one))
    assert [len(each) for each in every.values()] == [len(arch.layers) + 1] * 2
    np.testing.assert_allclose(first[1], every[1][1], atol=5e-5)

    see = jax.jit(lambda samples: front_inputs(arch, samples, None, stats)[0])
    features = [np.asarray(see(x[None])[0]) for x in waves]
    by_features = dict(encode_all(arch, params, features, layers=1, **one))
    for i in range(2):
        np.testing.assert_allclose(by_features[i], first[i], atol=5e-5)

    cut = dict(encode_all(arch, params, waves, stats=stats, layers=1, longest=0.15, **one))
    assert [len(cut[i]) for i in range(2)] == [len(first[i]) for i in range(2)]
    how = timing(arch, features=False)
    parts = [part for part, _ in pieces(waves[0], how, longest=0.15, frames=arch.frames(len(waves[0])))]
    assert len(parts) > 1
    alone = [hear(arch, params, stats, x[None], np.array([len(x)], np.int32), layers=1)[0][0] for x in parts]
    np.testing.assert_allclose(cut[0], np.concatenate(alone), atol=5e-5)


@pytest.mark.parametrize("name", sorted(ARCHS))
def test_hop_and_field_count_the_frames(name):
    """As many frames as see no padding, of waveform models; of log-Mel models the last one may be padded."""
    arch = ARCHS[name]
    how = timing(arch, features=False)
    lengths = np.arange(how.field, how.field + 3 * how.hop)
    found, expected = (lengths - how.field) // how.hop + 1, arch.frames(lengths)
    if isinstance(arch.front, LogMel):
        assert ((found == expected) | (found == expected - 1)).all()
    else:
        assert (found == expected).all()
