"""What a layer is made of: attention with or without relative positions, the feed-forward block, an adapter."""

import math
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fronts import EPSILON, first

Attended = tuple[Tensor, Tensor | None]  # a block's output, and its attention maps where a next layer wants them

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_10": lambda x: F.gelu(x).clip(-10, 10),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
    "linear": lambda x: x,
}


def dense(inputs: int, outputs: int, form: dict, *, bias: bool = True) -> nn.Module:
    """Return a linear map, or two of them around a bottleneck; `form` is the map's in config.json."""
    if form["kind"] != "rank":
        return nn.Linear(inputs, outputs, bias=bias)
    rank = form["rank"]
    return nn.Sequential(OrderedDict(down=nn.Linear(inputs, rank, bias=False), up=nn.Linear(rank, outputs, bias=bias)))


class Bias(nn.Module):
    """What is left of a block without units."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(*x.shape[:2], -1)


class Relative(nn.Module):
    """What a query adds for a key by how far it is behind: a row for each distance, the last ones for all beyond."""

    def __init__(self, relative: dict):
        super().__init__()
        self.reach = relative["max_distance"]
        self.weight = nn.Parameter(torch.zeros(2 * self.reach + 1, relative["heads"]))

    def forward(self, frames: int) -> Tensor:
        """Return (heads, query, key)."""
        place = torch.arange(frames, device=self.weight.device)
        apart = (place[None] - place[:, None]).clamp(-self.reach, self.reach) + self.reach
        return self.weight[apart].permute(2, 0, 1)


class Gate(nn.Module):
    """How much of the relative positions each query of a head takes: WavLM's gate, which reads the head's own slice."""

    def __init__(self, remaining: list[int], head_dim: int):
        super().__init__()
        self.remaining, self.head_dim = remaining, head_dim
        self.weight, self.bias = nn.Parameter(torch.zeros(8, head_dim)), nn.Parameter(torch.zeros(8))
        self.constant = nn.Parameter(torch.ones(len(remaining)))

    def forward(self, x: Tensor, relative: Tensor) -> Tensor:
        """Return what is added to the scores of `x: (batch, frames, width)`."""
        slices = x.unflatten(2, (-1, self.head_dim))[:, :, self.remaining].transpose(1, 2)
        alpha, gamma = F.linear(slices, self.weight, self.bias).unflatten(3, (2, 4)).sum(4).sigmoid().unbind(3)
        gate = alpha * (gamma * self.constant[:, None] - 1) + 2
        return gate[..., None] * relative[self.remaining]


class Attention(nn.Module):
    """Self-attention; with `reuse`, by the maps of the layer before; or with gated relative positions."""

    def __init__(self, width: int, mixer: dict):
        super().__init__()
        gated = mixer["kind"] == "gated_attention"
        self.heads = len(mixer["remaining"]) if gated else mixer["heads"]
        self.head_dim, self.reuse = mixer["head_dim"], mixer.get("reuse", False)
        self.softened = mixer.get("softened", False)
        self.left, self.right = mixer.get("left"), mixer.get("right")  # frames that a frame sees; None: all
        inner = self.heads * self.head_dim
        for name in "" if not self.heads else "v" if self.reuse else "qkv":
            biased = name != "k" or mixer.get("key_bias", True)
            setattr(self, name, dense(width, inner, mixer[name], bias=biased))
        self.out = dense(inner, width, mixer["out"]) if self.heads else Bias(width)
        self.gate = Gate(mixer["remaining"], self.head_dim) if gated and self.heads else None

    def forward(
        self, x: Tensor, bias: Tensor | None, before: Tensor | None, lend: bool, relative: Tensor | None
    ) -> Attended:
        """Add `bias` and gated positions to the scores.

        What the next layer may use is returned too, where maps were made or `lend` asks.
        """
        if not self.heads:
            return self.out(x), None
        if self.gate is not None:
            added = self.gate(x, relative)
            bias = added if bias is None else added + bias
        if self.left is not None or self.right is not None:
            bias = torch.zeros(1, device=x.device) if bias is None else bias
            bias = bias.masked_fill(self.far(x), torch.finfo(torch.float32).min)
        if self.reuse:
            context = before @ self.split(self.v(x))
        elif lend:
            scores = self.split(self.q(x)) @ self.split(self.k(x)).transpose(2, 3) / math.sqrt(self.head_dim)
            before = (scores if bias is None else scores + bias).softmax(-1)
            context = before @ self.split(self.v(x))
            if self.softened:
                before = (before if bias is None else before + bias).softmax(-1)
        else:
            q, k, v = (self.split(each(x)) for each in (self.q, self.k, self.v))
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out(context.transpose(1, 2).flatten(2)), before

    def far(self, x: Tensor) -> Tensor:
        """Tell which keys a query does not see: (frames, frames)."""
        place = torch.arange(x.shape[1], device=x.device)
        apart = place[None] - place[:, None]
        far = torch.zeros_like(apart, dtype=torch.bool)
        far = far if self.left is None else far | (apart < -self.left)
        return far if self.right is None else far | (apart > self.right)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, self.head_dim)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, width: int, ffn: dict):
        super().__init__()
        units, self.activation = ffn["size"], ACTIVATIONS[ffn.get("activation", "gelu")]
        self.fc1 = dense(width, units, ffn["fc1"]) if units else None
        self.fc2 = dense(units, width, ffn["fc2"]) if units else Bias(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(x if self.fc1 is None else self.activation(self.fc1(x)))


class ConvolutionModule(nn.Module):
    """A Conformer's convolution: gated, each channel alone, a norm over `count` channels, an activation, a map back."""

    def __init__(self, width: int, part: dict):
        super().__init__()
        size, kernel, self.activation = part["size"], part["kernel"], ACTIVATIONS[part["activation"]]
        self.count = part["normed"] or size
        self.out = dense(size, width, part["out"]) if size else Bias(width)
        if not size:
            return
        self.pointwise = dense(width, 2 * size, part["pointwise"])
        self.conv = nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=size)
        self.norm = nn.LayerNorm(size, EPSILON)  # its weights, for cut channels are in the mean

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Map `x: (batch, frames, width)`; `valid` is (batch, frames, 1)."""
        if isinstance(self.out, Bias):
            return self.out(x)
        value, gate = self.pointwise(x).unflatten(2, (-1, 2)).unbind(3)
        y = value * gate.sigmoid()
        y = self.conv((y if valid is None else y * valid).transpose(1, 2)).transpose(1, 2)
        return self.out(self.activation(self.normalised(y)))

    def normalised(self, y: Tensor) -> Tensor:
        """Normalise over the channels that there are, and those that were cut as zeros."""
        gone = self.count - y.shape[2]
        if not gone:
            return self.norm(y)
        mean = y.sum(2, keepdim=True) / self.count
        squares = (y - mean).square().sum(2, keepdim=True) + gone * mean.square()
        return (y - mean) * torch.rsqrt(squares / self.count + EPSILON) * self.norm.weight + self.norm.bias


class Adapter(nn.Module):
    """What an adapter adds to a layer's output."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, EPSILON)
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.relu(self.down(self.norm(x))))


class LengthAdapter(nn.Module):
    """Strided convolutions with gated linear units, which leave fewer frames of another width."""

    def __init__(self, inputs: int, part: dict):
        super().__init__()
        width, self.kernel, self.stride = part["width"], part["kernel"], part["stride"]
        other = inputs != width
        self.project = nn.Linear(inputs, width) if other else nn.Identity()
        self.norm = nn.LayerNorm(width, EPSILON) if other else nn.Identity()
        convolutions = [nn.Conv1d(width, 2 * width, self.kernel, self.stride, 1) for _ in range(part["layers"])]
        self.layers = nn.ModuleList(convolutions)

    def forward(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (batch, frames, width) and its valid frames to fewer; none that is not valid is heard."""
        x = self.norm(self.project(x))
        for layer in self.layers:
            x = x if lengths is None else x * first(lengths, x.shape[1])[..., None]
            x = F.glu(layer(x.transpose(1, 2)), 1).transpose(1, 2)
            lengths = None if lengths is None else (lengths + 2 - self.kernel) // self.stride + 1
        return x, lengths
