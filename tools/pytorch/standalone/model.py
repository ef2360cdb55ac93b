"""A HuBERT or MelHuBERT of any shape for PyTorch: this file, config.json and model.safetensors are all there is.

    from model import load
    model = load("exported")
    out = model(samples, lengths)  # (batch, samples) at 16 kHz in [-1, 1], (batch,) valid ones
    out["hidden"]  # input of the first layer, then each layer's output, every one (batch, frames, width)

Layers may have any number of heads and feed-forward units, none included, and maps of low rank. What stands beside an
utterance in a padded batch never changes its frames. `jaxssl`'s tools/export.py writes these folders.
"""

import json
import math
from collections import OrderedDict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

Attended = tuple[Tensor, Tensor | None]  # a block's output, and its attention maps where a next layer wants them

EPSILON = 1e-5
WINDOW, SHIFT, FFT = 400, 160, 512  # samples of a log-Mel frame, between two, and of its transform
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


def load(folder: str | Path) -> "Model":
    """Return the model of an exported folder, in evaluation mode."""
    model = Model(json.loads((Path(folder) / "config.json").read_text()))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()


def first(lengths: Tensor, count: int) -> Tensor:
    """Return (batch, count), true for the first `lengths: (batch,)` places."""
    return torch.arange(count, device=lengths.device)[None] < lengths[:, None]


def dense(inputs: int, outputs: int, form: dict) -> nn.Module:
    """Return a linear map, or two of them around a bottleneck; `form` is the map's in config.json."""
    if form["kind"] != "rank":
        return nn.Linear(inputs, outputs)
    rank = form["rank"]
    return nn.Sequential(OrderedDict(down=nn.Linear(inputs, rank, bias=False), up=nn.Linear(rank, outputs)))


class Bias(nn.Module):
    """What is left of a block without units."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(*x.shape[:2], -1)


class LogMel(nn.Module):
    """Kaldi's log-Mel energies without dither, normalised by corpus statistics, `stack` frames joined to one."""

    def __init__(self, bins: int, stack: int):
        super().__init__()
        self.stack = stack
        for name, shape in {"window": WINDOW, "mel": (FFT // 2 + 1, bins), "mean": bins, "std": bins}.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, samples: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        frames = samples.unfold(1, WINDOW, SHIFT) * 2.0**15
        for _ in range(2):  # beside a large offset the rounded first mean hides a quiet frame
            frames = frames - frames.mean(-1, keepdim=True)
        frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], -1)
        x = (self.energies(frames).clamp(min=torch.finfo(torch.float32).eps).log() - self.mean) / self.std
        if lengths is not None:
            lengths = 1 + (lengths - WINDOW) // SHIFT
            x = x * first(lengths, x.shape[1])[..., None]
            lengths = (lengths + self.stack - 1) // self.stack
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stack))
        return x.reshape(x.shape[0], -1, self.stack * x.shape[2]), lengths

    def energies(self, frames: Tensor) -> Tensor:
        spectrum = torch.view_as_real(torch.fft.rfft(frames * self.window, n=FFT))
        return spectrum.square().sum(-1) @ self.mel


