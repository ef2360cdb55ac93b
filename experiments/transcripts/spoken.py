"""The speech of a run: utterances to write down, with their texts where they are known, and speech to fit models to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.errors import InputError
from jaxssl.data import corpora, embedded
from jaxssl.data.audio import SAMPLE_RATE, read
from jaxssl.data.manifest import Utterance
from jaxssl.runtime.cli import follow

LEAST = 0.25  # seconds of an utterance's last piece
FILLED = 2 / 3  # share of a window that speech fills, so that a model is also fitted to the silence behind it


@dataclass(frozen=True)
class Spoken:
    """An utterance.

    Attributes:
        id: its name.
        samples: (samples,) float32 at 16 kHz.
        text: what is said; empty where that is not known.
    """

    id: str
    samples: np.ndarray
    text: str

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / SAMPLE_RATE


def gather(
    audio: Sequence[str], transcripts: Sequence[str], *, limit: int, longest: float
) -> tuple[tuple[Spoken, ...], list[str]]:
    """Read the utterances to write down, and say in lines what is left out.

    Args:
        audio: places of speech, with texts or without; neither these nor `transcripts`: the embedded corpus.
        transcripts: places of speech of which the text is known; utterances without one are left out.
        limit: utterances of each of both, evenly spread.
        longest: seconds; what is longer does not fit a window.

    Raises:
        InputError: nothing is left.
    """
    listed = list(corpora.read(audio).utterances) if audio else []
    if not audio and not transcripts:
        listed = list(embedded.make().utterances)
    texts = list(corpora.read(transcripts).utterances) if transcripts else []
    with_text = [utterance for utterance in texts if utterance.text]
    notes = []
    if without := len(texts) - len(with_text):
        notes.append(f"--transcripts: {without} of {len(texts)} utterances have no text and are left out")
    chosen = {u.path.resolve(): u for part in (listed, with_text) for u in _spread(part, longest, limit, notes)}
    if not chosen:
        raise InputError(f"no utterance of at most {longest:g} s is left to write down; name others with --audio")
    bar = follow(chosen.values(), "reading speech", total=len(chosen))
    return tuple(Spoken(u.id, read(u.path).samples, u.text) for u in bar), notes


def windows(places: Sequence[str], *, seconds: float, limit: int, but: Sequence[Spoken] = ()) -> np.ndarray:
    """Fill windows with speech, one utterance after the other up to two thirds, then silence.

    An utterance that is longer than two thirds of a window goes into several; what is left at its end, if that is less
    than a quarter of a second, is left out.

    Args:
        places: of speech; none: the embedded corpus.
        seconds: of a window.
        limit: windows at most.
        but: utterances that must not be among them, for they are tested on.

    Returns:
        (windows, samples) float32.

    Raises:
        InputError: nothing is left.
    """
    listed = corpora.read(places).utterances if places else embedded.make().utterances
    size = round(seconds * SAMPLE_RATE)
    room, taken = round(size * FILLED), {each.id for each in but}
    others = [u for u in listed if u.id not in taken]
    if not others:
        raise InputError(f"--unlabelled: all {len(listed)} utterances are among those written down; name others")
    wanted = limit * room / max(float(np.mean([u.samples for u in others])), 1)
    rows, now = list[np.ndarray](), list[np.ndarray]()
    for utterance in _evenly(others, round(wanted) + limit):
        for samples in _pieces(read(utterance.path).samples, room):
            if sum(map(len, now)) + len(samples) > room:
                rows, now = [*rows, _row(now, size)], []
            now.append(samples)
        if len(rows) >= limit:
            break
    return np.stack([*rows, _row(now, size)][:limit])


def _pieces(samples: np.ndarray, most: int) -> list[np.ndarray]:
    parts = [samples[start : start + most] for start in range(0, len(samples), most)]
    return [part for part in parts if part is parts[0] or len(part) >= LEAST * SAMPLE_RATE]


def _spread(listed: Sequence[Utterance], longest: float, limit: int, notes: list[str]) -> list[Utterance]:
    fits = [utterance for utterance in listed if utterance.samples <= longest * SAMPLE_RATE]
    if long := len(listed) - len(fits):
        notes.append(f"{long} of {len(listed)} utterances are longer than {longest:g} s and are left out")
    return _evenly(fits, limit)


def _evenly(listed: Sequence[Utterance], limit: int) -> list[Utterance]:
    places = np.linspace(0, len(listed) - 1, min(limit, len(listed))).round().astype(int)
    return [listed[place] for place in np.unique(places)]


def _row(parts: Sequence[np.ndarray], size: int) -> np.ndarray:
    whole = np.concatenate(parts)
    return np.pad(whole, (0, size - len(whole)))
