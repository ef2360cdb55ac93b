"""A lexicon reads as LibriSpeech's and as CMUdict, and says what it lacks."""

import pytest

from compress.errors import InputError
from jaxssl.data.lexicon import pronounce, read_lexicon, unknown, words


@pytest.fixture
def lexicon(tmp_path):
    lines = ["HELLO\tHH AH0 L OW1", "", "it's  IH1 T S", "READ R EH1 D", "READ(2)  R IY1 D", ";;; comment", "A  AH0"]
    path = tmp_path / "lexicon.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_words_and_phones(lexicon):
    found = read_lexicon(lexicon)
    assert found == {"HELLO": ("HH", "AH", "L", "OW"), "IT'S": ("IH", "T", "S"), "READ": ("R", "EH", "D"), "A": ("AH",)}
    assert read_lexicon(lexicon, stress=True)["HELLO"] == ("HH", "AH0", "L", "OW1")


def test_the_first_of_several_pronunciations_counts(lexicon):
    lexicon.write_text("READ R EH1 D\nREAD R IY1 D\nREAD(3) X\n")
    assert read_lexicon(lexicon) == {"READ": ("R", "EH", "D")}


def test_a_text_is_said_and_what_is_missing_is_listed_once(lexicon):
    found = read_lexicon(lexicon)
    said = "HH AH L OW IH T S AH R EH D"
    assert pronounce("Hello, it’s a READ!", found) == tuple(said.split())
    assert unknown(["hello you", "a you hat"], found) == ["YOU", "HAT"]
    assert unknown(["hello"], found) == []
    assert words("well-known  word; it's") == ["WELL", "KNOWN", "WORD", "IT'S"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no words in this lexicon"),
        (b";;; only a comment\n", "no words in this lexicon"),
        (b"HELLO HH\nYOU\n", "line 2: 'YOU' has no phones"),
        (b"D\xc9J\xc0 D EY\n", "not a lexicon"),
    ],
)
def test_what_is_no_lexicon_is_refused(lexicon, content, message):
    lexicon.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_lexicon(lexicon)
    with pytest.raises(InputError, match="not a lexicon"):
        read_lexicon(lexicon.parent / "nowhere.txt")
