"""A small corpus that any machine makes for itself, in seconds and without a download, with exact phone times.

    corpus/
      <speaker>/<id>.flac    16 kHz mono, 16 bit
      manifest.tsv           id, path, samples, speaker, split, text
      phones.tsv             id, start, end, label; contiguous, seconds; the 39 phones of CMUdict and SIL
      corpus.json            what it was made with
      files.json             what belongs to it (`jaxssl.runtime.seal`)

eSpeak NG says our own sentences with voices that differ in accent, vocal tract, pitch, melody and rate. It is speech by
rule: good for trying things out and for phone labels beyond doubt, no replacement for recorded voices. A folder is
built beside its place and then moved there: one that exists is whole.
"""

import glob
import hashlib
import importlib
import importlib.metadata
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from compress.errors import InputError
from jaxssl.data import corpora, espeak
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.manifest import Manifest, Utterance, write
from jaxssl.data.sentences import SENTENCES
from jaxssl.data.voices import PHONES, SPEAKERS, Speaker, segments
from jaxssl.runtime import files, locks, private, seal

FORMAT = 1  # counts up whenever the same settings come to mean another corpus
PACKAGE = "espeakng-loader"
ROUNDS = 6  # of as many utterances of a speaker the first is for validation
HELD_OUT = len(SENTENCES) // ROUNDS  # sentences that only validation hears
SECONDS = 3.39  # an utterance on average
PAUSE = (0.1, 0.35)  # seconds before and after
FLOOR = 1e-4  # a recording's noise, of full scale; in digital silence log-Mel would be where it never is in recordings
ABANDONED = 3600  # seconds after which an unfinished build is no longer somebody's at work


@dataclass(frozen=True)
class _Line:
    """One utterance to be: who says what, how, and samples of silence before and after."""

    id: str
    speaker: Speaker
    split: str
    request: espeak.Request
    pauses: tuple[int, int]


def make(
    folder: str | Path | None = None,
    *,
    seed: int = 0,
    minutes: float = 20.0,
    tick: Callable[[], object] = bool,
) -> Manifest:
    """Make the corpus, or find that it has been made; the same bytes for the same seed and length.

    Every speaker is in both splits, `train` and `valid`; no sentence is in both.

    Args:
        folder: where; default: one for these settings in the user's cache.
        seed: of everything that varies.
        minutes: about how much speech; never less than two utterances of every speaker (2.7 minutes).
        tick: called for every one of `count(minutes)` utterances that is made; not at all when nothing is to do.

    Raises:
        InputError: espeakng-loader is not installed or does not work, or the folder holds something else.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    if not 0 < minutes < float("inf"):
        raise InputError(f"a corpus of {minutes} minutes cannot be made; ask for more than 0, the usual is 20")
    version, library, data = package()
    settings = _settings(seed, minutes, version)
    place = _cache(settings) if folder is None else Path(folder).absolute()
    if not _is_whole(place, settings):
        with _staging(place) as staging:
            _build(staging, seed=seed, minutes=minutes, library=library, data=data, tick=tick)
            (staging / "corpus.json").write_text(json.dumps(settings, indent=1) + "\n")
            seal.seal(staging)
            _install(staging, place, settings)
    return load(place)


def load(folder: str | Path) -> Manifest:
    """Read a corpus that `make` has made, phones included.

    Raises:
        InputError: there is none, or part of it is missing.
    """
    if not (Path(folder) / "corpus.json").is_file():
        raise InputError(f"{folder}: no embedded corpus here (corpus.json is missing); make one there")
    return corpora.read(folder)


def count(minutes: float) -> int:
    """Tell how many utterances a corpus of so many minutes has."""
    return max(round(60 * minutes / SECONDS), 2 * len(SPEAKERS))


def package() -> tuple[str, str, str]:
    """Find the library: version, file and data folder.

    Raises:
        InputError: it is not installed.
    """
    try:
        loader = importlib.import_module("espeakng_loader")  # optional: eSpeak NG is under the GPL
        version = importlib.metadata.version(PACKAGE)
    except ImportError as error:
        raise InputError(f"the embedded speech needs {PACKAGE}, which is not here; pip install {PACKAGE}") from error
    return version, loader.get_library_path(), loader.get_data_path()


def _settings(seed: int, minutes: float, version: str) -> dict[str, object]:
    said = json.dumps([SENTENCES, [asdict(speaker) for speaker in SPEAKERS], PHONES])
    content = hashlib.sha256(said.encode()).hexdigest()
    return {"format": FORMAT, PACKAGE: version, "content": content, "seed": seed, "minutes": float(minutes)}


def _cache(settings: dict[str, object]) -> Path:
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    return private.cache(f"embedded-{digest[:12]}")


def _plan(seed: int, minutes: float) -> list[_Line]:
    """Let the speakers take turns, each going through the sentences in an order of its own."""
    rng = np.random.default_rng(seed)
    sentences = rng.permutation(len(SENTENCES))
    parts = {"valid": sentences[:HELD_OUT], "train": sentences[HELD_OUT:]}
    orders = {(s, split): rng.permutation(part) for s in SPEAKERS for split, part in parts.items()}
    lines = []
    for number in range(count(minutes)):
        turn, who = divmod(number, len(SPEAKERS))
        split = "train" if turn % ROUNDS else "valid"
        order = orders[SPEAKERS[who], split]
        nth = turn // ROUNDS if split == "valid" else turn - turn // ROUNDS - 1
        lines.append(_line(rng, SPEAKERS[who], f"{turn:04d}", split, SENTENCES[order[nth % len(order)]]))
    return lines


def _line(rng: np.random.Generator, speaker: Speaker, number: str, split: str, text: str) -> _Line:
    """Vary the voice a little, as no one says two things alike."""
    request = espeak.Request(
        text=text,
        voice=f"{speaker.accent}+{speaker.tract}",
        rate=round(speaker.rate * rng.uniform(0.92, 1.08)),
        pitch=speaker.pitch + int(rng.integers(-6, 7)),
        range=speaker.range + int(rng.integers(-10, 11)),
        volume=int(rng.integers(35, 66)),
        seed=int(rng.integers(1, 2**31)),
    )
    before, after = (int(seconds * SAMPLE_RATE) for seconds in rng.uniform(*PAUSE, size=2))
    return _Line(f"{speaker.name}-{number}", speaker, split, request, (before, after))


def _build(folder: Path, *, seed: int, minutes: float, library: str, data: str, tick: Callable[[], object]) -> None:
    lines = _plan(seed, minutes)
    noise = np.random.default_rng([seed, 1])
    utterances = []
    try:
        with closing(espeak.speak([line.request for line in lines], library=library, data=data)) as speech:
            for line, spoken in zip(lines, speech, strict=True):
                utterances.append(_record(folder, line, spoken, noise))
                tick()
    except espeak.Failure as error:
        raise InputError(f"{library}: does not work: {error}; pip install --force-reinstall {PACKAGE}") from error
    write(Manifest(tuple(sorted(utterances, key=lambda utterance: utterance.id))), folder)


def _record(folder: Path, line: _Line, spoken: espeak.Spoken, noise: np.random.Generator) -> Utterance:
    """Write one utterance's audio."""
    path = folder / line.speaker.name / f"{line.id}.flac"
    path.parent.mkdir(exist_ok=True)
    samples = _at_16_khz(spoken, line.pauses, noise)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
    phones = segments(spoken.phones, len(spoken.samples), before=line.pauses[0], samples=len(samples))
    return Utterance(line.id, path, len(samples), line.speaker.name, line.request.text, line.split, phones)


