"""Whole files are read whole; a file cut anywhere, or of unknown length, is refused with one line."""

import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from jaxssl.data.decode import decode

NOISE = (np.random.default_rng(0).normal(size=16000) * 0.1).astype(np.float32)
FORMATS = {
    "wav": {},
    "float.wav": {"subtype": "FLOAT"},
    "adpcm.wav": {"subtype": "MS_ADPCM"},
    "extensible.wav": {"format": "WAVEX"},
    "flac": {},
    "ogg": {},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {},
    "aiff": {},
    "au": {},
    "w64": {},
    "rf64": {},
}


@pytest.fixture(params=FORMATS)
def whole(request, tmp_path):
    path = tmp_path / f"a.{request.param}"
    soundfile.write(path, NOISE, 16000, **FORMATS[request.param])
    return path


def refusal(path):
    with pytest.raises(InputError) as caught:
        decode(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_whole_files_are_read_whole(whole):
    samples, rate = decode(whole)
    assert (samples.dtype, samples.shape[1], rate) == (np.float32, 1, 16000)
    block = 1012 if "adpcm" in whole.name else 1  # ADPCM fills its last block
    assert len(samples) == -(-len(NOISE) // block) * block


@pytest.mark.parametrize("part", [0.05, 0.5, 0.9, 0.999])
def test_a_cut_anywhere_is_told(whole, part):
    content = whole.read_bytes()
    whole.write_bytes(content[: int(len(content) * part)])
    assert any(word in refusal(whole) for word in ("truncated", "not readable"))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("a.wav", "15978 of 32000 bytes"), ("a.flac", "of 16000 samples"), ("a.aiff", "of 32008 bytes")],
)
def test_a_cut_is_told_with_both_numbers(tmp_path, name, numbers):
    path = tmp_path / name
    soundfile.write(path, NOISE, 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert numbers in refusal(path)


def test_damage_inside_flac_is_told(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, NOISE, 16000)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_piped_wav_has_no_size_to_hold_it_to(tmp_path, size):
    path = tmp_path / "a.wav"
    soundfile.write(path, NOISE, 16000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert len(decode(path)[0]) == len(NOISE)


def test_what_follows_the_sound_does_not_matter(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, NOISE, 16000)
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert len(decode(path)[0]) == len(NOISE)


def test_unknown_length_is_refused(tmp_path):
    """FLAC from a pipe, and MP3 without its first frame, which libsndfile would read up to a guess."""
    flac, mp3 = tmp_path / "a.flac", tmp_path / "a.mp3"
    soundfile.write(flac, NOISE, 16000)
    soundfile.write(mp3, NOISE, 16000)
    streamed = bytearray(flac.read_bytes())
    streamed[21] &= 0xF0
    streamed[22:26] = bytes(4)
    flac.write_bytes(streamed)
    mp3.write_bytes(mp3.read_bytes().replace(b"Xing", bytes(4)).replace(b"Info", bytes(4)))
    assert "does not tell its length" in refusal(flac)
    assert "does not tell its length" in refusal(mp3)


def test_mp3_behind_a_tag(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, NOISE, 16000)
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 100, 0]) + bytes(100 * 128)
    path.write_bytes(tag + path.read_bytes())
    assert len(decode(path)[0]) == len(NOISE)


def test_no_audio_at_all(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("these are words, not samples" * 10)
    (tmp_path / "samples.raw").write_bytes(bytes(1000))
    assert "the file is empty" in refusal(tmp_path / "empty.wav")
    assert "not readable as audio" in refusal(tmp_path / "text.wav")
    assert "raw samples" in refusal(tmp_path / "samples.raw")
    assert "no such file" in refusal(tmp_path / "gone.wav")
    assert "a folder" in refusal(tmp_path)
