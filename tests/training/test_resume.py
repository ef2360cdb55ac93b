"""Training states come back as they were; damaged ones are set aside and told."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.models.model import shapes
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.resume import Checkpoints
from jaxssl.training.step import start
from tests.archs import MEL, UNEVEN

SMALL = replace(MEL, layers=MEL.layers[:1])


def state(arch, seed):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes(arch))
    return start(params, Optimizer().build(), seed=seed)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for number in (1, 2, 3):
            checkpoints.save(number, state(SMALL, number), {"position": {"epoch": 0, "step": number}})
    return folder


@pytest.fixture
def saved(original, tmp_path):
    """A run's checkpoints, for one test to damage."""
    return shutil.copytree(original, tmp_path / "checkpoints")


def equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert jax.tree.structure(one) == jax.tree.structure(two)


def test_the_newest_comes_back_and_old_ones_go(saved):
    with Checkpoints(saved) as checkpoints:
        number, record, notes = checkpoints.newest()
        assert (number, record, notes) == (3, {"position": {"epoch": 0, "step": 3}}, [])
        equal(checkpoints.restore(3, state(SMALL, 9)), state(SMALL, 3))
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]


def test_layers_without_heads_or_units_are_kept(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state(UNEVEN, 1), {})
        checkpoints.close()
    with Checkpoints(tmp_path / "c") as checkpoints:
        equal(checkpoints.restore(1, state(UNEVEN, 2)), state(UNEVEN, 1))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_newest_falls_back(saved, damage):
    file = max((saved / "3").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[:10] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1]))
    with Checkpoints(saved) as checkpoints:
        number, _, notes = checkpoints.newest()
        assert number == 2
        assert len(notes) == 1
        assert file.name in notes[0]
        equal(checkpoints.restore(2, state(SMALL, 9)), state(SMALL, 2))
        checkpoints.save(3, state(SMALL, 4), {"again": True})  # its place is free
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.newest()[:2] == (3, {"again": True})
    assert (saved / "damaged-3").is_dir()


def test_nothing_whole_is_an_error(saved):
    for folder in ("2", "3"):
        (saved / folder / "files.json").unlink()
    with Checkpoints(saved) as checkpoints, pytest.raises(InputError, match="no checkpoint is whole"):
        checkpoints.newest()


def test_an_empty_folder_has_none(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.newest() is None


def test_another_models_state_is_refused(saved):
    arch = replace(MEL, layers=MEL.layers[:2])
    with Checkpoints(saved) as checkpoints, pytest.raises(InputError, match="not a state of this run"):
        checkpoints.restore(3, state(arch, 0))
