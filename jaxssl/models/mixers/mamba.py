"""Mamba-1: a gated causal convolution and a selective scan, one way or both (Gu and Dao 2023)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from compress.errors import InputError
from jaxssl.models import choice
from jaxssl.models.dense import Dense
from jaxssl.models.held import Memory, joined, nothing
from jaxssl.models.keys import Keys
from jaxssl.models.layers import depthwise, encoder_init
from jaxssl.models.mixers.selective_scan import CHUNK, selective_scan
from jaxssl.models.names import CONV, FLAT, JOIN, PAIR, SAME, SPLIT, Rule, dense_rules, norm_rules
from jaxssl.models.part import FULL, Arrays, Dropout, Form, Map, Names, Units, check_counts, form_of

Directions = Literal["one", "inner", "external"]
LAYER = r"encoder\.layers\.(\d+)\.mamba"


def _rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Name the arrays of one Mamba."""
    at, scan = rf"{LAYER}{theirs}\.", rf"layers/\1/mamba/{ours}"
    return (
        Rule(rf"{at}in_proj\.weight", rf"{scan}input/kernel", PAIR),
        Rule(rf"{at}conv1d\.weight", rf"{scan}conv/kernel", CONV),
        Rule(rf"{at}conv1d\.bias", rf"{scan}conv/bias", FLAT),
        Rule(rf"{at}x_proj\.weight", rf"{scan}select/kernel", SPLIT),
        *dense_rules(rf"{at}dt_proj", rf"{scan}step"),
        Rule(rf"{at}A_log", rf"{scan}scan/log_decay", SAME),
        Rule(rf"{at}D", rf"{scan}scan/skip", SAME),
        Rule(rf"{at}out_proj\.weight", rf"{scan}out/kernel", JOIN),
    )


def check_one_way(directions: Directions, what: str) -> None:
    """Refuse a second direction in a stream.

    Raises:
        InputError: there is one; `what` says where and of what.
    """
    if directions != "one":
        raise InputError(f"{what} of directions {directions} starts at the end too; use directions one to stream")


