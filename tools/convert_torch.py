"""Turn a PyTorch checkpoint into a model folder, without PyTorch and without running what the file contains.

    python tools/convert_torch.py CHECKPOINT OUT [--verify AUDIO …]

CHECKPOINT is a file of fairseq (HuBERT, wav2vec 2.0, fine-tuned or not), of s3prl or of the MelHuBERT study (pruned or
not), or a Hugging Face folder of HubertModel or HubertForCTC. OUT gets `arch.json`, `params/`, `provenance.json`, and
`ctc/` where the model was fine-tuned.
"""

import hashlib
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: find this project's packages beside tools/, not inside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import safetensors.numpy
import tyro

from compress.address import flatten
from compress.errors import InputError
from jaxssl.data.logmel import load_stats
from jaxssl.models import checkpoint
from jaxssl.models.arch import Arch, LogMel
from jaxssl.models.model import Params
from jaxssl.models.torch_names import build
from tools import sources
from tools.cli import guarded


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


def read(path: str | Path, *, heads: int | None = None) -> Converted:
    """Read a checkpoint or folder of another program; only the model's own tensors are read from disk.

    Args:
        path: a file, or a Hugging Face folder.
        heads: attention heads, for a fine-tuned fairseq file that does not say.

    Raises:
        InputError: it is unknown, damaged, hostile, of an unsupported model, or its names and shapes do not fit.
    """
    source = sources.describe(Path(path), heads=heads)
    params, left = build(source.arch, source.tensors, source.rules, left=source.left, where=str(path))
    return Converted(
        kind=source.kind,
        arch=source.arch,
        params=params,
        extra=_ctc_files(source.ctc) if source.ctc else {},
        left_behind=left,
        notes=source.notes,
        provenance=_provenance(source),
    )


def convert(
    path: str | Path,
    out: str | Path,
    *,
    stats: str | Path | None = None,
    overwrite: bool = False,
    heads: int | None = None,
) -> Converted:
    """Convert a checkpoint into the folder `out`, which appears whole or not at all.

    Args:
        path: see `read`.
        out: a new folder.
        stats: mean and deviation of each Mel bin, (2, bins) in a .npy file, kept as `stats.npy`; for MelHuBERT.
        overwrite: replace a model that is there.
        heads: see `read`.

    Raises:
        InputError: see `read`; or `out` is taken, or `stats` do not fit.
        OSError: the folder cannot be written.
    """
    if not overwrite and Path(out).exists() and not (Path(out).is_dir() and not any(Path(out).iterdir())):
        raise InputError(f"{out}: already there; choose another folder, or --force to replace a model")
    converted = read(path, heads=heads)
    extra = converted.extra | ({} if stats is None else {"stats.npy": _stats(converted.arch, Path(stats))})
    checkpoint.save(
        out, converted.arch, converted.params, provenance=converted.provenance, extra=extra, overwrite=overwrite
    )
    return converted


def _ctc_files(ctc: sources.Ctc) -> dict[str, bytes]:
    arrays = {"kernel": np.ascontiguousarray(ctc.kernel.read().T)}  # (width, symbols), as all our dense maps
    if ctc.bias is not None:
        arrays["bias"] = ctc.bias.read()
    rows, symbols = arrays["kernel"].shape[1], ctc.symbols
    if symbols is not None and len(symbols) != rows:
        raise InputError(f"the CTC layer has {rows} outputs, its dictionary {len(symbols)} symbols")
    listed = json.dumps({"symbols": symbols}, ensure_ascii=False, indent=1) + "\n"
    return {"ctc/ctc.safetensors": safetensors.numpy.save(arrays), "ctc/symbols.json": listed.encode()}


def _stats(arch: Arch, path: Path) -> bytes:
    bins = len(load_stats(path).mean)
    if not isinstance(arch.front, LogMel):
        raise InputError(f"{path}: statistics of {bins} Mel bins, but the model reads waveforms; leave out --stats")
    if bins != arch.front.bins:
        raise InputError(f"{path}: statistics of {bins} Mel bins, the model has {arch.front.bins}")
    return path.read_bytes()


def _provenance(source: sources.Source) -> dict[str, Any]:
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


@dataclass(frozen=True)
class Options:
    """Convert a PyTorch checkpoint into a model folder.

    Attributes:
        checkpoint: a .pt or .ckpt file, or a Hugging Face folder.
        out: the new folder.
        force: replace the model that is in OUT.
        stats: MelHuBERT's mean and deviation of each Mel bin (.npy, 2 × 40), to keep with the model.
        heads: attention heads, for fine-tuned fairseq files that do not say.
        verify: audio to run through the source's own framework and ours; the differences are printed.
    """

    checkpoint: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    force: bool = False
    stats: Path | None = None
    heads: int | None = None
    verify: tuple[Path, ...] = ()


def run(options: Options) -> None:
    """Convert, report, and verify where asked.

    Raises:
        InputError: see `convert`; or verification was asked for and not possible, or failed.
    """
    converted = convert(
        options.checkpoint, options.out, stats=options.stats, overwrite=options.force, heads=options.heads
    )
    print("\n".join(_report(converted, options.out)))
    if options.verify:
        from tools import verify  # only here: it looks for other frameworks

        for line in verify.compare(options.checkpoint, converted, options.verify, stats=options.stats):
            print(line)


def _report(converted: Converted, out: Path) -> list[str]:
    layers = Counter((layer.heads, layer.ffn) for layer in converted.arch.layers)
    shape = ", ".join(f"{count} of {heads} heads and {ffn} FFN units" for (heads, ffn), count in layers.items())
    arrays = flatten(converted.params)
    total = sum(array.size for array in arrays.values())
    return [
        f"{converted.kind}: width {converted.arch.width}; layers: {shape}",
        f"kept {len(arrays)} arrays, {total:,} parameters",
        *(f"left behind: {name}" for name in converted.left_behind),
        *(f"note: {note}" for note in converted.notes),
        *(f"beside the model: {name}" for name in converted.extra),
        f"written to {out}",
    ]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code, see `tools.cli.guarded`."""
    options = tyro.cli(Options, args=args)
    return guarded(lambda: run(options), options.out)


if __name__ == "__main__":
    sys.exit(main())
