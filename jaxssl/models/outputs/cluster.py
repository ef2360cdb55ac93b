"""MelHuBERT's pre-training output: one linear map to cluster logits."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from flax import nnx
from jax import Array

from jaxssl.models.dense import Dense
from jaxssl.models.keys import Keys
from jaxssl.models.layers import uniform_init
from jaxssl.models.names import dense_rules
from jaxssl.models.part import Map, Names, check_counts


@dataclass(frozen=True)
class ClusterHead:
    """Logits of `clusters` clusters."""

    clusters: int
    kind: Literal["cluster"] = "cluster"

    names: ClassVar[Names] = {"fairseq": dense_rules("final_proj", "head/project"), "huggingface": ()}

    @property
    def sets(self) -> tuple[int, ...]:
        """Sizes of the label sets that it tells apart."""
        return (self.clusters,)

    def check(self) -> None:
        """Refuse no clusters, by InputError."""
        check_counts("head", clusters=self.clusters)

    def build(self, width: int, *, rngs: Keys) -> "ClusterLogits":
        """Make the module."""
        return ClusterLogits(self, width, rngs=rngs)


class ClusterLogits(nnx.Module):
    """Computes `ClusterHead`."""

    def __init__(self, part: ClusterHead, width: int, *, rngs: Keys):
        outer = uniform_init(width)
        spec = Map("project", (width,), (part.clusters,))
        self.project = Dense(spec, kernel_init=outer, bias_init=outer, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Map `x: (batch, time, width)` to (batch, time, clusters)."""
        return self.project(x)
