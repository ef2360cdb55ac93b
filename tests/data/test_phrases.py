"""Sentences of our own: any number, the same for a seed, made of letters that every engine reads."""

import re

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data import phrases
from jaxssl.data.lexicon import words


def test_the_same_seed_says_the_same_and_another_does_not():
    said = [phrases.passage(np.random.default_rng(seed), letters=200) for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]
    assert all(len(each) >= 200 for each in said)


def test_sentences_are_plain_and_hardly_repeat():
    rng = np.random.default_rng(0)
    listed = [phrases.sentence(rng) for _ in range(2000)]
    assert all(re.fullmatch(r"[A-Z][A-Za-z ,'’;:-]*[.?!]", each) for each in listed)
    own = [each for each in listed if each not in phrases.SENTENCES]
    assert len(set(own)) > 0.99 * len(own)
    assert len({word for each in listed for word in words(each)}) > 1000


def test_a_text_is_read_line_by_line(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n  It was late. \n\nNobody came.\n")
    assert phrases.read_texts(path) == ("It was late.", "Nobody came.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "0 lines of text"),
        (b"short\n" + b"long " * 80, "line 2: 399 letters, 300 are the most"),
        (b"\xff\xfe\xfa", "no text"),
    ],
)
def test_what_is_no_text_is_named(content, message, tmp_path):
    (tmp_path / "book.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        phrases.read_texts(tmp_path / "book.txt")
