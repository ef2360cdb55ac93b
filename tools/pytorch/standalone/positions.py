"""What is added to projected features so that frames know where they are."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fronts import EPSILON


class Shift(nn.Module):
    """A scale and a bias of every channel."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class Convolution(nn.Module):
    """GELU of one grouped convolution; channels are scaled and shifted before it where positions are so."""

    def __init__(self, width: int, position: dict):
        super().__init__()
        self.conv = grouped(width, position)
        self.norm = Shift(width) if position["kind"] == "scaled_convolution" else None

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Take and return (batch, frames, width); `valid: (batch, frames, 1)` where there is padding."""
        if self.norm is not None:
            x = self.norm(x) if valid is None else self.norm(x) * valid
        return F.gelu(same(self.conv, x))


class Stack(nn.Module):
    """Several short convolutions, each with a norm over channels and GELU, none of which hears padding."""

    def __init__(self, width: int, position: dict):
        super().__init__()
        self.convs = nn.ModuleList([grouped(width, position) for _ in range(position["depth"])])

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        for i, conv in enumerate(self.convs):
            x = x * valid if i and valid is not None else x
            x = F.gelu(F.layer_norm(same(conv, x), x.shape[2:], eps=EPSILON))
        return x


class Sinusoids(nn.Module):
    """Fixed sines and cosines of each frame's number, the same for every row."""

    def __init__(self, width: int, position: dict):
        super().__init__()
        waves, self.halves = width // 2, position["layout"] == "halves"
        self.rounded = getattr(torch, position.get("rounded", "float32"))
        steps = waves - 1 if self.halves else waves
        self.rates = [math.exp(wave * -math.log(10_000) / steps) for wave in range(waves)]

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        rates = torch.tensor(self.rates, device=x.device, dtype=torch.float32)
        angles = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None] * rates
        both = angles.sin(), angles.cos()
        table = torch.cat(both, 1) if self.halves else torch.stack(both, 2).flatten(1)
        return table.to(self.rounded).to(x.dtype)[None]


POSITIONS: dict[str, Callable[[int, dict], nn.Module]] = {
    "convolution": Convolution,
    "scaled_convolution": Convolution,
    "convolution_stack": Stack,
    "sinusoid": Sinusoids,
}


def grouped(width: int, position: dict) -> nn.Conv1d:
    """Return a convolution of channels in groups; its output may be too long, see `same`."""
    taps = position["kernel"]
    before = taps - 1 if position.get("causal") else taps // 2
    return nn.Conv1d(width, width, taps, padding=before, groups=position["groups"])


def same(conv: nn.Module, x: Tensor) -> Tensor:
    """Convolve (batch, frames, width) over frames, as many as there are."""
    return conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
