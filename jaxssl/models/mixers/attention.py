"""Multi-head self-attention, heads on an axis of their own, or on the attention maps of the layer before."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from compress.errors import InputError
from jaxssl.models.attend import Context, attend, near, visible
from jaxssl.models.dense import Dense
from jaxssl.models.held import Memory, check_held, joined, nothing
from jaxssl.models.keys import Keys
from jaxssl.models.layers import KEPT, dropout
from jaxssl.models.names import JOIN, dense_rules
from jaxssl.models.part import FULL, Arrays, Dropout, Form, Map, Names, Units, form_of

Maps = tuple[Array, Array]  # attention of all heads: exp(score), (batch, heads, query, key), and its sums over keys


@dataclass(frozen=True)
class Attention:
    """Self-attention (Vaswani et al. 2017); without heads it is its output's bias.

    Attributes:
        heads: how many; may be 0.
        head_dim: size of one.
        reuse: whether heads weigh values by the attention maps of the layer before (ARMHuBERT, Jang et al. 2023),
            which must have as many; there are no q and k then.
        q: form of the map to queries, (width,) to (heads, head_dim).
        k: the same to keys.
        v: the same to values.
        out: form of the map back, (heads, head_dim) to (width,).
        softened: whether what it lends to layers that reuse is the softmax of its maps, which are flatter then: so do
            ARMHuBERT's released models, whose code takes a softmax of the reused maps again.
        key_bias: whether keys have a bias. Whisper's have none: it would add one number to all scores of a query, which
            softmax takes away.
        left: frames before its own that a frame sees; None: all.
        right: frames after its own that a frame sees; None: all. With both it can stream (`inference.streaming`).
    """

    heads: int
    head_dim: int
    reuse: bool = False
    q: Form = FULL
    k: Form = FULL
    v: Form = FULL
    out: Form = FULL
    softened: bool = False
    key_bias: bool = True
    left: int | None = None
    right: int | None = None
    kind: Literal["attention"] = "attention"

    place: ClassVar = "attention"  # of its arrays in a layer, and of its norm's with _norm behind it
    names: ClassVar[Names] = {
        "fairseq": (
            *dense_rules(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj", r"layers/\1/attention/\2"),
            *dense_rules(r"encoder\.layers\.(\d+)\.self_attn\.out_proj", r"layers/\1/attention/out", JOIN),
        ),
        "huggingface": (
            *dense_rules(r"encoder\.layers\.(\d+)\.attention\.([qkv])_proj", r"layers/\1/attention/\2"),
            *dense_rules(r"encoder\.layers\.(\d+)\.attention\.out_proj", r"layers/\1/attention/out", JOIN),
        ),
    }

    @property
    def empty(self) -> bool:
        """Whether it is but a bias."""
        return not self.heads

    @property
    def context(self) -> Context:
        """Frames before and after its own that a frame sees."""
        return self.left, self.right

    @property
    def carries(self) -> bool:
        """Whether it takes what the mixer of the layer before carries over."""
        return self.reuse

    def maps(self, width: int) -> tuple[Map, ...]:
        """List q, k, v and out; v and out where maps are reused."""
        heads = (self.heads, self.head_dim)
        inner = ("v",) if self.reuse else ("q", "k", "v")
        each = (Map(n, (width,), heads, getattr(self, n), bias=n != "k" or self.key_bias) for n in inner)
        return (*each, Map("out", heads, (width,), self.out))

    def units(self) -> tuple[Units, ...]:
        """List the heads; those that reuse maps go with the heads that made them."""
        inner: tuple[str, ...] = ("v",) if self.reuse else ("q", "k", "v")
        sides = (*((name, "out") for name in inner), ("out", "in"))
        return (Units("heads", self.heads, sides, "out", shared=self.reuse),)  # type: ignore[arg-type]

    def resized(self, name: str, size: int) -> Self:
        """Return the same with another number of units."""
        return replace(self, heads=size)

    def core_macs(self, frames: int, width: int) -> int:
        """Count scores, unless they are the layer's before, and weighted sums; a limited context is but masked."""
        return (1 if self.reuse else 2) * frames**2 * self.heads * self.head_dim

    def activation_bytes(self, frames: int, itemsize: int, dropout: Dropout) -> float:
        """Return what one frame leaves: scores in float32 twice, weights, and those that dropout left; q, k, v, sum."""
        scores = self.heads * frames * (8 + (3 if dropout.attention else 2) * itemsize)
        return scores + 4 * itemsize * self.heads * self.head_dim

    @staticmethod
    def fits(layer: Arrays) -> bool:
        """Tell whether the arrays of a layer have such a mixer among them."""
        return "attention" in layer and "gate" not in layer["attention"]

    def read(self, arrays: Arrays) -> Self:
        """Return the mixer that these arrays are; this one tells its context, and whether what it lends is softened."""
        heads, head_dim = arrays["v"]["bias"].shape
        found: dict[str, Any] = {name: form_of(each) for name, each in arrays.items()}
        reuse, key_bias = "q" not in arrays, "bias" in arrays.get("k", ("bias",))
        left, right = (None, None) if reuse else self.context
        words: dict[str, Any] = {"softened": self.softened and not reuse, "left": left, "right": right}
        return type(self)(heads, head_dim, reuse, key_bias=key_bias, **words, **found)

    def check(self, where: str, before: object) -> None:
        """Refuse a negative number, and maps of `before`, the mixer of the layer before, that are not there.

        Raises:
            InputError: the message says which.
        """
        if min(self.heads, self.head_dim) < 0:
            raise InputError(f"{where}: {self.heads} heads of {self.head_dim}; neither may be negative")
        if min(self.left or 0, self.right or 0) < 0:
            raise InputError(f"{where}: a context of {self.left} and {self.right} frames; neither may be negative")
        if not self.reuse:
            return
        if self.softened:
            raise InputError(
                f"{where}: softened and reusing; the layer that makes the maps is the one that softens them"
            )
        if before is None:
            raise InputError(
                f"{where}: reuses attention maps, and no layer is before it; keep the layer that makes them"
            )
        if not isinstance(before, Attention) or self.heads != before.heads:
            have = before.heads if isinstance(before, Attention) else "no"
            place, _, number = where.rpartition("/")
            heads = f"{self.heads} heads reuse the maps of {have} in {place}/{int(number) - 1}"
            raise InputError(f"{where}: {heads}; cut both layers' heads together")
        if self.q != FULL or self.k != FULL:
            raise InputError(f"{where}: reuses attention maps, so it has no q and k to factorise or pack")
        if not self.key_bias:
            raise InputError(f"{where}: reuses attention maps, so it has no keys to be without a bias; leave key_bias")
        if self.context != (None, None):
            raise InputError(f"{where}: reuses attention maps, which have their context; leave left and right")

    @property
    def ahead(self) -> int:
        """Frames that it waits for in a stream."""
        return (self.right or 0) if self.heads else 0

    def check_stream(self, where: str) -> None:
        """Refuse what no stream can hold.

        Raises:
            InputError: it sees all frames before or after its own, or too many, or reuses maps.
        """
        if self.reuse:
            raise InputError(f"{where}: reuses attention maps, which no stream holds; use a layer that makes its own")
        if self.heads and None in self.context:
            side = "before" if self.left is None else "after"
            raise InputError(
                f"{where}: attention sees all frames {side} its own; give it left and right to stream "
                "(inference.streaming.limited)"
            )
        check_held(where, (self.left or 0) + (self.right or 0))

    def memory(self, batch: int, width: int) -> Memory:
        """Return what a stream holds before the first frame: queries that wait, keys and values."""
        left, right, sizes = self.left or 0, self.right or 0, (self.heads, self.head_dim)
        keys = (left + right, *sizes)
        return nothing(batch, q=(right, *sizes), k=keys, v=keys, valid=(left + right,)) if self.heads else {}

    def build(self, width: int, *, dropout: Dropout, prepared: bool, lends: bool, rngs: Keys) -> "Heads":
        """Make the module; `lends`: the next layer takes its maps."""
        return Heads(self, width, rate=dropout.attention, prepared=prepared, lends=lends, rngs=rngs)


