"""Checkpoints of other programs, described: which kind a path holds, its arch, its tensors by their own names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from compress.errors import InputError
from jaxssl.convert import (
    armhubert,
    bare_state,
    distilhubert,
    dphubert,
    fairseq,
    huggingface,
    lighthubert,
    melhubert,
    pickle_reader,
    wavlm,
    whisper,
)
from jaxssl.convert.config import Ctc, Source
from jaxssl.convert.stand_ins import entries

__all__ = ["Ctc", "Source", "describe"]

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")  # of files that may be PyTorch's


def describe(path: Path, *, heads: int | None = None, config: Path | None = None, subnet: str | None = None) -> Source:
    """Recognise and describe a checkpoint; no weights are read.

    Args:
        path: a file, or a folder of Hugging Face's or with one such file.
        heads: attention heads, where the source does not say.
        config: the configuration of a checkpoint that has it in a file apart.
        subnet: which subnet of a supernet, as JSON or a file of it.

    Raises:
        InputError: there is nothing, or nothing that is known; the message says what it is instead.
    """
    source = _recognised(path, heads, config, subnet)
    if config is not None and config not in source.files:
        raise InputError(f"{path}: {source.kind} has its configuration with it; leave out --config")
    if subnet is not None and source.kind != lighthubert.KIND:
        raise InputError(f"{path}: {source.kind} is one model, with no subnets; leave out --subnet")
    return source


def _recognised(path: Path, heads: int | None, config: Path | None, subnet: str | None) -> Source:
    if (path / "model.bin").is_file():
        return whisper.of_ctranslate2(path)
    if path.is_dir():
        return _in_folder(path, heads, config, subnet)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_file():
        raise InputError(f"{path}: no plain file; a pipe or device cannot be searched through, copy it into a file")
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: this file alone does not say what model it is; give its folder, with config.json")
    state = entries(pickle_reader.load(path))
    match state:
        case {"Upstream_Config": _, "model": _}:
            return melhubert.describe(path, state)
        case {"Distiller": _, "Config": _}:
            return distilhubert.describe(path, state)
        case {"state_dict": _} if armhubert.known(state):
            return armhubert.describe(path, state, config=config)
        case {"dims": _, "model_state_dict": _}:
            return whisper.of_openai(path, state)
        case {"state_dict": _, "config": _}:
            return dphubert.describe(path, state)
        case {"model_weight": _, "model_cfg": _}:
            return fairseq.describe(path, state)
        case {"model": _, "cfg": _} if lighthubert.known(state):
            return lighthubert.describe(path, state, subnet=subnet)
        case {"model": _, "cfg": _} if wavlm.holds(state):
            return wavlm.describe(path, state)
        case {"model": _, "cfg": _} | {"model": _, "args": _}:
            return fairseq.describe(path, state, heads=heads)
    if bare_state.known(state):
        return bare_state.describe(path, state, heads=heads)
    raise InputError(f"{path}: a PyTorch file, but no checkpoint that is known here; it holds {_summary(state)}")


def _summary(state: Mapping[str, object]) -> str:
    names = ", ".join(list(state)[:5])
    return f"{len(state)} entries ({names}{', …' if len(state) > 5 else ''})" if state else "no dict"


def _in_folder(folder: Path, heads: int | None, config: Path | None, subnet: str | None) -> Source:
    """Describe what a folder holds: Hugging Face's model where there is one, else the one file that is a model.

    Raises:
        InputError: no file is a model, or several are.
    """
    files = sorted(each for each in folder.iterdir() if each.suffix in SUFFIXES and each.is_file())
    if huggingface.complete(folder) or not files:
        source = huggingface.describe(folder)
        rest = [each for each in files if each not in source.files]
        beside = [each for each in rest if each.name in huggingface.WEIGHTS or _tried([each], heads, config, subnet)[0]]
        return replace(source, notes=(*source.notes, *(f"not read: {each.name}, a model too" for each in beside)))
    found, errors = _tried(files, heads, config, subnet)
    if not found:
        raise errors[0]
    if len(found) > 1:
        names = ", ".join(each.files[0].name for each in found)
        raise InputError(f"{folder}: {len(found)} of its {len(files)} files are models ({names}); give one of them")
    taken = f"of the folder's {len(files)} files {found[0].files[0].name} was taken"
    notes = (taken, *(f"not taken: {error}" for error in errors)) if len(files) > 1 else ()
    return replace(found[0], notes=(*found[0].notes, *notes))


def _tried(
    files: Sequence[Path], heads: int | None, config: Path | None, subnet: str | None
) -> tuple[list[Source], list[InputError]]:
    """Describe files; return those that are models, and why others are not."""
    found, errors = [], []
    for file in files:
        try:
            found.append(_recognised(file, heads, config, subnet))
        except InputError as error:
            errors.append(error)
    return found, errors
