"""A checkpoint of another program as a model of ours: read, or written as a model folder."""

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from compress.errors import InputError
from jaxssl.convert import sources
from jaxssl.convert.config import Ctc, Source
from jaxssl.convert.naming import FLOATS, build, finite, own
from jaxssl.data.logmel import load_stats
from jaxssl.models import checkpoint
from jaxssl.models.arch import Arch, LogMel
from jaxssl.models.model import Params


@dataclass(frozen=True)
class Converted:
    """A model of another program, as ours.

    Attributes:
        kind: what wrote it.
        arch: what it is.
        params: the arrays, float32.
        extra: further files of the model's folder, name to content (the CTC layer and its symbols).
        left_behind: source names that are no part of the model.
        notes: what was assumed or is missing.
        provenance: kind, sha256 of the files, tool version, command.
    """

    kind: str
    arch: Arch
    params: Params
    extra: dict[str, bytes]
    left_behind: tuple[str, ...]
    notes: tuple[str, ...]
    provenance: dict[str, Any]


def read(
    path: str | Path, *, heads: int | None = None, config: Path | None = None, subnet: str | None = None
) -> Converted:
    """Read a checkpoint or folder of another program; only the model's own tensors are read from disk.

    Args:
        path: a file, or a Hugging Face folder.
        heads: attention heads, for a state dict or a fine-tuned fairseq file, which do not say.
        config: the .yaml of an ARMHuBERT, STaRHuBERT or FitHuBERT, where it is not beside the file.
        subnet: which subnet of a LightHuBERT, as JSON, the path of such a file or its name; default: the largest.

    Raises:
        InputError: it is unknown, damaged, hostile, of an unsupported model, or its names and shapes do not fit.
    """
    source = sources.describe(Path(path), heads=heads, config=config, subnet=subnet)
    with _digests(source) as provenance:
        return _converted(source, *_built(path, source), provenance())


def convert(
    path: str | Path,
    out: str | Path,
    *,
    stats: str | Path | None = None,
    overwrite: bool = False,
    heads: int | None = None,
    config: Path | None = None,
    subnet: str | None = None,
) -> Converted:
    """Convert a checkpoint into the folder `out`, which appears whole or not at all.

    Args:
        path: see `read`.
        out: a new folder.
        stats: mean and deviation of each Mel bin, (2, bins) in a .npy file, kept as `stats.npy`; for MelHuBERT.
        overwrite: replace a model that is there.
        heads: see `read`.
        config: see `read`.
        subnet: see `read`.

    Raises:
        InputError: see `read`; or `out` is taken, or `stats` do not fit.
        OSError: the folder cannot be written.
    """
    if not overwrite and Path(out).exists() and not (Path(out).is_dir() and not any(Path(out).iterdir())):
        raise InputError(f"{out}: already there; choose another folder, or --force to replace a model")
    source = sources.describe(Path(path), heads=heads, config=config, subnet=subnet)
    with _digests(source) as provenance:
        params, left, extra = _built(path, source, held=_for_writing)
        more = {} if stats is None else {"stats.npy": _stats(source.arch, Path(stats))}
        checkpoint.save(out, source.arch, params, provenance=provenance, extra=extra | more, overwrite=overwrite)
        return _converted(source, params, left, extra, provenance())


@contextmanager
def _digests(source: Source) -> Iterator[Callable[[], dict[str, Any]]]:
    """Find the provenance beside other work, for digests leave Python to other threads; give what waits for it."""
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(_provenance, source).result


def _built(
    path: str | Path, source: Source, held: Callable[[np.ndarray], Any] = own
) -> tuple[Params, tuple[str, ...], dict[str, bytes]]:
    params, left = build(source.arch, source.tensors, source.dialect, left=source.left, where=str(path), held=held)
    return params, left, _ctc_files(source.ctc, source.arch) if source.ctc else {}


def _converted(
    source: Source, params: Params, left: tuple[str, ...], extra: dict[str, bytes], provenance: dict[str, Any]
) -> Converted:
    return Converted(source.kind, source.arch, params, extra, left, source.notes, provenance)


def _for_writing(array: np.ndarray) -> Any:
    """Hold an array as the checkpoint's writer takes it: it copies NumPy's before it writes them, JAX's it does not.

    JAX also transposes faster.
    """
    try:
        place = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the processor out
        return own(array)
    return jax.device_put(array, place, may_alias=False)


def _ctc_files(ctc: Ctc, arch: Arch) -> dict[str, bytes]:
    width = arch.length_adapter.width if arch.length_adapter else arch.width
    _check_ctc(ctc, width)
    kernel = finite(ctc.kernel.read(), "the CTC layer's kernel")
    arrays = {"kernel": np.ascontiguousarray(kernel.T)}  # (width, symbols), as all our dense maps
    if ctc.bias is not None:
        arrays["bias"] = finite(ctc.bias.read(), "the CTC layer's bias")
    rows, symbols = arrays["kernel"].shape[1], ctc.symbols
    if symbols is not None and len(symbols) != rows:
        raise InputError(f"the CTC layer has {rows} outputs, its dictionary {len(symbols)} symbols")
    if odd := [symbol for symbol in symbols or () if not _is_text(symbol)]:
        raise InputError(f"{len(odd)} of the CTC layer's {rows} symbols are no text, first {odd[0]!a}; correct them")
    listed = json.dumps({"symbols": symbols}, ensure_ascii=False, indent=1) + "\n"
    return {"ctc/ctc.safetensors": safetensors.numpy.save(arrays), "ctc/symbols.json": listed.encode()}


def _check_ctc(ctc: Ctc, width: int) -> None:
    """Refuse an output layer that is no map of a model `width` wide, before it is read."""
    rows = ctc.kernel.shape[0] if ctc.kernel.shape else 0
    wanted = {"kernel": (ctc.kernel, (rows, width)), "bias": (ctc.bias, (rows,))}
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and (tensor.shape != shape or rows < 1 or tensor.dtype not in FLOATS):
            raise InputError(
                f"the CTC layer's {name} is {tensor.dtype} {str(tensor.shape)[:60]}, which is no map of the model's "
                f"{width} numbers a frame to symbols; give the file as its program wrote it, or without this layer"
            )


def _is_text(symbol: str) -> bool:
    """Tell whether a symbol can be written down: half of a surrogate pair, which JSON and pickles can hold, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in symbol)


def _stats(arch: Arch, path: Path) -> bytes:
    bins = len(load_stats(path).mean)
    if not isinstance(arch.front, LogMel):
        raise InputError(f"{path}: statistics of {bins} Mel bins, but the model reads waveforms; leave out --stats")
    if bins != arch.front.bins:
        raise InputError(f"{path}: statistics of {bins} Mel bins, the model has {arch.front.bins}")
    return path.read_bytes()


def _provenance(source: Source) -> dict[str, Any]:
    return {
        "kind": source.kind,
        "files": {str(file): _sha256(file) for file in source.files},
        "notes": list(source.notes),
        "tool": f"convert_torch {_version()}",
        "command": shlex.join(sys.argv),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version() -> str:
    try:
        return metadata.version("jaxssl")
    except metadata.PackageNotFoundError:
        return "(not installed)"