@dataclass(frozen=True)
class Mamba:
    """Mamba-1: [x; z] = W u; x through a causal convolution, SiLU and a selective scan; out(y · SiLU(z)).

    With u the frame: [r; B; C] = select(x), step = softplus(step map(r)), the scan as `selective_scan` has it with
    A = -exp(log_decay), and skip · x added to what it gives. Padding moves no state, and another direction starts at an
    utterance's last frame.

    Attributes:
        inner: channels that are scanned; may be 0.
        state: numbers that each channel remembers.
        taps: of the convolution.
        rank: numbers from which the steps of all channels are made.
        directions: "one": causal; "inner": x and z are also scanned from the end, by a convolution, selection and scan
            of their own (Vim v2); "external": a second Mamba runs from the end, and both are added.
        back: channels of the second Mamba of "external"; 0 otherwise.
        halved: whether both directions of "inner" count half.
        input: form of the map to x and z, (width,) to (inner, 2).
        select: the same of that to r, B and C.
        step: the same of that from r to every channel's step.
        out: the same of the map back.
        back_input: as `input`, of the second Mamba; so are the next three.
        back_select: of the second direction.
        back_step: of the second direction.
        back_out: of the second Mamba.
    """

    inner: int
    state: int = 16
    taps: int = 4
    rank: int = 48
    directions: Directions = "one"
    back: int = 0
    halved: bool = False
    input: Form = FULL
    select: Form = FULL
    step: Form = FULL
    out: Form = FULL
    back_input: Form = FULL
    back_select: Form = FULL
    back_step: Form = FULL
    back_out: Form = FULL
    kind: Literal["mamba"] = "mamba"

    place: ClassVar = "mamba"
    names: ClassVar[Names] = {
        "fairseq": (  # of the fork that Mamba HuBERT was trained by
            *_rules("", ""),
            *_rules("_rev", "back_"),
            *norm_rules(rf"{LAYER}_layer_norm", r"layers/\1/mamba_norm"),
        ),
        "huggingface": (),
    }

    @property
    def empty(self) -> bool:
        """Whether no channel is left: it returns zeros then."""
        return not (self.inner or self.back)

    @property
    def carries(self) -> bool:
        """Whether it takes what the mixer of the layer before carries over: never."""
        return False

    @property
    def sides(self) -> tuple[str, ...]:
        """What the arrays' names of each direction start with."""
        return ("",) if self.directions == "one" else ("", "back_")

    def channels(self, side: str) -> int:
        """Return the channels of a direction."""
        return self.back if side and self.directions == "external" else self.inner

    def _ends(self, side: str) -> bool:
        """Tell whether a direction has maps in and out of its own."""
        return not side or self.directions == "external"

    def maps(self, width: int) -> tuple[Map, ...]:
        """List the dense maps of each direction: input, select, step and out."""
        found = []
        for side in self.sides:
            inner = self.channels(side)
            sizes = {
                "input": ((width,), (inner, 2), False),
                "select": ((inner,), (self.rank + 2 * self.state,), False),
                "step": ((self.rank,), (inner,), True),
                "out": ((inner,), (width,), False),
            }
            names = sizes if self._ends(side) else ("select", "step")
            for name in names:
                ins, outs, bias = sizes[name]
                found.append(Map(side + name, ins, outs, getattr(self, side + name), bias))
        return tuple(found)

    def units(self) -> tuple[Units, ...]:
        """List the channels; those of a second Mamba are units of their own."""
        if self.directions == "external":
            return self._channels("inner", ("",)), self._channels("back", ("back_",))
        return (self._channels("inner", self.sides),)

    def _channels(self, name: str, sides: tuple[str, ...]) -> Units:
        first, maps, arrays = sides[0], [], []
        for side in sides:
            maps += [(f"{side}select", "in"), (f"{side}step", "out")]
            arrays += [(f"{side}{path}", axis) for path, axis in OWN]
        ends = ((f"{first}input", "out"), *maps, (f"{first}out", "in"))
        size = self.channels(first)
        selects = tuple(f"{side}select" for side in sides)
        return Units(name, size, ends, f"{first}out", arrays=tuple(arrays), also_into=selects)  # type: ignore[arg-type]

    def resized(self, name: str, size: int) -> Self:
        """Return the same with another number of units."""
        return replace(self, **{name: size})  # type: ignore[arg-type]

    def core_macs(self, frames: int, width: int) -> int:
        """Count the convolution, and three products for each number of the state: decayed, added to, read."""
        channels = sum(self.channels(side) for side in self.sides)
        return frames * channels * (self.taps + 3 * self.state)

    def activation_bytes(self, frames: int, itemsize: int, dropout: Dropout) -> float:
        """Return what one frame leaves: x, z, steps and y of every channel, and its part of a chunk's first state."""
        return sum(self.channels(side) for side in self.sides) * (8 * itemsize + 4 * self.state / CHUNK)

    @staticmethod
    def fits(layer: Arrays) -> bool:
        """Tell whether the arrays of a layer have such a mixer among them."""
        return "mamba" in layer

    def read(self, arrays: Arrays) -> Self:
        """Return the mixer that these arrays are; whether directions count half, this one tells."""
        inner, state = arrays["scan"]["log_decay"].shape
        select = arrays["select"]
        both = "back_scan" in arrays
        external = "back_input" in arrays
        if "blocks" in select:
            wide = select["blocks"].shape[0] * select["blocks"].shape[2]
        else:
            wide = (select["up"] if "up" in select else select["kernel"]).shape[1]
        forms: dict[str, Any] = {name: form_of(arrays[name]) if name in arrays else FULL for name in FORMS}
        return replace(
            self,
            inner=inner,
            state=state,
            taps=arrays["conv"]["kernel"].shape[0],
            rank=wide - 2 * state,
            directions="external" if external else "inner" if both else "one",
            back=arrays["back_scan"]["log_decay"].shape[0] if external else 0,
            **forms,
        )

    def check(self, where: str, before: object) -> None:
        """Refuse sizes that cannot be.

        Raises:
            InputError: the message says which.
        """
        check_counts(where, state=self.state, taps=self.taps, rank=self.rank)
        if min(self.inner, self.back) < 0:
            raise InputError(f"{where}: {self.inner} and {self.back} channels; neither may be negative")
        if self.back and self.directions != "external":
            raise InputError(
                f"{where}: back is {self.back}, and there is no second Mamba; use 0 or directions external"
            )
        if self.halved and self.directions != "inner":
            raise InputError(f"{where}: halved, and directions are {self.directions}; only those of inner count half")

    ahead: ClassVar = 0  # frames that it waits for in a stream

    def check_stream(self, where: str) -> None:
        """Refuse a second direction, which starts at the end.

        Raises:
            InputError: there is one.
        """
        check_one_way(self.directions, f"{where}: Mamba")

    def memory(self, batch: int, width: int) -> Memory:
        """Return what a stream holds before the first frame: the convolution's inputs and the scan's state."""
        return nothing(batch, conv=(self.taps - 1, self.inner), state=(self.inner, self.state))

    def build(self, width: int, *, dropout: Dropout, prepared: bool, lends: bool, rngs: Keys) -> "Scans":
        """Make the module."""
        return Scans(self, width, prepared=prepared, rngs=rngs)


OWN = (("conv/kernel", 2), ("conv/bias", 0), ("scan/log_decay", 0), ("scan/skip", 0))
FORMS = ("input", "select", "step", "out", "back_input", "back_select", "back_step", "back_out")


