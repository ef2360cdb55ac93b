"""Hours of speech made on this machine: synthesisers that read texts, and real speech in other voices and rooms.

    corpus/
      <speaker>/<id>.flac    16 kHz mono, 16 bit
      manifest.tsv           id, path, samples, speaker, text
      phones.tsv             of what the engines said, and of real speech that came with phone times
      blocks/NAME.json       what each finished block holds: a run that was broken off makes the others

Every utterance follows from the seed and its own number, so a block is the same whenever it is made. A speaker is a
voice of an engine, moved to another pitch, vocal tract and speed (`vocoder`), and keeps these; the room (`rooms`) is
another each time.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from compress.errors import InputError
from jaxssl.data import embedded, espeak, flite, phrases, piper, rooms, vocoder
from jaxssl.data.audio import SAMPLE_RATE, read
from jaxssl.data.manifest import Manifest, Segment, Utterance, write
from jaxssl.data.vocoder import Voice
from jaxssl.data.voices import SPEAKERS, segments
from jaxssl.runtime import files

ENGINES = ("piper", "flite", "espeak")
COPIES = "copies"
BLOCK = 16  # utterances that are made together
LETTERS = 110  # of an utterance at least: some 8 s
LETTERS_A_SECOND = 14.5
PAUSE = (0.1, 0.4)  # seconds before and after what is said
# CPU seconds a second of speech: engine, vocoder, room and file together, of 112 s of speech each on an AMD EPYC core.
FACTOR = {"piper": 0.088, "flite": 0.046, "espeak": 0.038, COPIES: 0.037}


@dataclass(frozen=True)
class Order:
    """What a corpus is made of.

    Attributes:
        hours: of each engine, by name.
        speakers: voices made of each engine's.
        texts: to be read; none: `phrases`.
        originals: real utterances that are said again.
        copies: of each of them.
        seed: of all that varies.
    """

    hours: dict[str, float]
    speakers: int
    texts: tuple[str, ...]
    originals: tuple[Utterance, ...]
    copies: int
    seed: int

    @property
    def seconds(self) -> dict[str, float]:
        """About how long the speech of each source is."""
        wanted = {name: 3600 * hours for name, hours in self.hours.items()}
        return wanted | {COPIES: self.copies * sum(u.samples for u in self.originals) / SAMPLE_RATE}

    @property
    def time(self) -> float:
        """About how many seconds it takes to make."""
        return sum(FACTOR[name] * seconds for name, seconds in self.seconds.items())

    def blocks(self) -> list[tuple[str, int, int]]:
        """List the blocks: source, number of the first utterance, utterances."""
        counts = {name: self._count(name) for name in (*ENGINES, COPIES)}
        return [
            (name, first, min(BLOCK, count - first))
            for name, count in counts.items()
            for first in range(0, count, BLOCK)
        ]

    def _count(self, name: str) -> int:
        if name == COPIES:
            return self.copies * len(self.originals)
        mean = np.mean([len(self.text(name, i)) for i in range(64)]) / LETTERS_A_SECOND + sum(PAUSE)
        return round(self.seconds.get(name, 0.0) / mean)

    def text(self, name: str, number: int) -> str:
        """Return what an engine's utterance says."""
        rng = self.rng(name, "text", number)
        if not self.texts:
            return phrases.passage(rng, letters=LETTERS)
        said = ""
        while len(said) < LETTERS:
            said += " " * bool(said) + self.texts[rng.integers(len(self.texts))]
        return said

    def rng(self, *names: str | int) -> np.random.Generator:
        """Return the random numbers of a purpose and a number."""
        return np.random.default_rng([self.seed, *(zlib.crc32(str(name).encode()) for name in names)])


@dataclass(frozen=True)
class Said:
    """What a source gives: samples at 16 kHz, phones in seconds where it tells them, the speaker, the text."""

    samples: np.ndarray
    phones: tuple[Segment, ...]
    speaker: str
    voice: Voice
    text: str


def check(order: Order) -> None:
    """Make sure, before any work, that all that is needed is installed.

    Raises:
        InputError: it is not, or nothing is ordered.
    """
    if not any(order.seconds.values()):
        raise InputError("0 hours of speech are asked for; give --piper, --flite, --espeak, or --audio with --copies")
    checks: dict[str, Callable[[], object]] = {"piper": piper.check, "flite": flite.program, "espeak": embedded.package}
    for name, ask in checks.items():
        if order.hours.get(name):
            ask()
    vocoder.change(np.zeros(SAMPLE_RATE, np.float32), Voice())


def make(order: Order, folder: Path, *, tick: Callable[[], object] = bool) -> Manifest:
    """Make a corpus, or what is missing of it.

    Args:
        order: what.
        folder: where, this order's own.
        tick: called for each of `order.blocks()`.

    Raises:
        InputError: an engine fails.
    """
    (folder / "blocks").mkdir(parents=True, exist_ok=True)
    found: list[Utterance] = []
    for name, first, count in order.blocks():
        path = folder / "blocks" / f"{name}-{first:06d}.json"
        if not _is_whole(folder, path):
            spoken = enumerate(_said(order, name, first, count), first)
            files.write_json(path, [_saved(order, folder, name, number, said) for number, said in spoken])
        found += [_utterance(folder, row) for row in files.read_rows(path)]
        tick()
    manifest = Manifest(tuple(found))
    write(manifest, folder)
    return manifest


