"""HuBERT's pre-training output: the cosine of the projected frame to every codeword, over a temperature."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.nn import initializers

from compress.errors import InputError
from jaxssl.models.dense import Dense
from jaxssl.models.keys import Keys
from jaxssl.models.layers import uniform_init
from jaxssl.models.names import SAME, Rule, dense_rules
from jaxssl.models.part import Map, Names, check_counts


@dataclass(frozen=True)
class CosineHead:
    """Cosine to learned codewords, divided by `temperature` (HuBERT, eq. 3).

    Attributes:
        size: width of a codeword.
        codewords: how many of them each label set has; most models have one set.
        untied: whether each label set has a projection of its own.
    """

    size: int
    codewords: tuple[int, ...]
    untied: bool = True
    temperature: float = 0.1
    kind: Literal["cosine"] = "cosine"

    names: ClassVar[Names] = {
        "fairseq": (*dense_rules("final_proj", "head/project"), Rule("label_embs_concat", "head/codewords", SAME)),
        "huggingface": (),
    }

    @property
    def sets(self) -> tuple[int, ...]:
        """Sizes of the label sets that it tells apart."""
        return self.codewords

    def check(self) -> None:
        """Refuse no codewords, ones of no width, and a temperature that is none.

        Raises:
            InputError: the message says which.
        """
        check_counts("head", size=self.size, sets=len(self.codewords), codewords=min(self.codewords, default=0))
        if not 0 < self.temperature < math.inf:
            raise InputError(f"head: temperature is {self.temperature}; use more than 0")

    def build(self, width: int, *, rngs: Keys) -> "CosineLogits":
        """Make the module."""
        return CosineLogits(self, width, rngs=rngs)


class CosineLogits(nnx.Module):
    """Computes `CosineHead`."""

    def __init__(self, part: CosineHead, width: int, *, rngs: Keys):
        self.part = part
        outer, sets = uniform_init(width), len(part.codewords) if part.untied else 1
        spec = Map("project", (width,), (sets * part.size,))
        self.project = Dense(spec, kernel_init=outer, bias_init=outer, rngs=rngs)
        self.codewords = nnx.Param(initializers.uniform(1.0)(rngs.params(), (sum(part.codewords), part.size)))

    def __call__(self, x: Array) -> Array:
        """Map `x: (batch, time, width)` to (batch, time, codewords of all sets)."""
        sets = len(self.part.codewords)
        projected = jnp.split(self.project(x), sets, -1) if self.part.untied else [self.project(x)] * sets
        bounds = [sum(self.part.codewords[:i]) for i in range(1, sets)]
        codewords = jnp.split(self.codewords[...].astype(x.dtype), bounds)
        cosines = [_unit(p) @ _unit(c).T for p, c in zip(projected, codewords, strict=True)]
        return jnp.concatenate(cosines, -1) / self.part.temperature


def _unit(x: Array) -> Array:
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
    return (x.astype(jnp.float32) / jnp.maximum(norm, 1e-8)).astype(x.dtype)
