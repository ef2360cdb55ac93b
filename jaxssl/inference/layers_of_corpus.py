"""Hidden states of a prepared corpus: a layer of any model, utterance by utterance."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError
from jaxssl.data.audio import SAMPLE_RATE, read
from jaxssl.data.prepared import PERIOD_MS, Prepared
from jaxssl.inference.source import Model, load_model
from jaxssl.models.arch import Arch, LogMel, Waveform
from jaxssl.models.model import apply

STEP, LONGEST = 5, 30  # seconds: utterances are padded to multiples of STEP and cut at LONGEST, so few programs do


@dataclass(frozen=True)
class Hidden:
    """A layer of a model over a corpus.

    Attributes:
        model: where it came from.
        layer: 0 is the input of the first layer.
        period_ms: time from one frame to the next.
        vectors: utterance → (frames, width) float32.
        digest: sha256 of the model's arrays.
        notes: lines a reader should see.
        centres: the model's own k-means centres of that layer, when they were asked for.
    """

    model: str
    layer: int
    period_ms: int
    vectors: Callable[[int], np.ndarray]
    digest: bytes
    notes: tuple[str, ...]
    centres: np.ndarray | None = None


@dataclass(frozen=True)
class Front:
    """How a model reads its input: an output frame sees `field` steps of it, the next one `hop` later.

    Attributes:
        hop: input steps from one frame to the next.
        field: input steps that a frame sees.
        rate: input steps a second.
    """

    hop: int
    field: int
    rate: int


def hidden(spec: str, corpus: Prepared, *, seed: int = 0) -> Hidden:
    """Load the model that `spec`, MODEL:LAYER, names, and make its layer a function of the utterance.

    MODEL:own is the layer, with the centres, that made the model's own training targets; some models bring them.
    Log-Mel models read the corpus's features, others its audio. Beyond 30 s an utterance is cut, and its parts do not
    see each other.

    Raises:
        InputError: no such model or layer.
    """
    place, colon, number = spec.rpartition(":")
    if not colon or not place or not (number.isdecimal() or number == "own"):
        raise InputError(f"--labels {spec}: not logmel, mfcc, MODEL:LAYER, as runs/stage1:8, or MODEL:own")
    model = load_model(place, seed=seed)
    if number == "own" and model.labeller is None:
        raise InputError(f"--labels {spec}: this model does not say how its targets were made; name a layer")
    layer = model.labeller.layer if number == "own" and model.labeller else int(number)
    centres = model.labeller.centres if number == "own" and model.labeller else None
    if layer > len(model.arch.layers):
        raise InputError(f"--labels {spec}: the model has layers 1 to {len(model.arch.layers)}, and 0, their input")
    front = _front(model.arch)
    period, rest = divmod(1000 * front.hop, front.rate)
    if rest:
        per_second = front.rate / front.hop
        raise InputError(f"--labels {spec}: {per_second:g} frames a second are not one each whole ms; take another")
    read_inputs, notes = _inputs(model, corpus)
    vectors = _vectors(model, layer, front, read_inputs)
    return Hidden(place, layer, period, vectors, _digest(model), (*model.notes, *notes), centres)


def _digest(model: Model) -> bytes:
    arrays = jax.tree.leaves(model.params) + ([] if model.stats is None else [model.stats.mean, model.stats.std])
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.asarray(array).tobytes())
    return digest.digest()


def _front(arch: Arch) -> Front:
    more = arch.time_reduction  # a convolution of as many taps
    if isinstance(arch.front, LogMel):
        return Front(more, more, 1000 // (PERIOD_MS * arch.front.stack))
    front = _receptive(arch.front)
    return Front(front.hop * more, front.field + (more - 1) * front.hop, front.rate)


def _receptive(front: Waveform) -> Front:
    hop, field = 1, 1
    for conv in front.convs:
        field, hop = field + (conv.kernel - 1) * hop, hop * conv.stride
    return Front(hop, field, SAMPLE_RATE)


def _inputs(model: Model, corpus: Prepared) -> tuple[Callable[[int], np.ndarray], tuple[str, ...]]:
    front = model.arch.front
    if not isinstance(front, LogMel):
        return lambda i: read(corpus.manifest.utterances[i].path).samples, ()
    notes = () if model.stats else ("the model came without stats.npy: the corpus's statistics normalise its input",)
    return lambda i: corpus.inputs(i, stack=front.stack, stats=model.stats), notes


def _vectors(
    model: Model, layer: int, front: Front, inputs: Callable[[int], np.ndarray]
) -> Callable[[int], np.ndarray]:
    @jax.jit
    def encode(params: dict, x: Array, lengths: Array) -> Array:
        return apply(model.arch, params, x, lengths).hidden[layer]

    def vectors(i: int) -> np.ndarray:
        parts = []
        for piece, frames in pieces(inputs(i), front):
            padded = np.zeros((-(-len(piece) // (STEP * front.rate)) * STEP * front.rate, *piece.shape[1:]), np.float32)
            padded[: len(piece)] = piece
            found = encode(model.params, jnp.asarray(padded[None]), jnp.asarray([len(piece)], jnp.int32))
            parts.append(np.asarray(found)[0, :frames])  # not found[0, :frames]: a program for each length
        return np.concatenate(parts)

    return vectors


def pieces(inputs: np.ndarray, front: Front) -> Iterator[tuple[np.ndarray, int]]:
    """Cut inputs where they are longer than 30 s, so that no frame is lost; yield (inputs, frames)."""
    total = (len(inputs) - front.field) // front.hop + 1
    most = (LONGEST * front.rate - front.field) // front.hop + 1
    for first in range(0, total, most):
        frames = min(most, total - first)
        yield inputs[first * front.hop : (first + frames - 1) * front.hop + front.field], frames
