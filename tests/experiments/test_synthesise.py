"""The command makes a corpus that others read, goes on where it stopped, and says in one line what it cannot use."""

import pytest

from compress.errors import InputError
from experiments import synthesise
from jaxssl.data import corpora, vocoder


def test_a_corpus_from_the_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("espeakng_loader", reason="needs eSpeak NG (the extra espeak)")
    monkeypatch.setattr(vocoder, "change", lambda samples, voice: samples)
    config = synthesise.Config(piper=0.0, flite=0.0, espeak=0.01, speakers=3, out=tmp_path / "speech")
    synthesise.run(config)
    told = capsys.readouterr().out
    assert "hours: espeak 0.01" in told
    made = corpora.read(config.out).utterances
    assert f"{len(made)} utterances" in told
    assert f"phone times of {len(made)}" in told
    times = [u.path.stat().st_mtime_ns for u in made]
    synthesise.run(config)
    assert times == [u.path.stat().st_mtime_ns for u in made]
    with pytest.raises(InputError, match="--speakers 3 is there, this one has 4"):
        synthesise.run(synthesise.Config(piper=0.0, flite=0.0, espeak=0.01, speakers=4, out=config.out))


def test_copies_and_speech_go_together(tmp_path):
    with pytest.raises(InputError, match="--copies 2 of 0 places of speech; give both or neither"):
        synthesise.run(synthesise.Config(copies=2, out=tmp_path / "speech"))
    assert not (tmp_path / "speech").exists()
