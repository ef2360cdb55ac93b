"""Write docs/families.md: what each family of models is read from, compressed by and exported to.

    python -m docs.families

What compresses a model and what it can be written as is asked of the code, with an architecture of each family.
`tests/test_families_page.py` fails while the page is stale, or a kind of Hugging Face folder stands in no row.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from compress.errors import InputError
from jaxssl.convert import to_dphubert, to_huggingface, to_torch
from jaxssl.models.arch import Adapter, Arch, LengthAdapter, ScaledConvolution, Waveform
from jaxssl.models.model import Params, shapes
from jaxssl.models.sites import axes, channels, matrices
from jaxssl.models.zoo import PRESETS

PAGE = Path(__file__).with_name("families.md")
INTRODUCTION = """\
# Families of models

What `tools.convert_torch` reads, which kinds of pruning a model then has (low rank, weights, blocks, int8, whole layers
and distillation are for all), and what `tools.export` writes it as. Compressed models are written as the same, unless
the format holds equal layers only (`huggingface`) or no low rank (`dphubert`). `stablehlo` is for all.
This page is written by `python -m docs.families`.
"""


@dataclass(frozen=True)
class Family:
    """A family as the page lists it.

    Attributes:
        name: of its models.
        read: from what.
        arch: one of its architectures.
        model_types: of the Hugging Face folders that are of this family.
    """

    name: str
    read: str
    arch: Arch
    model_types: tuple[str, ...] = ()


def _preset(name: str) -> Arch:
    """Return a preset with its first two layers, which are what the others are."""
    arch = PRESETS[name]()
    return replace(arch, layers=arch.layers[:2], head=None)


def _layered(arch: Arch) -> Arch:
    """Give an arch the extractor that LightHuBERT's files have, with a norm after every convolution."""
    return replace(arch, front=Waveform(norm="layer", normalize=True))


def _adapted(arch: Arch) -> Arch:
    return replace(arch, layers=tuple(replace(layer, adapter=Adapter(16)) for layer in arch.layers))


FAIRSEQ = "`.pt` of fairseq, Hugging Face folder, state dict"
ROWS = (
    Family("HuBERT, ContentVec", f"{FAIRSEQ}, s3prl, torchaudio", _preset("hubert-base"), ("hubert",)),
    Family(
        "HuBERT at 25 Hz (batch norm before positions)",
        "Hugging Face folder",
        replace(_preset("hubert-base"), position=ScaledConvolution(128, 16)),
        ("hubert",),
    ),
    Family("wav2vec 2.0, XLS-R", FAIRSEQ, _preset("xls-r-300m"), ("wav2vec2",)),
    Family("MMS with a language's adapters", "Hugging Face folder", _adapted(_preset("xls-r-300m")), ("wav2vec2",)),
    Family(
        "UniSpeech, UniSpeech-SAT", "Hugging Face folder", _preset("unispeech-sat-base"), ("unispeech", "unispeech-sat")
    ),
    Family(
        "WavLM", "Microsoft's `.pt`, Hugging Face folder, state dict, torchaudio", _preset("wavlm-base"), ("wavlm",)
    ),
    Family("data2vec-audio", FAIRSEQ, _preset("data2vec-audio-base"), ("data2vec-audio",)),
    Family(
        "wav2vec 2.0, WavLM or data2vec with a length adapter (`add_adapter`)",
        "Hugging Face folder",
        replace(_preset("xls-r-300m"), length_adapter=LengthAdapter(1024)),
        ("wav2vec2", "wavlm", "data2vec-audio"),
    ),
    Family("Mamba HuBERT, one direction", "`.pt` of its fork of fairseq", _preset("mamba-hubert-base")),
    Family("DistilHuBERT", "`.ckpt` of s3prl, Hugging Face folder", _preset("distilhubert"), ("hubert",)),
    Family(
        "DPHuBERT", "its `.pth`", replace(_preset("dphubert"), front=replace(_preset("dphubert").front, scaled=True))
    ),
    Family(
        "DPWavLM", "its `.pth`", replace(_preset("wavlm-base"), front=replace(_preset("wavlm-base").front, scaled=True))
    ),
    Family("LightHuBERT, any subnet", "its `.pt`", _layered(_preset("lighthubert-small"))),
    Family("ARMHuBERT, MaskHuBERT, STaRHuBERT", "Lightning `.ckpt` with `.yaml`", _preset("armhubert")),
    Family("FitHuBERT with time reduction", "Lightning `.ckpt` with `.yaml`", _preset("fithubert")),
    Family(
        "Whisper's encoder",
        "folder of Hugging Face or CTranslate2, OpenAI's `.pt`",
        _preset("whisper-tiny"),
        ("whisper",),
    ),
    Family("MelHuBERT", "`.ckpt` of the study", _preset("melhubert-20ms")),
)


def filled(arch: Arch) -> Params:
    """Return parameters of ones that take no memory."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(1), leaf.shape), shapes(arch))


def compressed_by(arch: Arch) -> list[str]:
    """Name the units of an architecture that can go."""
    names = {axis.name.rpartition("/")[2] for axis in axes(arch)}
    words = {"heads": "heads", "hidden": "feed-forward units", "inner": "scanned channels"}
    found = [word for name, word in words.items() if name in names]
    assert matrices(arch)  # low rank, blocks and int8 are said to be for all
    return [*found, *(["channels"] if channels(arch) else [])]


def exported_to(arch: Arch) -> list[str]:
    """Name the forms of tools.export that an architecture can be written in, stablehlo left out."""
    params = filled(arch)
    writers: dict[str, Callable[[], Any]] = {
        "torch": lambda: to_torch.state(arch, params, None),
        "onnx, onnx-int8": lambda: to_torch.state(arch, params, None),
        "huggingface-code": lambda: to_torch.state(arch, params, None),
        "huggingface": lambda: to_huggingface.folder(arch, params),
        "dphubert": lambda: to_dphubert.state(arch, params),
    }
    return [name for name, write in writers.items() if _writes(write)]


def _writes(write: Callable[[], Any]) -> bool:
    try:
        write()
    except InputError:
        return False
    return True


def page() -> str:
    """Return the page."""
    rows = [
        f"| {each.name} | {each.read} | {', '.join(compressed_by(each.arch))} | {', '.join(exported_to(each.arch))} |"
        for each in ROWS
    ]
    head = ("| family | is read from | loses | is written as |", "|---|---|---|---|")
    return "\n".join((INTRODUCTION, *head, *rows, ""))


if __name__ == "__main__":
    PAGE.write_text(page())
