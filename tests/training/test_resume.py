"""Training states come back as they were; damaged ones are set aside and told."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.models.model import shapes
from jaxssl.training import read_back
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.resume import Checkpoints
from jaxssl.training.sharding import make_mesh
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


@pytest.mark.parametrize("content", ["3", "[]", '{"item_handlers": 3}', '{"init_timestamp_nsecs": "a"}'])
def test_a_list_that_is_none_of_orbaxs_is_one_line(saved, content):
    """Orbax reads it before anything is checked."""
    (saved / "3/_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(InputError, match="_CHECKPOINT_METADATA of a checkpoint there is damaged"):
        Checkpoints(saved)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of TensorStore on damaged arrays
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_checkpoint_is_read_back_before_an_older_one_goes(saved, monkeypatch, damage):
    """What the disk did not take as it was given gets no name, and what was there before stays."""
    whole = read_back.differing

    def damaged(folder, wanted):
        for file in folder.rglob("d/*"):
            content = file.read_bytes()
            middle = len(content) // 2
            changed = bytes([content[middle] ^ 1]) + content[middle + 1 :] if damage == "flip" else b""
            file.write_bytes(content[:middle] + changed)
        return whole(folder, wanted)

    monkeypatch.setattr(read_back, "differing", damaged)
    checkpoints = Checkpoints(saved, keep=1)
    checkpoints.save(4, state(SMALL, 4), {})
    with pytest.raises(OSError, match="read back, it is not what was written"):
        checkpoints.close()
    assert sorted(path.name for path in saved.iterdir()) == ["2", "3"]
    monkeypatch.undo()
    with Checkpoints(saved, keep=1) as again:
        assert again.newest()[0] == 3
        again.save(4, state(SMALL, 4), {})
    assert [path.name for path in saved.iterdir()] == ["4"]


def test_every_array_of_a_state_is_compared():
    """Also those whose bits differ where numbers do not: -0.0 and 0.0, one NaN and another."""
    given = {"a": np.array([0.0, np.nan], np.float32), "b": jax.numpy.arange(6).reshape(2, 3)}
    sums = read_back.sums(given)
    assert sums["a"].fits(given["a"])
    assert sums["b"].fits(np.arange(6, dtype=np.int32).reshape(2, 3))
    assert not sums["a"].fits(np.array([-0.0, np.nan], np.float32))
    assert not sums["a"].fits(given["a"].astype(np.float64))
    assert not sums["b"].fits(np.arange(1, 7, dtype=np.int32).reshape(2, 3))


def test_shards_are_compared_where_they_belong():
    """A process knows its own shards only."""
    mesh = make_mesh(fsdp=4)
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    whole = np.arange(16, dtype=np.float32).reshape(8, 2)
    (sums,) = read_back.sums({"a": jax.device_put(whole, where)}).values()
    assert len(sums.parts) == 4
    assert sums.fits(whole)
    assert not sums.fits(whole[::-1])
    assert replace(sums, parts=sums.parts[:1]).fits(np.concatenate([whole[:2], -whole[2:]]))
