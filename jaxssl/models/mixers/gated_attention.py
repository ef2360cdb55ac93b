"""Self-attention with WavLM's gated relative position bias, and the table of biases that all layers share.

With h the layer's input of `width` in slices of `head_dim`, one for each head that the model was made with, the score
of query q and key k in head n gets (Chen et al. 2022, section 3.1; as the published code computes it)

    gate[q, n] · table[bucket(k − q), n]
    gate = α (γ · constant_n − 1) + 2
    (α, γ) = σ(sums of four of the 8 entries of W h[q, n] + b)

where half of the buckets are for keys behind the query, and of a half again half for one distance each, the others
for distances that grow exponentially. W and b are the same for all heads of a layer.

A head reads its own slice whatever other heads there are, so heads keep their numbers when some are cut: the name of
the constants' array lists them (`compress.address.numbers`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.export import is_symbolic_dim
from jax.nn import initializers

from compress.address import numbered, numbers
from compress.errors import InputError
from jaxssl.models.attend import Added, attend
from jaxssl.models.dense import Dense
from jaxssl.models.held import Memory
from jaxssl.models.keys import Keys
from jaxssl.models.layers import KEPT, encoder_init
from jaxssl.models.mixers.attention import Attention
from jaxssl.models.names import SAME, Layout, Rule, dense_rules
from jaxssl.models.part import FULL, Arrays, Dropout, Form, Map, Names, Units, form_of

ENTRIES = 8  # of W h + b: four that make α, four that make γ
HEADS = Layout(
    lambda shape: (1, *shape, 1, 1), lambda array, shape: array.reshape(shape), lambda array: array[None, :, None, None]
)


@dataclass(frozen=True)
class RelativeBias:
    """A score for every distance of key and query and every head, before the gates.

    Attributes:
        heads: that the model was made with; it stays when heads are cut.
        buckets: of distances, on both sides together.
        max_distance: in frames, from which all distances are in one bucket.
    """

    heads: int
    buckets: int = 320
    max_distance: int = 800
    kind: Literal["relative_bias"] = "relative_bias"

    names: ClassVar[Names] = {
        "fairseq": (Rule(r"encoder\.layers\.0\.self_attn\.relative_attention_bias\.weight", "relative/table", SAME),),
        "huggingface": (Rule(r"encoder\.layers\.0\.attention\.rel_attn_embed\.weight", "relative/table", SAME),),
    }

    def check(self, width: int, mixers: Sequence[object]) -> None:
        """Refuse sizes that cannot be, and mixers that do not take the table or read slices that are not there.

        Raises:
            InputError: the message says which.
        """
        if self.buckets < 4 or self.max_distance <= self.buckets // 4:
            have = f"{self.buckets} buckets up to distance {self.max_distance}"
            raise InputError(f"relative: {have}; give 4 buckets or more, and a distance above a quarter of them")
        if self.heads < 1 or width % self.heads:
            raise InputError(f"relative: {self.heads} heads do not divide the width {width}, which their gates read")
        for i, mixer in enumerate(mixers):
            if not isinstance(mixer, GatedAttention):
                raise InputError(f"layers/{i}: passes no relative positions on; make every layer's attention gated")
            if max(mixer.remaining, default=0) >= self.heads or mixer.head_dim * self.heads != width:
                have = f"heads {list(mixer.remaining)} of {mixer.head_dim}"
                raise InputError(f"layers/{i}: {have}, beside a table of {self.heads} heads in a width of {width}")

    def build(self, *, rngs: Keys) -> "Table":
        """Make the module."""
        return Table(self, rngs=rngs)

    def read(self, arrays: Arrays) -> Self:
        """Return the table that these arrays are."""
        buckets, heads = arrays["table"].shape
        return replace(self, heads=heads, buckets=buckets)

    def scores(self, table: Array, frames: Any) -> Array:
        """Lay the table out: (heads, frames, frames), what head n's query q adds for key k before its gate.

        Args:
            table: (buckets, heads).
            frames: how many; may be symbolic.
        """
        values = jnp.asarray(table)[self.rows()].T  # by k − q + max_distance

        def at(apart: Array) -> Array:
            return values[:, jnp.clip(apart, -self.max_distance, self.max_distance) + self.max_distance]

        place = jnp.arange(frames)
        if is_symbolic_dim(frames):  # what follows would have to be sure that it takes no more than there is
            return at(place[None] - place[:, None])
        line = at(jnp.concatenate([place, place - frames]))
        # Read in lines one shorter than its period, it moves by one from query to query: no gather of frames².
        wide = jnp.broadcast_to(line[:, None], (self.heads, frames, 2 * frames)).reshape(self.heads, -1)
        wide = wide[:, : frames * (2 * frames - 1)].reshape(self.heads, frames, 2 * frames - 1)
        return wide[:, :, :frames]

    def rows(self) -> np.ndarray:
        """List the table's row for each distance from −max_distance to max_distance, in float32 as PyTorch does."""
        half, exact = self.buckets // 2, self.buckets // 4
        far = np.arange(self.max_distance + 1)
        grown = np.log(np.maximum(far, exact).astype(np.float32) / np.float32(exact))
        grown = grown / np.float32(math.log(self.max_distance / exact)) * np.float32(half - exact) + np.float32(exact)
        bucket = np.where(far < exact, far, np.minimum(grown.astype(np.int32), half - 1))
        return np.concatenate([bucket[:0:-1], bucket[:1], half + bucket[1:]]).astype(np.int32)


