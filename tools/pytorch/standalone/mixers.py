"""Mixers of linear cost: SummaryMixing (arXiv 2307.07421), Mamba (2312.00752) and Mamba-2 (2405.21060)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import ACTIVATIONS, Bias, dense
from .fronts import EPSILON

CHUNK = 64  # frames that a scan takes together, and chunks, and chunks of chunks: 87 minutes of 20 ms frames
LEVELS = 3


def scan(share: Tensor, x: Tensor, levels: int = LEVELS) -> Tensor:
    """Return h of h(t) = share(t) h(t - 1) + x(t), along axis 1 and from 0; no length changes the number of operations.

    Within a chunk it doubles the frames that it has gathered six times; what each chunk starts from is a scan again.
    """
    if torch.compiler.is_exporting():
        return _stepped(share.expand_as(x), x)
    frames = x.shape[1]
    if frames > CHUNK**levels:
        raise ValueError(f"{frames} frames are more than {CHUNK**levels}, which a scan takes; run it in pieces")
    chunks = (frames + CHUNK - 1) // CHUNK
    share, x = (_chunked(each, chunks) for each in (share.expand_as(x), x))
    far = 1
    while far < CHUNK:
        x = torch.cat([x[:, :, :far], x[:, :, far:] + share[:, :, far:] * x[:, :, :-far]], 2)
        share = torch.cat([share[:, :, :far], share[:, :, far:] * share[:, :, :-far]], 2)
        far *= 2
    if levels > 1:
        before = scan(share[:, :, -1], x[:, :, -1], levels - 1)
        before = torch.cat([torch.zeros_like(before[:, :1]), before], 1)[:, :chunks]
        x = x + share * before[:, :, None]
    return x.flatten(1, 2)[:, :frames]


def _stepped(share: Tensor, x: Tensor) -> Tensor:
    """Scan frame by frame, in an operation that exporters know."""
    from torch._higher_order_ops.scan import scan as stepped

    def move(h: Tensor, each: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h = each[0] * h + each[1]
        return h, h.clone()

    return stepped(move, torch.zeros_like(x[:, 0]), (share.transpose(0, 1), x.transpose(0, 1)))[1].transpose(0, 1)


def _chunked(x: Tensor, chunks: int) -> Tensor:
    """Fill axis 1 up with zeros to so many chunks, and give these an axis of their own."""
    pads = [0, 0] * (x.ndim - 2) + [0, CHUNK - 1]
    return F.pad(x, pads)[:, : chunks * CHUNK].unflatten(1, (chunks, CHUNK))


class Recurrence(nn.Module):
    """What a scan remembers how long, and passes by."""

    def __init__(self, channels: int, state: int):
        super().__init__()
        self.log_decay, self.skip = nn.Parameter(torch.zeros(channels, state)), nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, step: Tensor, into: Tensor, out: Tensor) -> Tensor:
        """Scan `x: (batch, frames, channels)`."""
        share = torch.exp(step[..., None] * -torch.exp(self.log_decay))
        state = scan(share, (step * x)[..., None] * into[:, :, None])
        return (state * out[:, :, None]).sum(3) + self.skip * x


class Mamba(nn.Module):
    """Mamba-1, one way or both; frames that are not valid move no state."""

    def __init__(self, width: int, part: dict):
        super().__init__()
        self.state, self.rank, self.directions = part["state"], part["rank"], part["directions"]
        self.halved, external = part["halved"], part["directions"] == "external"
        self.sizes = {"": part["inner"]}
        if self.directions != "one":
            self.sizes["back_"] = part["back" if external else "inner"]
        for side, inner in self.sizes.items():
            if not inner:
                continue
            if external or not side:
                setattr(self, f"{side}input", dense(width, 2 * inner, part[f"{side}input"], bias=False))
                setattr(self, f"{side}out", dense(inner, width, part[f"{side}out"], bias=False))
            selected = self.rank + 2 * self.state
            setattr(self, f"{side}select", dense(inner, selected, part[f"{side}select"], bias=False))
            setattr(self, f"{side}step", dense(self.rank, inner, part[f"{side}step"]))
            setattr(self, f"{side}conv", nn.Conv1d(inner, inner, part["taps"], groups=inner))
            setattr(self, f"{side}scan", Recurrence(inner, self.state))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Mix `x: (batch, frames, width)`; `valid` is (batch, frames, 1)."""
        there = None if valid is None else valid.flip(1)
        if self.directions == "inner" and self.sizes[""]:
            mixed = self.input(x)
            both = self.direction("", mixed, valid) + self.direction("back_", mixed.flip(1), there).flip(1)
            return self.out(both * 0.5 if self.halved else both)
        y = self.out(self.direction("", self.input(x), valid)) if self.sizes[""] else torch.zeros_like(x)
        if self.directions == "external" and self.sizes["back_"]:
            y = y + self.back_out(self.direction("back_", self.back_input(x.flip(1)), there)).flip(1)
        return y

    def direction(self, side: str, mixed: Tensor, valid: Tensor | None) -> Tensor:
        """Run the convolution, the scan and the gate on what the map in gives, x and z of each channel in turns."""
        conv, select, step, scanned = (getattr(self, side + name) for name in ("conv", "select", "step", "scan"))
        x, gate = mixed.unflatten(2, (-1, 2)).unbind(3)
        x = _convolved(conv, x, valid)
        selected = select(x)
        steps = F.softplus(step(selected[..., : self.rank]))
        steps = steps if valid is None else steps * valid
        into, out = selected[..., self.rank :].split(self.state, 2)
        return scanned(x, steps, into, out) * F.silu(gate)


