"""Mamba-2: heads of one decay each, whose recurrence is products of matrices, one way or both (Dao and Gu 2024)."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from compress.errors import InputError
from jaxssl.models.dense import Dense
from jaxssl.models.held import Memory, joined, nothing
from jaxssl.models.keys import Keys
from jaxssl.models.layers import NORM_EPSILON, depthwise, encoder_init
from jaxssl.models.mixers.duality import CHUNK, chunked, duality
from jaxssl.models.mixers.mamba import Directions, check_one_way
from jaxssl.models.part import FULL, Arrays, Dropout, Form, Map, Names, Units, check_counts, form_of

MAPS = ("input", "select", "step", "out")


@dataclass(frozen=True)
class Mamba2:
    """Mamba-2: [x; z] = input(u), [B; C] = select(u), step = softplus(step map(u)), all of the frame u.

    x, B and C go through a causal convolution and SiLU, then through `duality` with A = -exp(log_decay); what it gives
    and skip · x are y, and out(norm(y · SiLU(z))) is the output (arXiv 2405.21060, section 7; norm: RMSNorm over a
    group). Padding moves no state, and another direction starts at an utterance's last frame.

    Attributes:
        heads: of each group, with a step, a decay and a skip each; may be 0. They go by "inner", as Mamba's channels:
            who asks for heads means those of attention.
        head_dim: channels of a head.
        state: numbers that each channel remembers.
        groups: of heads that share B and C, and a norm.
        taps: of the convolutions.
        directions: "one": causal; "inner": x is also scanned from the end, by convolutions, steps, B, C, A and skip of
            their own, and both are added before the gate; "external": a second Mamba-2 runs from the end, and both are
            added.
        back: heads of each group of the second Mamba-2 of "external"; 0 otherwise.
        normed: heads of a group that the norm takes the mean square over, those that were cut as zeros, for without
            them all others would change; 0: as many as there are.
        back_normed: the same of the second Mamba-2.
        input: form of the map to x and z, (width,) to (heads, groups, head_dim, 2).
        select: the same of that to B and C, (width,) to (2, groups, state).
        step: the same of that to steps, (width,) to (heads, groups).
        out: the same of the map back.
        back_input: as `input`, of the second Mamba-2.
        back_select: of the second direction.
        back_step: of the second direction.
        back_out: of the second Mamba-2.
    """

    heads: int
    head_dim: int = 64
    state: int = 64
    groups: int = 1
    taps: int = 4
    directions: Directions = "one"
    back: int = 0
    normed: int = 0
    back_normed: int = 0
    input: Form = FULL
    select: Form = FULL
    step: Form = FULL
    out: Form = FULL
    back_input: Form = FULL
    back_select: Form = FULL
    back_step: Form = FULL
    back_out: Form = FULL
    kind: Literal["mamba2"] = "mamba2"

    place: ClassVar = "mamba2"
    names: ClassVar[Names] = {"fairseq": (), "huggingface": ()}  # no format that we read has one

    @property
    def empty(self) -> bool:
        """Whether no head is left: it returns zeros then."""
        return not (self.heads or self.back)

    @property
    def carries(self) -> bool:
        """Whether it takes what the mixer of the layer before carries over: never."""
        return False

    @property
    def sides(self) -> tuple[str, ...]:
        """What the arrays' names of each direction start with."""
        return ("",) if self.directions == "one" else ("", "back_")

    def inner(self, side: str) -> tuple[int, int, int]:
        """Return the axes of a direction's channels: heads of each group, groups, head_dim."""
        heads = self.back if side and self.directions == "external" else self.heads
        return heads, self.groups, self.head_dim

    def whole(self, side: str) -> bool:
        """Tell whether a direction has x, z, a norm and an output of its own."""
        return not side or self.directions == "external"

    def maps(self, width: int) -> tuple[Map, ...]:
        """List the dense maps of each direction."""
        found = []
        for side in self.sides:
            inner = self.inner(side)
            sizes = {
                "input": ((width,), (*inner, 2)),
                "select": ((width,), (2, self.groups, self.state)),
                "step": ((width,), inner[:2]),
                "out": (inner, (width,)),
            }
            for name in sizes if self.whole(side) else ("select", "step"):
                found.append(Map(side + name, *sizes[name], getattr(self, side + name), bias=name == "step"))
        return tuple(found)

    def units(self) -> tuple[Units, ...]:
        """List the heads, of all groups alike; those of a second Mamba-2 are units of their own."""
        if self.directions == "external":
            return self._heads("inner", ("",)), self._heads("back", ("back_",))
        return (self._heads("inner", self.sides),)

    def _heads(self, name: str, sides: tuple[str, ...]) -> Units:
        first = sides[0]
        steps = ((f"{side}step", "out") for side in sides)
        maps = ((f"{first}input", "out"), *steps, (f"{first}out", "in"))
        arrays = [(f"{side}{path}", axis) for side in sides for path, axis in OWN]
        arrays.append((f"{first}norm/scale", 0))
        size = self.inner(first)[0]
        return Units(name, size, maps, f"{first}out", arrays=tuple(arrays), normed=True)  # type: ignore[arg-type]

    def resized(self, name: str, size: int) -> Self:
        """Return the same with another number of the heads that are called so."""
        first = name == "inner"
        return self._counted(size if first else self.heads, self.back if first else size)

    def _counted(self, heads: int, back: int) -> Self:
        """Return the same with so many heads; its norms go on counting those that are gone."""
        normed = self.normed or (self.heads if heads < self.heads else 0)
        back_normed = self.back_normed or (self.back if back < self.back else 0)
        return replace(self, heads=heads, back=back, normed=normed, back_normed=back_normed)

    def core_macs(self, frames: int, width: int) -> int:
        """Count the convolutions, and the products of `duality`, which has whole chunks."""
        chunks, size = chunked(frames)
        total = 0
        for side in self.sides:
            heads, groups, dim = self.inner(side)
            if heads:
                channels = heads * groups * dim
                pairs = size * groups * (self.state + heads * dim)  # scores, and what frames hear by them
                total += frames * self.taps * (channels + 2 * groups * self.state)
                total += chunks * size * (pairs + 2 * channels * self.state)
        return total

    def activation_bytes(self, frames: int, itemsize: int, dropout: Dropout) -> float:
        """Return what one frame leaves: x, z, y, B and C before and after each function, its part of two states."""
        channels = sum(math.prod(self.inner(side)) for side in self.sides)
        selected = len(self.sides) * 2 * self.groups * self.state
        return channels * (6 * itemsize + 12 + 8 * self.state / CHUNK) + selected * (3 * itemsize + 4)

    @staticmethod
    def fits(layer: Arrays) -> bool:
        """Tell whether the arrays of a layer have such a mixer among them."""
        return "mamba2" in layer

    def read(self, arrays: Arrays) -> Self:
        """Return the mixer that these arrays are; this one tells what its norms count, or was whole."""
        heads, groups, head_dim = arrays["norm"]["scale"].shape
        external = "back_input" in arrays
        forms: dict[str, Any] = {name: form_of(arrays[name]) if name in arrays else FULL for name in FORMS}
        return replace(
            self._counted(heads, arrays["back_norm"]["scale"].shape[0] if external else 0),
            head_dim=head_dim,
            state=arrays["select_conv"]["kernel"].shape[-1],
            groups=groups,
            taps=arrays["conv"]["kernel"].shape[0],
            directions="external" if external else "inner" if "back_scan" in arrays else "one",
            **forms,
        )

    def check(self, where: str, before: object) -> None:
        """Refuse sizes that cannot be.

        Raises:
            InputError: the message says which.
        """
        check_counts(where, head_dim=self.head_dim, state=self.state, groups=self.groups, taps=self.taps)
        if min(self.heads, self.back) < 0:
            raise InputError(f"{where}: {self.heads} and {self.back} heads; neither may be negative")
        if (self.back or self.back_normed) and self.directions != "external":
            raise InputError(
                f"{where}: back is {self.back}, back_normed {self.back_normed}, and there is no second Mamba-2; use 0 "
                "or directions external"
            )
        for heads, normed in ((self.heads, self.normed), (self.back, self.back_normed)):
            if normed and normed < heads:
                raise InputError(f"{where}: a norm over {normed} of {heads} heads; let it count all, or 0 for these")

    ahead: ClassVar = 0  # frames that it waits for in a stream

    def check_stream(self, where: str) -> None:
        """Refuse a second direction, which starts at the end.

        Raises:
            InputError: there is one.
        """
        check_one_way(self.directions, f"{where}: Mamba-2")

    def memory(self, batch: int, width: int) -> Memory:
        """Return what a stream holds before the first frame: the convolutions' inputs and the state."""
        inner, before = self.inner(""), self.taps - 1
        shapes = {"conv": (before, *inner), "select_conv": (before, 2, self.groups, self.state)}
        return nothing(batch, **shapes, state=(*inner, self.state))

    def build(self, width: int, *, dropout: Dropout, prepared: bool, lends: bool, rngs: Keys) -> "Heads":
        """Make the module."""
        return Heads(self, width, prepared=prepared, rngs=rngs)


