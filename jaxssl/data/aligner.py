"""When which phone is said: forced alignment of speech with its text, by PocketSphinx.

PocketSphinx (BSD; PyPI, the extra `align`) brings an acoustic model of American English and a form of CMUdict. Words
that it lacks get their phones from eSpeak NG's rules, numbers among them. Frames come each 10 ms.
"""

import importlib
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.data import embedded, espeak
from jaxssl.data.alignments import SILENCE
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.lexicon import Lexicon, read_lexicon, words
from jaxssl.data.manifest import Segment
from jaxssl.data.voices import PHONES

FRAMES = 100  # a second
# Seconds from the middle of a frame's 10 ms to that of the window of 410 samples that it hears, which begins with it:
# uncorrected, phones begin 6 ms too early, as the median of 1,786 phones whose times flite and eSpeak told.
LATE = 410 / 16_000 / 2 - 1 / FRAMES / 2
PAUSE = FRAMES // 2  # frames of near silence put before and after: without it a path often finds no end
FAINT = 3.0  # deviation of that silence, of 16 bit samples
NOISES = ("+", "<", "SIL")  # how what is no phone begins
SPEAKING = {"rate": 150, "pitch": 50, "range": 50, "volume": 100, "seed": 1}
Aligner = Callable[[np.ndarray, str], tuple[Segment, ...]]


def open_aligner(texts: Iterable[str]) -> tuple[Aligner, list[str]]:
    """Make ready to align speech with these texts; also list the words that eSpeak pronounces.

    The aligner takes samples at 16 kHz and their text, and returns the phones of CMUdict and silence in seconds, one
    after the other; none where text and speech do not fit.

    Raises:
        InputError: PocketSphinx is not installed, or words are unknown and eSpeak NG is not.
    """
    sphinx = _package()
    place = Path(sphinx.get_model_path()) / "en-us"
    dictionary = place / "cmudict-en-us.dict"
    known = read_lexicon(dictionary)
    strange = [word for word in dict.fromkeys(w for text in texts for w in words(text)) if word not in known]
    said = pronounced(strange)

    def align(samples: np.ndarray, text: str) -> tuple[Segment, ...]:
        decoder = sphinx.Decoder(hmm=str(place / "en-us"), dict=str(dictionary), lm=None, loglevel="FATAL")
        for word in dict.fromkeys(words(text)):
            if word not in known:
                decoder.add_word(word.lower(), " ".join(said[word]), False)
        return _within(_aligned(decoder, _pcm(samples), " ".join(words(text)).lower()), len(samples) / SAMPLE_RATE)

    return align, strange


def check() -> None:
    """Make sure that PocketSphinx is installed.

    Raises:
        InputError: it is not.
    """
    _package()


def pronounced(strange: list[str]) -> Lexicon:
    """Ask eSpeak NG how words are said, (phones of CMUdict); all that is no phone is left out.

    Raises:
        InputError: eSpeak NG is not installed, where there are words; or it does not say one of them.
    """
    if not strange:
        return {}
    _, library, data = embedded.package()
    requests = [espeak.Request(word.lower(), "en-us", **SPEAKING) for word in strange]
    with closing(espeak.speak(requests, library=library, data=data)) as speech:
        names = [[name.lstrip("',%=") for _, name in spoken.phones] for spoken in speech]
    found = {
        word: tuple(PHONES[name] for name in each if PHONES.get(name, SILENCE) != SILENCE)
        for word, each in zip(strange, names, strict=True)
    }
    if silent := [word for word, phones in found.items() if not phones]:
        raise InputError(f"eSpeak NG has no phones for {len(silent)} words, the first is {silent[0]}; correct the text")
    return found


def _pcm(samples: np.ndarray) -> bytes:
    """Return 16 bit samples between two pauses."""
    pause = PAUSE * SAMPLE_RATE // FRAMES
    noise = FAINT * np.random.default_rng(0).standard_normal((2, pause))
    return np.concatenate([noise[0], np.clip(samples, -1, 1) * 32767, noise[1]]).astype(np.int16).tobytes()


def _within(phones: tuple[Segment, ...], end: float) -> tuple[Segment, ...]:
    """Cut off what is in the pauses, beyond a recording's beginning and end."""
    times = [(max(p.start, 0.0), min(p.end, round(end, 4)), p.label) for p in phones]
    return tuple(Segment(start, stop, label) for start, stop, label in times if stop > start)


def _aligned(decoder: Any, pcm: bytes, text: str) -> tuple[Segment, ...]:
    """Align words, then the phones within them; none where PocketSphinx finds no path."""
    try:
        decoder.set_align_text(text)
        _hear(decoder, pcm)
        decoder.set_alignment()
        _hear(decoder, pcm)
        phones = [phone for word in decoder.get_alignment() for phone in word]
    except (RuntimeError, TypeError):
        return ()
    times = [(_time(p.start), _time(p.start + p.duration), _label(p.name)) for p in phones]
    return tuple(Segment(start, end, label) for start, end, label in times)


def _time(frame: int) -> float:
    return round((frame - PAUSE) / FRAMES + LATE, 4)


def _hear(decoder: Any, pcm: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()


def _label(name: str) -> str:
    return SILENCE if name.startswith(NOISES) else name


def _package() -> Any:
    try:
        return importlib.import_module("pocketsphinx")
    except ImportError as error:
        raise InputError(f"alignment needs PocketSphinx, which is not here ({error}); pip install '.[align]'") from None
