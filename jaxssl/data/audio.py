"""Speech from files: any format and rate in, mono float32 at 16 kHz out, and nothing doubtful let through."""

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import numpy as np

from compress.errors import InputError
from jaxssl.data.decode import decode
from jaxssl.storage import places

SAMPLE_RATE = 16_000
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au"})
LOUDEST = 2.0**31  # of files whose full scale is that of integers; energies of more leave float32
SHORTEST = 400  # samples: one 25 ms frame


@dataclass(frozen=True)
class Speech:
    """One utterance.

    Attributes:
        path: the file.
        samples: (n,) float32, mono at 16 kHz, full scale is ±1.
        rate: sampling rate of the file, in Hz, before resampling.
    """

    path: Path
    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / SAMPLE_RATE


def read(path: str | Path) -> Speech:
    """Read a file, mix its channels to mono and resample it to 16 kHz.

    Raises:
        InputError: the file is missing, empty, truncated, no audio, shorter than 25 ms or longer than
            hours, holds NaN or what is no sample; it is named.
    """
    path = Path(path)
    samples, rate = decode(path)
    if bad := int(np.count_nonzero(~np.isfinite(samples))):
        raise InputError(f"{path}: {bad} of {samples.size} samples are NaN or infinite; repair or leave out the file")
    if (loudest := float(np.abs(samples).max(initial=0))) > LOUDEST:
        raise InputError(f"{path}: a sample is {loudest:.3g}, full scale is 1; scale the file down")
    mono = samples.mean(1, dtype=np.float32)
    if rate != SAMPLE_RATE:
        mono = _resample(mono, rate)
    if len(mono) < SHORTEST:
        raise InputError(f"{path}: {len(mono)} samples at 16 kHz, one frame needs {SHORTEST} (25 ms); leave it out")
    return Speech(path, np.ascontiguousarray(mono, np.float32), rate)


def find(places: Iterable[str | Path]) -> tuple[Path, ...]:
    """List audio files: those named, those in folders (and below them), those in `.tsv` manifests.

    A manifest's first line names its columns, one of them `path`, relative to the manifest. Order: as given, sorted
    inside a folder; a file reached twice, by whatever way of writing its path, is listed once.

    Raises:
        InputError: a place does not exist or has no audio, or no place was given.
    """
    unique: dict[Path, Path] = {}
    for place in places:
        for file in _expand(Path(place)):
            unique.setdefault(file.resolve(), file)
    if not unique:
        raise InputError("no audio: name files, folders or a manifest.tsv")
    return tuple(unique.values())


def resampling_notes(speeches: Iterable[Speech]) -> list[str]:
    """Say, one line a rate, how many files were not at 16 kHz."""
    rates = Counter(speech.rate for speech in speeches if speech.rate != SAMPLE_RATE)
    return [f"resampled {count} file(s) from {rate} Hz to {SAMPLE_RATE} Hz" for rate, count in sorted(rates.items())]


def _expand(place: Path) -> list[Path]:
    if place.is_dir():
        files = sorted(p for p in place.rglob("*") if _is_audio(p))
        if not files:
            raise InputError(f"{place}: no audio in this folder; looked for {' '.join(sorted(SUFFIXES))}")
        return files
    if not place.is_file():
        raise InputError(f"{place}: no such file or folder")
    return _manifest(place) if place.suffix.lower() == ".tsv" else [place]


def _is_audio(path: Path) -> bool:
    """Go by the name; hidden files are what file managers leave beside speech (`._a.wav`)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _manifest(path: Path) -> list[Path]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a manifest: {error}; it must be UTF-8 text, columns parted by tabs") from error
    if not rows or "path" not in rows[0]:
        raise InputError(f"{path}: not a manifest; it needs a header line with a column 'path' and rows below it")
    names = [row["path"] or "" for row in rows]
    files = [places.local(name) if places.is_url(name) else path.parent / name for name in names]
    # Of those in other places of buckets nobody knows before they are read.
    near = [file for file, name in zip(files, names, strict=True) if not places.is_url(name)]
    if missing := [file for file in near if not isfile(file)]:  # of a name that cannot be, too
        raise InputError(f"{path}: {len(missing)} of {len(files)} files are missing, the first is {missing[0]}")
    return files


def _resample(samples: np.ndarray, rate: int) -> np.ndarray:
    import librosa  # a slow import that 16 kHz users never need

    return librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
