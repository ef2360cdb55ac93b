"""What the original tools computed, as our trees, and the comparison with it."""

import json
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from compress.address import flatten
from jaxssl.convert.naming import build


@dataclass(frozen=True)
class Array:
    """A golden array, as the converter's tables take it."""

    value: np.ndarray

    @property
    def shape(self):
        return self.value.shape

    @property
    def dtype(self):
        return str(self.value.dtype)

    def read(self):
        return self.value.astype(np.float32)


def recorded(folder):
    """Read what a tool computed, each array under all the names that it has."""
    arrays = dict(np.load(folder / "golden.npz"))
    aliases = json.loads(str(arrays.pop("aliases_json", "{}")))
    return arrays | {name: arrays[kept] for name, kept in aliases.items() if kept in arrays}


def utterances(shared):
    """Read the two utterances that all tools heard, the second shorter."""
    arrays = np.load(shared / "encoders/inputs.npz")
    return [arrays["raw_0"].astype(np.float32), arrays["raw_1"].astype(np.float32)]


def together(waves):
    """Put two utterances into one padded batch; return it and their lengths."""
    padded = np.stack([waves[0], np.pad(waves[1], (0, len(waves[0]) - len(waves[1])))])
    return padded, np.array([len(wave) for wave in waves], np.int32)


def tree(arch, arrays, prefix, *, left=()):
    """Turn `<prefix><PyTorch name>` entries of a golden file into a parameter tree."""
    tensors = {name.removeprefix(prefix): Array(arrays[name]) for name in arrays.files if name.startswith(prefix)}
    return build(arch, tensors, "fairseq", left=left, where="golden gradients")[0]


def batch(arrays, index):
    """Return (inputs, lengths, labels) of a stored MelHuBERT batch; labels are −1 where padded."""
    lengths = arrays[f"len_{index}"].astype(np.int32)
    valid = np.arange(arrays[f"y_{index}"].shape[1]) < lengths[:, None]
    labels = np.where(valid, arrays[f"y_{index}"], -1).astype(np.int32)
    return jnp.asarray(arrays[f"x_{index}"]), jnp.asarray(lengths), jnp.asarray(labels)


def meets(found, wanted, *, rtol=0.0, atol=0.0, lengths=None):
    """Assert that arrays are those of a golden file; a failure names the array, the worst entry and both numbers.

    `found` has arrays by name or path, every one of which `wanted` has too. With `lengths`, valid frames of each row,
    frames behind them are nobody's, and a golden array may hold the first frames only.
    """
    wanted = wanted if hasattr(wanted, "files") else flatten(wanted)
    for name, ours in flatten(found).items():
        assert name in wanted, f"{name}: no such golden array"
        ours, theirs = np.atleast_1d(np.asarray(ours)), np.atleast_1d(np.asarray(wanted[name]))
        if lengths is None:
            _meets(name, ours, theirs, rtol, atol)
            continue
        for row, length in enumerate(np.minimum(lengths, theirs.shape[1])):
            _meets(f"{name}, row {row}", ours[row, :length], theirs[row, :length], rtol, atol)


def _meets(name, ours, theirs, rtol, atol):
    assert ours.shape == theirs.shape, f"{name}: shape {ours.shape}, golden {theirs.shape}"
    if not ours.size:
        return
    beyond = np.abs(ours.astype(np.float64) - theirs) - (atol + rtol * np.abs(theirs.astype(np.float64)))
    beyond = np.where(np.isnan(beyond), np.inf, beyond)
    at = tuple(int(i) for i in np.unravel_index(beyond.argmax(), beyond.shape))
    count = f"{(beyond > 0).sum()} of {beyond.size} entries differ"
    worst = f"most at {at}: {ours[at]:.9g}, golden {theirs[at]:.9g} (rtol {rtol:g}, atol {atol:g})"
    assert beyond[at] <= 0, f"{name}: {count}, {worst}"
