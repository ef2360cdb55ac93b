"""What turns samples into features: log-Mel energies, a waveform's convolutions, or Whisper's both.

A front end has `size`, of its features, and `hop`, samples from one frame to the next.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
WINDOW, SHIFT, FFT = 400, 160, 512  # samples of a log-Mel frame, between two, and of its transform

Featured = tuple[Tensor, Tensor | None]  # features (batch, frames, size), and valid frames of each row


def first(lengths: Tensor, count: int) -> Tensor:
    """Return (batch, count), true for the first `lengths: (batch,)` places."""
    return torch.arange(count, device=lengths.device)[None] < lengths[:, None]


class LogMel(nn.Module):
    """Kaldi's log-Mel energies without dither, normalised by corpus statistics, `stack` frames joined to one."""

    def __init__(self, bins: int, stack: int):
        super().__init__()
        self.stack, self.size, self.hop = stack, bins * stack, SHIFT * stack
        for name, shape in {"window": WINDOW, "mel": (FFT // 2 + 1, bins), "mean": bins, "std": bins}.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, samples: Tensor, lengths: Tensor | None) -> Featured:
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
        self.size, self.hop = inputs[-1], math.prod(spec["stride"] for spec in specs)
        layers = zip(inputs[:-1], specs, norms, strict=True)
        self.convs = nn.ModuleList([ConvLayer(i, s, bias=front["bias"], norm=n) for i, s, n in layers])
        self.weight = nn.Parameter(torch.ones(inputs[-1])) if front.get("scaled", False) else None
        self.norm = nn.LayerNorm(inputs[-1], EPSILON) if front["feature_norm"] else nn.Identity()

    def forward(self, samples: Tensor, lengths: Tensor | None) -> Featured:
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


class Centred(nn.Module):
    """Log-Mel energies about every 160th sample, the waveform mirrored at each row's own ends."""

    def __init__(self, bins: int):
        super().__init__()
        self.register_buffer("window", torch.zeros(WINDOW))
        self.register_buffer("mel", torch.zeros(WINDOW // 2 + 1, bins))

    def decades(self, samples: Tensor, ends: Tensor) -> Tensor:
        """Return log10 of the Mel energies, (batch, frames, bins)."""
        side = WINDOW // 2
        place = torch.arange(-side, samples.shape[1] + side, device=samples.device)[None].abs()
        last = ends[:, None] - 1
        place = torch.where(place > last, 2 * last - place, place).clamp(0, samples.shape[1] - 1)
        frames = samples.gather(1, place).unfold(1, WINDOW, SHIFT)[:, : samples.shape[1] // SHIFT]
        return self.energies(frames).clamp(min=1e-10).log10()

    def energies(self, frames: Tensor) -> Tensor:
        spectrum = torch.view_as_real(torch.fft.rfft(frames * self.window))
        return spectrum.square().sum(-1) @ self.mel


class MelConvolutions(Centred):
    """Log-Mel normalised by each row's own statistics, and convolutions with norms over channels."""

    def __init__(self, front: dict):
        super().__init__(front["bins"])
        specs = front["convs"]
        sizes = [front["bins"], *(spec["channels"] for spec in specs)]
        self.size, self.hop = sizes[-1], SHIFT * math.prod(spec["stride"] for spec in specs)
        layers = zip(sizes[:-1], specs, strict=True)
        self.convs = nn.ModuleList([ConvLayer(i, spec, bias=False, norm="layer") for i, spec in layers])
        self.norm = nn.LayerNorm(self.size, EPSILON)

    def forward(self, samples: Tensor, lengths: Tensor | None) -> Featured:
        ends = torch.full_like(samples[:, 0], samples.shape[1]).long() if lengths is None else lengths
        x = self.decades(samples, ends)
        valid, count = first(ends // SHIFT, x.shape[1])[..., None], (ends // SHIFT)[:, None, None]
        x = (x - (x * valid).sum(1, keepdim=True) / count) * valid
        x = (x * torch.rsqrt(x.square().sum(1, keepdim=True) / count + EPSILON)).transpose(1, 2)
        lengths = None if lengths is None else lengths // SHIFT
        for layer in self.convs:
            kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
            lengths = None if lengths is None else (lengths - kernel) // stride + 1
            x = layer(x, None)
        return self.norm(x.transpose(1, 2)), lengths


class Listener(Centred):
    """Whisper's front end: its own log-Mel, mirrored and levelled at each row's own end, and two convolutions."""

    def __init__(self, front: dict):
        super().__init__(front["bins"])
        self.longest, self.size, self.hop = front["longest"], front["width"], 2 * SHIFT
        inner, outer = front["hidden"], front["width"]
        pairs = (front["bins"], inner, 1), (inner, outer, 2)
        self.convs = nn.ModuleList([nn.Conv1d(i, o, 3, stride, padding=1) for i, o, stride in pairs])

    def forward(self, samples: Tensor, lengths: Tensor | None) -> Featured:
        count = samples.shape[1] // SHIFT
        if (count + 1) // 2 > self.longest:
            raise ValueError(f"{samples.shape[1]} samples are longer than {self.longest} frames of 20 ms; cut them")
        ends = torch.full_like(samples[:, 0], samples.shape[1]).long() if lengths is None else lengths
        heard = first(ends // SHIFT, count)
        x = self.decades(samples, ends)
        loudest = x.masked_fill(~heard[..., None], -10).amax((1, 2), keepdim=True)
        x = (torch.maximum(x, loudest - 8) + 4) / 4 * heard[..., None]
        before, after = self.convs
        x = F.gelu(after(F.gelu(before(x.transpose(1, 2))) * heard[:, None]))
        return x.transpose(1, 2), None if lengths is None else (lengths // SHIFT + 1) // 2


FRONTS: dict[str, Callable[[dict], Any]] = {
    "convolved_mel": MelConvolutions,
    "logmel": lambda front: LogMel(front["bins"], front["stack"]),
    "waveform": Extractor,
    "whisper": Listener,
}
