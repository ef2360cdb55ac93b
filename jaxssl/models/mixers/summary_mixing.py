"""SummaryMixing: every frame hears one mean over the others, in time linear in their number (Parcollet et al. 2023)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import jax.numpy as jnp
from flax import nnx
from jax import Array

from compress.errors import InputError
from jaxssl.models.activations import FUNCTIONS, Activation
from jaxssl.models.dense import Dense
from jaxssl.models.held import Memory, check_held, delayed, nothing
from jaxssl.models.keys import Keys
from jaxssl.models.layers import LayerNorm, dropout, encoder_init
from jaxssl.models.mixers.summaries import FAR, running, summaries
from jaxssl.models.part import FULL, Arrays, Dropout, Form, Map, Names, Units, check_counts, form_of

Mode = Literal["full", "lite", "fast"]
BRANCHES = ("local", "summary")
FORMS = ("local1", "local2", "summary1", "summary2", "merge_local", "merge_summary")


@dataclass(frozen=True)
class SummaryMixing:
    """y = act(W [f; s] + b), f of the frame itself, s the mean of what all frames say (arXiv 2307.07421).

    Both branches are two maps with the activation behind each. With several heads they are block-diagonal: head i maps
    the i-th part of the frame by a kernel of its own. All sizes below are those of one head.

    Attributes:
        heads: into how many parts the branches divide a frame; must divide the width.
        local: outputs of the frame's own branch; 0 in the lite mode.
        summary: outputs of the branch whose mean is taken; in the lite mode `heads` times these are the width.
        local_hidden: hidden units of the frame's own branch; 0 in the modes that have none.
        summary_hidden: the same of the other branch.
        mode: "full"; "lite", which returns the mean alone; or "fast", whose branches are one map each and one head.
        decay: what a frame's share in the mean is multiplied by for each frame that it is away; 1: the plain mean.
        window: frames to the left and to the right that the mean is taken over; none: all.
        norm: whether both branches end in a LayerNorm, the summary's after the mean. Units cannot go then, for the norm
            of the others would change.
        activation: behind every map.
        local1: form of the map to the frame's own hidden units, where there is one head; in the fast mode of the whole
            branch.
        local2: the same from them.
        summary1: as `local1`, of the other branch.
        summary2: as `local2`, of the other branch.
        merge_local: form of W's part that takes f.
        merge_summary: the same of the part that takes s.
    """

    heads: int
    local: int
    summary: int
    local_hidden: int = 0
    summary_hidden: int = 0
    mode: Mode = "full"
    decay: float = 1.0
    window: tuple[int, ...] = ()
    norm: bool = False
    activation: Activation = "silu"
    local1: Form = FULL
    local2: Form = FULL
    summary1: Form = FULL
    summary2: Form = FULL
    merge_local: Form = FULL
    merge_summary: Form = FULL
    kind: Literal["summary_mixing"] = "summary_mixing"

    place: ClassVar = "mixing"
    names: ClassVar[Names] = {"fairseq": (), "huggingface": ()}  # no format that we read has one

    @property
    def branches(self) -> tuple[Literal["local", "summary"], ...]:
        """Names of the branches that there are."""
        return ("summary",) if self.mode == "lite" else ("local", "summary")

    @property
    def empty(self) -> bool:
        """Whether no frame is heard: what it returns is its bias through the activation."""
        return not (self.local or self.summary)

    @property
    def carries(self) -> bool:
        """Whether it takes what the mixer of the layer before carries over: never."""
        return False

    def chain(self, branch: str, width: int) -> tuple[Map, ...]:
        """List the maps of one head of a branch."""
        ins, outs, hidden = width // self.heads, getattr(self, branch), getattr(self, f"{branch}_hidden")
        if self.mode == "fast":
            return (Map(f"{branch}1", (ins,), (outs,), getattr(self, f"{branch}1")),)
        first = Map(f"{branch}1", (ins,), (hidden,), getattr(self, f"{branch}1"))
        return first, Map(f"{branch}2", (hidden,), (outs,), getattr(self, f"{branch}2"))

    def maps(self, width: int) -> tuple[Map, ...]:
        """List the dense maps: those of the branches, unless several heads make them block-diagonal, and the merge."""
        inner = [spec for branch in self.branches for spec in self.chain(branch, width)] if self.heads == 1 else []
        if self.mode == "lite":
            return tuple(inner)
        merge = (
            Map(f"merge_{name}", self._outputs(name), (width,), getattr(self, f"merge_{name}"), bias=name == "summary")
            for name in BRANCHES
        )
        return (*inner, *merge)

    def _outputs(self, branch: str) -> tuple[int, ...]:
        """Return the axes of a branch's outputs, units first, so that one unit is the same output of every head."""
        size: int = getattr(self, branch)
        return (size,) if self.heads == 1 else (size, self.heads)

    def units(self) -> tuple[Units, ...]:
        """List the outputs of both branches; with one head their hidden units too."""
        if self.norm:
            return ()
        found = []
        last = 1 if self.mode == "fast" else 2
        for name in () if self.mode == "lite" else BRANCHES:
            size, into = getattr(self, name), f"merge_{name}"
            if self.heads == 1:
                found.append(Units(name, size, ((f"{name}{last}", "out"), (into, "in")), into))
            else:
                arrays = ((f"{name}2/kernel", 2), (f"{name}2/bias", 1))
                found.append(Units(name, size, ((into, "in"),), into, arrays=arrays))
        if self.heads == 1 and self.mode != "fast":
            for name in self.branches:
                hidden = f"{name}_hidden"
                sides = ((f"{name}1", "out"), (f"{name}2", "in"))
                found.append(Units(hidden, getattr(self, hidden), sides, f"{name}2"))  # type: ignore[arg-type]
        return tuple(found)

    def resized(self, name: str, size: int) -> Self:
        """Return the same with another number of units."""
        return replace(self, **{name: size})  # type: ignore[arg-type]

    def core_macs(self, frames: int, width: int) -> int:
        """Count the products of block-diagonal maps; means are sums."""
        if self.heads == 1:
            return 0
        chain = (spec for branch in self.branches for spec in self.chain(branch, width))
        return frames * self.heads * sum(spec.inputs[0] * spec.outputs[0] for spec in chain)

    def activation_bytes(self, frames: int, itemsize: int, dropout: Dropout) -> float:
        """Return what one frame leaves: every map's outputs before and after the activation."""
        sizes = self.local + self.summary + self.local_hidden + self.summary_hidden
        return 2 * itemsize * self.heads * sizes

    @staticmethod
    def fits(layer: Arrays) -> bool:
        """Tell whether the arrays of a layer have such a mixer among them."""
        return "mixing" in layer

    def read(self, arrays: Arrays) -> Self:
        """Return the mixer that these arrays are; decay, window and activation are this one's."""
        mode: Mode = "lite" if "merge_summary" not in arrays else "full" if "summary2" in arrays else "fast"
        last = arrays["summary1" if mode == "fast" else "summary2"]["bias"].shape
        sizes: dict[str, Any] = dict.fromkeys(("local", "summary", "local_hidden", "summary_hidden"), 0)
        for branch in ("summary",) if mode == "lite" else BRANCHES:
            shapes = [arrays[f"{branch}{i}"]["bias"].shape[-1] for i in (1, 2) if f"{branch}{i}" in arrays]
            sizes[branch] = shapes[-1]
            sizes[f"{branch}_hidden"] = shapes[0] if len(shapes) == 2 else 0
        several = len(last) == 2
        whole = [name for name in arrays if "norm" not in name and (not several or name.startswith("merge"))]
        forms: dict[str, Any] = dict.fromkeys(FORMS, FULL)
        forms |= {name: form_of(arrays[name]) for name in whole}
        heads = last[0] if several else 1
        return replace(self, heads=heads, mode=mode, norm="summary_norm" in arrays, **sizes, **forms)

    def check(self, where: str, before: object) -> None:
        """Refuse sizes, windows and decays that cannot be.

        Raises:
            InputError: the message says which.
        """
        check_counts(where, heads=self.heads)
        sizes = (self.local, self.summary, self.local_hidden, self.summary_hidden)
        if min(sizes) < 0:
            raise InputError(f"{where}: branches of {', '.join(map(str, sizes))} units; none may be negative")
        if self.mode == "fast" and self.heads != 1:
            raise InputError(f"{where}: the fast mode has whole maps, not {self.heads} heads; use heads 1 or mode full")
        if self.mode == "lite" and self.local:
            raise InputError(f"{where}: the lite mode has no local branch, local is {self.local}; use 0 or mode full")
        if not 0 < self.decay <= 1:
            raise InputError(f"{where}: decay {self.decay} is no share that a frame keeps; use more than 0, at most 1")
        if self.window and (len(self.window) != 2 or self.decay != 1):
            raise InputError(
                f"{where}: window {self.window} with decay {self.decay}; give frames to the left and to the right, and "
                "decay 1"
            )
        inner = (self.local1, self.local2, self.summary1, self.summary2)
        if self.heads > 1 and any(form != FULL for form in inner):
            raise InputError(
                f"{where}: the branches of {self.heads} heads are block-diagonal and stay whole; factorise or quantise "
                "the merge alone"
            )

    @property
    def ahead(self) -> int:
        """Frames that it waits for in a stream."""
        return self.window[1] if self.window else 0

    def check_stream(self, where: str) -> None:
        """Refuse a mean over all that is to come.

        Raises:
            InputError: it is, or is over too many frames.
        """
        if not self.window or self.window[1] >= FAR:
            raise InputError(
                f"{where}: SummaryMixing takes the mean of all frames; give it a window, ({FAR}, 0) for all so far, to "
                "stream"
            )
        check_held(where, self.window[1] if self.window[0] >= FAR else sum(self.window))

    def memory(self, batch: int, width: int) -> Memory:
        """Return what a stream holds before the first frame: frames that wait, and sums so far or the window."""
        left, right = self.window
        units = self.heads * self.summary
        if left >= FAR:
            return nothing(batch, x=(right, width), total=(units,), count=(1,))
        return nothing(batch, x=(right, width), summary=(left + right, units), valid=(left + right,))

    def build(self, width: int, *, dropout: Dropout, prepared: bool, lends: bool, rngs: Keys) -> "Summaries":
        """Make the module.

        Raises:
            InputError: the heads do not divide the width, or the lite mode's summary is not as wide.
        """
        if width % self.heads:
            raise InputError(f"SummaryMixing of {self.heads} heads cannot divide a width of {width}; use a divisor")
        if self.mode == "lite" and self.heads * self.summary != width:
            wide = f"{self.heads} × {self.summary}"
            raise InputError(f"SummaryMixing's lite mode returns its summary, {wide} wide, in a width of {width}")
        return Summaries(self, width, rate=dropout.activation, prepared=prepared, rngs=rngs)


