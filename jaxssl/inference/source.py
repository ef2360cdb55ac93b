"""The model and the speech an experiment works on, from whatever the user named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from jaxssl import pretrained
from jaxssl.data import embedded
from jaxssl.data.audio import SAMPLE_RATE, find, read, resampling_notes
from jaxssl.data.logmel import Stats, collect, load_stats, logmel, windows
from jaxssl.data.padding import Padded, pad
from jaxssl.inference.specialise import dequantized
from jaxssl.models import checkpoint, choice
from jaxssl.models.arch import Arch, LogMel
from jaxssl.models.model import Params, init
from jaxssl.models.sites import matrices
from jaxssl.models.zoo import PRESETS
from jaxssl.pretrained import Labeller
from jaxssl.runtime.cli import follow


@dataclass(frozen=True)
class Model:
    """A model to work on.

    Attributes:
        name: as reports print it.
        arch: what `params` is.
        params: its arrays.
        stats: mean and deviation of its log-Mel features, where they are known.
        trained: false for fresh random weights.
        notes: lines a reader of the report should see.
        labeller: how its training targets are made on any speech, where it makes them itself.
        targets: name of the model that makes its training targets (`experiments.prepare --labels NAME:own`): its own,
            or that of the model which it was compressed from; None where that is not known.
        place: what `load_model` finds it by.
        codewords: place of the model whose codewords are its training targets, where it was compressed from one; None:
            its own, where it has an output layer.
        ctc: files of the CTC layer that it was fine-tuned with, by their names in a model's folder.
    """

    name: str
    arch: Arch
    params: Params
    stats: Stats | None
    trained: bool
    notes: tuple[str, ...] = ()
    labeller: Labeller | None = None
    targets: str | None = None
    place: str | None = None
    codewords: str | None = None
    ctc: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Speech:
    """Speech to work on, as padded batches.

    Attributes:
        calibration: what activation-aware decompositions see.
        held_out: what errors are measured on; other utterances, where there are two or more.
        notes: lines a reader of the report should see.
    """

    calibration: tuple[Padded, ...]
    held_out: tuple[Padded, ...]
    notes: tuple[str, ...]


def load_model(place: str | None, *, seed: int) -> Model:
    """Load a model folder, the one model of a run folder, a model of the package, or a foreign checkpoint, converted.

    With no place: the package's trained MelHuBERT. The name of a preset that is no trained model gives random weights.

    Raises:
        InputError: nothing that can be loaded is there.
    """
    if place is None or (place in pretrained.names() and not Path(place).exists()):
        name = place or pretrained.DEFAULT
        found = pretrained.read(name)
        return Model(name, found.arch, found.params, found.stats, True, (), found.labeller, name, name)
    if place in PRESETS and not Path(place).exists():
        arch = PRESETS[place]()
        note = f"weights are random ({place}, seed {seed}): quality columns mean nothing"
        return Model(f"{place} (random)", arch, init(arch, jax.random.key(seed)), None, False, (note,), place=place)
    folder = _model_folder(Path(place))
    if folder is None:
        return _convert(Path(place))
    arch, params = checkpoint.load(folder)
    stats = load_stats(folder / "stats.npy") if (folder / "stats.npy").is_file() else None
    origin = checkpoint.provenance(folder)
    ctc = {f"ctc/{file.name}": file.read_bytes() for file in sorted((folder / "ctc").glob("*"))}
    return Model(
        str(place),
        arch,
        params,
        stats,
        True,
        targets=origin.get("targets"),
        place=str(place),
        codewords=origin.get("codewords"),
        ctc=ctc,
    )


def in_float(model: Model) -> Model:
    """Make all weights float32, as what prunes, factorises and trains takes them, and say so where they were not."""
    arch, params = dequantized(model.arch, model.params)
    if model.arch == arch and all(x is y for x, y in zip(*map(jax.tree.leaves, (params, model.params)), strict=True)):
        return model
    forms = ["int8"] * any(each.int8 for each in (*matrices(model.arch), *model.arch.front.convolutions()))
    forms += ["bfloat16"] * any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(model.params))
    note = f"weights that are {' and '.join(forms)} in {model.name} are float32 here, rounded as they were"
    return replace(model, arch=arch, params=params, notes=(*model.notes, note))


def load_speech(places: Sequence[str], *, limit: int, batch: int | None = None, seconds: float = 10.0) -> Speech:
    """Read speech: `limit` utterances at most, evenly spread over what is there, every second one held out.

    With no places: the embedded corpus. All are padded to one length, so that one compiled program serves them, and so
    only the first `seconds` of each are taken. `batch` utterances run together; None: as many as suit the device.
    """
    files = find(places) if places else [u.path for u in embedded.make().utterances]
    spread = np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int)
    chosen = [files[i] for i in np.unique(spread)]
    heard = [read(file) for file in follow(chosen, "reading speech", total=len(chosen))]
    notes = resampling_notes(heard)
    where = "" if places else " of the embedded corpus"
    heard_of = f"{len(chosen)} of {len(files)} utterances{where}, the first {seconds:g} s of each"
    notes.append(f"speech: {heard_of}; every second held out")
    signals = [speech.samples[: round(seconds * SAMPLE_RATE)] for speech in heard]
    if len(signals) < 2:
        notes.append("one utterance only: errors are on the same speech that calibrated")
    together = choice.together() if batch is None else batch
    return Speech(_batches(signals[::2], together), _batches(signals[1::2] or signals, together), tuple(notes))


def with_stats(model: Model, speech: Speech) -> Model:
    """Give a log-Mel model that came without feature statistics those of the calibration speech, and say so."""
    if not isinstance(model.arch.front, LogMel) or model.stats is not None:
        return model
    front = model.arch.front
    features = (
        row[: windows(int(length))]
        for samples, lengths in speech.calibration
        for row, length in zip(np.asarray(logmel(samples, bins=front.bins)), lengths, strict=True)
    )
    note = "log-Mel statistics: from the calibration audio, for the model came with none (stats.npy)"
    return replace(model, stats=collect(features), notes=(*model.notes, note))


def _batches(signals: Sequence[np.ndarray], batch: int) -> tuple[Padded, ...]:
    """Pad all signals to one length, so that a model compiles once, twice when the last batch is smaller."""
    samples, lengths = pad(signals)
    starts = range(0, len(signals), batch)
    return tuple((jnp.asarray(samples[i : i + batch]), jnp.asarray(lengths[i : i + batch])) for i in starts)


def _model_folder(place: Path) -> Path | None:
    if checkpoint.is_model(place):
        return place
    models = sorted(p for p in (place / "models").glob("*") if checkpoint.is_model(p))
    if len(models) > 1:
        raise InputError(f"{place}: this run holds {len(models)} models, name one: {', '.join(map(str, models))}")
    return models[0] if models else None


def _convert(place: Path) -> Model:
    from jaxssl.convert.conversion import read as convert  # only when needed: most runs read our own folders

    found = convert(place)
    note = f"{place} is of another program ({found.kind}); it was converted for this run, tools.convert_torch keeps it"
    ctc = {name: content for name, content in found.extra.items() if name.startswith("ctc/")}
    return Model(place.name, found.arch, found.params, None, True, (note, *found.notes), place=str(place), ctc=ctc)
