"""Finding a corpus: tables, LibriSpeech's folders, any folder or glob of audio, with texts and phones that lie beside.

In VoxCeleb (`id10001/1zcIwhmdeo4/00001.wav`) the folder named like a speaker is the speaker, wherever it lies.

What is looked for beside each audio file: `*.trans.txt` in its folder (LibriSpeech: a line is an id and its words),
and a TextGrid of the same name with a tier `phones` (Montreal Forced Aligner, Praat).
"""

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compress.errors import InputError
from jaxssl.data.alignments import read_phones, read_textgrid
from jaxssl.data.audio import SUFFIXES, find
from jaxssl.data.manifest import Manifest, Segment, Utterance, header_length, identities, read_table, unique

VOXCELEB = re.compile(r"id\d{5}")  # a speaker's folder
PARTS = {"1": "train", "2": "valid", "3": "test"}  # of VoxCeleb's identification split


def read(
    places: str | Path | Sequence[str | Path],
    *,
    phones: str | Path | None = None,
    present: bool = True,
    tick: Callable[[], object] = bool,
) -> Manifest:
    """Read one corpus, or several as one.

    A place is a `.tsv` manifest, a folder with a `manifest.tsv`, a folder of audio (LibriSpeech's layout or any
    other), a glob or an audio file. Where audio lies in folders below the place, the uppermost is the speaker.

    Args:
        places: where.
        phones: a table of phone times to use; default: the `phones.tsv` beside a manifest, and TextGrids.
        present: whether the files a manifest names must be there.
        tick: called once for every utterance.

    Raises:
        InputError: nothing there, no audio, an unreadable table, an id or file that is there twice; it is named.
    """
    listed = [places] if isinstance(places, str | Path) else list(places)
    if not listed:
        raise InputError("no audio: name files, folders or a manifest.tsv")
    found = [utterance for place in listed for utterance in _read(Path(place), present, tick)]
    if phones is not None:
        found = _with_phones(found, read_phones(phones), phones)
    return unique(found, ", ".join(map(str, listed)))


def _read(place: Path, present: bool, tick: Callable[[], object]) -> list[Utterance]:
    table = place / "manifest.tsv" if place.is_dir() else place
    if table.suffix.lower() == ".tsv" and table.is_file():
        return _from_table(table, present, tick)
    if place.is_dir():
        return _from_files(find([place]), place, tick)
    if place.is_file():
        return _from_files(find([place]), place.parent, tick)
    return _from_glob(place, tick)


def _from_table(table: Path, present: bool, tick: Callable[[], object]) -> list[Utterance]:
    utterances = list(read_table(table, present=present, tick=tick).utterances)
    beside = table.parent / "phones.tsv"
    if beside.is_file():
        return _with_phones(utterances, read_phones(beside), beside)
    return [replace(u, phones=_textgrid(u.path)) for u in utterances]


def _from_glob(pattern: Path, tick: Callable[[], object]) -> list[Utterance]:
    if not glob.has_magic(str(pattern)):
        raise InputError(f"{pattern}: no such file or folder")
    files = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    audio = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not audio:
        raise InputError(f"{pattern}: 0 of the {len(files)} names it matches are audio files; correct the pattern")
    fixed = Path(*pattern.parts[: next(i for i, name in enumerate(pattern.parts) if glob.has_magic(name))])
    return _from_files(audio, fixed, tick)


def _from_files(files: Sequence[Path], root: Path, tick: Callable[[], object]) -> list[Utterance]:
    """Make utterances of audio files below `root`."""
    texts = _transcripts({file.parent for file in files})
    relative = [file.relative_to(root) for file in files]
    utterances = []
    for file, below, identity in zip(files, relative, identities(relative), strict=True):
        speaker = _speaker(below)
        text = texts.get((file.parent, file.stem), "")
        utterances.append(Utterance(identity, file, header_length(file), speaker, text, phones=_textgrid(file)))
        tick()
    return utterances


def _speaker(below: Path) -> str:
    """Take the uppermost folder, or the one that is named as VoxCeleb names speakers; empty where there is none."""
    folders = below.parts[:-1]
    return next((name for name in folders if VOXCELEB.fullmatch(name)), next(iter(folders), ""))


def with_parts(manifest: Manifest, table: str | Path) -> Manifest:
    """Split a corpus as VoxCeleb's identification split says (`iden_split.txt`).

    Its lines are `1 id10001/1zcIwhmdeo4/00001.wav`; 1 is `train`, 2 `valid`, 3 `test`. What it does not name is in no
    part.

    Raises:
        InputError: the file cannot be read, a line is none of these, or it names nothing of the corpus.
    """
    named = dict(_part(line, number, table) for number, line in enumerate(_lines(Path(table)), 1) if line.strip())
    keys = ["/".join(u.path.parts[-3:]) for u in manifest.utterances]
    if not any(key in named for key in keys):
        raise InputError(
            f"{table}: 0 of its {len(named)} files are in the corpus, whose first is {keys[0]}; use its own"
        )
    pairs = zip(manifest.utterances, keys, strict=True)
    return Manifest(tuple(replace(u, split=named.get(key, "")) for u, key in pairs))


def _part(line: str, number: int, table: str | Path) -> tuple[str, str]:
    part, _, name = line.strip().partition(" ")
    if part not in PARTS or not name:
        raise InputError(
            f"{table}, line {number}: {line!r} is no part (1, 2, 3) and file, as 3 id10001/VIDEO/00001.wav"
        )
    return "/".join(Path(name.strip()).parts[-3:]), PARTS[part]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a split of VoxCeleb: {error}; it must be UTF-8 text") from error


def _transcripts(folders: Iterable[Path]) -> dict[tuple[Path, str], str]:
    """Read LibriSpeech's transcripts: (folder, id) → words."""
    texts = {}
    for file in sorted(file for folder in folders for file in folder.glob("*.trans.txt")):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not a transcript: {error}; it must be UTF-8 text") from error
        for line in lines:
            identity, _, text = line.partition(" ")
            texts[file.parent, identity] = text.strip()
    return texts


def _textgrid(audio: Path) -> tuple[Segment, ...]:
    beside = audio.with_suffix(".TextGrid")
    return read_textgrid(beside) if beside.is_file() else ()


def _with_phones(
    utterances: Sequence[Utterance], times: Mapping[str, tuple[Segment, ...]], source: str | Path
) -> list[Utterance]:
    """Attach phone times by id, or by path for tables that name paths."""
    by_path = {key: value for key, value in times.items() if Path(key).suffix.lower() in SUFFIXES}
    folder = Path(source).parent
    files = {(folder / key).resolve(): value for key, value in by_path.items()}
    found = [replace(u, phones=times.get(u.id) or files.get(u.path.resolve(), ())) for u in utterances]
    if times and not any(u.phones for u in found):
        first = next(iter(times))
        raise InputError(f"{source}: 0 of its {len(times)} utterances are in the corpus, the first is {first}; use ids")
    return found
