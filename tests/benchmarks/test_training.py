"""The benchmark of training updates: turns, peaks, ratios, on a tiny model in processes of their own."""

import json
import mmap
import sys

import pytest

from benchmarks import training, updates
from jaxssl.inference.latency import Load
from jaxssl.models.zoo import PRESETS
from jaxssl.runtime.cli import main
from tests.archs import MEL

WORDS = ["--arch", "small", "--seconds", "0.5", "--batch", "2", "--system", "scan", "--rounds", "2"]


def test_ratios_are_of_turns_and_memory_of_peaks():
    told = {
        "pytorch": [{"seconds": 4.0, "bytes": 8 << 30}, {"seconds": 6.0, "bytes": 6 << 30}],
        "scan": [{"seconds": 2.0, "bytes": 1 << 30}, {"seconds": 2.0, "bytes": 2 << 30}],
    }
    row = training._row("scan", told, Load(1.0), ideal=1.0)
    assert (row["seconds_median"], row["ratio"], row["memory"], row["gib"], row["mfu"]) == (2.0, 2.5, 0.25, 2.0, 0.5)


def test_without_pytorch_there_are_times_but_no_ratios():
    row = training._row("scan", {"scan": [{"seconds": 2.0, "bytes": 1 << 30}]}, Load(1.0), ideal=1.0)
    assert (row["seconds_median"], row["mfu"], row["ratio"], row["memory"]) == (2.0, 0.5, None, None)


def test_the_peak_is_of_what_comes_after():
    if not sys.platform.startswith("linux"):
        pytest.skip("others tell the peak since the process began")
    peak = updates.resident()
    before = peak()
    with mmap.mmap(-1, 200 << 20) as held:  # from the system itself: an allocator may have as much at hand
        for page in range(0, len(held), mmap.PAGESIZE):
            held[page] = 1
        assert peak() - before > 150 << 20


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(PRESETS, "small", lambda: MEL)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.mark.slow
def test_the_command_end_to_end(torch, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training", *WORDS, "--out", str(tmp_path / "out")])
    main(training.run, training.Config, "", remember=False)
    told = json.loads((tmp_path / "out/training.json").read_text())
    assert [row["system"] for row in told["rows"]] == ["pytorch", "scan"]
    assert all(len(row["seconds"]) == 2 and row["gib"] > 0.1 for row in told["rows"])
    assert told["rows"][0]["ratio"] == told["rows"][0]["memory"] == 1
    assert told["peak"] == max(told["about"]["peaks"]["float32"].values())
    assert told["notes"] == []


@pytest.mark.parametrize(("words", "told"), [(("--rounds", "0"), "--rounds 0"), (("--arch", "no"), "no model")])
def test_bad_words_are_refused_in_one_line(tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.setattr(sys, "argv", ["training", *WORDS, *words, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main(training.run, training.Config, "", remember=False)
    assert stop.value.code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
