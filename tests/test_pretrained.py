"""The model that comes with the package is whole, small and trained."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl import pretrained
from jaxssl.data.demo import synthesize
from jaxssl.inference.encode import hear
from jaxssl.models.model import shapes
from jaxssl.pretrained import Labeller, Pretrained
from tests.archs import MEL


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes(MEL))
    stats = pretrained.Stats(np.zeros(5, np.float32), np.ones(5, np.float32))
    return Pretrained(MEL, params, stats, Labeller(2, rng.normal(size=(7, 16)).astype(np.float32)))


@pytest.fixture
def packed(model, tmp_path, monkeypatch):
    folder = tmp_path / "small"
    folder.mkdir()
    for name, content in pretrained.files(model).items():
        (folder / name).write_bytes(content)
    monkeypatch.setattr(pretrained, "HERE", tmp_path)
    return folder


def test_packing_rounds_to_half_precision_and_nothing_else(model, packed):
    read = pretrained.read("small")
    assert read.arch == MEL
    assert read.labeller.layer == 2
    np.testing.assert_allclose(read.labeller.centres, model.labeller.centres, rtol=1e-3)
    for path, leaf in flatten(read.params).items():
        np.testing.assert_array_equal(leaf, flatten(model.params)[path].astype(np.float16).astype(np.float32))


def test_damage_and_wrong_names_are_told(packed):
    weights = packed / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"weights\.safetensors: damaged"):
        pretrained.read("small")
    with pytest.raises(InputError, match="no model 'large' comes with this package; there are small"):
        pretrained.read("large")
    shutil.rmtree(packed)
    assert pretrained.names() == []


def test_what_half_precision_cannot_hold_is_refused(model):
    params = jax.tree.map(lambda leaf: leaf, model.params)
    params["norm"]["scale"] = params["norm"]["scale"] + 1e6
    with pytest.raises(InputError, match="norm/scale: beyond float16"):
        pretrained.files(replace(model, params=params))


def test_the_default_is_one_of_the_packages_models():
    assert pretrained.DEFAULT in pretrained.names()


@pytest.mark.parametrize("name", pretrained.names())
def test_the_packages_models_are_small_and_hear(name):
    read = pretrained.read(name)
    size = sum(path.stat().st_size for path in (pretrained.HERE / name).iterdir())
    assert size < 12e6
    assert 4.5e6 < sum(leaf.size for leaf in jax.tree.leaves(read.params)) < 5.5e6
    assert len(read.arch.layers) == 6
    assert read.labeller.centres.shape == (read.arch.head.clusters, read.arch.width)
    states, frames = hear(read.arch, read.params, read.stats, synthesize(1.0, seed=0)[None], np.array([16_000]))
    assert np.isfinite(states[:, :, : frames[0]]).all()
    assert (pretrained.HERE / name / "CARD.md").is_file()
