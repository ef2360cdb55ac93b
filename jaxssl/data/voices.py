"""Who speaks in the embedded corpus, and what eSpeak NG's phones are called elsewhere."""

from collections.abc import Iterable
from dataclasses import dataclass

from compress.errors import InputError
from jaxssl.data import espeak
from jaxssl.data.alignments import SILENCE
from jaxssl.data.audio import SAMPLE_RATE
from jaxssl.data.manifest import Segment


@dataclass(frozen=True)
class Speaker:
    """A voice: an accent, a vocal tract, words per minute, pitch and liveliness (50 is the voice's own)."""

    accent: str
    tract: str
    rate: int
    pitch: int
    range: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.accent}-{self.tract}".lower()


SPEAKERS = tuple(
    Speaker(accent, tract, rate, pitch, melody)
    for accent, tract, rate, pitch, melody in (
        ("en-us", "f1", 165, 50, 50),
        ("en-us", "m1", 150, 46, 60),
        ("en-us", "Andrea", 180, 42, 45),
        ("en-us", "Michael", 172, 55, 65),
        ("en", "f2", 158, 55, 60),
        ("en", "m2", 176, 50, 45),
        ("en", "linda", 148, 47, 70),
        ("en", "Alex", 186, 40, 55),
        ("en-gb-scotland", "f3", 170, 48, 65),
        ("en-gb-scotland", "m3", 152, 56, 40),
        ("en-gb-scotland", "Denis", 162, 44, 50),
        ("en-gb-x-rp", "f4", 155, 52, 40),
        ("en-gb-x-rp", "m4", 168, 45, 55),
        ("en-gb-x-rp", "Annie", 178, 58, 60),
        ("en-gb-x-gbclan", "f5", 160, 45, 55),
        ("en-gb-x-gbclan", "m5", 182, 52, 50),
        ("en-gb-x-gbclan", "david", 150, 60, 45),
        ("en-gb-x-gbcwmd", "belinda", 174, 50, 50),
        ("en-gb-x-gbcwmd", "m6", 156, 38, 60),
        ("en-us-nyc", "steph", 166, 46, 55),
        ("en-us-nyc", "m7", 184, 54, 70),
        ("en-us-nyc", "Lee", 154, 62, 40),
        ("en-029", "victor", 164, 48, 60),
        ("en-029", "m8", 172, 58, 50),
    )
)

# eSpeak's names of English phones, of which it has more, to CMUdict's; a vowel keeps the r that follows in its name.
# Names are common to all accents: OW is the vowel of "boat" whether it is said with one sound or two.
PHONES = {
    name: label
    for label, *names in map(
        str.split,
        """
AA A: A@ 0
AE a aa
AH V @ @2 @5 @- a#
AO O: O@ O2 o@
AW aU
AY aI aI2 aI3 aI@
B b
CH tS
D d
DH D
EH E e@
ER 3 3: IR VR
EY eI
F f
G g
HH h
IH I I2 I# i@ i@3
IY i i:
JH dZ
K k
L l @L
M m
N n n-
NG N
OW oU
OY OI
P p
R r r-
S s
SH S
T t t# t2 t[ ?
TH T
UH U U@
UW u:
V v
W w w#
Y j ;
Z z
ZH Z
SIL _ _: _! _|
""".strip().splitlines(),
    )
    for name in names
}


def segments(phones: Iterable[tuple[int, str]], length: int, *, before: int, samples: int) -> tuple[Segment, ...]:
    """Turn the beginnings of eSpeak's phones into contiguous segments of the recording, in seconds.

    Args:
        phones: where each begins, in samples at 22.05 kHz, and eSpeak's name of it, with stress marks.
        length: samples at 22.05 kHz of all of them.
        before: samples at 16 kHz of silence that were put before.
        samples: the recording's length at 16 kHz; what follows the last phone is silence.

    Raises:
        InputError: a phone is not known.
    """
    total = samples / SAMPLE_RATE
    marks = [(before / SAMPLE_RATE + start / espeak.RATE, _label(name)) for start, name in phones]
    marks = [(0.0, SILENCE), *marks, (before / SAMPLE_RATE + length / espeak.RATE, SILENCE), (total, SILENCE)]
    times = [round(min(start, total), 7) for start, _ in marks]  # 7 digits hold every multiple of 1/16000 s
    merged: list[Segment] = []
    for (_, label), start, end in zip(marks, times, times[1:], strict=False):
        if start == end:
            continue
        if merged and label == merged[-1].label == SILENCE:
            start = merged.pop().start
        merged.append(Segment(start, end, label))
    return tuple(merged)


def _label(name: str) -> str:
    try:
        return PHONES[name.lstrip("',%=")]
    except KeyError:
        known = f"not among the {len(PHONES)} known"
        remedy = "pip install espeakng-loader==0.2.4"
        raise InputError(f"espeakng-loader: its phone {name!r} is {known}; {remedy}") from None
