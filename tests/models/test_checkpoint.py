"""A saved model comes back as it was; what is not whole is not loaded, and what fails leaves nothing behind."""

import json
import shutil

import jax
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from tests.archs import ARCHS, MEL, weights


@pytest.fixture
def saved(tmp_path, key):
    params = weights(MEL)
    checkpoint.save(tmp_path / "model", MEL, params, provenance={"source": "a test"}, extra={"ctc/s.json": b"[]"})
    return tmp_path / "model", params


@pytest.mark.parametrize("arch", list(ARCHS.values()), ids=list(ARCHS))
def test_any_shape_loads_without_a_flag(arch, tmp_path, key):
    params = weights(arch)
    checkpoint.save(tmp_path / "model", arch, params)
    read_arch, read = checkpoint.load(tmp_path / "model")
    assert read_arch == arch
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(read)[path], leaf)


def test_neighbours_appear_with_the_model(saved):
    folder, _ = saved
    assert json.loads((folder / "provenance.json").read_text()) == {"source": "a test"}
    assert (folder / "ctc/s.json").read_bytes() == b"[]"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert checkpoint.size_on_disk(folder) > 0


def test_a_taken_folder_is_refused_and_kept(saved, key):
    folder, params = saved
    with pytest.raises(InputError, match="already there"):
        checkpoint.save(folder, MEL, params)
    checkpoint.save(folder, MEL, jax.tree.map(lambda x: x + 1, params), overwrite=True)
    np.testing.assert_array_equal(checkpoint.load(folder)[1]["norm"]["scale"], params["norm"]["scale"] + 1)


def test_overwriting_something_else_is_refused(tmp_path, key):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.txt").write_text("words")
    with pytest.raises(InputError, match="not a model"):
        checkpoint.save(tmp_path / "thesis", MEL, weights(MEL), overwrite=True)
    assert (tmp_path / "thesis/chapter1.txt").read_text() == "words"


def test_arch_and_arrays_that_disagree(saved):
    folder, _ = saved
    values = json.loads((folder / "arch.json").read_text())
    values["layers"][1]["ffn"]["size"] = 23
    (folder / "arch.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"layers/1/ffn/fc1/bias.*23.*24"):
        checkpoint.load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "width": 3}'])
def test_a_damaged_arch_is_named(saved, content):
    folder, _ = saved
    (folder / "arch.json").write_text(content)
    with pytest.raises(InputError, match=r"arch\.json"):
        checkpoint.load(folder)


def test_damaged_arrays_are_named_before_orbax_sees_them(saved, tmp_path):
    folder, _ = saved
    file = max((folder / "params").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    file.write_bytes(content[:40])
    with pytest.raises(InputError, match=rf"{file.name}: damaged: 40 bytes, {len(content)} were written"):
        checkpoint.load(folder)
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(InputError, match=rf"{file.name}: damaged: SHA-256"):
        checkpoint.load(folder)


def test_missing_arrays_are_named(saved, tmp_path):
    folder, _ = saved
    (folder / "params/_METADATA").unlink()
    with pytest.raises(InputError, match="_METADATA: missing"):
        checkpoint.load(folder)
    (folder / "params/files.json").write_text("{")
    with pytest.raises(InputError, match=r"files\.json: damaged"):
        checkpoint.load(folder)
    (folder / "params/files.json").unlink()
    with pytest.raises(InputError, match=r"files\.json: missing"):
        checkpoint.load(folder)
    shutil.rmtree(folder / "params")
    with pytest.raises(InputError, match="incomplete"):
        checkpoint.load(folder)
    with pytest.raises(InputError, match="no model here"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_save_leaves_nothing(tmp_path, key, monkeypatch, stop):
    def fail(*_, **__):
        raise stop

    monkeypatch.setattr(checkpoint, "_compare", fail)
    with pytest.raises(stop if isinstance(stop, type) else OSError):
        checkpoint.save(tmp_path / "model", MEL, weights(MEL))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_goes_with_the_next(saved, key):
    folder, params = saved
    for name in (".model.abcd1234", ".model.abcd1234.old", ".model2.abcd1234", ".model.notes"):
        (folder.parent / name).mkdir()
    checkpoint.save(folder, MEL, params, overwrite=True)
    assert sorted(path.name for path in folder.parent.iterdir()) == [".model.notes", ".model2.abcd1234", "model"]


def test_what_does_not_fit_is_not_saved(tmp_path, key):
    with pytest.raises(InputError, match="layers/0/attention/k/bias"):
        checkpoint.save(tmp_path / "model", ARCHS["uneven"], weights(MEL))
    assert list(tmp_path.iterdir()) == []


def test_where_a_model_came_from(tmp_path, key):
    """What pruning writes there leads to the model whose targets it goes on training with."""
    checkpoint.save(tmp_path / "model", MEL, weights(MEL), provenance={"targets": "melhubert-mini"})
    assert checkpoint.provenance(tmp_path / "model") == {"targets": "melhubert-mini"}
    assert load_model(str(tmp_path / "model"), seed=0).targets == "melhubert-mini"
    assert checkpoint.provenance(tmp_path) == {}
    for damage in ("{", "[1]"):
        (tmp_path / "model/provenance.json").write_text(damage)
        with pytest.raises(InputError, match=r"provenance\.json: .*remove it"):
            checkpoint.provenance(tmp_path / "model")
