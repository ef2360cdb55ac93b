"""One call carries both benchmarks out, within its time."""

import sys

import pytest

from benchmarks import accelerator, forward, training
from jaxssl.runtime import ranges
from jaxssl.runtime.cli import main


def called(monkeypatch, tmp_path, *words):
    """Return what the two benchmarks are asked for."""
    asked = []
    for benchmark in (forward, training):
        monkeypatch.setattr(benchmark, "run", asked.append)
    monkeypatch.setattr(sys, "argv", ["accelerator", *words, "--out", str(tmp_path / "out")])
    main(accelerator.run, accelerator.Config, "", remember=False)
    return asked


def test_both_benchmarks_share_the_time(tmp_path, monkeypatch):
    passes, *updates = called(monkeypatch, tmp_path)
    for each in (passes, *updates):
        ranges.check(each)
        assert each.out.parent == tmp_path / "out"
    assert passes.minutes + sum(each.minutes for each in updates) <= 8.5
    assert (passes.arch, tuple(each.arch for each in updates)) == (accelerator.Config().arch,) * 2
    assert (passes.batch, {each.batch for each in updates}) == ((1, 16), {16})
    assert (passes.dtype, {each.dtype for each in updates}) == (("bfloat16",), {"bfloat16"})
    assert forward.systems(passes, "bfloat16") == ["ours", "pytorch", "compiled", "transformers"]
    assert len({each.out for each in (passes, *updates)}) == 3


def test_one_utterance_alone_is_timed_once(tmp_path, monkeypatch):
    passes, *_ = called(monkeypatch, tmp_path, "--batch", "1", "--arch", "melhubert-tiny")
    assert passes.batch == (1,)


@pytest.mark.parametrize(
    ("words", "told"), [(("--arch", "no"), "no model"), (("--minutes", "0"), "--minutes 0"), (("--arch",), "--arch")]
)
def test_bad_words_are_refused_before_anything_runs(tmp_path, monkeypatch, capsys, words, told):
    with pytest.raises(SystemExit) as stop:
        called(monkeypatch, tmp_path, *words)
    assert stop.value.code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