def _is_whole(folder: Path, block: Path) -> bool:
    """Tell whether a block is finished and all its files are still there."""
    return block.is_file() and all((folder / row["path"]).is_file() for row in files.read_rows(block))


def _said(order: Order, name: str, first: int, count: int) -> Iterator[Said]:
    numbers = range(first, first + count)
    if name == COPIES:
        return (_copied(order, number) for number in numbers)
    said = {"piper": _by_piper, "flite": _by_flite, "espeak": _by_espeak}[name]
    return said(order, numbers)


def _copied(order: Order, number: int) -> Said:
    """Say a real utterance again: each of its speaker's copies is another speaker."""
    copy, which = divmod(number, len(order.originals))
    original = order.originals[which]
    speaker = f"{original.speaker or original.id}-{copy}"
    voice = _voice(order.rng(COPIES, "voice", speaker), formants=0.13, pitch=0.08)
    return Said(read(original.path).samples, original.phones, speaker, voice, original.text)


def _by_piper(order: Order, numbers: Sequence[int]) -> Iterator[Said]:
    texts = [order.text("piper", number) for number in numbers]
    seed = int(order.rng("piper", "noise", numbers[0]).integers(2**31 - 1))
    for number, text, (samples, rate, phones) in zip(numbers, texts, piper.speak(texts, seed=seed), strict=True):
        speaker, voice = _speaker(order, "piper", number)
        yield Said(_at_16_khz(samples, rate), phones, f"joe-{speaker}", voice, text)


def _by_flite(order: Order, numbers: Sequence[int]) -> Iterator[Said]:
    for number in numbers:
        speaker, voice = _speaker(order, "flite", number)
        own, text = flite.VOICES[speaker % len(flite.VOICES)], order.text("flite", number)
        samples, rate, phones = flite.speak(text, own)
        yield Said(_at_16_khz(samples, rate), phones, f"{own}-{speaker}", voice, text)


def _by_espeak(order: Order, numbers: Sequence[int]) -> Iterator[Said]:
    voices = [_speaker(order, "espeak", number) for number in numbers]
    owns = [SPEAKERS[speaker % len(SPEAKERS)] for speaker, _ in voices]
    texts = [order.text("espeak", number) for number in numbers]
    requests = [
        espeak.Request(text, f"{own.accent}+{own.tract}", own.rate, own.pitch, own.range, 50, number + 1)
        for number, own, text in zip(numbers, owns, texts, strict=True)
    ]
    _, place, data = embedded.package()
    with closing(espeak.speak(requests, library=place, data=data)) as speech:
        for spoken, own, (speaker, voice), text in zip(speech, owns, voices, texts, strict=True):
            wave = np.frombuffer(spoken.samples, np.int16).astype(np.float32) / 2**15
            samples = _at_16_khz(wave, espeak.RATE)
            phones = segments(spoken.phones, len(spoken.samples), before=0, samples=len(samples))
            yield Said(samples, phones, f"{own.name}-{speaker}", voice, text)


def _speaker(order: Order, name: str, number: int) -> tuple[int, Voice]:
    """Return which speaker says an engine's utterance, and how."""
    speaker = int(order.rng(name, "speaker", number).integers(order.speakers))
    return speaker, _voice(order.rng(name, "voice", speaker), formants=0.2, pitch=0.12)


def _voice(rng: np.random.Generator, *, formants: float, pitch: float) -> Voice:
    # A shorter vocal tract goes with a higher pitch: women's formants are a sixth, their pitch two thirds above men's.
    tract = float(np.exp(rng.uniform(-formants, formants)))
    return Voice(float(tract**3 * np.exp(rng.normal(0, pitch))), tract, float(rng.uniform(0.85, 1.18)))


def _saved(order: Order, folder: Path, name: str, number: int, said: Said) -> dict[str, Any]:
    """Change the voice, record it in a room, write the file, and describe it."""
    rng = order.rng(name, "room", number)
    changed = vocoder.change(said.samples, said.voice)
    pauses = [round(seconds * SAMPLE_RATE) for seconds in rng.uniform(*PAUSE, size=2)]
    recorded = rooms.record(np.pad(changed, pauses), rooms.draw(rng), rng)
    path = folder / said.speaker / f"{name}-{number:06d}.flac"
    path.parent.mkdir(exist_ok=True)
    with files.whole(path) as part:
        soundfile.write(part, recorded, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    stretch, before = len(changed) / len(said.samples), pauses[0] / SAMPLE_RATE
    phones = [(before + stretch * p.start, before + stretch * p.end, p.label) for p in said.phones]
    return {
        "path": str(path.relative_to(folder)),
        "samples": len(recorded),
        "speaker": said.speaker,
        "text": said.text,
        "voice": asdict(said.voice),
        "phones": phones,
    }


def _utterance(folder: Path, row: dict[str, Any]) -> Utterance:
    path = folder / row["path"]
    phones = tuple(Segment(round(start, 7), round(end, 7), label) for start, end, label in row["phones"])
    return Utterance(path.stem, path, row["samples"], row["speaker"], row["text"], "", phones)


def _at_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    import librosa  # slow to import

    if rate == SAMPLE_RATE:
        return samples
    return librosa.resample(samples, orig_sr=rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
