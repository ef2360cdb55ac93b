"""Phones are found where they are said, unknown words too; what does not fit is left out, not guessed."""

import itertools
import sys

import numpy as np
import pytest

from compress.errors import InputError
from experiments.probes.agreement import agreement
from jaxssl.data import corpora
from jaxssl.data.aligner import open_aligner, pronounced
from jaxssl.data.audio import read
from jaxssl.data.manifest import Segment


def phones(*ends, names="SIL AA B"):
    starts = (0.0, *ends[:-1])
    return tuple(Segment(*row) for row in zip(starts, ends, names.split(), strict=True))


def test_agreement_counts_frames_and_boundaries():
    one = phones(0.1, 0.2, 0.3)
    assert agreement([]) is None
    same = agreement([(one, one)])
    assert (same.frames, same.speech, same.boundaries) == (1, 1, 1)
    late = agreement([(one, phones(0.1, 0.25, 0.3))])
    assert late.frames == pytest.approx(25 / 30)
    assert late.speech == pytest.approx(15 / 20)
    assert late.boundaries == 0.5
    stressed = tuple(Segment(p.start, p.end, p.label.replace("AA", "AA1")) for p in one)
    assert agreement([(stressed, one)]).frames == 1


def test_espeak_pronounces_what_the_dictionary_lacks():
    pytest.importorskip("espeakng_loader", reason="needs eSpeak NG (the extra espeak)")
    assert pronounced([]) == {}
    found = pronounced(["FISH", "25"])
    assert found["FISH"] == ("F", "IH", "SH")
    assert found["25"][:2] == ("T", "W")


def test_speech_is_aligned_with_its_text(shared):
    pytest.importorskip("pocketsphinx", reason="needs PocketSphinx (the extra align)")
    utterance = next(u for u in corpora.read(shared / "speech/librivox_austen_5").utterances if u.samples < 60_000)
    samples = read(utterance.path).samples
    align, strange = open_aligner([utterance.text])
    found = align(samples, utterance.text)
    assert strange == []
    assert found[0].start == 0
    assert found[-1].end == pytest.approx(len(samples) / 16000, abs=1e-4)
    assert all(one.end == other.start for one, other in itertools.pairwise(found))
    assert agreement([(utterance.phones, found)]).speech > 0.8
    assert align(np.zeros(8000, np.float32), "nothing of all this was ever said " * 20) == ()


def test_without_the_package_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(InputError, match=r"pip install '.\[align\]'"):
        open_aligner(["word"])
