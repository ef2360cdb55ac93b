"""A fine-tuned model's CTC layer in PyTorch's layout, and as transformers' …ForCTC and its tokenizer have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.errors import InputError
from jaxssl.convert.huggingface import FAMILIES, OUTPUT
from jaxssl.training.ctc_layer import SPACES, blank_of, stored

UNKNOWN = ("<unk>", "[UNK]")


@dataclass(frozen=True)
class Outputs:
    """A CTC layer as PyTorch has it.

    Attributes:
        weight: (symbols, width) float32.
        bias: (symbols,) float32.
        symbols: of each row; None: not known.
        blank: the blank's row.
    """

    weight: np.ndarray
    bias: np.ndarray
    symbols: tuple[str, ...] | None
    blank: int

    def told(self) -> dict[str, Any]:
        """Return what a configuration says of it."""
        return {"outputs": len(self.bias), "symbols": self.symbols and [*self.symbols], "blank": self.blank}


def outputs(files: Mapping[str, bytes]) -> Outputs:
    """Read the layer from its files, as they stand beside a model (`jaxssl.training.ctc_layer`).

    Raises:
        InputError: they are damaged.
    """
    kernel, bias, symbols = stored(files)
    weight = np.ascontiguousarray(kernel.T)
    return Outputs(weight, bias, None if symbols is None else tuple(symbols), blank_of(symbols) if symbols else 0)


def with_ctc(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], layer: Outputs
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return config.json and the tensors of a folder of `to_huggingface`, with a CTC layer.

    Raises:
        InputError: there is no class for such a model with a CTC layer.
    """
    family = str(config["model_type"])
    if family not in FAMILIES:
        raise InputError(f"transformers has no {family} model with a CTC layer; remove ctc/ from the model's folder")
    whole = {f"{family.replace('-', '_')}.{name}": array for name, array in tensors.items()}
    whole |= dict(zip(OUTPUT, (layer.weight, layer.bias), strict=True))
    said = {"architectures": [f"{FAMILIES[family]}ForCTC"], "vocab_size": len(layer.bias), "pad_token_id": layer.blank}
    return {**config, **said}, whole


def tokenizer(layer: Outputs) -> dict[str, dict[str, Any]]:
    """Return the files of transformers' Wav2Vec2CTCTokenizer, by name; none where symbols are not known."""
    if layer.symbols is None:
        return {}
    known = {"word_delimiter_token": SPACES, "unk_token": UNKNOWN, "bos_token": ("<s>",), "eos_token": ("</s>",)}
    special = {name: next((mark for mark in marks if mark in layer.symbols), None) for name, marks in known.items()}
    plain = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": layer.symbols[layer.blank], "do_lower_case": False}
    return {
        "vocab.json": {symbol: number for number, symbol in enumerate(layer.symbols)},
        "tokenizer_config.json": {**plain, **special},
    }