class Heads(nn.Module):
    """What heads remember how long, and pass by."""

    def __init__(self, heads: int, groups: int):
        super().__init__()
        self.log_decay, self.skip = nn.Parameter(torch.zeros(heads, groups)), nn.Parameter(torch.ones(heads * groups))

    def forward(self, x: Tensor, step: Tensor, selected: Tensor) -> Tensor:
        """Scan `x: (batch, frames, heads, groups, head_dim)`; into and out of `selected` are (…, groups, state)."""
        into, out = (each[:, :, None, :, None] for each in selected.unbind(2))
        share = torch.exp(step * -torch.exp(self.log_decay))[..., None, None]
        state = scan(share, (step[..., None] * x)[..., None] * into)
        return (state * out).sum(5) + self.skip.unflatten(0, self.log_decay.shape)[..., None] * x


class GroupNorm(nn.Module):
    """A norm by the mean square over a group's channels, of which there were `count`."""

    def __init__(self, channels: int, count: int):
        super().__init__()
        self.weight, self.count = nn.Parameter(torch.ones(channels)), count

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x: (batch, frames, heads, groups, head_dim)`; return (batch, frames, channels)."""
        mean = x.square().sum((2, 4), keepdim=True) / self.count
        return (x * torch.rsqrt(mean + EPSILON)).flatten(2) * self.weight


class Mamba2(nn.Module):
    """Mamba-2, one way or both; frames that are not valid move no state."""

    def __init__(self, width: int, part: dict):
        super().__init__()
        self.groups, self.dim, self.state = (part[name] for name in ("groups", "head_dim", "state"))
        self.directions, external = part["directions"], part["directions"] == "external"
        self.sizes = {"": part["heads"]}
        if self.directions != "one":
            self.sizes["back_"] = part["back" if external else "heads"]
        for side, heads in self.sizes.items():
            if not heads:
                continue
            rows = heads * self.groups
            inner, selected = rows * self.dim, 2 * self.groups * self.state
            if external or not side:
                count = part[f"{side}normed"] or heads
                setattr(self, f"{side}input", dense(width, 2 * inner, part[f"{side}input"], bias=False))
                setattr(self, f"{side}norm", GroupNorm(inner, count * self.dim))
                setattr(self, f"{side}out", dense(inner, width, part[f"{side}out"], bias=False))
            setattr(self, f"{side}select", dense(width, selected, part[f"{side}select"], bias=False))
            setattr(self, f"{side}step", dense(width, rows, part[f"{side}step"]))
            setattr(self, f"{side}conv", nn.Conv1d(inner, inner, part["taps"], groups=inner))
            setattr(self, f"{side}select_conv", nn.Conv1d(selected, selected, part["taps"], groups=selected))
            setattr(self, f"{side}scan", Heads(heads, self.groups))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Mix `x: (batch, frames, width)`; `valid` is (batch, frames, 1)."""
        y, turned, there = torch.zeros_like(x), x.flip(1), None if valid is None else valid.flip(1)
        if self.sizes[""]:
            mixed, gate = self.split("", x)
            scanned = self.direction("", x, mixed, valid)
            if self.directions == "inner":
                scanned = scanned + self.direction("back_", turned, mixed.flip(1), there).flip(1)
            y = self.out(self.norm(scanned * F.silu(gate)))
        if self.directions == "external" and self.sizes["back_"]:
            mixed, gate = self.split("back_", turned)
            scanned = self.direction("back_", turned, mixed, there)
            y = y + self.back_out(self.back_norm(scanned * F.silu(gate))).flip(1)
        return y

    def split(self, side: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map frames to what is scanned and to its gate, each (batch, frames, heads, groups, head_dim)."""
        mixed = getattr(self, f"{side}input")(x).unflatten(2, (self.sizes[side], self.groups, self.dim, 2))
        return mixed[..., 0], mixed[..., 1]

    def direction(self, side: str, x: Tensor, mixed: Tensor, valid: Tensor | None) -> Tensor:
        """Run the convolutions and the scan."""
        select, step, scanned = (getattr(self, side + name) for name in ("select", "step", "scan"))
        shape = (2, self.groups, self.state)
        selected = _convolved(getattr(self, f"{side}select_conv"), select(x), valid).unflatten(2, shape)
        inner = _convolved(getattr(self, f"{side}conv"), mixed.flatten(2), valid).unflatten(2, mixed.shape[2:])
        steps = F.softplus(step(x))
        steps = steps if valid is None else steps * valid
        return scanned(inner, steps.unflatten(2, mixed.shape[2:4]), selected)


def _convolved(conv: nn.Conv1d, x: Tensor, valid: Tensor | None) -> Tensor:
    """Convolve the valid of `x: (batch, frames, channels)` with those before them, and apply SiLU."""
    x = x if valid is None else x * valid
    return F.silu(conv(F.pad(x.transpose(1, 2), (conv.kernel_size[0] - 1, 0))).transpose(1, 2))


class BlockDiagonal(nn.Module):
    """A map of each part of a frame by a kernel of its own."""

    def __init__(self, heads: int, inputs: int, outputs: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(heads, inputs, outputs)) if inputs else None
        self.bias = nn.Parameter(torch.zeros(heads, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map `x: (batch, frames, heads, inputs)`."""
        if self.kernel is None:
            return self.bias.expand(*x.shape[:2], -1, -1)
        return torch.einsum("bthi,hio->btho", x, self.kernel) + self.bias


class SummaryMixing(nn.Module):
    """Every frame hears one mean over the others; frames that are not valid are in none."""

    def __init__(self, width: int, part: dict):
        super().__init__()
        self.part, self.heads, self.mode = part, part["heads"], part["mode"]
        self.act, self.width = ACTIVATIONS[part["activation"]], width
        for name in ("local", "summary"):
            size, hidden = part[name], part[f"{name}_hidden"]
            merge = f"merge_{name}"
            if size:
                first = hidden if self.mode != "fast" else size
                self.chain(f"{name}1", width // self.heads, first)
                if self.mode != "fast":
                    self.chain(f"{name}2", hidden, size)
                if part["norm"]:
                    setattr(self, f"{name}_norm", nn.LayerNorm(self.heads * size, EPSILON))
                if self.mode != "lite":
                    setattr(self, merge, dense(self.heads * size, width, part[merge], bias=name == "summary"))
            elif name == "summary" and self.mode != "lite":
                self.merge_summary = Bias(width)

    def chain(self, name: str, inputs: int, outputs: int) -> None:
        """Make a branch's map; without inputs its bias is left of it, without outputs nothing."""
        if self.heads > 1:
            made = BlockDiagonal(self.heads, inputs, outputs) if outputs else None
        else:
            made = (dense(inputs, outputs, self.part[name]) if inputs else Bias(outputs)) if outputs else None
        setattr(self, name, made)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Mix `x: (batch, frames, width)`; `valid` is (batch, frames, 1)."""
        heard = self.summarise(x, valid) if self.part["summary"] else None
        if self.mode == "lite":
            return torch.zeros_like(x) if heard is None else heard
        y = self.merge_summary(x if heard is None else self.units(heard))
        if self.part["local"]:
            y = y + self.merge_local(self.units(self.normed("local", self.branch("local", x))))
        return self.act(y)

    def branch(self, name: str, x: Tensor) -> Tensor:
        """Run a branch on every frame."""
        y = x.unflatten(2, (self.heads, -1)) if self.heads > 1 else x
        for number in (1,) if self.mode == "fast" else (1, 2):
            layer = getattr(self, f"{name}{number}")
            y = y if layer is None else self.act(layer(y))
        return y.flatten(2) if self.heads > 1 else y

    def normed(self, name: str, y: Tensor) -> Tensor:
        return getattr(self, f"{name}_norm")(y) if self.part["norm"] else y

    def units(self, y: Tensor) -> Tensor:
        """Put units before heads, as the merge has them."""
        return y.unflatten(2, (self.heads, -1)).transpose(2, 3).flatten(2) if self.heads > 1 else y

    def summarise(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Return what each frame hears of the others."""
        s = self.branch("summary", x)
        count = torch.ones_like(s[..., :1]) if valid is None else valid.to(s.dtype)
        total, count = self.sums(s * count), self.sums(count)
        mean = total / torch.where(count > 0, count, torch.ones_like(count))
        return self.normed("summary", mean.expand_as(s))

    def sums(self, x: Tensor) -> Tensor:
        """Add up what all frames have, those of a window, or less of it the further away they are."""
        if self.part["window"]:
            frames = x.shape[1]
            left, right = self.part["window"]
            at = torch.arange(frames, device=x.device)
            before = F.pad(x.cumsum(1), (0, 0, 1, 0))
            first, last = (at - left).clamp(min=0), torch.minimum(at + right, at[-1:]) + 1
            return before[:, last] - before[:, first]
        if self.part["decay"] < 1:
            share = torch.full_like(x[:, :, :1], self.part["decay"])
            return scan(share, x) + scan(share, x.flip(1)).flip(1) - x
        return x.sum(1, keepdim=True)


MIXERS = {  # by kind: their place, and class
    "mamba": ("mamba", Mamba),
    "mamba2": ("mamba2", Mamba2),
    "summary_mixing": ("mixing", SummaryMixing),
}