class ConvLayer(nn.Module):
    """One step of the waveform extractor: convolution, norm where there is one, GELU."""

    def __init__(self, inputs: int, spec: dict, *, bias: bool, norm: str | None):
        super().__init__()
        self.conv = nn.Conv1d(inputs, spec["channels"], spec["kernel"], spec["stride"], bias=bias)
        self.kind = norm
        if norm:
            self.norm = nn.LayerNorm(spec["channels"], EPSILON)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        x = self.conv(x)
        if self.kind == "layer":
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.kind == "group":
            x = self.over_time(x, lengths)
        return F.gelu(x)

    def over_time(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Normalise each channel over the row's own frames."""
        if lengths is None:
            return F.group_norm(x, x.shape[1], self.norm.weight, self.norm.bias, EPSILON)
        valid, count = first(lengths, x.shape[2])[:, None], lengths[:, None, None]
        x = x - (x * valid).sum(2, keepdim=True) / count
        variance = (x * valid).square().sum(2, keepdim=True) / count
        return x * torch.rsqrt(variance + EPSILON) * self.norm.weight[:, None] + self.norm.bias[:, None]


class Extractor(nn.Module):
    """HuBERT's front end: strided convolutions over samples."""

    def __init__(self, front: dict):
        super().__init__()
        self.normalize, specs = front["normalize"], front["convs"]
        norms = ["layer"] * len(specs) if front["norm"] == "layer" else ["group", *[None] * (len(specs) - 1)]
        inputs = [1, *(spec["channels"] for spec in specs)]
        layers = zip(inputs[:-1], specs, norms, strict=True)
        self.convs = nn.ModuleList([ConvLayer(i, s, bias=front["bias"], norm=n) for i, s, n in layers])
        self.weight = nn.Parameter(torch.ones(inputs[-1])) if front.get("scaled", False) else None
        self.norm = nn.LayerNorm(inputs[-1], EPSILON) if front["feature_norm"] else nn.Identity()

    def forward(self, samples: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if lengths is not None:
            samples = samples * first(lengths, samples.shape[1])
        if self.normalize:
            valid = torch.ones_like(samples) if lengths is None else first(lengths, samples.shape[1])
            count = valid.sum(1, keepdim=True)
            samples = (samples - samples.sum(1, keepdim=True) / count) * valid
            samples = samples * torch.rsqrt(samples.square().sum(1, keepdim=True) / count + EPSILON)
        x = samples[:, None]
        for layer in self.convs:
            kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
            lengths = None if lengths is None else (lengths - kernel) // stride + 1
            x = layer(x, lengths)
        x = x.transpose(1, 2)
        return self.norm(x if self.weight is None else x * self.weight), lengths


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
        inner = self.heads * self.head_dim
        for name in "" if not self.heads else "v" if self.reuse else "qkv":
            setattr(self, name, dense(width, inner, mixer[name]))
        self.out = dense(inner, width, mixer["out"]) if self.heads else Bias(width)
        self.gate = Gate(mixer["remaining"], self.head_dim) if gated and self.heads else None

    def forward(
        self, x: Tensor, bias: Tensor | None, before: Tensor | None, lend: bool, relative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Add `bias` and gated positions to the scores.

        What the next layer may use is returned too, where maps were made or `lend` asks.
        """
        if not self.heads:
            return self.out(x), None
        if self.gate is not None:
            added = self.gate(x, relative)
            bias = added if bias is None else added + bias
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


class Layer(nn.Module):
    """One Transformer layer, norms before the blocks (`norm_first`) or after the sums."""

    def __init__(self, config: dict, layer: dict):
        super().__init__()
        width, self.norm_first = config["width"], config["norm_first"]
        self.attention, self.ffn = Attention(width, layer["mixer"]), FeedForward(width, layer["ffn"])
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)

    def forward(
        self, x: Tensor, bias: Tensor | None, before: Tensor | None, lend: bool, relative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.norm_first:
            y, maps = self.attention(self.attention_norm(x), bias, before, lend, relative)
            return x + y + self.ffn(self.ffn_norm(x + y)), maps
        y, maps = self.attention(x, bias, before, lend, relative)
        x = self.attention_norm(x + y)
        return self.ffn_norm(x + self.ffn(x)), maps


class Model(nn.Module):
    """The whole model; `config` is config.json's content."""

    def __init__(self, config: dict):
        super().__init__()
        front, width, position = config["front"], config["width"], config["position"]
        mel = front["kind"] == "logmel"
        self.front = LogMel(front["bins"], front["stack"]) if mel else Extractor(front)
        size = front["bins"] * front["stack"] if mel else front["convs"][-1]["channels"]
        self.project = dense(size, width, config["project"]) if config["project"] else nn.Identity()
        taps = position["kernel"]
        self.position = nn.Conv1d(width, width, taps, padding=taps // 2, groups=position["groups"])
        self.norm, self.norm_first = nn.LayerNorm(width, EPSILON), config["norm_first"]
        self.ratio = ratio = config["time_reduction"]
        self.reduction = nn.Conv1d(width, width, ratio, ratio) if ratio > 1 else nn.Identity()
        strides = [SHIFT * front["stack"]] if mel else [spec["stride"] for spec in front["convs"]]
        self.stride = math.prod([*strides, ratio])  # samples from one frame to the next
        self.layers = nn.ModuleList([Layer(config, layer) for layer in config["layers"]])
        self.lends = [layer.attention.reuse for layer in self.layers[1:]] + [False] * bool(self.layers)
        self.relative = Relative(config["relative"]) if config.get("relative") else None

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> dict:
        """Run `samples: (batch, samples)`; return `hidden`, `last` (the encoder's output) and `lengths` in frames."""
        x, lengths = self.front(samples, lengths)
        x = self.project(x)
        if lengths is not None:
            x = x * first(lengths, x.shape[1])[..., None]
        x = x + F.gelu(self.position(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        x = x if self.norm_first else self.norm(x)
        x, bias = self.reduction(x.transpose(1, 2)).transpose(1, 2), None
        if lengths is not None:
            lengths = lengths // self.ratio
            unseen = ~first(lengths, x.shape[1])[:, None, None]
            bias = torch.zeros(unseen.shape, device=x.device).masked_fill(unseen, torch.finfo(torch.float32).min)
        relative = None if self.relative is None else self.relative(x.shape[1])
        hidden, maps = [x], None
        for layer, lend in zip(self.layers, self.lends, strict=True):
            x, maps = layer(x, bias, maps, lend, relative)
            hidden.append(x)
        return {"hidden": hidden, "last": self.norm(x) if self.norm_first else x, "lengths": lengths}
