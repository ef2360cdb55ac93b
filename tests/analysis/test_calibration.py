"""How far models are from one, in one pass over the speech."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.lowrank import decompose_maps, factorise_maps
from jaxssl.analysis.calibration import distance, distances, moments
from jaxssl.inference.prepack import prepared
from jaxssl.models.describe import describe
from jaxssl.models.sites import matrices
from tests.archs import BASE, forward, noise, weights


@pytest.fixture(scope="module")
def models():
    """A model, and two of it that are thinner."""
    arch = replace(BASE, layers=BASE.layers[:1], head=None)
    params = weights(arch)
    maps = [matrix for matrix in matrices(arch) if matrix.max_rank > 4]
    thin = [factorise_maps(params, decompose_maps(params, maps), rank) for rank in (1, 2)]
    return (arch, params), [(describe(arch, each), each) for each in thin]


@pytest.fixture(scope="module")
def speech():
    waves = noise(BASE, jax.random.key(1), batch=4)
    return [(waves[:2], jnp.array([1220, 800])), (waves[2:], jnp.array([900, 500]))]


def test_a_model_is_no_distance_from_itself(models, speech):
    (itself,) = distances(models[0], [models[0]], speech)
    assert set(itself.relative) == {0.0}
    np.testing.assert_allclose(itself.cosine, 1, atol=1e-6)


def test_together_is_as_each_alone(models, speech):
    dense, thin = models
    assert distances(dense, thin, speech) == [distance(dense, each, speech) for each in thin]
    assert distances(dense, [], speech) == []


def test_distances_are_those_of_the_plain_models(models, speech):
    """Prepared models round otherwise."""
    dense, thin = models
    found = distances(dense, thin, speech)
    for each, far in zip(thin, found, strict=True):
        lost = power = 0.0
        for waves, lengths in speech:
            one, two = (forward(*model, waves, lengths) for model in (dense, each))
            for row, frames in enumerate(np.asarray(one.last_lengths)):
                a, b = (np.asarray(out.last[row, :frames], np.float64) for out in (one, two))
                lost, power = lost + np.square(a - b).sum(), power + np.square(a).sum()
        np.testing.assert_allclose(far.relative[-1], np.sqrt(lost / power), rtol=1e-4)


def test_moments_of_some_maps_are_those_of_all(models, speech):
    (arch, params), _ = models
    found = moments(arch, params, speech, maps={"layers/0/ffn/fc2", "layers/0/ffn/fc1"})
    assert set(found) == {"layers/0/ffn/fc1", "layers/0/ffn/fc2"}
    whole = moments(arch, params, speech)
    assert all(np.allclose(found[path], whole[path], rtol=1e-5, atol=1e-7) for path in found)


def test_moments_are_those_of_the_plain_model(models, speech):
    (arch, params), _ = models
    for path, moment in moments(*prepared(arch, params), speech).items():
        np.testing.assert_allclose(moment, moments(arch, params, speech)[path], rtol=1e-6)
        assert np.linalg.eigvalsh(moment.astype(np.float64))[0] > -1e-5 * np.trace(moment)