OWN = (("conv/kernel", 1), ("conv/bias", 0), ("scan/log_decay", 0), ("scan/skip", 0))
FORMS = (*MAPS, *(f"back_{name}" for name in MAPS))


def step_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Draw biases of steps: softplus of them is from 0.001 to 0.1, uniform in logarithm, as Mamba-2's authors draw."""
    steps = jnp.exp(jax.random.uniform(key, shape, dtype, math.log(1e-3), math.log(0.1)))
    return steps + jnp.log(-jnp.expm1(-steps))


class Convolution(nnx.Module):
    """A causal convolution of each channel alone, and SiLU: `kernel` (taps, *channels), `bias` (*channels)."""

    def __init__(self, taps: int, channels: tuple[int, ...], *, rngs: Keys):
        self.kernel = nnx.Param(encoder_init(rngs.params(), (taps, *channels)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array, memory: Memory | None, name: str) -> tuple[Array, Memory]:
        """Convolve `x: (batch, time, *channels)`, behind what a stream holds under a name; None: behind zeros."""
        taps, channels = self.kernel[...].shape[0], math.prod(x.shape[2:])
        whole, held = (x, Memory()) if memory is None else joined(memory, name, x)
        flat, kernel = whole.reshape(*whole.shape[:2], channels), self.kernel[...].reshape(taps, 1, channels)
        y = depthwise(flat, kernel, padding=(taps - 1 if memory is None else 0, 0)).reshape(x.shape)
        return jax.nn.silu(y + self.bias[...].astype(x.dtype)[None, None]), held


class Recurrence(nnx.Module):
    """How fast heads forget, `log_decay`, and what they pass by, `skip`, each (heads, groups)."""

    def __init__(self, heads: int, groups: int, *, rngs: Keys):
        drawn = jax.random.uniform(rngs.params(), (heads, groups), jnp.float32, 1, 16)  # as Mamba-2's authors draw
        self.log_decay = nnx.Param(jnp.log(drawn))
        self.skip = nnx.Param(jnp.ones((heads, groups)))

    def __call__(self, x: Array, step: Array, selected: Array, state: Array | None) -> tuple[Array, Array]:
        """Scan `x: (batch, time, heads, groups, head_dim)` from a state on; return that in float32, and the state."""
        y, state = duality(x, step, -jnp.exp(self.log_decay[...]), selected[:, :, 0], selected[:, :, 1], state)
        return y + self.skip[...][None, None, ..., None] * x.astype(jnp.float32), state


class GroupNorm(nnx.Module):
    """RMSNorm of each group: `scale` (heads, groups, head_dim). The mean is over `count` heads, the others being 0."""

    def __init__(self, shape: tuple[int, ...], count: int):
        self.scale, self.count = nnx.Param(jnp.ones(shape)), count * shape[2]

    def __call__(self, x: Array) -> Array:
        """Normalise `x: (batch, time, heads, groups, head_dim)`, in float32."""
        mean = jnp.square(x).sum((2, 4), keepdims=True) / self.count
        return x * jax.lax.rsqrt(mean + NORM_EPSILON) * self.scale[...][None, None]


class Heads(nnx.Module):
    """Computes `Mamba2`."""

    def __init__(self, part: Mamba2, width: int, *, prepared: bool, rngs: Keys):
        self.part = part
        for spec in part.maps(width):
            init = {"bias_init": step_init} if spec.bias else {}
            setattr(self, spec.name, Dense(spec, prepared=prepared, rngs=rngs, **init))
        for side in part.sides:
            inner, normed = part.inner(side), part.back_normed if side else part.normed
            setattr(self, f"{side}conv", Convolution(part.taps, inner, rngs=rngs))
            setattr(self, f"{side}select_conv", Convolution(part.taps, (2, part.groups, part.state), rngs=rngs))
            setattr(self, f"{side}scan", Recurrence(*inner[:2], rngs=rngs))
            if part.whole(side):
                setattr(self, f"{side}norm", GroupNorm(inner, normed or inner[0]))

    def __call__(self, x: Array, valid: Array | None, rngs: Keys | None, before: Any) -> tuple[Array, None]:
        """Mix `x: (batch, time, width)`; frames where `valid: (batch, time)` is false move no state."""
        y, turned = jnp.zeros_like(x), jnp.flip(x, 1)
        there = None if valid is None else jnp.flip(valid, 1)
        if self.part.heads:
            mixed, gate = self.split("", x)
            scanned, _ = self.direction("", x, mixed, valid)
            if self.part.directions == "inner":
                back, _ = self.direction("back_", turned, jnp.flip(mixed, 1), there)
                scanned = scanned + jnp.flip(back, 1)
            y = self.gated("", scanned, gate, x.dtype)
        if self.part.directions == "external" and self.part.back:
            mixed, gate = self.split("back_", turned)
            scanned, _ = self.direction("back_", turned, mixed, there)
            y = y + jnp.flip(self.gated("back_", scanned, gate, x.dtype), 1)
        return y, None

    def stream(self, x: Array, valid: Array, memory: Memory) -> tuple[Array, Memory]:
        """Mix a chunk of a stream, `x: (batch, frames, width)`, of one direction; return that and the memory."""
        if not self.part.heads:
            return jnp.zeros_like(x), memory
        mixed, gate = self.split("", x)
        y, held = self.direction("", x, mixed, valid, memory)
        return self.gated("", y, gate, x.dtype), held

    def split(self, side: str, x: Array) -> tuple[Array, Array]:
        """Map `x: (batch, time, width)` to x and z, each (batch, time, heads, groups, head_dim)."""
        mixed = getattr(self, f"{side}input")(x)
        return mixed[..., 0], mixed[..., 1]

    def direction(
        self, side: str, x: Array, mixed: Array, valid: Array | None, memory: Memory | None = None
    ) -> tuple[Array, Memory]:
        """Scan `mixed`, made of `x: (batch, time, width)`, from a stream's memory on; return y and the memory."""
        conv, select_conv, scan = (getattr(self, side + name) for name in ("conv", "select_conv", "scan"))
        mixed, held = conv(_kept(mixed, valid), memory, "conv")
        selected, also = select_conv(_kept(getattr(self, f"{side}select")(x), valid), memory, "select_conv")
        steps = jax.nn.softplus(getattr(self, f"{side}step")(x).astype(jnp.float32))
        y, state = scan(mixed, _kept(steps, valid), selected, None if memory is None else memory["state"])
        return y, {**held, **also, "state": state}

    def gated(self, side: str, y: Array, gate: Array, dtype: DTypeLike) -> Array:
        """Gate what was scanned, normalise it, and map it back, (batch, time, width)."""
        norm, out = getattr(self, f"{side}norm"), getattr(self, f"{side}out")
        return out(y * jax.nn.silu(gate.astype(jnp.float32)), norm=lambda y: norm(y).astype(dtype))


def _kept(x: Array, valid: Array | None) -> Array:
    """Return `x: (batch, time, …)` with zeros where no frame is valid."""
    return x if valid is None else jnp.where(jnp.expand_dims(valid, tuple(range(2, x.ndim))), x, jnp.zeros_like(x))
