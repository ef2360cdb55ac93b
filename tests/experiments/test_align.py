"""Real speech gets phone times, and the folder is a corpus; what cannot be aligned is told in a line."""

import json
import sys

import pytest
import soundfile

from compress.errors import InputError
from experiments import align
from jaxssl.data import corpora
from jaxssl.data.demo import synthesize


def test_speech_with_texts(shared, tmp_path, capsys):
    pytest.importorskip("pocketsphinx", reason="needs PocketSphinx (the extra align)")
    speech = shared / "speech/librivox_austen_5"
    align.run(align.Config(audio=(str(speech),), texts="known", out=tmp_path / "phones"))
    given, found = (corpora.read(place).utterances for place in (speech, tmp_path / "phones"))
    assert [u.id for u in found] == [u.id for u in given]
    assert all(u.phones[-1].end == pytest.approx(u.samples / 16000, abs=1e-3) for u in found)
    told = json.loads((tmp_path / "phones/report.json").read_text())
    assert told["aligned"] == 5
    # The times that are there are PocketSphinx's too, without a pause around and 8 ms earlier.
    assert told["agreement"]["boundaries"] > 0.95
    assert "5 of 5 utterances aligned" in capsys.readouterr().out


def test_what_cannot_be_aligned_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no speech: name files"):
        align.run(align.Config(out=tmp_path / "phones"))
    soundfile.write(tmp_path / "a.flac", synthesize(1.0, seed=0), 16000)
    monkeypatch.setattr(align.aligner, "check", lambda: None)
    with pytest.raises(InputError, match="--texts known: none of 1 utterances has a text"):
        align.run(align.Config(audio=(str(tmp_path / "a.flac"),), texts="known", out=tmp_path / "phones"))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(InputError, match=r"pip install '.\[align\]'"):
        align.run(align.Config(audio=(str(tmp_path / "a.flac"),), out=tmp_path / "phones"))
