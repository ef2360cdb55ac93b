"""An output layer for a model that has none: softmax regression from its frozen frames to labels.

So a model without one, as most that others trained and published, can be trained by masked prediction and compared:
before and after compression it has the same layer, fitted in seconds.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from jaxssl.data.arrays import read_arrays
from jaxssl.data.batches import Batch
from jaxssl.inference.source import Model
from jaxssl.models.arch import Arch, ClusterHead
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Params, apply
from jaxssl.runtime import files
from jaxssl.runtime.cli import progress
from jaxssl.training.corpus import Data, hearing, loader
from jaxssl.training.label_source import fingerprint
from jaxssl.training.probe import regress
from jaxssl.training.settings import Training
from jaxssl.training.step import Arrays

FRAMES = 8192  # that a layer is fitted to: 100 classes of 768 numbers take ten seconds on two cores


def with_output_layer(
    model: Model,
    data: Data,
    training: Training,
    *,
    kept: Path,
    frames: int = FRAMES,
    hidden: bool = False,
    l2: Sequence[float] = (1e-3,),
) -> Model:
    """Give a model an output layer for the labels of some speech, fitted to its frozen frames; it says so in a note.

    It hears the speech as training has it, some frames hidden, and learns hidden and other frames alike, or the hidden
    ones alone. What was fitted once is read again, so that a run that was broken off goes on with the same.

    Args:
        model: without an output layer.
        data: labelled speech.
        training: how batches are made, and in which dtype they are heard.
        kept: folder for what was fitted.
        frames: that it is fitted to at most.
        hidden: learn hidden frames alone, on which masked prediction is measured.
        l2: regularisations; of several the one that does best on the last quarter of the frames, fitted to the others.

    Raises:
        InputError: the speech makes no batches, or the model's frames are not finite.
    """
    batches = _batches(data, training, frames, hidden)
    path = kept / f"{_digest(model, batches, training, (frames, hidden, *l2))}.npz"
    head = _read(path)
    if head is None:
        rows, labels = (part[:frames] for part in _heard(model, batches, training, hidden, hearing(model.arch, data)))
        with progress("fitting an output layer", len(l2) + (len(l2) > 1)) as tick:
            best = l2[0] if len(l2) == 1 else _choose(rows, labels, l2, classes=data.clusters, tick=tick)
            kernel, bias = regress(rows, labels, classes=data.clusters, l2=best)
            tick()
        files.write_arrays(path, {"kernel": kernel, "bias": bias})
        head = {"kernel": kernel, "bias": bias}
    note = f"an output layer of {data.clusters} clusters was fitted to frozen frames of {model.name}, which has none"
    return replace(
        model,
        arch=replace(model.arch, head=ClusterHead(data.clusters)),
        params={**model.params, "head": {"project": {name: jnp.asarray(leaf) for name, leaf in head.items()}}},
        notes=(*model.notes, note),
    )


def _choose(
    rows: np.ndarray, labels: np.ndarray, l2: Sequence[float], *, classes: int, tick: Callable[[], Any]
) -> float:
    """Return the regularisation with the least loss on the last quarter of the rows, fitted to those before."""
    cut, losses = len(rows) * 3 // 4, list[float]()
    for strength in l2:
        kernel, bias = regress(rows[:cut], labels[:cut], classes=classes, l2=strength)
        logs = jax.nn.log_softmax(jnp.asarray(rows[cut:] @ kernel + bias))
        losses.append(-float(np.asarray(logs)[np.arange(len(rows) - cut), labels[cut:]].mean()))
        tick()
    return l2[int(np.argmin(losses))]


def _batches(data: Data, training: Training, most: int, hidden: bool) -> list[Batch]:
    """Draw the first training batches, until their frames are enough."""
    with loader(data, training) as feed:
        drawn, frames = list[Batch](), 0
        for number in range(feed.steps):
            drawn.append(feed.batch(0, number))
            frames += int(_meant(drawn[-1], hidden).sum())
            if frames >= most:
                break
        return drawn


def _digest(model: Model, batches: list[Batch], training: Training, how: tuple[Any, ...]) -> str:
    digest = hashlib.sha256(fingerprint(model))
    digest.update(repr((model.arch, training.dtype, how)).encode())
    for batch in batches:
        for array in (batch.index, batch.lengths, batch.labels, batch.mask):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def _meant(batch: Batch, hidden: bool) -> np.ndarray:
    """Tell which frames have a label, of hidden ones alone or of all, (batch, frames)."""
    known = np.asarray(batch.labels) >= 0
    return known & np.asarray(batch.mask) if hidden else known


def _heard(
    model: Model, batches: list[Batch], training: Training, hidden: bool, taken: Callable[[Arrays], Arrays]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames that are meant, (frames, width) float32, and their labels, (frames,)."""
    frames, labels = list[np.ndarray](), list[np.ndarray]()
    run = partial(_last, model.arch, training.dtype, model.params)
    with progress("listening to fit", len(batches)) as tick:
        for batch in batches:
            given = taken(vars(batch))
            last, valid = map(np.asarray, run(given["inputs"], given["lengths"], batch.mask))
            known = valid & _meant(batch, hidden)
            frames.append(last[known])
            labels.append(batch.labels[known])
            tick()
    return np.concatenate(frames), np.concatenate(labels)


@partial(jax.jit, static_argnums=(0, 1))
def _last(arch: Arch, dtype: str, params: Params, inputs: Any, lengths: Any, mask: Any) -> tuple[Any, Any]:
    out = apply(arch, params, inputs, lengths, mask=mask, dtype=jnp.dtype(dtype))
    return out.last.astype(jnp.float32), frame_mask(out.last_lengths, mask.shape[1])


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """Read what was fitted; None where there is nothing, or nothing that is whole."""
    try:
        return read_arrays(path, "kernel", "bias")
    except InputError:
        return None
