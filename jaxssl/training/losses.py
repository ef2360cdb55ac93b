"""What training minimises: functions of a model's output and what it should have been.

A loss returns the value to differentiate and the numbers to report. Reports come as sums and counts, so that batches
of unequal size average rightly: `Report.mean`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from compress.errors import InputError
from jaxssl.models.layers import frame_mask
from jaxssl.models.model import Output
from jaxssl.models.part import Padding

Sums = dict[str, tuple[Array, Array]]  # name: sum over what was counted, and the count


@dataclass(frozen=True)
class MaskedPrediction:
    """Predict each frame's cluster: softmax cross-entropy over the logits, whichever head gave them.

    The value is the mean over counted frames of −log p(label), plus `penalty` times the mean square of the extractor's
    output (fairseq's HuBERT criterion divided by its sample size; with the defaults, MelHuBERT's loss). With several
    label sets, their losses are summed.

    Attributes:
        clusters: size of each label set; they divide the logits.
        masked: weight of frames that were hidden from the model.
        unmasked: weight of the other valid frames.
        penalty: weight of the extractor's mean square (HuBERT: 10).
        padding: "independent" leaves padding out of the penalty; "fairseq" takes it in.
    """

    clusters: tuple[int, ...]
    masked: float = 1.0
    unmasked: float = 0.0
    penalty: float = 0.0
    padding: Padding = "independent"

    def __call__(self, output: Output, labels: Array, mask: Array) -> tuple[Array, Sums]:
        """Compare `output.logits: (batch, frames, clusters)` with `labels`.

        Args:
            output: of the model.
            labels: (batch, frames) or (batch, frames, sets), the cluster of each frame; −1 where unknown or padded.
            mask: (batch, frames), true where a frame was hidden.

        Returns:
            The loss, and what to report: `loss`, `masked_loss`, `masked_accuracy`, `unmasked_accuracy`.
        """
        labels = labels[..., None] if labels.ndim == 2 else labels
        _check(output, labels, self.clusters)
        valid = frame_mask(output.last_lengths, labels.shape[1])
        value, sums = jnp.zeros((), jnp.float32), dict[str, tuple[Array, Array]]()
        assert output.logits is not None
        for i, logits in enumerate(by_set(output.logits, self.clusters)):
            target = labels[..., i]
            counted = valid & (target >= 0)
            missed, correct = surprise(logits, target)
            weights = jnp.where(mask, self.masked, self.unmasked) * counted.astype(jnp.float32)
            count = (weights > 0).sum().astype(jnp.float32)
            value = value + ratio((weights * missed).sum(), count)
            sums |= _sums(f"_{i}" if i else "", missed, correct, counted & mask, counted & ~mask)
        if self.penalty and output.extracted is not None:
            value = value + self.penalty * self._square(output)
        return value, {"loss": (value, jnp.ones((), jnp.float32)), **sums}

    def _square(self, output: Output) -> Array:
        assert output.extracted is not None
        x = output.extracted.astype(jnp.float32)
        if self.padding != "independent":
            return jnp.square(x).mean()
        joined = x.shape[1] // output.last.shape[1]  # frames of the extractor that became one
        valid = frame_mask(joined * output.last_lengths, x.shape[1])[..., None]
        return jnp.square(x).mean(where=valid)


def masked_by_row(output: Output, labels: Array, mask: Array, clusters: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Sum −log p of the labels of hidden frames, and how many were right, in each row; label sets add up.

    Arguments as `MaskedPrediction`. Returns the sums, the right ones and the frames counted, each (batch,) float32.
    """
    assert output.logits is not None
    labels = labels[..., None] if labels.ndim == 2 else labels
    valid = frame_mask(output.last_lengths, labels.shape[1]) & mask
    total = [jnp.zeros(labels.shape[0])] * 3
    for i, logits in enumerate(by_set(output.logits, clusters)):
        missed, correct = surprise(logits, labels[..., i])
        counted = valid & (labels[..., i] >= 0)
        each = missed.sum(1, where=counted), (correct & counted).sum(1), counted.sum(1)
        total = [one + more.astype(jnp.float32) for one, more in zip(total, each, strict=True)]
    return total[0], total[1], total[2]


def means(sums: Mapping[str, tuple[Array, Array]]) -> dict[str, float]:
    """Divide each sum by its count; what was never counted is left out."""
    return {name: float(total) / float(count) for name, (total, count) in sums.items() if float(count) > 0}


def add(one: Mapping[str, tuple[Array, Array]], two: Mapping[str, tuple[Array, Array]]) -> Sums:
    """Add up two batches' sums and counts."""
    return {name: (one[name][0] + two[name][0], one[name][1] + two[name][1]) for name in one}


def by_set(logits: Array, clusters: tuple[int, ...]) -> list[Array]:
    """Split `logits: (batch, time, clusters)` into those of each label set, in float32."""
    bounds = np.cumsum(clusters)[:-1].tolist()
    return jnp.split(logits.astype(jnp.float32), bounds, -1)


def surprise(logits: Array, target: Array) -> tuple[Array, Array]:
    """Return −log p of each target, and whether it was the likeliest; both (batch, frames)."""
    target = jnp.maximum(target, 0)[..., None]
    logs = jax.nn.log_softmax(logits)
    missed = -jnp.take_along_axis(logs, target, -1)[..., 0]
    return missed, logits.argmax(-1) == target[..., 0]


def _sums(suffix: str, missed: Array, correct: Array, masked: Array, unmasked: Array) -> Sums:
    def over(values: Array, frames: Array) -> tuple[Array, Array]:
        return values.astype(jnp.float32).sum(where=frames), frames.sum().astype(jnp.float32)

    return {
        f"masked_loss{suffix}": over(missed, masked),
        f"masked_accuracy{suffix}": over(correct, masked),
        f"unmasked_accuracy{suffix}": over(correct, unmasked),
    }


def ratio(total: Array, count: Array) -> Array:
    """Divide; 0 where nothing was counted."""
    return total / jnp.maximum(count, 1)


def _check(output: Output, labels: Array, clusters: tuple[int, ...]) -> None:
    if output.logits is None:
        raise InputError("the model has no output layer to predict clusters with; give its arch a head")
    if (found := output.logits.shape[-1]) != sum(clusters):
        raise InputError(f"the labels have {sum(clusters)} clusters, the model's output {found}; they must be equal")
    if labels.shape[-1] != len(clusters):
        raise InputError(f"{labels.shape[-1]} label set(s) are given, {len(clusters)} are expected")
    if labels.shape[1] != output.logits.shape[1]:
        raise InputError(f"{labels.shape[1]} label frames, {output.logits.shape[1]} output frames; align them first")
