"""Timing models over the length of speech, from the command line."""

import csv
import json

import pytest

from compress.errors import InputError
from experiments import lengths
from jaxssl.models.cost import parameters
from jaxssl.models.zoo import PRESETS


def test_every_mixer_is_timed_at_every_length(tmp_path):
    config = lengths.Config(arch="melhubert-tiny", seconds=(2.0, 0.5), rounds=2, out=tmp_path / "run")
    lengths.run(config)
    rows = json.loads((config.out / "report.json").read_text())["points"]
    assert [(row["name"], row["seconds"]) for row in rows] == [(name, s) for s in (0.5, 2.0) for name in config.mixers]
    assert [row["frames"] for row in rows] == [24, 6, 24, 24, 99, 24, 99, 99]
    sizes = {row["name"]: row["parameters"] for row in rows}
    assert sizes["attention"] == sizes["pooled"] == parameters(PRESETS["melhubert-tiny"]())
    assert all(abs(size / sizes["attention"] - 1) < 0.02 for size in sizes.values())
    work = {name: [row["gmacs_per_s"] for row in rows if row["name"] == name] for name in config.mixers}
    assert work["attention"][1] > 1.05 * work["attention"][0]  # quadratic
    for name in ("summary_mixing", "mamba"):
        assert work[name][1] == pytest.approx(work[name][0], rel=0.04)  # 24 frames are not half a second's 25
    for row in rows:
        assert 0 < row["quartile_1"] <= row["real_time_factor"] <= row["quartile_3"]
        assert row["memory_mib"] == pytest.approx(row["memory_mib_per_s"] * row["seconds"])
    with (config.out / "lengths.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (config.out / "lengths.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"mixers": ()}, "--mixers and --seconds: name one or more of each"),
        ({"seconds": ()}, "--mixers and --seconds: name one or more of each"),
        ({"arch": "mamba-hubert-base"}, "layer 0 mixes frames by mamba"),
        ({"arch": "nothing"}, "nothing"),
    ],
)
def test_bad_words_leave_no_folder(words, told, tmp_path):
    with pytest.raises(InputError, match=told):
        lengths.run(lengths.Config(out=tmp_path / "run", **words))
    assert not (tmp_path / "run").exists()
