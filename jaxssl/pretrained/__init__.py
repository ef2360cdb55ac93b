"""Models that come with the package: small, trained, half precision on disk.

jaxssl/pretrained/NAME/
arch.json             what the arrays are
weights.safetensors   float16
stats.npy             mean and deviation of its log-Mel features
labeller.npz          the layer and k-means centres that make its training targets on any speech
CARD.md               data, commands, time, numbers, licence
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load, save

from compress.address import flatten, unflatten
from compress.errors import InputError
from jaxssl.data.arrays import read_arrays
from jaxssl.data.logmel import Stats, load_stats, stats_bytes
from jaxssl.models import arch_json
from jaxssl.models.arch import Arch
from jaxssl.models.checks import check_finite, check_pieces
from jaxssl.models.model import Params, check_params
from jaxssl.runtime.files import read_object

HERE = Path(__file__).parent
DEFAULT = "melhubert-mini-whisper"


@dataclass(frozen=True)
class Labeller:
    """How to make a model's training targets on new speech: the nearest centre to a layer's output.

    Attributes:
        layer: of the model; 0 is the input of its first layer.
        centres: (clusters, width) float32.
    """

    layer: int
    centres: np.ndarray


@dataclass(frozen=True)
class Pretrained:
    """A model of the package, float32 in memory."""

    arch: Arch
    params: Params
    stats: Stats
    labeller: Labeller


def names() -> list[str]:
    """List the models that come with the package."""
    return sorted(path.parent.name for path in HERE.glob("*/arch.json"))


def read(name: str = DEFAULT) -> Pretrained:
    """Read a model of the package.

    Raises:
        InputError: there is none of that name, or its files are damaged.
    """
    if name not in names():
        raise InputError(f"no model {name!r} comes with this package; there are {', '.join(names()) or 'none'}")
    folder = HERE / name
    arch = arch_json.from_json(read_object(folder / "arch.json"))
    try:
        halves = load((folder / "weights.safetensors").read_bytes())
    except Exception as error:  # safetensors raises its own kind
        raise InputError(f"{folder / 'weights.safetensors'}: damaged ({error}); install the package again") from error
    params = unflatten({path: jnp.asarray(leaf, jnp.float32) for path, leaf in halves.items()})
    check_pieces(arch, params)
    check_params(arch, params)
    check_finite(params, str(folder))
    found = read_arrays(folder / "labeller.npz", "layer", "centres")
    if found["layer"].shape or found["centres"].ndim != 2:
        raise InputError(f"{folder / 'labeller.npz'}: no layer and centres of k-means; install the package again")
    labeller = Labeller(int(found["layer"]), found["centres"].astype(np.float32))
    return Pretrained(arch, params, load_stats(folder / "stats.npy"), labeller)


def files(model: Pretrained) -> dict[str, bytes]:
    """Return the files that `read` reads, by name; parameters are rounded to float16."""
    with np.errstate(over="ignore"):  # told below, with its name
        halves = {path: np.asarray(leaf, np.float16) for path, leaf in flatten(model.params).items()}
    if lost := [path for path, leaf in halves.items() if not np.isfinite(leaf).all()]:
        raise InputError(f"{lost[0]}: beyond float16's 65504, and so are {len(lost)} arrays; train it again")
    labeller = io.BytesIO()
    np.savez(labeller, layer=model.labeller.layer, centres=model.labeller.centres.astype(np.float16))
    return {
        "arch.json": (json.dumps(arch_json.to_json(model.arch), indent=1) + "\n").encode(),
        "weights.safetensors": save(halves),
        "stats.npy": stats_bytes(model.stats),
        "labeller.npz": labeller.getvalue(),
    }
