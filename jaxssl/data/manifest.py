"""What a corpus is: utterances with speakers, texts and phone times where they are known."""

from dataclasses import dataclass
from pathlib import Path


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
