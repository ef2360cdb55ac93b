"""Checkpoints of other programs, described: which kind a path holds, its arch, its tensors by their own names."""

from collections.abc import Mapping
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
)
from jaxssl.convert.config import Ctc, Source
from jaxssl.convert.stand_ins import entries

__all__ = ["Ctc", "Source", "describe"]


def describe(path: Path, *, heads: int | None = None, config: Path | None = None, subnet: str | None = None) -> Source:
    """Recognise and describe a checkpoint; no weights are read.

    Args:
        path: a file, or a Hugging Face folder.
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
    if path.is_dir():
        return huggingface.describe(path)
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