class Table(nnx.Module):
    """Computes `RelativeBias`."""

    def __init__(self, part: RelativeBias, *, rngs: Keys):
        self.part = part
        self.table = nnx.Param(encoder_init(rngs.params(), (part.buckets, part.heads)))

    def __call__(self, frames: Any) -> Array:
        """Return the scores of that many frames, (heads, frames, frames)."""
        return self.part.scores(self.table[...], frames)


@dataclass(frozen=True)
class GatedAttention:
    """Self-attention with gated relative positions; without heads it is its output's bias.

    Attributes:
        remaining: numbers of the heads, ascending; may be none. Number n reads slice n of the input.
        head_dim: size of one.
        q: form of the map to queries, (width,) to (heads, head_dim).
        k: the same to keys.
        v: the same to values.
        out: form of the map back, (heads, head_dim) to (width,).
    """

    remaining: tuple[int, ...]
    head_dim: int
    q: Form = FULL
    k: Form = FULL
    v: Form = FULL
    out: Form = FULL
    kind: Literal["gated_attention"] = "gated_attention"

    place: ClassVar = "attention"
    softened: ClassVar = False  # it lends no maps
    key_bias: ClassVar = True
    context: ClassVar = (None, None)  # every frame sees all others
    carries: ClassVar = False  # what it takes is the table's, of which every layer passes on all
    names: ClassVar[Names] = {
        "fairseq": (
            *Attention.names["fairseq"],
            *dense_rules(r"encoder\.layers\.(\d+)\.self_attn\.grep_linear", r"layers/\1/attention/gate"),
            Rule(r"encoder\.layers\.(\d+)\.self_attn\.grep_a", r"layers/\1/attention/gate/constant", HEADS),
        ),
        "huggingface": (
            *Attention.names["huggingface"],
            *dense_rules(r"encoder\.layers\.(\d+)\.attention\.gru_rel_pos_linear", r"layers/\1/attention/gate"),
            Rule(r"encoder\.layers\.(\d+)\.attention\.gru_rel_pos_const", r"layers/\1/attention/gate/constant", HEADS),
        ),
    }

    @property
    def heads(self) -> int:
        """How many there are."""
        return len(self.remaining)

    @property
    def empty(self) -> bool:
        """Whether it is but a bias."""
        return not self.remaining

    @property
    def constant(self) -> str:
        """Name of the array of what γ is multiplied by, one number a head."""
        return numbered("constant", self.remaining)

    def maps(self, width: int) -> tuple[Map, ...]:
        """List q, k, v and out."""
        return self._plain.maps(width)

    def units(self) -> tuple[Units, ...]:
        """List the heads, each with its constant."""
        return tuple(replace(units, arrays=((f"gate/{self.constant}", 0),)) for units in self._plain.units())

    def resized(self, name: str, size: int) -> Self:
        """Return the same with the first heads only, or with the first of those that are missing."""
        missing = (n for n in range(size + self.heads) if n not in self.remaining)
        more = (next(missing) for _ in range(size - self.heads))
        return replace(self, remaining=tuple(sorted((*self.remaining[:size], *more))))

    def core_macs(self, frames: int, width: int) -> int:
        """Count scores, weighted sums and what makes α and γ, whose entries are added up in the weights."""
        return self._plain.core_macs(frames, width) + frames * self.heads * self.head_dim * 2

    def activation_bytes(self, frames: int, itemsize: int, dropout: Dropout) -> float:
        """Return what attention leaves, and α, γ and the gate of every head."""
        return self._plain.activation_bytes(frames, itemsize, dropout) + 3 * itemsize * self.heads

    @staticmethod
    def fits(layer: Arrays) -> bool:
        """Tell whether the arrays of a layer have such a mixer among them."""
        return "gate" in layer.get("attention", {})

    def read(self, arrays: Arrays) -> Self:
        """Return the mixer that these arrays are."""
        (remaining,) = (units for name in arrays["gate"] if (units := numbers(name)) is not None)
        found: dict[str, Any] = {name: form_of(each) for name, each in arrays.items() if name != "gate"}
        return type(self)(remaining, arrays["v"]["bias"].shape[1], **found)

    def check(self, where: str, before: object) -> None:
        """Refuse numbers that are none, and a model without a table; `before`: the table or the mixer before.

        Raises:
            InputError: the message says which.
        """
        if (
            self.head_dim < 0
            or any(n < 0 for n in self.remaining)
            or self.remaining != tuple(sorted({*self.remaining}))
        ):
            raise InputError(f"{where}: heads {list(self.remaining)} of {self.head_dim}; numbers must ascend from 0")
        if not isinstance(before, RelativeBias | GatedAttention):
            raise InputError(f"{where}: gated attention, and no relative positions reach it; give the arch `relative`")

    ahead: ClassVar = 0

    def check_stream(self, where: str) -> None:
        """Refuse a stream.

        Raises:
            InputError: always.
        """
        raise InputError(f"{where}: gated attention sees all frames; use plain attention with left and right to stream")

    def memory(self, batch: int, width: int) -> Memory:
        """Return nothing: it cannot stream."""
        return {}

    def build(self, width: int, *, dropout: Dropout, prepared: bool, lends: bool, rngs: Keys) -> "GatedHeads":
        """Make the module; it lends no maps."""
        return GatedHeads(self, width, rate=dropout.attention, prepared=prepared, rngs=rngs)

    def added(self, gate: Arrays, x: Array, relative: Array) -> Added:
        """Say what is added to the scores: gates, (batch, time, heads), and what they multiply, (heads, time, time).

        Args:
            gate: the arrays of that name.
            x: the layer's input, (batch, time, width).
            relative: the table's scores, (all heads, time, time).
        """
        mine = relative if relative.shape[0] == self.heads else relative[np.array(self.remaining, int)]
        return self._gates(gate, x), mine

    def _gates(self, arrays: Arrays, x: Array) -> Array:
        """Compute the gates, in float32; the entries are added up in the weights, which is a quarter of the work."""
        slices = x.astype(jnp.float32).reshape(*x.shape[:2], x.shape[2] // self.head_dim, self.head_dim)
        if slices.shape[2] != self.heads:
            slices = slices[:, :, np.array(self.remaining, int)]
        kernel = arrays["kernel"].reshape(self.head_dim, 2, ENTRIES // 2).sum(-1)
        bias = arrays["bias"].reshape(2, ENTRIES // 2).sum(-1)
        both = jax.nn.sigmoid(slices @ kernel + bias[None, None, None])
        alpha, gamma = both[..., 0], both[..., 1]
        return alpha * (gamma * arrays[self.constant][None, None] - 1) + 2

    @property
    def _plain(self) -> Attention:
        """The same without gates."""
        return Attention(self.heads, self.head_dim, False, self.q, self.k, self.v, self.out)


class GatedHeads(nnx.Module):
    """Computes `GatedAttention`."""

    def __init__(self, part: GatedAttention, width: int, *, rate: float, prepared: bool, rngs: Keys):
        self.part, self.rate, self.prepared = part, rate, prepared
        for spec in part.maps(width):
            setattr(self, spec.name, Dense(spec, prepared=prepared, rngs=rngs))
        self.gate = Gate(part, rngs=rngs)

    def __call__(self, x: Array, valid: Array | None, rngs: Keys | None, before: Array) -> tuple[Array, Array]:
        """Attend over `x: (batch, time, width)`; keys where `valid: (batch, time)` is false are not seen.

        `before` are the table's scores, (all heads, time, time), which are passed on.
        """
        if self.part.empty:
            return self.out.bias_alone(x), before
        rate, key = (0.0, None) if rngs is None or self.rate == 0.0 else (self.rate, rngs.dropout())
        q = self.q(x) * self.part.head_dim**-0.5
        added = self.gate(x, before)
        context = attend(q, self.k(x), self.v(x), valid, rate=rate, key=key, prepared=self.prepared, added=added)
        return self.out(checkpoint_name(context.astype(x.dtype), KEPT)), before


class Gate(nnx.Module):
    """Computes the gates of all heads: WavLM's `grep_linear`, N(0, 0.02) at the start, and `grep_a`, ones."""

    def __init__(self, part: GatedAttention, *, rngs: Keys):
        self.part = part
        self.kernel = nnx.Param(encoder_init(rngs.params(), (part.head_dim, ENTRIES)))
        self.bias = nnx.Param(initializers.zeros(rngs.params(), (ENTRIES,)))
        setattr(self, part.constant, nnx.Param(initializers.ones(rngs.params(), (part.heads,))))

    def __call__(self, x: Array, relative: Array) -> Added:
        """Return what is added to the scores of `x: (batch, time, width)`."""
        arrays = {name: getattr(self, name)[...] for name in ("kernel", "bias", self.part.constant)}
        return self.part.added(arrays, x, relative)
