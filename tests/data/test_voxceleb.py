"""VoxCeleb's folders and its identification split."""

import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from jaxssl.data import corpora

NAMES = ("id10001/video1/00001.wav", "id10001/video2/00001.wav", "id10270/videoA/00001.wav", "id10270/videoA/00002.wav")


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        (tmp_path / "wav" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "wav" / name, np.zeros(1600), 16000)
    return tmp_path


@pytest.mark.parametrize("place", ["", "wav"])
def test_the_speakers_folder_is_the_speaker_wherever_it_lies(root, place):
    found = corpora.read(root / place).utterances
    assert [u.speaker for u in found] == ["id10001", "id10001", "id10270", "id10270"]
    assert len({u.id for u in found}) == 4


def test_the_split_file_says_who_trains(root):
    table = root / "iden_split.txt"
    lines = [f"{part} {name}\n" for part, name in zip((1, 2, 3), NAMES, strict=False)]
    table.write_text("".join([*lines, "1 id19999/elsewhere/00001.wav\n"]))
    parts = [u.split for u in corpora.with_parts(corpora.read(root), table).utterances]
    assert parts == ["train", "valid", "test", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("4 id10001/video1/00001.wav\n", "line 1: '4 id10001"),
        ("1\n", "line 1: '1' is no part"),
        ("1 id10003/video1/00001.wav\n", "0 of its 1 files are in the corpus, whose first is id10001/video1"),
        (None, "not a split of VoxCeleb"),
    ],
)
def test_what_is_no_split_is_refused(root, content, message):
    if content is not None:
        (root / "split.txt").write_text(content)
    with pytest.raises(InputError, match=message):
        corpora.with_parts(corpora.read(root), root / "split.txt")
