"""A saved model comes back as it was; what is not whole is not loaded, and what fails leaves nothing behind."""

import hashlib
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from jaxssl.runtime import seal
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


def test_a_large_model_has_a_file_for_each_array_and_loads_as_any(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGE", 0)
    params = weights(MEL)
    checkpoint.save(tmp_path / "model", MEL, params)
    assert not list((tmp_path / "model/params").rglob("ocdbt*"))
    found = flatten(checkpoint.load(tmp_path / "model")[1])
    assert all(np.array_equal(found[path], leaf) for path, leaf in flatten(params).items())
    file = max((tmp_path / "model/params").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{file.name}: damaged: \d+ bytes"):
        checkpoint.load(tmp_path / "model")


def test_lists_of_earlier_versions_are_of_sha256(saved):
    folder, _ = saved
    path = folder / "params/files.json"
    listed = {
        name: {"bytes": entry["bytes"], "sha256": hashlib.sha256((folder / "params" / name).read_bytes()).hexdigest()}
        for name, entry in json.loads(path.read_text()).items()
    }
    path.write_text(json.dumps(listed))
    checkpoint.load(folder)
    next(iter(listed.values()))["sha256"] = "0" * 64
    path.write_text(json.dumps(listed))
    with pytest.raises(InputError, match="damaged: sha256"):
        checkpoint.load(folder)


def test_neighbours_appear_with_the_model(saved):
    folder, _ = saved
    assert json.loads((folder / "provenance.json").read_text()) == {"source": "a test"}
    assert (folder / "ctc/s.json").read_bytes() == b"[]"
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert checkpoint.size_on_disk(folder) > 0


def test_sparse_and_rounded_weights_are_compressed_and_dense_ones_are_not(tmp_path):
    wide = replace(MEL, width=64, layers=MEL.layers[:1], head=None)
    dense = weights(wide)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(dense))
    forms = {
        "dense": dense,
        "sparse": jax.tree.map(lambda leaf: np.where(leaf > 0.1, leaf, np.float32(0)), dense),
        "rounded": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), dense),
    }
    sizes = {}
    for name, params in forms.items():
        checkpoint.save(tmp_path / name, wide, params)
        found = flatten(checkpoint.load(tmp_path / name)[1])
        assert all(np.array_equal(found[path], leaf) for path, leaf in flatten(params).items())
        files = (tmp_path / name / "params/ocdbt.process_0/d").iterdir()
        sizes[name] = sum(file.stat().st_size for file in files) / total
    assert sizes["dense"] > 1 > 0.6 > sizes["sparse"]
    assert sizes["rounded"] < 0.5


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


def changed(value, path, new):
    """A JSON value with another at a path."""
    name, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[name] = changed(value[name], rest, new) if rest else new
    return copy


NUMBERS = ["abc", None, float("nan"), float("inf"), -1, 0.5, True, [], 10**18]
LIES = [
    *((("layers", 0, "mixer", "heads"), lie) for lie in (0, *NUMBERS)),
    *((("layers", 0, "ffn", "size"), lie) for lie in (0, *NUMBERS)),
    *((("head", "clusters"), lie) for lie in (0, *NUMBERS)),
    *((("width",), lie) for lie in (0, *NUMBERS)),
    *((("time_reduction",), lie) for lie in (0, *NUMBERS)),
    *((("position", "groups"), lie) for lie in (0, *NUMBERS)),
    *((("position", "kernel"), lie) for lie in (0, *NUMBERS)),
    *((("front", "bins"), lie) for lie in (0, *NUMBERS)),
    *((("dropout", "layer"), lie) for lie in ("abc", float("nan"), float("inf"), -1, 5)),
    (("norm_first",), "abc"),
    (("layers",), ["x"]),
    (("layers",), []),
    (("layers",), None),
    (("front",), {"kind": "waveform", "convs": []}),
    (("front",), {"kind": "waveform", "convs": [{"channels": 10, "kernel": 3, "stride": 0}]}),
    (("front",), {"kind": "waveform", "convs": [{"channels": 8, "kernel": 3, "stride": 1}] * 10_000}),
    (("position",), {"kind": "convolution_stack", "depth": 10**9, "kernel": 3, "groups": 2}),
    (("head",), {"kind": "cosine", "size": 4, "codewords": []}),
    (("head",), {"kind": "cosine", "size": 4, "codewords": [3], "temperature": float("nan")}),
]


@pytest.fixture(scope="module")
def lied_to(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lies") / "model"
    checkpoint.save(folder, MEL, weights(MEL))
    return folder, json.loads((folder / "arch.json").read_text())


@pytest.mark.parametrize(("path", "lie"), LIES)
def test_an_arch_that_is_not_that_of_the_arrays_is_refused(lied_to, path, lie):
    """Whatever it claims, in one line, before anything of that size is made."""
    folder, values = lied_to
    (folder / "arch.json").write_text(json.dumps(changed(values, path, lie)))
    with pytest.raises(InputError) as caught:
        checkpoint.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 2, 4, 300, 10_000])
def test_layers_that_have_no_arrays_are_refused(lied_to, count):
    folder, values = lied_to
    text = json.dumps({**values, "layers": "here"})
    layers = ",".join([json.dumps(values["layers"][0])] * count)
    (folder / "arch.json").write_text(text.replace('"here"', f"[{layers}]"))
    with pytest.raises(InputError, match=r"layers, the parameters have 3|bytes, more than"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "text", ["[" * 3000 + "]" * 3000, '{"format": ' + "9" * 5000 + "}", '{"a":' * 3000, "1e400", "NaN"]
)
def test_json_that_no_one_writes_is_refused(lied_to, text):
    folder, _ = lied_to
    (folder / "arch.json").write_text(text)
    (folder / "provenance.json").write_text(text)
    with pytest.raises(InputError, match=r"arch\.json"):
        checkpoint.load(folder)
    with pytest.raises(InputError, match=r"provenance\.json"):
        checkpoint.provenance(folder)
    (folder / "provenance.json").unlink()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, number):
    params = weights(MEL)
    params["layers"]["1"]["ffn"]["fc1"]["kernel"][3, 4] = number
    with pytest.raises(InputError, match="layers/1/ffn/fc1/kernel: 1 of 384 weights are NaN or infinite"):
        checkpoint.save(tmp_path / "model", MEL, params)
    assert list(tmp_path.iterdir()) == []


def test_a_list_that_leaves_files_out_is_damaged(saved):
    folder, _ = saved
    place = folder / "params/files.json"
    listed = json.loads(place.read_text())
    for fewer in ({}, {name: listed[name] for name in list(listed)[1:]}):
        place.write_text(json.dumps(fewer))
        with pytest.raises(InputError, match=r"files\.json.*damaged"):
            checkpoint.load(folder)
    place.write_text(json.dumps(listed))
    (folder / "params/.DS_Store").touch()  # of a file manager
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
    with pytest.raises(InputError, match=rf"{file.name}: damaged: blake3"):
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


@pytest.mark.parametrize("kind", ["None", "Dict", "str", "scalar", "nothing that is known"])
def test_arrays_that_their_list_calls_something_else_are_refused(saved, kind):
    folder, _ = saved
    path = folder / "params/_METADATA"
    said = json.loads(path.read_text())
    next(iter(said["tree_metadata"].values()))["value_metadata"]["value_type"] = kind
    path.write_text(json.dumps(said))
    seal.seal(folder / "params")
    with pytest.raises(InputError, match="params: these arrays cannot be read|disagree"):
        checkpoint.load(folder)
