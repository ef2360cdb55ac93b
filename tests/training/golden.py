"""Parameters and gradients of the original tools, as our trees."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

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
