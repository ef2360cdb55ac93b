"""What labels are clustered from: log-Mel, MFCC, or a layer of any model, which hears several utterances at once."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from compress.errors import InputError
from jaxssl.data.audio import read
from jaxssl.data.labels import Vectors
from jaxssl.data.logmel import Stats, stats_bytes
from jaxssl.data.mfcc import mfcc
from jaxssl.data.prepared import PERIOD_MS, Prepared
from jaxssl.inference.encode import LONGEST, Layers, encode_all, timing
from jaxssl.inference.source import Model, load_model
from jaxssl.models.arch import Arch, LogMel

STEP = 5  # seconds: utterances are padded to multiples of it, so that few programs do
SILENCE = 16_000  # samples behind speech, for a model that learned from windows which speech did not fill


@dataclass(frozen=True)
class Source:
    """Something to cluster.

    Attributes:
        name: as labels are called, but for the number of clusters.
        about: as the labels' description calls it.
        vectors: utterances → each one's number and frames, (frames, width) float32, in any order.
        period_ms: time from one frame to the next.
        digest: of the model or the statistics they come from.
        centres: to take instead of fitting new ones: the model's own, where they were asked for.
        near: whether a distance to a centre means something; not of an output layer's answers.
        notes: lines a reader should see.
    """

    name: str
    about: str
    vectors: Vectors
    period_ms: int
    digest: bytes = b""
    centres: np.ndarray | None = None
    near: bool = True
    notes: tuple[str, ...] = ()

    def of(self, utterance: int) -> np.ndarray:
        """Return the frames of one utterance, (frames, width) float32."""
        return next(self.vectors([utterance]))[1]


def source_of(spec: str, corpus: Prepared, *, period: int, stats: Stats | None, seed: int) -> Source:
    """Find what `--labels` names: logmel, mfcc, or what a model says (`layer_source`).

    Args:
        spec: as on the command line.
        corpus: whose utterances are labelled.
        period: ms from one label to the next; log-Mel frames are joined to it.
        stats: of another corpus, to normalise log-Mel by; None: the corpus's own.
        seed: of a model with random weights.

    Raises:
        InputError: no such model or layer.
    """
    if spec == "logmel":
        stack = period // PERIOD_MS
        about = "log-Mel, normalised" + f", {stack} frames joined" * (stack > 1)
        digest = stats_bytes(stats or corpus.stats)
        return Source(spec, about, _each(lambda i: corpus.inputs(i, stack=stack, stats=stats)), period, digest)
    if spec == "mfcc":
        paths = [utterance.path for utterance in corpus.manifest.utterances]
        return Source(spec, "MFCC", _each(lambda i: mfcc(read(paths[i]).samples)), PERIOD_MS)
    return layer_source(spec, corpus, seed=seed)


def _each(one: Callable[[int], np.ndarray]) -> Vectors:
    return lambda numbers: ((i, one(i)) for i in numbers)


def layer_source(spec: str, corpus: Prepared, *, seed: int = 0) -> Source:
    """Load the model that `spec`, MODEL:LAYER, names, and make its layer a function of the utterance.

    MODEL:own is the layer, with the centres, that made the model's own training targets; some models bring them.
    MODEL:head is what the model's output layer answers.

    Raises:
        InputError: no such model or layer.
    """
    place, colon, number = spec.rpartition(":")
    if not colon or not place or not (number.isdecimal() or number in ("own", "head")):
        what = "not logmel, mfcc, MODEL:LAYER, as runs/stage1:8, MODEL:own or MODEL:head"
        raise InputError(f"--labels {spec}: {what}")
    which = int(number) if number.isdecimal() else number
    return model_source(load_model(place, seed=seed), which, corpus, place=place)


def model_source(
    model: Model, which: int | str, corpus: Prepared, *, place: str, together: int | None = None
) -> Source:
    """Make what a model says of an utterance a function of the utterance.

    Log-Mel models read the corpus's features, others its audio. Beyond 30 s an utterance is cut, and its parts do not
    see each other.

    Args:
        model: which listens; nothing is hidden from it.
        which: number of a layer; "own": the layer, with the centres, that made the model's own training targets;
            "head": its own codewords, the one that its output layer holds most likely at each frame.
        corpus: whose utterances are labelled.
        place: what the model is called.
        together: utterances, of similar length, that it hears at once; None: what suits the device.

    Raises:
        InputError: it has no such layer.
    """
    spec = f"{place}:{which}"
    if which == "own" and model.labeller is None:
        raise InputError(f"--labels {spec}: this model does not say how its targets were made; name a layer")
    if which == "head" and model.arch.head is None:
        raise InputError(f"--labels {spec}: this model has no output layer; name a hidden one, as {place}:1")
    own = model.labeller if which == "own" else None
    layer: Layers = "logits" if which == "head" else own.layer if own else int(which)
    if isinstance(layer, int) and layer > len(model.arch.layers):
        raise InputError(f"--labels {spec}: the model has layers 1 to {len(model.arch.layers)}, and 0, their input")
    how = timing(model.arch)
    period, rest = divmod(1000 * how.hop, how.rate)
    if rest:
        per_second = how.rate / how.hop
        raise InputError(f"--labels {spec}: {per_second:g} frames a second are not one each whole ms; take another")
    late, grid = _late(model.arch, period)
    read_inputs, notes = _inputs(model, corpus, silence=SILENCE if late else 0)
    edges = [seconds * how.rate for seconds in range(STEP, LONGEST + STEP, STEP)]

    # The weights as they are: labels must not depend on what a device runs fastest.
    encode = partial(encode_all, layers=layer, batch=together, edges=edges, longest=LONGEST, prepare=False)

    def vectors(numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        with ThreadPoolExecutor() as pool:  # audio is decoded outside of Python
            inputs = list(pool.map(read_inputs, numbers))
        for place, found in encode(model.arch, model.params, inputs):
            i = numbers[place]
            yield i, found[late : late + grid.frames(corpus.manifest.utterances[i].samples)] if late else found

    about = f"codewords of {place}" if which == "head" else f"layer {layer} of {place}"
    codewords = None if model.arch.head is None else np.eye(sum(model.arch.head.sets), dtype=np.float32)
    return Source(
        f"{Path(place).stem}-{which}",
        about + f", from its frame {late} on" * bool(late),
        vectors,
        period,
        fingerprint(model),
        codewords if which == "head" else own.centres if own else None,  # the nearest unit vector is the largest logit
        near=which != "head",
        notes=(*model.notes, *notes),
    )


def fingerprint(model: Model) -> bytes:
    """Name what a model says of speech: its arrays and statistics."""
    digest = hashlib.sha256()
    for array in jax.tree.leaves((model.params, model.stats)):
        digest.update(np.asarray(array).tobytes())
    return digest.digest()


def _late(arch: Arch, period: int) -> tuple[int, LogMel]:
    """Return the frame whose middle is nearest to that of the first label, and the log-Mel frames that labels are of.

    Labels belong to log-Mel's windows, the first of which has its middle at 17.5 ms where they come each 20 ms. The
    frames of convolutions that begin with the waveform are within half a frame of these. Whisper's have their middles
    at 0, 20, 40 ms …: its second frame is 2.5 ms behind the first label, its first one 17.5 ms before it.
    """
    grid = LogMel(stack=max(period // PERIOD_MS, 1))
    how = timing(arch, features=False)
    middle = arch.front.centre + (arch.joined - 1) * arch.front.samples[0] / 2
    return max(round((grid.centre - middle) / how.hop), 0), grid


def _inputs(model: Model, corpus: Prepared, *, silence: int) -> tuple[Callable[[int], np.ndarray], tuple[str, ...]]:
    front = model.arch.front
    if not isinstance(front, LogMel):
        return lambda i: np.pad(read(corpus.manifest.utterances[i].path).samples, (0, silence)), ()
    notes = () if model.stats else ("the model came without stats.npy: the corpus's statistics normalise its input",)
    return lambda i: corpus.inputs(i, stack=front.stack, stats=model.stats), notes
