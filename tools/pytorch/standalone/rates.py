"""Sequences made shorter, by a fixed ratio, by their keys or by what is said, and brought back to as many frames."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fronts import EPSILON, first

Counted = tuple[Tensor, Tensor | None]  # (batch, frames, width), and valid frames of each row

PARTS = 1000  # that the kept frames of `Merging` are a part of
TINY = 1e-12  # of a product of two keys' lengths, and of a frame's size
UNIT = 2**32  # of a running sum of weights, which is added up in whole numbers, so that it is exact after an hour too
SLACK = 1e-4  # of a threshold: what rounding may cost the last frame
TAIL = 0.5  # of weight, from which on what is left at the end fires too
SEEN = 1e-3  # of a threshold: of a frame of which less was fired nothing was


class Short(NamedTuple):
    """A shorter sequence."""

    x: Tensor  # (batch, fewer, width)
    lengths: Tensor | None  # valid frames of each row
    restore: Callable[[Tensor], Tensor]  # from its frames, (batch, fewer, any width), to those before
    sizes: Tensor | None = None  # frames that each was made of, (batch, fewer); None: equally many


class Grouping(nn.Module):
    """Each group of so many frames becomes one: their mean, or a convolution of as many taps."""

    def __init__(self, width: int, part: dict):
        super().__init__()
        self.ratio = part["ratio"]
        learned = part["kind"] == "strided_convolution"
        self.weight = nn.Parameter(torch.zeros(width, width, self.ratio)) if learned else None
        self.bias = nn.Parameter(torch.zeros(width)) if learned else None

    def forward(self, x: Tensor, lengths: Tensor | None) -> Short:
        frames, x = x.shape[1], x.transpose(1, 2)
        x = F.avg_pool1d(x, self.ratio) if self.weight is None else F.conv1d(x, self.weight, self.bias, self.ratio)
        x, lengths = x.transpose(1, 2), None if lengths is None else lengths // self.ratio

        def restore(y: Tensor) -> Tensor:
            last = (counts(y, lengths) - 1).clamp(min=0)[:, None]
            return taken(y, torch.minimum(torch.arange(frames, device=y.device)[None] // self.ratio, last))

        return Short(x, lengths, restore)


class Merging(nn.Module):
    """Neighbours whose keys are most alike become their mean, so many that `kept` of 1000 frames are left."""

    ratio = 1

    def __init__(self, width: int, part: dict):
        super().__init__()
        self.kept = part["kept"]

    def forward(self, x: Tensor, lengths: Tensor | None, keys: Tensor, sizes: Tensor | None) -> Short:
        """Shorten `x` by its keys, (batch, frames, any width)."""
        count, room = counts(x, lengths), (x.shape[1] * self.kept + PARTS - 1) // PARTS
        left = torch.div(count * self.kept + PARTS - 1, PARTS, rounding_mode="floor")
        own = self.places(keys, count, left)
        sizes = torch.ones_like(x[..., 0]) if sizes is None else sizes
        sizes = sizes * first(count, x.shape[1])
        whole = totals(sizes[..., None], own, room)[..., 0]
        share = sizes / whole.gather(1, own).clamp(min=TINY)
        z = totals(share[..., None] * x, own, room)
        return Short(z, None if lengths is None else left, lambda y: taken(y, own), whole)

    def places(self, keys: Tensor, count: Tensor, left: Tensor) -> Tensor:
        """Return the place of the frame that each becomes a part of, (batch, frames)."""
        lengths = keys.square().sum(2).sqrt()
        alike = (keys[:, 1:] * keys[:, :-1]).sum(2) / (lengths[:, 1:] * lengths[:, :-1]).clamp(min=TINY)
        at = torch.arange(1, keys.shape[1], device=keys.device)
        alike = alike.masked_fill(at >= count[:, None], -torch.inf)
        # How many come before each, the first of equals first; no sort, which not every exporter knows to be stable.
        more, same = alike[:, None] > alike[:, :, None], alike[:, None] == alike[:, :, None]
        rank = (more | (same & (at < at[:, None]))).sum(2)
        begun = (rank >= (count - left)[:, None]).to(torch.int64)
        place = F.pad(begun, (1, 0)).cumsum(1)
        return torch.minimum(place, (left - 1).clamp(min=0)[:, None])


class Firing(nn.Module):
    """Frames are added up by weights that a small net gives them; each time these reach a threshold one is fired."""

    ratio = 1

    def __init__(self, width: int, part: dict):
        super().__init__()
        self.threshold, self.amount, self.most, self.tail = (
            part[name] for name in ("threshold", "amount", "most", "tail")
        )
        self.weight = nn.Parameter(torch.zeros(width, width, part["taps"]))
        self.bias, self.norm = nn.Parameter(torch.zeros(width)), nn.LayerNorm(width, EPSILON)
        self.score, self.score_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, lengths: Tensor | None) -> Short:
        count = counts(x, lengths)
        valid = first(count, x.shape[1])
        x = x.masked_fill(~valid[..., None], 0)
        weights = torch.where(valid, self.mixed(self.weigh(x)), 0) / self.threshold
        total = weights.sum(1, keepdim=True)
        few = (total > 0) & (total < 1)  # an utterance fires once at least
        shares, fired, turns = self.shares(weights / torch.where(few, total, torch.ones_like(total)))
        room = torch.div(count * self.most + 99, 100, rounding_mode="floor")
        z = torch.where((fired > room)[:, None, None], torch.nan, shares @ x)  # nothing is lost in silence
        seen = shares.sum(1, keepdim=True)
        places = torch.arange(shares.shape[1], device=x.device)[:, None]
        now = (places == torch.minimum(turns, fired[:, None] - 1)[:, None]).to(x.dtype)
        some = seen > SEEN
        mixture = torch.where(some, shares / torch.where(some, seen, torch.ones_like(seen)), now)
        return Short(z, torch.minimum(fired, room), lambda y: mixture.transpose(1, 2) @ y)

    def weigh(self, x: Tensor) -> Tensor:
        """Weigh every frame, (batch, frames) from 0 to 1."""
        hidden = F.conv1d(x.transpose(1, 2), self.weight, self.bias, padding=self.weight.shape[2] // 2)
        hidden = F.relu(self.norm(hidden.transpose(1, 2)))
        return torch.sigmoid((hidden * self.score).sum(2) + self.score_bias)

    def mixed(self, weights: Tensor) -> Tensor:
        """Mix weights with no compression."""
        if self.amount <= 1:
            return (1 - self.amount) + self.amount * weights
        return (2 - self.amount) * weights

    def shares(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return which part of each frame goes where, (batch, fired, frames), in units of the threshold given.

        And how many are fired of each row, and how many were up to each frame.
        """
        whole = weights.floor()
        total = (whole.to(torch.int64) * UNIT + ((weights - whole) * UNIT).to(torch.int64)).cumsum(1)
        turns = torch.div(total, UNIT, rounding_mode="floor")
        part = (total - turns * UNIT).to(weights.dtype) / UNIT
        places = torch.arange((weights.shape[1] * self.most + 99) // 100, device=weights.device)[:, None]
        filled = ((turns[:, None] - places).to(weights.dtype) + part[:, None]).clamp(0, 1)
        shares = filled - F.pad(filled[..., :-1], (1, 0))
        late = part[:, -1] > 1 - SLACK
        fired, rest = turns[:, -1] + late.to(torch.int64), part[:, -1].masked_fill(late, 0)
        if self.tail == "round":
            more = rest * self.threshold > TAIL - SLACK
            scale = 1 / torch.where(more, rest, torch.ones_like(rest))
            shares = torch.where(places == fired[:, None, None], shares * scale[:, None, None], shares)
            fired = fired + more.to(torch.int64)
        return torch.where(places < fired[:, None, None], shares * self.threshold, 0), fired, turns


class Upsampling(nn.Module):
    """Each frame again for all that it was made of, as it is or by a map for each of these."""

    def __init__(self, width: int, part: dict, ratio: int):
        super().__init__()
        self.ratio = ratio
        learned = part["kind"] == "transposed_convolution"
        self.weight = nn.Parameter(torch.zeros(width, width, ratio)) if learned else None
        self.bias = nn.Parameter(torch.zeros(width)) if learned else None

    def forward(
        self, x: Tensor, lengths: Tensor | None, frames: int, whole: Tensor | None, way: list[Callable]
    ) -> Counted:
        """Bring `x: (batch, fewer, width)`, of which `lengths` are valid, to so many frames, of which `whole` are."""
        groups = counts(x, lengths)
        if self.weight is None:
            for restore in reversed(way):
                x = restore(x)
        else:
            every = F.conv_transpose1d(x.transpose(1, 2), self.weight.transpose(0, 1), self.bias, self.ratio)
            last = (self.ratio * groups - 1).clamp(min=0)[:, None]
            x = taken(every.transpose(1, 2), torch.minimum(torch.arange(frames, device=x.device)[None], last))
        return x, None if whole is None else torch.where(groups > 0, whole, torch.zeros_like(whole))


SHORTENINGS = {"key_merging": Merging, "integrate_and_fire": Firing}  # by kind; the others are groups


def shortening(width: int, part: dict | None) -> nn.Module | None:
    """Return what makes a sequence shorter, where something does."""
    return SHORTENINGS.get(part["kind"], Grouping)(width, part) if part else None


def counts(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the valid frames of each row of `x: (batch, frames, width)`."""
    return torch.full_like(x[:, 0, 0], x.shape[1], dtype=torch.int64) if lengths is None else lengths


def taken(x: Tensor, places: Tensor) -> Tensor:
    """Return the frames at `places: (batch, any)`."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def totals(x: Tensor, own: Tensor, room: int) -> Tensor:
    """Add up the frames of each place, (batch, frames, width) to (batch, room, width)."""
    empty = torch.zeros(x.shape[0], room, x.shape[2], dtype=x.dtype, device=x.device)
    return empty.scatter_add(1, own[..., None].expand(-1, -1, x.shape[2]), x)
