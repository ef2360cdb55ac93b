"""A `model.bin` that lies about what it holds is refused in one line, before anything grows."""

import struct

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert import ctranslate2
from jaxssl.convert.conversion import read
from tests.convert.files import ctranslate2_file
from tests.fuzz import of_whisper


@pytest.fixture
def folder(tmp_path):
    of_whisper._ctranslate2(tmp_path)
    return tmp_path


def with_aliases(path, names, of=b"decoder/embeddings/weight"):
    """Write a file with one array of 10,000 numbers, and these names for it, or for another name, beside its own."""
    content = ctranslate2_file({"decoder/embeddings/weight": np.ones((100, 100), np.float32)})
    start = content.index(struct.pack("<H", 26) + b"decoder/projection/weight") - 4
    aliases = [struct.pack("<H", len(each) + 1) + each + b"\0" for each in names]
    origin = struct.pack("<H", len(of) + 1) + of + b"\0"
    path.write_bytes(content[:start] + struct.pack("<I", len(names)) + b"".join(each + origin for each in aliases))
    return path


def test_what_is_whole_is_read(folder):
    found = read(folder)
    assert (found.kind, len(found.arch.layers)) == ("CTranslate2 Whisper", of_whisper.LAYERS)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("encoder/num_heads", np.array([3, 3], np.int16), r"num_heads is int16 of shape \(2,\), not a whole number"),
        ("encoder/num_heads", np.array(np.nan, np.float32), "num_heads is float32"),
        ("encoder/position_encodings/encodings", np.full((30, 24), np.nan, np.float16), "720 of 720 numbers .* NaN"),
        ("encoder/conv1/bias", np.full(24, np.inf, np.float32), "24 of 24 numbers .* NaN or infinite"),
    ],
)
def test_arrays_that_cannot_be(folder, name, array, message):
    path = folder / "model.bin"
    _, there = ctranslate2.load(path)
    arrays = {each: there[each].raw() for each in there if "projection" not in each}
    path.write_bytes(ctranslate2_file(arrays | {name: array}))
    with pytest.raises(InputError, match=message):
        read(folder)


def test_aliases_may_not_multiply_a_file(tmp_path):
    """One array under many names would become as many arrays of a model."""
    few = with_aliases(tmp_path / "few", [b"a%d" % i for i in range(16)])
    assert len(ctranslate2.load(few)[1]) == 17
    many = with_aliases(tmp_path / "many", [b"a%d" % i for i in range(17)])
    with pytest.raises(InputError, match="embeddings/weight has 17 other names, 16 at most may be"):
        ctranslate2.load(many)


def test_an_alias_of_an_alias_is_none(tmp_path):
    """So that circles cannot be."""
    path = with_aliases(tmp_path / "circle", [b"a"], of=b"a")
    with pytest.raises(InputError, match="damaged or cut short"):
        ctranslate2.load(path)
