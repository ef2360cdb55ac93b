"""Checkpoints of other programs, and models of ours."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from jaxssl.convert import conversion
from jaxssl.data.logmel import Stats, stats_bytes
from jaxssl.inference.source import load_model
from jaxssl.models import checkpoint
from jaxssl.runtime import seal
from jaxssl.runtime.cli import console
from jaxssl.training import ctc_layer
from tests.archs import ARCHS, weights
from tests.fuzz import mutate
from tests.fuzz.spoil import Draw, Target, as_json, as_yaml, one_of
from tools import convert_torch


def checkpoints(data: Path) -> list[Target]:
    found = []
    for path in sorted((*data.glob("encoders/*/*.p*t*"), *data.glob("encoders/*/*.ckpt"), *data.glob("fairseq/*.pt"))):
        if path.stat().st_size < 4 << 20:
            heads = 4 if "torchaudio" in path.name else None
            beside = [path, *path.parent.glob("*.yaml")]
            edits: dict[str, Any] = {"file" + path.suffix: pytorch}
            edits |= {each.name: as_yaml for each in beside[1:]}
            found.append(
                Target(
                    f"checkpoint {path.stem}",
                    partial(_copied, beside, {path.name: "file" + path.suffix}),
                    one_of(edits),
                    partial(convert, name="file" + path.suffix, heads=heads),
                    2,
                )
            )
    supernet = data / "encoders/lighthubert/lighthubert_tiny.pt"
    if supernet.is_file():
        subnet = {
            "embed_dim": 64,
            "heads_num": [1] * 10,
            "ffn_embed": [64] * 10,
            "atten_dim": [64] * 10,
            "slide_wsz": ["global"] * 10,
        }

        def make(folder: Path) -> None:
            (folder / "subnet.json").write_text(json.dumps(subnet))

        found.append(
            Target(
                "subnet",
                make,
                one_of({"subnet.json": as_json}),
                lambda f: conversion.read(supernet, subnet=str(f / "subnet.json")),
            )
        )
    return found


def convert(folder: Path, name: str = "", heads: int | None = None) -> None:
    """Read a checkpoint, and print what the command prints; the writing alone is left out, which takes longest."""
    for line in convert_torch._report(conversion.read(folder / name, heads=heads), folder):
        console.print(line, markup=False)


def pytorch(content: bytes, draw: Draw) -> bytes:
    """Damage a file of torch.save's, in what it holds or as bytes."""
    if content[:2] != b"PK":
        return mutate.pickled(content, draw) if draw.randrange(3) else mutate.damaged(content, draw)
    return mutate.zipped(content, draw) if draw.randrange(3) else mutate.damaged(content, draw)


def folders(data: Path) -> list[Target]:
    kinds = {".json": as_json, ".safetensors": mutate.safetensors}
    found = []
    for folder in sorted(data.glob("encoders/hf_*")):
        names = [path for path in sorted(folder.iterdir()) if path.suffix in kinds]
        edits = {path.name: kinds[path.suffix] for path in names}
        found.append(Target(f"folder {folder.name}", partial(_copied, names, {}), one_of(edits), convert, 2))
    whole = data / "encoders/hf_wav2vec2_base_ctc"
    if whole.is_dir():
        edits = {"model.safetensors.index.json": as_json, "1.safetensors": mutate.safetensors, "config.json": as_json}
        found.append(Target("folder in shards", partial(_shards, whole), one_of(edits), convert, 2))
    return found


def _shards(whole: Path, folder: Path) -> None:
    arrays = safetensors.numpy.load_file(whole / "model.safetensors")
    parts = {f"{i}.safetensors": list(arrays)[i::2] for i in range(2)}
    for name, mine in parts.items():
        safetensors.numpy.save_file({each: arrays[each] for each in mine}, folder / name)
    names = {each: name for name, mine in parts.items() for each in mine}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    for each in whole.glob("*.json"):
        shutil.copyfile(each, folder / each.name)


def _copied(paths: list[Path], names: dict[str, str], folder: Path) -> None:
    for path in paths:
        shutil.copyfile(path, folder / names.get(path.name, path.name))


def models() -> list[Target]:
    names = ("base", "mel", "uneven", "student", "wavlm", "whisper", "convolution-stack", "scaled-convolution")
    return [Target(f"model {name}", partial(_save, name), _spoil_model, _open_model, 4) for name in names]


def _save(name: str, folder: Path) -> None:
    arch = ARCHS[name]
    kernel = np.zeros((arch.width, 3), np.float32)
    extra = {"ctc/ctc.safetensors": safetensors.numpy.save({"kernel": kernel, "bias": kernel[0]})}
    extra |= {"ctc/symbols.json": json.dumps({"symbols": ["<s>", "a", "|"]}).encode()}
    if name == "mel":
        extra["stats.npy"] = stats_bytes(Stats(np.zeros(5, np.float32), np.ones(5, np.float32)))
    told = {"kind": "made here", "notes": ["none"], "targets": "layer 1", "codewords": [9]}
    checkpoint.save(folder / "model", arch, weights(arch), provenance=told, extra=extra)


def _spoil_model(folder: Path, draw: Draw) -> int:
    model = folder / "model"
    stored = [path for path in sorted((model / "params").rglob("*")) if path.is_file()]
    edits: dict[str, Any] = {"arch.json": as_json, "provenance.json": as_json, "params/files.json": as_json}
    edits |= {"ctc/ctc.safetensors": mutate.safetensors, "ctc/symbols.json": as_json}
    if (model / "stats.npy").is_file():
        edits["stats.npy"] = mutate.npy
    if draw.randrange(2):
        return one_of({"arch.json": as_json} if draw.randrange(2) else edits)(model, draw)
    path = draw.choice(stored)  # arrays that their list says are whole
    content = path.read_bytes()
    is_json = content[:1] == b"{" and draw.randrange(2)
    path.write_bytes(as_json(content, draw) if is_json else mutate.damaged(content, draw))
    seal.seal(model / "params")
    return sum(each.stat().st_size for each in model.rglob("*") if each.is_file())


def _open_model(folder: Path) -> object:
    model = load_model(str(folder / "model"), seed=0)
    return ctc_layer.read_ctc(model.ctc), model.name
