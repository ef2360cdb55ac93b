"""Sequences made shorter by what is said: a small net weighs every frame, and weights are added up until one fires."""

from dataclasses import dataclass, replace
from math import log
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.tree_util import Partial

from compress.errors import InputError
from jaxssl.models.keys import Keys, OneKey
from jaxssl.models.layers import LayerNorm, convolve, frame_mask, uniform_init
from jaxssl.models.names import CONV, FLAT, Rule, dense_rules, norm_rules
from jaxssl.models.part import Arrays, Names
from jaxssl.models.rates.firing import SEEN, Firing, Tail, amount_for, at_least_once, integrate, mixed
from jaxssl.models.rates.track import Shortened

Draw = Literal["fixed", "uniform", "period", "both"]
RATE, LONGEST = 2 / 9, 4.5  # of "period": mean weight, and frames of the front end per fired frame at that
START = 0.25  # the weight of every frame at first, of a model that is trained on


@dataclass(frozen=True)
class IntegrateAndFire:
    """Continuous integrate-and-fire (Meng et al. 2022; Chen et al. 2023): see `rates.firing`.

    A frame's weight is sigmoid(w · ReLU(LayerNorm(convolution)) + b). An utterance fires once at least. Programs have
    fixed shapes, so there is room for `most` of 100 frames, and that is what is computed: a smaller `most` is what
    saves time. Where more would fire, the whole utterance's output is NaN, for nothing may be lost in silence.

    Once-for-all models are trained with another amount for each batch, so that one model has all rates.

    Attributes:
        taps: of the net's convolution, an odd number.
        threshold: sum of weights at which a frame fires.
        amount: how far weights are mixed with no compression, 0 (not compressed) over 1 (weights alone) to below 2
            (still fewer); `apply` takes another for a call.
        drawn: how training draws the amount of a batch: not at all; "uniform" from 0 to 1; "period": so that the frame
            period is uniform from 1 to 4.5 of the front end's, for weights whose mean is 2/9; "both": from 0 to 2.
        most: frames that may fire of 100, 1 to 100; rounded up.
        tail: whether what is left at the end fires where it weighs half ("round") or never ("drop", as the released
            models do in training and after).
    """

    taps: int = 5
    threshold: float = 1.0
    amount: float = 1.0
    drawn: Draw = "fixed"
    most: int = 100
    tail: Tail = "drop"
    kind: Literal["integrate_and_fire"] = "integrate_and_fire"

    regular: ClassVar = False
    ratio: ClassVar = 1  # no fixed number of frames becomes one
    names: ClassVar[Names] = {
        "fairseq": (  # as xraychen/OFA-Wav2Vec2 has it
            *dense_rules(r"cif_subsampler\.alpha_fn\.cnn", "shortening", CONV),
            *norm_rules(r"cif_subsampler\.alpha_fn\.layer\.0", "shortening/norm"),
            Rule(r"cif_subsampler\.alpha_fn\.layer\.2\.weight", "shortening/score", FLAT),
            Rule(r"cif_subsampler\.alpha_fn\.layer\.2\.bias", "shortening/score_bias", FLAT),
        ),
        "huggingface": (),
    }

    def frames(self, frames: Any) -> Any:
        """Count the frames that `frames` frames (an int or an array of ints) have room to fire."""
        return (frames * self.most + 99) // 100

    def macs(self, width: int, frames: int) -> int:
        """Count the multiply-accumulates of one utterance of `frames` frames: of the net, and of adding up."""
        return frames * (self.taps * width**2 + width) + self.frames(frames) * frames * width

    def macs_back(self, width: int, frames: int) -> int:
        """Count those of laying out what the encoder returns over `frames` frames."""
        return self.frames(frames) * frames * width

    @staticmethod
    def fits(arrays: Arrays) -> bool:
        """Tell whether arrays are those of such a net."""
        return "score" in arrays

    def read(self, arrays: Arrays) -> "IntegrateAndFire":
        """Return the net that these arrays are; all but the taps is this one's."""
        taps = arrays["kernel"].shape[0]
        return replace(self, taps=taps)

    def check(self, where: str) -> None:
        """Refuse what never fires, or cannot be computed.

        Raises:
            InputError: taps are even or below 1, the threshold is not above 0, the amount is not from 0 to below 2, or
                the room is not from 1 to 100 of 100, or less than all where amounts are drawn.
        """
        if self.taps < 1 or self.taps % 2 == 0:
            raise InputError(
                f"{where}: a convolution of {self.taps} taps has no middle one; give an odd number of taps"
            )
        if not self.threshold > 0:
            raise InputError(f"{where}: a threshold of {self.threshold} always fires; give one above 0")
        if not 0 <= self.amount < 2:
            raise InputError(f"{where}: weights mixed by {self.amount}; give an amount from 0 to below 2")
        if not 1 <= self.most <= 100:
            raise InputError(f"{where}: at most {self.most} of 100 frames fire; give 1 to 100")
        if self.drawn != "fixed" and self.most < 100:
            raise InputError(f"{where}: amounts are drawn down to 0, and {self.most} of 100 frames have room; give 100")

    def draw(self, key: Array) -> Array:
        """Draw the amount of a batch, (), as training does."""
        part = jax.random.uniform(key)
        match self.drawn:
            case "fixed":
                return jnp.float32(self.amount)
            case "uniform":
                return part
            case "period":
                return amount_for(1 + (LONGEST - 1) * part, rate=RATE, period=1.0)
            case "both":
                return 2 * part

    def started(self, width: int) -> Arrays:
        """Return arrays with which every frame weighs the same, 1/4 or what there is room for; a model learns on."""
        weight = min(START, self.threshold * self.most / 100)
        middle = jnp.arange(self.taps)[:, None, None] == self.taps // 2
        return {
            "kernel": jnp.where(middle, jnp.eye(width)[None], 0.0),
            "bias": jnp.zeros(width),
            "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
            "score": jnp.zeros(width),
            "score_bias": jnp.full(1, log(weight / (1 - weight))),
        }

    def build(self, width: int, *, rngs: Keys) -> "Integration":
        """Make the module."""
        return Integration(self, width, rngs=rngs)