class BlockDiagonal(nnx.Module):
    """A map of each part of a frame by a kernel of its own: `kernel` (heads, in, out), `bias` (heads, out)."""

    def __init__(self, heads: int, spec: Map, *, rngs: Keys):
        self.kernel = nnx.Param(encoder_init(rngs.params(), (heads, *spec.inputs, *spec.outputs)))
        self.bias = nnx.Param(jnp.zeros((heads, *spec.outputs)))

    def __call__(self, x: Array) -> Array:
        """Map `x: (batch, time, heads, in)` to (batch, time, heads, out)."""
        y = jnp.einsum("bthi,hio->btho", x, self.kernel[...].astype(x.dtype))
        return y + self.bias[...].astype(x.dtype)[None, None]


class Summaries(nnx.Module):
    """Computes `SummaryMixing`."""

    def __init__(self, part: SummaryMixing, width: int, *, rate: float, prepared: bool, rngs: Keys):
        self.part, self.rate = part, rate
        for spec in part.maps(width):
            setattr(self, spec.name, Dense(spec, prepared=prepared, rngs=rngs))
        for branch in part.branches:
            for spec in part.chain(branch, width) if part.heads > 1 else ():
                setattr(self, spec.name, BlockDiagonal(part.heads, spec, rngs=rngs))
            if part.norm:
                setattr(self, f"{branch}_norm", LayerNorm(part.heads * getattr(part, branch), rngs=rngs))

    def __call__(self, x: Array, valid: Array | None, rngs: Keys | None, before: Any) -> tuple[Array, None]:
        """Mix `x: (batch, time, width)`; frames where `valid: (batch, time)` is false are in no mean."""
        return self.merged(x, self.summarise(x, valid) if self.part.summary else None, rngs), None

    def stream(self, x: Array, valid: Array, memory: Memory) -> tuple[Array, Memory]:
        """Mix the frames of a stream that are `ahead` before those of `x`; return that and the memory."""
        (waiting,), held = delayed(memory, x=x)
        if not self.part.summary:
            return self.merged(waiting, None, None), held
        mean, also = running(self.branch("summary", x), valid, memory, window=self.part.window)
        return self.merged(waiting, self.normed("summary", mean), None), {**held, **also}

    def merged(self, x: Array, s: Array | None, rngs: Keys | None) -> Array:
        """Merge what frames say of themselves with what they hear of others, `s`; None: there is no such branch."""
        part, act = self.part, FUNCTIONS[self.part.activation]
        if part.mode == "lite":
            return jnp.zeros_like(x) if s is None else s
        y = self.merge_summary.bias_alone(x)
        if s is not None:
            y = self.merge_summary(self.units(dropout(s, self.rate, rngs), part.summary))
        if part.local:
            f = dropout(self.normed("local", self.branch("local", x)), self.rate, rngs)
            y = y + self.merge_local(self.units(f, part.local))
        return act(y)

    def summarise(self, x: Array, valid: Array | None) -> Array:
        """Return what each frame hears of the others, (batch, time, outputs)."""
        s = summaries(self.branch("summary", x), valid, decay=self.part.decay, window=self.part.window)
        return self.normed("summary", s)

    def branch(self, name: str, x: Array) -> Array:
        """Run a branch on every frame, (batch, time, outputs of all heads)."""
        heads, act = self.part.heads, FUNCTIONS[self.part.activation]
        y = x.reshape(*x.shape[:2], heads, -1) if heads > 1 else x
        for i in (1,) if self.part.mode == "fast" else (1, 2):
            dense = getattr(self, f"{name}{i}")
            alone = i == 2 and heads == 1 and not getattr(self.part, f"{name}_hidden")
            y = act(dense.bias_alone(x) if alone else dense(y))
        return y.reshape(*x.shape[:2], -1)

    def normed(self, branch: str, y: Array) -> Array:
        """Normalise a branch's outputs, where it has a norm."""
        return getattr(self, f"{branch}_norm")(y) if self.part.norm else y

    def units(self, y: Array, size: int) -> Array:
        """Put units before heads, (batch, time, units, heads), as the merge has them; one head has no axis."""
        if self.part.heads == 1:
            return y
        return y.reshape(*y.shape[:2], self.part.heads, size).swapaxes(2, 3)
