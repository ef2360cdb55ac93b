"""The output layers: what a frame is taken for, among clusters or codewords."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

from jaxssl.models.arch import Arch, ClusterHead, CosineHead
from jaxssl.models.layers import Dense, uniform_init


class ClusterLogits(nnx.Module):
    """MelHuBERT's output layer."""

    def __init__(self, arch: Arch, head: ClusterHead, *, rngs: nnx.Rngs):
        outer = uniform_init(arch.width)
        self.project = Dense((arch.width,), (head.clusters,), kernel_init=outer, bias_init=outer, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.project(x)


class CosineLogits(nnx.Module):
    """HuBERT's output: cosine of the projected frame to every codeword, over the temperature (HuBERT, eq. 3)."""

    def __init__(self, arch: Arch, head: CosineHead, *, rngs: nnx.Rngs):
        self.head = head
        outer, sets = uniform_init(arch.width), len(head.codewords) if head.untied else 1
        self.project = Dense((arch.width,), (sets * head.size,), kernel_init=outer, bias_init=outer, rngs=rngs)
        self.codewords = nnx.Param(initializers.uniform(1.0)(rngs.params(), (sum(head.codewords), head.size)))

    def __call__(self, x: Array) -> Array:
        sets = len(self.head.codewords)
        projected = jnp.split(self.project(x), sets, -1) if self.head.untied else [self.project(x)] * sets
        bounds = [sum(self.head.codewords[:i]) for i in range(1, sets)]
        codewords = jnp.split(self.codewords[...].astype(x.dtype), bounds)
        cosines = [_unit(p) @ _unit(c).T for p, c in zip(projected, codewords, strict=True)]
        return jnp.concatenate(cosines, -1) / self.head.temperature


def _unit(x: Array) -> Array:
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
    return (x.astype(jnp.float32) / jnp.maximum(norm, 1e-8)).astype(x.dtype)
