"""Sequences made shorter by a fixed ratio, and brought back to as many frames."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Counted = tuple[Tensor, Tensor | None]  # (batch, frames, width), and valid frames of each row


class Shortening(nn.Module):
    """Each group of so many frames becomes one: their mean, or a convolution of as many taps."""

    def __init__(self, width: int, part: dict):
        super().__init__()
        self.ratio = part["ratio"]
        learned = part["kind"] == "strided_convolution"
        self.weight = nn.Parameter(torch.zeros(width, width, self.ratio)) if learned else None
        self.bias = nn.Parameter(torch.zeros(width)) if learned else None

    def forward(self, x: Tensor, lengths: Tensor | None) -> Counted:
        x = x.transpose(1, 2)
        x = F.avg_pool1d(x, self.ratio) if self.weight is None else F.conv1d(x, self.weight, self.bias, self.ratio)
        return x.transpose(1, 2), None if lengths is None else lengths // self.ratio


class Upsampling(nn.Module):
    """Each frame again for all that it was made of, as it is or by a map for each of these."""

    def __init__(self, width: int, part: dict, ratio: int):
        super().__init__()
        self.ratio = ratio
        learned = part["kind"] == "transposed_convolution"
        self.weight = nn.Parameter(torch.zeros(width, width, ratio)) if learned else None
        self.bias = nn.Parameter(torch.zeros(width)) if learned else None

    def forward(self, x: Tensor, lengths: Tensor | None, frames: int, whole: Tensor | None) -> Counted:
        """Bring `x: (batch, fewer, width)`, of which `lengths` are valid, to so many frames, of which `whole` are."""
        groups = torch.full_like(x[:, 0, 0], x.shape[1], dtype=torch.int64) if lengths is None else lengths
        last = (self.ratio * groups - 1).clamp(min=0)[:, None]
        place = torch.minimum(torch.arange(frames, device=x.device)[None], last)
        if self.weight is None:
            place = place // self.ratio
        else:
            every = F.conv_transpose1d(x.transpose(1, 2), self.weight.transpose(0, 1), self.bias, self.ratio)
            x = every.transpose(1, 2)
        x = x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
        return x, None if whole is None else torch.where(groups > 0, whole, torch.zeros_like(whole))
