"""Streaming from the command line."""

import json
from dataclasses import replace

import pytest

from compress.errors import InputError
from experiments import streaming
from jaxssl.data.logmel import Stats, stats_bytes
from jaxssl.models import checkpoint
from tests.archs import MAMBA, MEL, weights

ARCH = replace(MEL, layers=MEL.layers[:1], head=None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "mel"
    stats = Stats([3.0] * 5, [2.0] * 5)
    checkpoint.save(folder, ARCH, weights(ARCH), extra={"stats.npy": stats_bytes(stats)})
    return folder


def test_the_table_says_how_far_and_how_late(place, tmp_path, capsys):
    config = streaming.Config(str(place), right=2, causal=True, chunk=(100.0,), seconds=0.5, out=tmp_path / "out")
    streaming.run(config)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["lookahead"] | {"seconds": 0} == {"frames": 3, "ms": 55.0, "seconds": 0}
    (row,) = report["points"]
    assert (row["chunk_ms"], row["chunks"], row["lookahead_ms"]) == (100, 5, 55)
    assert row["difference"] < 1e-5
    assert row["late_ms"] == pytest.approx(100 + 55 + row["median_ms"])
    assert row["real_time_factor"] == pytest.approx(row["median_ms"] / 100)
    assert any("attention sees 100 frames before and 2 after" in note for note in report["notes"])
    assert any("positions hear no frame of the future" in note for note in report["notes"])
    assert "look-ahead" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"chunk": (30.0,)}, "--chunk 30: no multiple of a frame of 20 ms; give 40"),
        ({"chunk": (5.0,)}, "--chunk 5: no multiple of a frame of 20 ms; give 20"),
        ({"chunk": ()}, "--chunk: name one or more sizes"),
        ({"left": -1}, "--left -1"),
    ],
)
def test_what_cannot_be_streamed_is_refused(place, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        streaming.run(streaming.Config(str(place), seconds=0.5, out=tmp_path / "out", **words))
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_stream_is_refused_before_any_work(tmp_path):
    checkpoint.save(tmp_path / "mamba", MAMBA, weights(MAMBA))
    with pytest.raises(InputError, match="front: a group norm"):
        streaming.run(streaming.Config(str(tmp_path / "mamba"), chunk=(5.0,), seconds=0.5, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
