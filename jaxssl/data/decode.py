"""Audio files to samples, all of them or none: libsndfile alone would read half a file without a word."""

import re
from pathlib import Path

import numpy as np
import soundfile

from compress.errors import InputError
from jaxssl.storage import fetching

UNKNOWN_LENGTH = 2**63 - 1  # what libsndfile reports for a FLAC stream whose header does not tell
STREAMED_BYTES = 0x7FFFF000  # sizes from here on (SoX, ffmpeg, arecord) stand for "written to a pipe, length unknown"
LAST_PAGE_BYTES = 128 * 1024  # an Ogg page has at most 64 KiB
RATES = 1000, 768_000  # Hz
CHANNELS = 64
LONGEST_S = 14_400
MOST = 500_000_000  # samples of all channels, 2 GB
BLOCK = 1 << 22  # frames; what a header promises is not allocated before it is there
CUT = "copy the file again or leave it out"


def decode(path: Path) -> tuple[np.ndarray, int]:
    """Read all samples of a file, (n, channels) float32, and its sampling rate in Hz.

    Raises:
        InputError: the file is missing, empty, no audio, ends too early or leaves open where it should end.
    """
    with fetching.reading(path) as file:
        return _decoded(file)


def _decoded(path: Path) -> tuple[np.ndarray, int]:
    if not path.is_file():
        raise InputError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty")
    if path.suffix.lower() == ".raw":
        raise InputError(f"{path}: raw samples do not tell their rate and format; convert them to WAV or FLAC")
    try:
        with soundfile.SoundFile(path) as file:
            _check_length(path, file)
            check_size(path, frames=file.frames, rate=file.samplerate, channels=file.channels)
            samples = _samples(path, file)
            _check_end(path, file)
            return samples, file.samplerate
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: not readable as audio ({error.error_string.strip()}); leave it out") from error


def check_size(path: Path, *, frames: int, rate: int, channels: int) -> None:
    """Refuse what a header promises beyond any speech, before memory is taken for it.

    Raises:
        InputError: the rate, the channels or the length is that of no utterance.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise InputError(f"{path}: {rate} samples a second; speech has {RATES[0]} to {RATES[1]}; correct its header")
    if not 1 <= channels <= CHANNELS:
        raise InputError(f"{path}: {channels} channels, more than {CHANNELS}; mix or split the file")
    if not 0 <= frames <= min(LONGEST_S * rate, MOST // channels):
        what = f"{frames} samples of {channels} channel(s) at {rate} Hz, {frames / rate:.0f} s"
        raise InputError(f"{path}: {what}; files have {LONGEST_S} s and {MOST} samples at most; split it")


def _samples(path: Path, file: soundfile.SoundFile) -> np.ndarray:
    promised = file.frames
    try:
        blocks = [file.read(BLOCK, dtype="float32", always_2d=True)]
        while len(blocks[-1]) == BLOCK:
            blocks.append(file.read(BLOCK, dtype="float32", always_2d=True))
    except soundfile.LibsndfileError as error:  # FLAC: decoding stops inside the file
        reason = error.error_string.strip()
        raise InputError(
            f"{path}: truncated or damaged: {file.tell()} of {promised} samples can be read ({reason}); {CUT}"
        ) from error
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    if len(samples) < promised:
        raise InputError(f"{path}: truncated: {len(samples)} of {promised} samples can be read; {CUT}")
    return samples


def _check_length(path: Path, file: soundfile.SoundFile) -> None:
    """Refuse a file that does not tell its length: libsndfile cannot read such FLAC, and stops such MP3 at a guess."""
    if file.frames == UNKNOWN_LENGTH or (file.format == "MP3" and not _mp3_tells_length(path)):
        raise InputError(f"{path}: its header does not tell its length; convert the file to WAV")


def _mp3_tells_length(path: Path) -> bool:
    """Look into the first frame, behind an ID3v2 tag, for the header that encoders put there."""
    with path.open("rb") as file:
        tag = file.read(10)
        if tag[:3] == b"ID3":
            file.seek(10 + sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True)))
        frame = tag + file.read(4096)
    return any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def _check_end(path: Path, file: soundfile.SoundFile) -> None:
    """Refuse a file that ends too early though it decodes: libsndfile clips it and only its log tells."""
    chunk = r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)"  # WAV, AIFF, AU, W64, RF64
    for promised, there in re.findall(chunk, file.extra_info, re.MULTILINE):
        if int(there) < int(promised) < STREAMED_BYTES:
            raise InputError(f"{path}: truncated: {there} of {promised} bytes of sound are there; {CUT}")
    if file.format == "OGG" and not _has_last_page(path):
        raise InputError(f"{path}: truncated: {file.frames} samples can be read, the last Ogg page is not whole; {CUT}")


def _has_last_page(path: Path) -> bool:
    """Tell whether an Ogg file ends with a whole page that carries the end-of-stream flag, 4 (RFC 3533 §6)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LAST_PAGE_BYTES))
        page = b"".join(file.read().rpartition(b"OggS")[1:])
    if len(page) < 27 or not page[5] & 4:
        return False
    segments = page[26]
    return len(page) >= 27 + segments + sum(page[27 : 27 + segments])
