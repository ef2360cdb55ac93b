"""What a run keeps beside its arrays and reads again: another's, or damaged, it is refused in one line."""

from dataclasses import asdict
from types import SimpleNamespace

import pytest

from compress.errors import InputError
from experiments.curves import retime
from experiments.curves.sweep import Trail
from jaxssl.runtime import files

WHOLE = asdict(Trail(["layers/0/ffn/fc1/kernel"], told={"zeros": 0.5}))


def test_a_trail_comes_back():
    assert asdict(Trail.read(WHOLE)) == WHOLE


@pytest.mark.parametrize(
    "change",
    [
        {"progress": {}, "masked": None},
        {"progress": None},
        {"progress": {"fired": "2"}},
        {"progress": {"smooth": []}},
        {"due": 1},
        {"told": []},
        {"masked": [3]},
        {"more": 1},
    ],
    ids=str,
)
def test_another_trail_is_refused(change):
    with pytest.raises(InputError, match="a checkpoint of another command or version"):
        Trail.read({**WHOLE, **change})


@pytest.mark.parametrize("rows", ["{}", "[3]", '[{"name": "a"}, {}]', '[{"name": 3}]'])
def test_points_without_names_are_refused(tmp_path, rows):
    (tmp_path / "points.json").write_text(rows)
    with pytest.raises(InputError, match=r"points\.json: "):
        files.read_rows(tmp_path / "points.json", "name")


@pytest.mark.parametrize("seed", ['"abc"', "-1", "1.5", "[1]", "4294967296"])
def test_a_seed_that_is_none(tmp_path, seed):
    (tmp_path / "config.json").write_text(f'{{"seed": {seed}}}')
    with pytest.raises(InputError, match=r"config\.json: the seed is .*; give 0 to 4294967295"):
        retime._dense(SimpleNamespace(folder=tmp_path, source="a"))
