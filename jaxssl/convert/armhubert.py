"""ARMHuBERT, MaskHuBERT, STaRHuBERT and FitHuBERT as Lightning wrote them: a .ckpt, and a .yaml of settings beside it.

All are students of one code. They differ in what they were taught, of which no array tells, but for heads: STaRHuBERT
learns from relations between frames and needs none (Jang et al. 2024).
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from compress.errors import InputError
from jaxssl.convert.config import Settings, Source, only_tensors, said_by, size
from jaxssl.convert.fairseq import arch_of, measure
from jaxssl.convert.naming import Tensor
from jaxssl.convert.stand_ins import entries
from jaxssl.models.arch import Arch, Attention, Layer

STUDENT = "student_model."
BLOCK = "distiller"  # of the yaml, in which the student's numbers are
LARGEST = 1 << 20  # bytes of a configuration
ENTRIES = 100_000  # of one, with its aliases written out
HEADS = r"(proj_head|final_proj|upsampler)\..*"  # what brings its layers to the teacher's width and rate
REDUCTION = "encoder.layers.0.weight"  # a convolution where others have their first layer
SUPPORTED = {"crop_seq_to_multiple": (1,)}
REDUCING = {"tr_layer_type": ("conv1d",), "tr_layer_index": (0,)}


def known(state: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint is one of these by the names of its arrays."""
    return any(str(name).startswith(STUDENT) for name in entries(state.get("state_dict")))


def describe(path: Path, state: Mapping[str, Any], *, config: Path | None = None) -> Source:
    """Describe a `.ckpt`; the teacher and the projections to its layers stay behind.

    Args:
        path: the file.
        state: what it holds.
        config: the configuration; default: the .yaml beside the file that its arrays fit.

    Raises:
        InputError: there is no configuration, or none that fits the arrays.
    """
    everything = only_tensors(path, entries(state["state_dict"]))
    mine = {name.removeprefix(STUDENT): each for name, each in everything.items() if name.startswith(STUDENT)}
    tensors = _counted(mine)
    yamls = [config] if config else _beside(path)
    arch, chosen, passed = _first_that_fits(path, tensors, yamls)
    notes = [f"configuration: {BLOCK} of {chosen}", "normalize is False: the student's code does not"]
    notes += [f"not taken, {reason}" for reason in passed]
    if left := len(everything) - len(mine):
        notes.append(f"{left} arrays of its teacher are left behind")
    headed = any(re.fullmatch(HEADS, name) for name in tensors)
    if headed:
        notes.append("the projections to the teacher's layers are left behind; its code's `x` is the last of them")
    return Source(
        kind="FitHuBERT" if arch.time_reduction > 1 else "ARMHuBERT" if headed else "STaRHuBERT",
        arch=arch,
        tensors=tensors,
        dialect="fairseq",
        left=(HEADS,),
        files=(path, chosen),
        notes=tuple(notes),
    )


def _counted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Count the layers from 0 also where the time reduction is in their list, as its first."""
    if REDUCTION not in tensors:
        return dict(tensors)

    def one_less(match: re.Match[str]) -> str:
        return f"encoder.layers.{int(match[1]) - 1}."

    outside = ("encoder.layers.0.weight", "encoder.layers.0.bias")
    return {
        name if name in outside else re.sub(r"^encoder\.layers\.([1-9]\d*)\.", one_less, name): tensor
        for name, tensor in tensors.items()
    }


def _beside(path: Path) -> list[Path]:
    """List the configurations in a checkpoint's folder, the one of its name first."""
    found = sorted(each for each in path.parent.iterdir() if each.suffix in (".yaml", ".yml") and each.is_file())
    if not found:
        raise InputError(
            f"{path}: its configuration is not in the file and no .yaml is beside it; copy {path.stem}.yaml, which is "
            f"published with the checkpoint and has a 'distiller' block, beside it, or {said_by(path, '--config FILE')}"
        )
    return sorted(found, key=lambda each: each.stem != path.stem)