class Convolution(nnx.Module):
    """A causal convolution of each channel alone: `kernel` (taps, 1, channels), `bias` (channels,)."""

    def __init__(self, taps: int, channels: int, *, rngs: Keys):
        self.kernel = nnx.Param(encoder_init(rngs.params(), (taps, 1, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: Array) -> Array:
        """Convolve `x: (batch, time, channels)`, each frame with those before it."""
        return self.convolved(x, self.kernel[...].shape[0] - 1)

    def convolved(self, x: Array, zeros: int) -> Array:
        """Convolve it with as many zeros before it."""
        y = depthwise(x, self.kernel[...], padding=(zeros, 0))
        return y + self.bias[...].astype(x.dtype)[None, None]


class Recurrence(nnx.Module):
    """What a scan remembers how long, `log_decay` (channels, state), and passes by, `skip` (channels,)."""

    def __init__(self, channels: int, state: int, *, prepared: bool):
        self.prepared, self.learning = prepared, False
        each = jnp.log(jnp.arange(1, state + 1, dtype=jnp.float32))
        self.log_decay = nnx.Param(jnp.tile(each, (channels, 1)))
        self.skip = nnx.Param(jnp.ones(channels))

    def __call__(
        self, x: Array, step: Array, into: Array, out: Array, state: Array | None = None
    ) -> tuple[Array, Array]:
        """Scan `x: (batch, time, channels)` from a state on, None: zeros; return the state after it too."""
        way, decay = choice.scan(prepared=self.prepared, learning=self.learning), -jnp.exp(self.log_decay[...])
        y, state = selective_scan(x, step, decay, into, out, state, way=way)
        return (y + self.skip[...][None, None] * x.astype(jnp.float32)).astype(x.dtype), state


class Scans(nnx.Module):
    """Computes `Mamba`."""

    def __init__(self, part: Mamba, width: int, *, prepared: bool, rngs: Keys):
        self.part, self.width = part, width
        for spec in part.maps(width):
            setattr(self, spec.name, Dense(spec, prepared=prepared, rngs=rngs))
        for side in part.sides:
            setattr(self, f"{side}conv", Convolution(part.taps, part.channels(side), rngs=rngs))
            setattr(self, f"{side}scan", Recurrence(part.channels(side), part.state, prepared=prepared))

    def __call__(self, x: Array, valid: Array | None, rngs: Keys | None, before: Any) -> tuple[Array, None]:
        """Scan `x: (batch, time, width)`; frames where `valid: (batch, time)` is false move no state."""
        y, turned = jnp.zeros_like(x), jnp.flip(x, 1)
        there = None if valid is None else jnp.flip(valid, 1)
        if self.part.directions == "inner" and self.part.inner:
            mixed = self.input(x)
            back = jnp.flip(self.direction("back_", jnp.flip(mixed, 1), there), 1)
            both = self.direction("", mixed, valid) + back
            return self.out(both * 0.5 if self.part.halved else both), None
        if self.part.inner:
            y = self.out(self.direction("", self.input(x), valid))
        if self.part.directions == "external" and self.part.back:
            y = y + jnp.flip(self.back_out(self.direction("back_", self.back_input(turned), there)), 1)
        return y, None

    def direction(self, side: str, mixed: Array, valid: Array | None) -> Array:
        """Run the convolution, the scan and the gate on `mixed: (batch, time, channels, 2)`, x and z."""
        x = getattr(self, f"{side}conv")(_kept(mixed[..., 0], valid))
        return self.scanned(side, x, mixed[..., 1], valid, None)[0]

    def stream(self, x: Array, valid: Array, memory: Memory) -> tuple[Array, Memory]:
        """Scan a chunk of a stream, `x: (batch, frames, width)`, of one direction; return that and the memory."""
        if not self.part.inner:
            return jnp.zeros_like(x), memory
        mixed = self.input(x)
        whole, held = joined(memory, "conv", _kept(mixed[..., 0], valid))
        y, state = self.scanned("", self.conv.convolved(whole, 0), mixed[..., 1], valid, memory["state"])
        return self.out(y), {**held, "state": state}

    def scanned(
        self, side: str, x: Array, gate: Array, valid: Array | None, before: Array | None
    ) -> tuple[Array, Array]:
        """Select, scan and gate what the convolution gave, `x: (batch, time, channels)`; return the state too."""
        state, rank = self.part.state, self.part.rank
        x = jax.nn.silu(x)
        selected = getattr(self, f"{side}select")(x)
        steps = jax.nn.softplus(getattr(self, f"{side}step")(selected[..., :rank]).astype(jnp.float32))
        into, out = selected[..., rank : rank + state], selected[..., rank + state :]
        y, state_after = getattr(self, f"{side}scan")(x, _kept(steps, valid), into, out, before)
        return y * jax.nn.silu(gate), state_after


def _kept(x: Array, valid: Array | None) -> Array:
    """Return `x: (batch, time, channels)` with zeros where no frame is valid."""
    return x if valid is None else jnp.where(valid[..., None], x, jnp.zeros_like(x))
