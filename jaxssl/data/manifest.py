"""What a corpus is: utterances with speakers, texts and phone times where they are known; as values and as tables.

    manifest.tsv    path, and where known id, samples, speaker, split, text; paths relative to the table
    phones.tsv      id, start, end, label; seconds

Both have a header line, UTF-8, columns parted by tabs, no quoting. Finding a corpus in folders: `jaxssl.data.corpora`.
"""

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from compress.errors import InputError
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.decode import UNKNOWN_LENGTH, check_size
from jaxssl.data.tab_separated import read_rows, write_rows
from jaxssl.storage import fetching, places

COLUMNS = ("id", "path", "samples", "speaker", "split", "text")


@dataclass(frozen=True)
class Segment:
    """A stretch of speech with a label: a phone or a word, `start` to `end` in seconds."""

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Utterance:
    """One utterance of a corpus.

    Attributes:
        id: unique in its corpus.
        path: the audio file.
        samples: its length at 16 kHz.
        speaker: who speaks; empty when unknown.
        text: what is said; empty when unknown.
        split: the part of the corpus it belongs to (`train`, `valid`, …); empty when not split.
        phones: phone times; empty when unknown.
    """

    id: str
    path: Path
    samples: int
    speaker: str = ""
    text: str = ""
    split: str = ""
    phones: tuple[Segment, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A corpus: utterances in a fixed order, ids unique."""

    utterances: tuple[Utterance, ...]

    @property
    def seconds(self) -> float:
        """Duration of all utterances together."""
        return sum(utterance.samples for utterance in self.utterances) / SAMPLE_RATE


def unique(utterances: Iterable[Utterance], source: object) -> Manifest:
    """Make a manifest, and make sure that no id and no file is in it twice.

    Raises:
        InputError: there are no utterances, or two share an id or a file; `source` and the first such are named.
    """
    manifest = Manifest(tuple(utterances))
    if not manifest.utterances:
        raise InputError(f"{source}: no utterances; give files, folders or a manifest.tsv with rows")
    for what, values in (("id", [u.id for u in manifest.utterances]), ("file", _files(manifest))):
        again = [value for value, count in Counter(values).items() if count > 1]
        if again:
            some = f"{len(again)} {what}s stand for more than one utterance of {len(values)}"
            raise InputError(f"{source}: {some}, the first is {again[0]}; give every utterance its own")
    return manifest


def split(manifest: Manifest, *, valid: float, seed: int, by_speaker: bool = False) -> Manifest:
    """Draw a validation part: every utterance becomes `train` or `valid`, whatever its place in the manifest.

    Args:
        manifest: the corpus; ids are unique, so no utterance can be in both parts.
        valid: share of utterances (of speakers, `by_speaker`) that become `valid`: rounded, but at least one.
        seed: of the draw.
        by_speaker: no speaker in both parts.

    Raises:
        InputError: `valid` is not in (0, 1), there are fewer than two to draw from, or speakers are not known.
    """
    groups = defaultdict(list)
    for utterance in manifest.utterances:
        groups[utterance.speaker if by_speaker else utterance.id].append(utterance.id)
    what = "speakers" if by_speaker else "utterances"
    if not 0 < valid < 1:
        raise InputError(f"a validation part of {valid} is impossible; use more than 0 and less than 1 of the {what}")
    if len(groups) < 2 or "" in groups:
        known = len(groups) - ("" in groups)
        raise InputError(f"{known} known {what} in {len(manifest.utterances)} utterances cannot be split; give more")
    count = min(max(round(valid * len(groups)), 1), len(groups) - 1)
    names = sorted(groups)
    drawn = np.random.default_rng(seed).permutation(len(names))[:count]
    held_out = {identity for i in drawn for identity in groups[names[i]]}
    return Manifest(
        tuple(dataclasses.replace(u, split="valid" if u.id in held_out else "train") for u in manifest.utterances)
    )


def part(manifest: Manifest, name: str) -> Manifest:
    """Return the utterances of one split, in their order.

    Raises:
        InputError: none is in it.
    """
    chosen = tuple(utterance for utterance in manifest.utterances if utterance.split == name)
    if not chosen:
        there = sorted({utterance.split or "(none)" for utterance in manifest.utterances})
        raise InputError(
            f"0 of {len(manifest.utterances)} utterances are in split {name!r}; splits: {', '.join(there)}"
        )
    return Manifest(chosen)


def write(manifest: Manifest, folder: str | Path) -> Path:
    """Write `manifest.tsv`, and `phones.tsv` where phones are known; return the manifest's path.

    Files inside the folder are named relative to it, others absolutely. Each table appears whole or not at all.

    Raises:
        InputError: an id or a path holds a tab or a line break, or ids are not unique.
    """
    folder = Path(folder)
    unique(manifest.utterances, folder)
    folder.mkdir(parents=True, exist_ok=True)
    phones = [(u.id, repr(float(s.start)), repr(float(s.end)), s.label) for u in manifest.utterances for s in u.phones]
    if phones:
        write_rows(folder / "phones.tsv", ("id", "start", "end", "label"), phones)
    else:
        (folder / "phones.tsv").unlink(missing_ok=True)
    rows = [
        (u.id, _relative(u.path, folder), str(u.samples), u.speaker, u.split, " ".join(u.text.split()))
        for u in manifest.utterances
    ]
    write_rows(folder / "manifest.tsv", COLUMNS, rows)
    return folder / "manifest.tsv"


def read_table(path: str | Path, *, present: bool = True, tick: Callable[[], object] = bool) -> Manifest:
    """Read a `manifest.tsv`; phone times are left to `jaxssl.data.corpora.read`.

    Without a column `id`, ids are the file names where these are unique, else the paths; without `samples` (or where
    it is empty) lengths are read from the files' headers.

    Args:
        path: the table.
        present: whether the audio files must be there.
        tick: called once for every row.

    Raises:
        InputError: the table cannot be read, a file is missing, a number is none, an id is not unique; it is named.
    """
    path = Path(path)
    rows = list(read_rows(path, ("path",)))
    files = [places.local(row["path"]) if places.is_url(row["path"]) else path.parent / row["path"] for _, row in rows]
    # Of those in other places of buckets nobody knows before they are read.
    near = [file for file, (_, row) in zip(files, rows, strict=True) if not places.is_url(row["path"])]
    if missing := [file for file in near if present and not os.path.isfile(file)]:
        raise InputError(f"{path}: {len(missing)} of {len(files)} files are missing, the first is {missing[0]}")
    names = identities([Path(row["path"]) for _, row in rows])
    utterances = []
    for (number, row), file, name in zip(rows, files, names, strict=True):
        samples = _count(row["samples"], f"{path}, line {number}") if row.get("samples") else header_length(file)
        speaker, text, split_ = (row.get(key, "") for key in ("speaker", "text", "split"))
        utterances.append(Utterance(row.get("id") or name, file, samples, speaker, text, split_))
        tick()
    return unique(utterances, path)


def identities(paths: Sequence[Path]) -> list[str]:
    """Name utterances by their files: the stems where these are unique, else the paths without suffix."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [path.with_suffix("").as_posix() for path in paths]


def header_length(path: Path) -> int:
    """Read from a file's header how many samples it will have at 16 kHz.

    Raises:
        InputError: it is no audio, or does not tell its length.
    """
    with fetching.reading(path) as file:
        return _header_length(file)


def _header_length(path: Path) -> int:
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{path}: not readable as audio ({error.error_string.strip()}); leave it out") from error
    if info.frames == UNKNOWN_LENGTH:
        raise InputError(f"{path}: its header does not tell its length; convert the file to WAV")
    check_size(path, frames=info.frames, rate=info.samplerate, channels=info.channels)
    return -(-info.frames * SAMPLE_RATE // info.samplerate)


def _files(manifest: Manifest) -> list[str]:
    return [os.path.realpath(utterance.path) for utterance in manifest.utterances]


def _count(text: str, place: str) -> int:
    if not (text.isdecimal() and text.isascii() and len(text) < 16):
        raise InputError(f"{place}: samples is {text!r}, not a whole number; correct it or leave it empty")
    return int(text)


def _relative(path: Path, folder: Path) -> str:
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else places.url(path) or path.as_posix()