def _first_that_fits(path: Path, tensors: Mapping[str, Tensor], yamls: list[Path]) -> tuple[Arch, Path, list[str]]:
    """Choose the first configuration that fits the arrays; say why not the others.

    Raises:
        InputError: none fits; or several do that are different models, and none has the checkpoint's name.
    """
    fitting: list[tuple[Arch, Path]] = []
    passed: list[InputError] = []
    for each in yamls:
        try:
            fitting.append((_arch(each, _block(each), tensors), each))
        except InputError as error:
            passed.append(error)
    if not fitting:
        raise passed[0]
    arch, chosen = fitting[0]
    others = [each for found, each in fitting[1:] if found != arch]
    if others and chosen.stem != path.stem:
        raise InputError(
            f"{path}: {chosen.name} and {others[0].name} beside it both fit its arrays and differ; "
            f"{said_by(path, '--config FILE')}"
        )
    reasons = [str(error) for error in passed] + [f"{each}: it fits too" for _, each in fitting[1:]]
    return arch, chosen, reasons


def _block(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; --config takes the .yaml that is published with the checkpoint")
    if path.stat().st_size > LARGEST:
        raise InputError(f"{path}: {path.stat().st_size} bytes are too many for a configuration")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # dates and numbers that are none
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())[:80]}); copy it again") from error
    if _grows(values):
        raise InputError(f"{path}: its aliases (*name) expand to over {ENTRIES} entries; write them out, or fewer")
    block = values.get(BLOCK) if isinstance(values, dict) else None
    if not isinstance(block, dict):
        raise InputError(f"{path}: it has no '{BLOCK}' block, so it is no configuration of a student")
    return block


def _grows(values: Any) -> bool:
    """Tell whether a configuration has too many entries with every alias written out, or one that holds itself."""
    waiting, count = [values], 0
    while waiting and count <= ENTRIES:
        each, count = waiting.pop(), count + 1
        waiting += each.values() if isinstance(each, dict) else each if isinstance(each, (list, tuple, set)) else ()
    return count > ENTRIES


def _arch(path: Path, block: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Arch:
    measured = {
        **measure(tensors),
        "enable_tr_layer": REDUCTION in tensors,
        "tr_reduce_factor": size(tensors, REDUCTION, 2),
    }
    settings = Settings(path, block, measured)
    if reduced := settings.get("enable_tr_layer", bool):
        settings.require(REDUCING)
    settings.require(SUPPORTED)
    arch = arch_of(settings, tensors, None)
    return replace(
        arch,
        layers=_layers(settings, tensors, arch.layers),
        time_reduction=settings.positive("tr_reduce_factor") if reduced else 1,
    )


def _layers(settings: Settings, tensors: Mapping[str, Tensor], plain: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Say which layers make attention maps, and which reuse those of the last that did."""
    there = [f"encoder.layers.{i}.self_attn.q_proj.weight" in tensors for i in range(len(plain))]
    makes = _pattern(settings, there)
    lends = [mine and not after for mine, after in zip(makes, [*makes[1:], True], strict=True)]
    return tuple(
        replace(layer, mixer=Attention(layer.attention.heads, layer.attention.head_dim, reuse=not mine, softened=lent))
        for layer, mine, lent in zip(plain, makes, lends, strict=True)
    )


def _pattern(settings: Settings, there: list[bool]) -> list[bool]:
    """Read `reuse_pattern`, in which True is a layer that makes its own maps, and compare it with the arrays."""
    said = settings.given.get("reuse_pattern")
    try:
        pattern = ast.literal_eval(said) if isinstance(said, str) and len(said) < 1000 else said
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        pattern = said
    if pattern is not None and list(pattern if isinstance(pattern, (list, tuple)) else [pattern]) != there:
        raise InputError(
            f"{settings.path}: reuse_pattern is {str(said)[:80]}, the layers with q_proj are {str(there)[:80]}"
        )
    return there
