"""Positions by a grouped convolution over frames, weight-normalised with one gain per tap."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.export import is_symbolic_dim
from jax.nn import initializers

from compress.errors import InputError
from compress.quantize import float32
from jaxssl.models import choice
from jaxssl.models.banded import by_bands
from jaxssl.models.fourier import overlap_save
from jaxssl.models.held import Memory, joined, nothing
from jaxssl.models.keys import Keys
from jaxssl.models.layers import convolve, gelu
from jaxssl.models.names import CONV, FLAT, TAPS, Rule
from jaxssl.models.part import Arrays, Names
from jaxssl.models.positions.filters import Filters, forms


@dataclass(frozen=True)
class LongKernel:
    """What positions by one convolution have in common, whatever is done to its kernel and before it.

    Attributes:
        kernel: taps; an even number sees one frame more of the past than of the future.
        groups: of channels.
        causal: whether zeros stand before the first frame only, so that none sees the future.
    """

    kernel: int = 128
    groups: int = 16
    causal: bool = False

    pieces: ClassVar = 0  # numbered, with arrays of their own

    @property
    def ahead(self) -> int:
        """Frames that it waits for in a stream."""
        return padding(self.kernel, causal=self.causal)[1]

    def memory(self, batch: int, width: int) -> dict[str, Any]:
        """Return what a stream holds before the first frame."""
        return nothing(batch, frames=(self.kernel - 1, width))

    def macs(self, width: int, frames: int) -> int:
        """Count the multiply-accumulates of one utterance."""
        return frames * width * (width // self.groups) * self.kernel

    def check(self, width: int) -> None:
        """Refuse groups that do not divide the width, and a kernel without taps.

        Raises:
            InputError: the message says which.
        """
        check_kernel(self.kernel, self.groups, width)

    def read(self, arrays: Arrays) -> Self:
        """Return itself: what the arrays tell, a prepared form has lost."""
        return self

    def of_the_past(self, arrays: Arrays) -> tuple[Self, Arrays]:
        """Return the same without what it hears of the future, and the arrays for that: `past`."""
        if self.causal:
            return self, arrays
        names = ("kernel", "gain") if "gain" in arrays else ("kernel",)
        return replace(self, causal=True), {**arrays, **past({name: arrays[name] for name in names}, self.ahead)}

    def prepare(self, arrays: Arrays, dtype: Any) -> Arrays:
        """Return the arrays in the form that `jaxssl.models.choice` says for this device, for running in `dtype`."""
        if choice.prepared_positions() is None:
            return arrays
        rest = {name: array for name, array in arrays.items() if name not in ("kernel", "gain")}
        return {**rest, "filters": _ready(arrays, self.groups, jnp.dtype(dtype))}


@dataclass(frozen=True)
class PositionalConvolution(LongKernel):
    """x + GELU(convolution(x)) with the kernel gain · v / ‖v‖, the norm over both axes but taps (wav2vec 2.0, §2)."""

    kind: Literal["convolution"] = "convolution"

    names: ClassVar[Names] = {
        "fairseq": (
            Rule(r"encoder\.pos_conv\.0\.weight_g", "position/gain", TAPS),
            Rule(r"encoder\.pos_conv\.0\.weight_v", "position/kernel", CONV),
            Rule(r"encoder\.pos_conv\.0\.bias", "position/bias", FLAT),
        ),
        "huggingface": (
            Rule(
                r"encoder\.pos_conv_embed\.conv\.(?:parametrizations\.weight\.original0|weight_g)",
                "position/gain",
                TAPS,
            ),
            Rule(
                r"encoder\.pos_conv_embed\.conv\.(?:parametrizations\.weight\.original1|weight_v)",
                "position/kernel",
                CONV,
            ),
            Rule(r"encoder\.pos_conv_embed\.conv\.bias", "position/bias", FLAT),
        ),
    }

    def build(self, width: int, *, prepared: bool, rngs: Keys) -> "Position":
        """Make the module."""
        return Position(self, width, prepared=prepared, rngs=rngs)


def check_kernel(taps: int, groups: int, width: int) -> None:
    """Refuse groups that do not divide the width, and a kernel without taps.

    Raises:
        InputError: the message says which.
    """
    if groups < 1 or width % groups:
        raise InputError(f"width {width} is not a multiple of the positional groups {groups}")
    if taps < 1:
        raise InputError(f"a positional kernel of {taps} taps is none; use 1 or more")


class Position(nnx.Module):
    """Computes what `PositionalConvolution` adds; a prepared one has `filters` of its kernel."""

    def __init__(self, part: PositionalConvolution, width: int, *, prepared: bool, rngs: Keys):
        self.taps, self.groups, self.pads = part.kernel, part.groups, padding(part.kernel, causal=part.causal)
        deviation = math.sqrt(4 / (self.taps * width))
        kernel = initializers.normal(deviation)(rngs.params(), (self.taps, width // self.groups, width))
        if prepared and choice.prepared_positions() is not None:
            self.filters = Filters(kernel, groups=self.groups)
        else:
            self.kernel, self.gain = nnx.Param(kernel), nnx.Param(jnp.sqrt((kernel**2).sum((1, 2))))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Array, valid: Array | None) -> Array:
        """Return what is added to `x: (batch, time, width)`, which is zero where frames are padding."""
        if hasattr(self, "filters"):
            return self.filters(x, self.bias[...], self.pads)
        if hasattr(self, "channels"):
            y = self.narrow(x, self.channels[...])
        else:
            y = convolved(x, self.weight, padding=self.pads, groups=self.groups)
        return gelu(y + self.bias[...].astype(x.dtype)[None, None])

    def narrow(self, x: Array, channels: Array) -> Array:
        """Convolve the first `channels: (width,)` in groups of their own, as a subnet does (`jaxssl.models.supernet`).

        Its groups are smaller than these. Each is laid into one of these, what is left of it being 0.
        """
        width = channels.shape[0]
        group, place = map(jnp.asarray, np.divmod(np.arange(width), width // self.groups))
        size = channels.sum() // self.groups  # of the subnet's groups
        inside = place < size
        taken = jnp.where(inside, group * size + place, 0)  # the channel that lies here
        x = jnp.where(inside[None, None], jnp.take(x, taken, axis=-1), jnp.zeros_like(x))
        weight = jnp.take(self.weight, taken, axis=-1)
        weight = jnp.where(inside[None, : weight.shape[1], None] & inside[None, None], weight, jnp.zeros_like(weight))
        y = convolved(x, weight, padding=self.pads, groups=self.groups)
        order = jnp.arange(width)
        laid = jnp.where(channels, order // size * (width // self.groups) + order % size, 0)
        return jnp.where(channels[None, None], jnp.take(y, laid, axis=-1), jnp.zeros_like(y))

    @property
    def weight(self) -> Array:
        """The kernel as it runs."""
        return normalised(self.kernel[...], self.gain[...])

    def stream(self, x: Array, valid: Array, memory: Memory) -> tuple[Array, Memory]:
        """Return what is added to the frames of a stream that are `ahead` before those of `x`, and the memory."""
        return stepped(self, x, memory)


def padding(taps: int, *, causal: bool) -> tuple[int, int]:
    """Return the zeros before and after that keep time as it is: all before, or of an even number of taps one more."""
    return (taps - 1, 0) if causal else (taps // 2, (taps - 1) // 2)


def past(arrays: Arrays, ahead: int) -> Arrays:
    """Shift taps for a convolution that hears no frame of the future.

    Those of the past keep their weights and the frames that they weigh. The `ahead` taps that weighed the future now
    stand before all others, and begin at zero: where there is a `gain` of each tap that is, for a kernel of zeros could
    not be normalised.

    Args:
        arrays: `kernel`, (taps, in / groups, out), and `gain`, (taps,), where there is one.
        ahead: frames of the future that are heard.
    """
    rolled = {name: jnp.roll(jnp.asarray(array), ahead, axis=0) for name, array in arrays.items()}
    silenced = "gain" if "gain" in arrays else "kernel"
    return {**rolled, silenced: rolled[silenced].at[:ahead].set(0)}


def convolved(x: Array, weight: Array, *, padding: tuple[int, int], groups: int) -> Array:
    """Convolve `x: (batch, time, in)` with `weight: (taps, in / groups, out)` by whichever way is the fastest here.

    The zeros before and after, `padding`, are taps - 1 in all.
    """
    frames = x.shape[0] * x.shape[1]
    ways = {"fourier": overlap_save, "banded": by_bands, "plain": convolve}
    runs = {name: partial(way, padding=padding, groups=groups) for name, way in ways.items()}
    if is_symbolic_dim(frames):  # an exported program, for lengths and devices that are not known yet
        chosen = {platform: runs[way] for platform, way in choice.exported_positions().items()}
        return jax.lax.platform_dependent(x, weight, **chosen)
    return runs[choice.positions(frames)](x, weight)


def stepped(position: Any, x: Array, memory: Memory) -> tuple[Array, Memory]:
    """Convolve a chunk of a stream, `x: (batch, frames, width)`, and what is held before it by a position's kernel."""
    whole, held = joined(memory, "frames", x)
    if hasattr(position, "filters"):
        return position.filters(whole, position.bias[...], (0, 0)), held
    y = convolve(whole, position.weight, groups=position.groups)
    return gelu(y + position.bias[...].astype(x.dtype)[None, None]), held


def normalised(kernel: Array, gain: Array) -> Array:
    """Return the positional kernel as it runs, (taps, width / groups, width)."""
    return kernel * (gain / jnp.sqrt((kernel**2).sum((1, 2))))[:, None, None]


@partial(jax.jit, static_argnames=("groups", "dtype"))
def _ready(arrays: Arrays, groups: int, dtype: jnp.dtype) -> Mapping[str, Array]:
    """Return the forms of a kernel, weight-normalised where it has gains."""
    wide = float32({name: arrays[name] for name in ("kernel", "gain") if name in arrays})  # may be stored in bfloat16
    kernel = normalised(wide["kernel"], wide["gain"]) if "gain" in wide else wide["kernel"]
    return forms(kernel, groups=groups, dtype=dtype)