def _at_16_khz(spoken: espeak.Spoken, pauses: tuple[int, int], noise: np.random.Generator) -> np.ndarray:
    """Return (n,) int16: resampled, between its pauses, with a recording's noise."""
    import librosa  # slow to import

    voice = np.frombuffer(spoken.samples, np.int16).astype(np.float32) / 2**15
    voice = librosa.resample(voice, orig_sr=espeak.RATE, target_sr=SAMPLE_RATE, res_type="soxr_hq")
    signal = np.pad(voice, pauses)
    signal = signal + FLOOR * noise.standard_normal(len(signal), np.float32)
    return np.clip(np.rint(signal * 2**15), -(2**15), 2**15 - 1).astype(np.int16)


def _is_whole(place: Path, settings: dict[str, object]) -> bool:
    """Tell whether the corpus is there; what can be made again is not worth an error when it is damaged.

    Raises:
        InputError: something else is there.
    """
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return False
    try:
        found = dict(files.read_json(place / "corpus.json"))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{place}: already there and no embedded corpus; choose another folder") from None
    if differing := [key for key, value in settings.items() if found.get(key) != value]:
        key = differing[-1]
        raise InputError(f"{place}: made with {key} {found.get(key)}, not {settings[key]}; choose another folder")
    try:
        seal.check(place)
    except InputError:
        return False
    return True


@contextmanager
def _staging(place: Path) -> Iterator[Path]:
    """Give a folder beside the place; whatever happens, it is gone afterwards. Clear away what a kill left earlier."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f".{glob.escape(place.name)}.*"):
        with suppress(FileNotFoundError):  # another process clears away, too
            if time.time() - left.stat().st_mtime > ABANDONED and not locks.at_work(left):  # the clock may have jumped
                shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        with locks.working(staging):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _install(staging: Path, place: Path, settings: dict[str, object]) -> None:
    """Move a whole corpus to its place, unless another process was faster: then theirs is the same."""
    staging.chmod(0o755)  # mkdtemp's folders are private
    if place.exists() and not _is_whole(place, settings):
        damaged = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
        place.rename(damaged / "damaged")
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        staging.rename(place)
    except OSError:
        if not _is_whole(place, settings):
            raise