class Heads(nnx.Module):
    """Computes `Attention`."""

    def __init__(self, part: Attention, width: int, *, rate: float, prepared: bool, lends: bool, rngs: Keys):
        self.heads, self.head_dim, self.reuse, self.lends = part.heads, part.head_dim, part.reuse, lends
        self.softens, self.context = part.softened and lends, part.context
        self.rate = 0.0 if part.reuse else rate  # ARMHuBERT drops no weight of a reused map
        self.prepared, self.learning = prepared, False
        for spec in part.maps(width):
            setattr(self, spec.name, Dense(spec, prepared=prepared, rngs=rngs))

    def __call__(
        self, x: Array, valid: Array | None, rngs: Keys | None, before: Maps | None
    ) -> tuple[Array, Maps | None]:
        """Attend over `x: (batch, time, width)`; keys where `valid: (batch, time)` is false are not seen.

        `before` are the maps of the layer before, for a layer that reuses them; what this layer lends is returned,
        without dropout, where it made or reused some: None without heads, or where nobody needs more than their
        product.
        """
        if self.heads == 0:
            return self.out.bias_alone(x), None
        if not (self.reuse or self.lends):
            rate, key = (0.0, None) if rngs is None or self.rate == 0.0 else (self.rate, rngs.dropout())
            q = self.q(x) * self.head_dim**-0.5
            how: dict[str, Any] = {"rate": rate, "key": key, "prepared": self.prepared, "learning": self.learning}
            context = attend(q, self.k(x), self.v(x), valid, **how, context=self.context)
            return self.out(checkpoint_name(context.astype(x.dtype), KEPT)), None
        maps = before if self.reuse else self.weights(x, valid)
        assert maps is not None
        weights, total = maps
        weights = dropout(weights, self.rate, rngs).astype(x.dtype)
        context = jnp.einsum("bhts,bshd->bthd", weights, self.v(x), preferred_element_type=jnp.float32)
        # Dividing after the value product touches (time × head_dim) numbers instead of (time × time).
        context = context / total.transpose(0, 2, 1)[..., None]
        return self.out(context.astype(x.dtype)), softened(maps, valid, self.context) if self.softens else maps

    def stream(self, x: Array, valid: Array, memory: Memory) -> tuple[Array, Memory]:
        """Attend from the frames of a stream that are `right` before those of `x`; return that and the memory."""
        if self.heads == 0:
            return self.out.bias_alone(x), memory
        time, left = x.shape[1], self.context[0]
        q, queries = joined(memory, "q", self.q(x) * self.head_dim**-0.5)
        (k, keys), (v, values) = joined(memory, "k", self.k(x)), joined(memory, "v", self.v(x))
        valid, also = joined(memory, "valid", valid)
        scores = jnp.einsum("bthd,bshd->bhts", q[:, :time], k, preferred_element_type=jnp.float32)
        assert left is not None
        seen = near(jnp.arange(time) + left, jnp.arange(k.shape[1]), self.context)[None, None] & valid[:, None, None, :]
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        context = jnp.einsum("bhts,bshd->bthd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        context = context / weights.sum(-1).transpose(0, 2, 1)[..., None]
        return self.out(context.astype(x.dtype)), {**queries, **keys, **values, **also}

    def weights(self, x: Array, valid: Array | None) -> Maps:
        """Let every frame of `x` look at every valid one in its context."""
        q = self.q(x) * self.head_dim**-0.5
        scores = jnp.einsum("bthd,bshd->bhts", q, self.k(x), preferred_element_type=jnp.float32)
        seen = visible(x.shape[1], valid, self.context)
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        return weights, weights.sum(-1)


def softened(maps: Maps, valid: Array | None, context: Context) -> Maps:
    """Return the maps whose scores are these maps' shares, each at most 1; no other keys are seen than before."""
    weights, total = maps
    again = jnp.exp(weights / total[..., None])
    again = jnp.where(visible(weights.shape[-1], valid, context), again, jnp.zeros_like(again))
    return again, again.sum(-1)
