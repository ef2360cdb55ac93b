"""The CTC layer that a model was fine-tuned with: read beside the model, and what it writes of speech.

It stands on the encoder's output, whose width no compression changes, so it goes with every model made from that one.
In a model's folder it is `ctc/ctc.safetensors` (kernel (width, symbols), bias) and `ctc/symbols.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jax import Array

from compress.errors import InputError
from jaxssl.runtime.files import named, parsed
from jaxssl.training.ctc import BLANK

ARRAYS, SYMBOLS = "ctc/ctc.safetensors", "ctc/symbols.json"
BLANKS = ("<pad>", "[PAD]")  # what Hugging Face's tokenizers call the blank; fairseq's is the first symbol, <s>
SPACES = ("|", " ", "▁")


@dataclass(frozen=True)
class CtcLayer:
    """A CTC layer, its columns in such an order that the blank is the first.

    Attributes:
        kernel: (width, symbols) float32.
        bias: (symbols,) float32.
        symbols: by column; the first is the blank, whatever it is called.
    """

    kernel: np.ndarray
    bias: np.ndarray
    symbols: tuple[str, ...]

    @property
    def space(self) -> str | None:
        """The symbol between two words; None where there is none."""
        return next((symbol for symbol in SPACES if symbol in self.symbols[1:]), None)

    def spell(self, text: str) -> np.ndarray | None:
        """Write a text in the layer's symbols, (characters,) int32; None where it has not all of them, or is empty.

        Letters take the case that the layer has.
        """
        known = {symbol: number for number, symbol in enumerate(self.symbols) if number}
        letters = [symbol for symbol in known if len(symbol) == 1]
        upper = sum(letter.isupper() for letter in letters) > sum(letter.islower() for letter in letters)
        words = (text.upper() if upper else text.lower()).split()
        line = [character for word in words for character in (*([self.space] * bool(self.space)), *word)]
        line = line[1:] if self.space else line
        found = [known.get(character, BLANK) for character in line]
        return np.array(found, np.int32) if found and BLANK not in found else None

    def write(self, found: np.ndarray) -> list[str]:
        """Turn numbers of symbols into the symbols; special ones, as <unk>, are left out."""
        marks = [self.symbols[number] for number in found]
        return [mark for mark in marks if len(mark) == 1]


def read_ctc(files: Mapping[str, bytes]) -> CtcLayer | None:
    """Read a CTC layer from the files beside a model; None where there is none, or its symbols are not known.

    Raises:
        InputError: the files are damaged.
    """
    if ARRAYS not in files or SYMBOLS not in files:
        return None
    kernel, bias, symbols = stored(files)
    if symbols is None:
        return None
    blank = blank_of(symbols)
    order = [blank, *(number for number in range(len(symbols)) if number != blank)]
    return CtcLayer(kernel[:, order], bias[order], tuple(symbols[number] for number in order))


def stored(files: Mapping[str, bytes]) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
    """Read kernel (width, symbols), bias and, where they are known, symbols as they stand beside a model.

    Raises:
        InputError: the files are damaged.
    """
    try:
        arrays = safetensors.numpy.load(files[ARRAYS])
        symbols = named(parsed(files[SYMBOLS], SYMBOLS), SYMBOLS)["symbols"]
        kernel = arrays["kernel"].astype(np.float32)
        bias = arrays.get("bias", np.zeros(kernel.shape[-1])).astype(np.float32)
        _check(kernel, bias, symbols)
        return kernel, bias, symbols
    except Exception as error:  # safetensors raises its own kind
        raise InputError(f"{ARRAYS} or {SYMBOLS} beside the model: damaged ({error}); convert it again") from error


def _check(kernel: np.ndarray, bias: np.ndarray, symbols: list[str] | None) -> None:
    """Raise ValueError unless a layer has a column, a bias and, where they are known, a text for each symbol."""
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or not bias.size:
        raise ValueError(f"a kernel of shape {kernel.shape}, a bias of {bias.shape}")
    if symbols is not None:
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise ValueError("symbols that are no list of texts")
        if len(symbols) != len(bias):
            raise ValueError(f"{len(symbols)} symbols for {len(bias)} outputs")
    if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise ValueError("weights that are NaN or infinite")


def blank_of(symbols: Sequence[str]) -> int:
    """Return which of a layer's symbols, by column, is the blank: the one called so, else the first."""
    return next((symbols.index(name) for name in BLANKS if name in symbols and symbols[0] != "<s>"), 0)


@jax.jit
def ctc_losses(
    kernel: Array, bias: Array, last: Array, frames: Array, labels: Array, counts: Array
) -> tuple[Array, Array]:
    """Return −log p of each utterance's symbols (nats), (batch,), and the best symbol of each frame, (batch, time).

    Args:
        kernel: of the layer.
        bias: of the layer.
        last: the encoder's output, (batch, time, width).
        frames: valid ones, (batch,).
        labels: (batch, symbols), padded.
        counts: valid ones, (batch,).
    """
    logits = last @ kernel + bias[None, None]
    padding = (jnp.arange(last.shape[1])[None] >= frames[:, None]).astype(jnp.float32)
    surplus = (jnp.arange(labels.shape[1])[None] >= counts[:, None]).astype(jnp.float32)
    return optax.ctc_loss(logits, padding, labels, surplus, blank_id=BLANK), logits.argmax(-1)


def padded(rows: Sequence[np.ndarray], *, to: int) -> np.ndarray:
    """Put rows of unequal length into one array, zeros behind them."""
    filled = np.zeros((len(rows), to, *rows[0].shape[1:]), rows[0].dtype)
    for place, row in zip(filled, rows, strict=True):
        place[: len(row)] = row
    return filled