def weigh(part: IntegrateAndFire, arrays: Arrays, x: Array, lengths: Array) -> Array:
    """Weigh frames by a net alone, (batch, time) float32; `x: (batch, time, width)` has `lengths: (batch,)` valid."""
    graph, state = nnx.split(part.build(x.shape[-1], rngs=OneKey()))
    nnx.replace_by_pure_dict(state, dict(arrays))
    return nnx.merge(graph, state).weigh(x, lengths)


class Integration(nnx.Module):
    """Computes `IntegrateAndFire`; where it has an `amount: ()`, this one counts instead of the part's."""

    def __init__(self, part: IntegrateAndFire, width: int, *, rngs: Keys):
        self.part = part
        init, outer, shape = uniform_init(part.taps * width), uniform_init(width), (part.taps, width, width)
        self.kernel = nnx.Param(init(rngs.params(), shape))
        self.bias = nnx.Param(init(rngs.params(), (width,)))
        self.norm = LayerNorm(width, rngs=rngs)
        self.score = nnx.Param(outer(rngs.params(), (width,)))
        self.score_bias = nnx.Param(outer(rngs.params(), (1,)))

    def __call__(self, x: Array, lengths: Array | None, rngs: Keys | None = None) -> Shortened:
        """Shorten `x: (batch, time, width)`, of which `lengths: (batch,)` are valid; None: all."""
        own = self.weigh(x, lengths)
        if lengths is not None:
            x = jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, jnp.zeros_like(x))
        threshold = self.part.threshold
        firing = self.integrated(own, lengths, rngs, bound=self.part.frames(x.shape[1]))
        room = self.part.frames(jnp.full_like(firing.lengths, x.shape[1]) if lengths is None else lengths)
        lost = (firing.lengths > room)[:, None, None]
        z = jnp.where(lost, jnp.full((), jnp.nan, x.dtype), firing.fire(x))

        def hide(mask: Array) -> Array:
            hidden = jnp.einsum("bkt,bt->bk", firing.shares, mask.astype(jnp.float32))
            return hidden > SEEN * threshold

        return Shortened(z, jnp.minimum(firing.lengths, room), Partial(Firing.spread, firing), hide, own)

    def count(self, x: Array, lengths: Array | None) -> Array:
        """Count the frames that fire of each row, (batch,), room or not; arguments as of a call."""
        return self.integrated(self.weigh(x, lengths), lengths, None, bound=0).lengths

    def integrated(self, own: Array, lengths: Array | None, rngs: Keys | None, *, bound: int) -> Firing:
        """Let frames fire by their own weights, (batch, time); of padding these do not matter."""
        weights = mixed(own, self.mixing(rngs))
        if lengths is not None:
            weights = jnp.where(frame_mask(lengths, own.shape[1]), weights, jnp.zeros_like(weights))
        weights = at_least_once(weights, threshold=self.part.threshold)
        return integrate(weights, lengths, bound=bound, threshold=self.part.threshold, tail=self.part.tail)

    def mixing(self, rngs: Keys | None) -> Array:
        """Return how far weights are mixed, (): as a call says, or as training draws it, or as the part says."""
        if hasattr(self, "amount"):
            given: Array = self.amount[...]
            return given
        if rngs is None or self.part.drawn == "fixed":
            return jnp.float32(self.part.amount)
        return self.part.draw(rngs.dropout())

    def weigh(self, x: Array, lengths: Array | None) -> Array:
        """Weigh every frame, (batch, time) float32 from 0 to 1; the net hears silence where nothing is valid."""
        if lengths is not None:
            x = jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, jnp.zeros_like(x))
        side = self.part.taps // 2
        hidden = convolve(x, self.kernel[...], padding=(side, side)) + self.bias[...].astype(x.dtype)[None, None]
        hidden = jax.nn.relu(self.norm(hidden)).astype(jnp.float32)
        # A sum of products, in float32 wherever it runs: accelerators round what goes into a matrix product.
        return jax.nn.sigmoid((hidden * self.score[...][None, None]).sum(-1) + self.score_bias[...][None])
