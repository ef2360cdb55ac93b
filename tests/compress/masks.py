"""Parameters to be masked, and what all masks must obey."""

import numpy as np

from compress.address import flatten, unflatten
from jaxssl.models.model import shapes
from jaxssl.models.sites import entries


def lively(arch, seed=0, step=0.01):
    """Parameters whose magnitudes are often equal, as the biases of a fresh model are."""
    rng = np.random.default_rng(seed)
    leaves = {path: (rng.normal(size=s.shape) / step).round() * step for path, s in flatten(shapes(arch)).items()}
    return unflatten({path: leaf.astype(np.float32) for path, leaf in leaves.items()})


def whole(arch):
    return [[path for group in entries(arch) for path in group]]


def assert_grows(before, after):
    for path, mask in after.items():
        assert not (mask & ~before[path]).any(), path


def dropped(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


def lone(kernel):
    kernel = np.asarray(kernel, np.float32)
    return {"map": {"kernel": kernel, "bias": np.zeros(kernel.shape[1], np.float32)}}
