"""The standalone model in operations that ONNX Runtime runs faster; what it computes does not change.

`faster` changes the PyTorch module before it is exported, `unfused` the graph after. The reasons were measured on two
cores with AVX-512 VNNI, on utterances of 1, 5 and 15 seconds.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.pytorch.standalone.fronts import EPSILON, FFT, WINDOW, ConvLayer, Extractor, Listener, LogMel, first
from tools.pytorch.standalone.model import Model
from tools.pytorch.standalone.positions import Convolution


class Waves(LogMel):
    """Log-Mel energies whose spectra are products with cosines and sines about the middle of the frame.

    ONNX Runtime's DFT takes six times as long, and is less precise: on speech its log energies are off by 2.2e-4 at
    most, against float64, these by 0.9e-4.
    """

    def __init__(self, front: LogMel):
        super().__init__(front.mel.shape[1], front.stack)
        self.load_state_dict(front.state_dict())
        times = torch.arange(WINDOW // 2, dtype=torch.float64)[:, None] + 0.5
        turns = times * torch.arange(FFT // 2 + 1) * (2 * math.pi / FFT)
        window = self.window[WINDOW // 2 :, None]  # it is symmetric
        self.register_buffer("cosines", (turns.cos() * window).float())
        self.register_buffer("sines", (turns.sin() * window).float())

    def energies(self, frames: Tensor) -> Tensor:
        before, after = frames[..., : WINDOW // 2].flip(-1), frames[..., WINDOW // 2 :]
        power = ((after + before) @ self.cosines).square() + ((after - before) @ self.sines).square()
        return power @ self.mel


class Tones(Listener):
    """Whisper's energies as `Waves` has them; the middle sample of its window has no other to be paired with."""

    def __init__(self, front: Listener):
        conv = front.convs[0]
        spec = {"bins": conv.in_channels, "hidden": conv.out_channels, "width": front.size, "longest": front.longest}
        super().__init__(spec)
        self.load_state_dict(front.state_dict())
        turns = torch.arange(WINDOW // 2, dtype=torch.float64)[:, None] * torch.arange(WINDOW // 2 + 1)
        turns, window = turns * (2 * math.pi / WINDOW), self.window[WINDOW // 2 :, None]
        self.register_buffer("cosines", (turns.cos() * window).float())
        self.register_buffer("sines", (turns.sin() * window)[1:].float())

    def energies(self, frames: Tensor) -> Tensor:
        before, after = frames[..., 1 : WINDOW // 2].flip(-1), frames[..., WINDOW // 2 :]  # the window begins with 0
        both = torch.cat([after[..., :1], after[..., 1:] + before], -1)
        power = (both @ self.cosines).square() + ((after[..., 1:] - before) @ self.sines).square()
        return power @ self.mel


def blocked(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, groups: int) -> Tensor:
    """Convolve as in two dimensions: only those convolutions are laid out in blocks of channels, which are faster."""
    return F.conv2d(x.unsqueeze(2), weight.unsqueeze(2), bias, (1, stride), groups=groups).squeeze(2)


class Blocked(nn.Conv1d):
    """A convolution without padding, by `blocked`."""

    def forward(self, x: Tensor) -> Tensor:
        return blocked(x, self.weight, self.bias, self.stride[0], self.groups)


class Normed(nn.Module):
    """A first convolution, its norm over time and GELU: the norm is in the kernel, which each row has of its own.

    The deviation of a channel w over the row's valid frames is that of its patches of samples, sqrt(w' C w), where C is
    their covariance: (taps, taps) instead of all channels at all times. It is taken in float64, since a kernel that
    lets little through leaves a small difference of large numbers.
    """

    def __init__(self, layer: ConvLayer):
        super().__init__()
        self.conv, self.norm = layer.conv, layer.norm  # a bias would be lost in the norm

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Take (batch, 1, samples) and valid output frames; return (batch, channels, frames)."""
        patches = x[:, 0].unfold(1, self.conv.kernel_size[0], self.conv.stride[0])
        valid, count = first(lengths, patches.shape[1])[..., None], lengths[:, None, None]
        patches = patches.double()
        patches = patches - (patches * valid).sum(1, keepdim=True) / count
        covariance = (patches * valid).transpose(1, 2) @ patches / count
        kernel = self.conv.weight[:, 0].double()
        variance = ((kernel @ covariance) * kernel).sum(2, keepdim=True)
        kernel = self.norm.weight[:, None] * kernel * torch.rsqrt(variance + EPSILON)
        return F.gelu(kernel.float() @ patches.float().transpose(1, 2) + self.norm.bias[:, None])


class Position(nn.Module):
    """The positional convolution in three of half its taps over half as many frames, for four.

    With even and odd taps w0 and w1, even and odd frames x0 and x1, and x2 the even ones after the first, the even
    outputs are a + b and the odd ones c + b, where a = w0 * (x0 - x1), b = (w0 + w1) * x1 and c = w1 * (x2 - x1): the
    fast FIR algorithm (Mou and Duhamel, Short-length FIR filters and their use in fast nonrecursive filtering, 1991).
    """

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        self.left, self.taps, self.groups = conv.padding[0], (conv.kernel_size[0] + 1) // 2, conv.groups
        self.weight = nn.Parameter(F.pad(conv.weight, (0, conv.kernel_size[0] % 2)))
        self.bias = nn.Parameter(F.pad(conv.bias, (len(conv.bias), len(conv.bias))))  # of b alone

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (batch, width, frames)."""
        frames = x.shape[2]
        count = (frames + 1) // 2 + self.taps - 1
        x = F.pad(x.transpose(1, 2), (0, 0, self.left, 2 * self.taps - self.left))
        even, odd, after = x[:, : 2 * count : 2], x[:, 1 : 2 * count : 2], x[:, 2 : 2 * count + 1 : 2]
        x = torch.cat([even - odd, odd, after - odd], 2)
        # Written as one kernel and its halves taken when a session starts: a third fewer bytes to deploy.
        w0, w1 = self.weight[..., ::2], self.weight[..., 1::2]
        weight = torch.cat([w0, w0 + w1, w1])
        a, b, c = blocked(x.transpose(1, 2), weight, self.bias, 1, 3 * self.groups).transpose(1, 2).chunk(3, 2)
        return torch.stack([a + b, c + b], 2).flatten(1, 2)[:, :frames].transpose(1, 2)


def faster(model: Model) -> Model:
    """Change the model in place and return it; from then on it wants lengths."""
    with torch.no_grad():
        if isinstance(model.position, Convolution):
            model.position.conv = Position(model.position.conv)
        model.front = _faster_front(model.front)
    # As if all attention maps were to be lent: plain products, with half the transposes of the exporter's attention.
    model.lends = [True] * len(model.lends)
    return model


def unfused(graph: Any) -> None:
    """Keep ONNX Runtime from fusing the sums before norms into them: fused, they take five times as long."""
    for node in graph:
        before = node.inputs[0].producer() if node.op_type == "LayerNormalization" else None
        if before is not None and before.op_type == "Add":
            before.op_type = "Sum"


def _faster_front(front: nn.Module) -> nn.Module:
    match front:
        case LogMel():
            return Waves(front)
        case Listener():
            return Tones(front)
        case Extractor():
            front.convs = nn.ModuleList([_faster_layer(layer) for layer in front.convs])
    return front


def _faster_layer(layer: ConvLayer) -> nn.Module:
    if layer.kind == "group":
        return Normed(layer)
    conv = layer.conv
    layer.conv = Blocked(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, bias=conv.bias is not None)
    layer.conv.load_state_dict(conv.state_dict())
    return layer
