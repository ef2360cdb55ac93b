"""How far models are from one, in one pass over the speech."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.lowrank import Heard, decompose_maps, dense_kernel, factorise_maps
from jaxssl.analysis import calibration
from jaxssl.analysis.calibration import distance, distances, moments, moments_to_decompose
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


def test_a_front_end_that_models_share_hears_once(models, speech, monkeypatch):
    """One that is changed, or only copied, hears for itself; the distances are the same."""
    dense, (one, two) = models
    own = {**two[1], "front": jax.tree.map(jnp.array, two[1]["front"])}
    heard = []
    front = calibration.hear_front
    monkeypatch.setattr(calibration, "hear_front", lambda *of, **more: heard.append(of) or front(*of, **more))
    shared = distances(dense, [one, two], speech)
    assert len(heard) == len(speech)
    assert distances(dense, [one, (two[0], own)], speech) == shared
    assert len(heard) == 3 * len(speech)


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


@pytest.mark.parametrize("thin", [False, True])
def test_wide_maps_are_heard_by_what_they_make_of_it(models, speech, thin):
    """The outputs' moment is Wᵀ C W of the inputs' C, factorised or not; other maps are heard by their inputs."""
    arch, params = models[1][1] if thin else models[0]
    maps = [matrix for matrix in matrices(arch) if matrix.path.startswith("layers/")]
    whole, found = moments(arch, params, speech), moments_to_decompose(arch, params, speech, maps)
    assert set(found) == {matrix.path for matrix in maps}
    wide = [matrix for matrix in maps if isinstance(found[matrix.path], Heard)]
    assert [matrix.path for matrix in wide] == ["layers/0/ffn/fc2"]
    for matrix in maps:
        moment, heard = whole[matrix.path], found[matrix.path]
        if isinstance(heard, Heard):
            kernel = dense_kernel(params, matrix)
            np.testing.assert_allclose(heard.outputs, kernel.T @ moment @ kernel, rtol=1e-4, atol=1e-7)
            np.testing.assert_allclose(heard.power, np.trace(moment) / matrix.fan_in, rtol=1e-5)
        else:
            np.testing.assert_allclose(heard, moment, rtol=1e-5, atol=1e-7)
