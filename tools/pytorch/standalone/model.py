"""A speech encoder of any shape for PyTorch: this file, config.json and model.safetensors are all there is.

    from model import load
    model = load("exported")
    out = model(samples, lengths)  # (batch, samples) at 16 kHz in [-1, 1], (batch,) valid ones
    out["hidden"]  # input of the first layer, then each layer's output, every one (batch, frames, width)
    out["logits"]  # (batch, frames, symbols), of a model with a CTC layer; config.json lists the symbols

Layers may have any number of heads and feed-forward units, none included, and maps of low rank. What stands beside an
utterance in a padded batch never changes its frames. `jaxssl`'s tools/export.py writes these folders.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .blocks import Adapter, Attended, Attention, FeedForward, LengthAdapter, Relative, dense
from .fronts import EPSILON, FRONTS, first
from .positions import POSITIONS
from .rates import Shortening, Upsampling


def load(folder: str | Path) -> "Model":
    """Return the model of an exported folder, in evaluation mode."""
    model = Model(json.loads((Path(folder) / "config.json").read_text()))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()


class Layer(nn.Module):
    """One Transformer layer, norms before the blocks (`norm_first`) or after the sums, an adapter behind both."""

    def __init__(self, config: dict, layer: dict):
        super().__init__()
        width, self.norm_first = config["width"], config["norm_first"]
        self.attention, self.ffn = Attention(width, layer["mixer"]), FeedForward(width, layer["ffn"])
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        self.adapter = Adapter(width, layer["adapter"]["size"]) if layer.get("adapter") else None
        short = layer.get("shortening")
        self.shortening = Shortening(width, short) if short else None  # which the model runs before the layer

    def forward(
        self, x: Tensor, bias: Tensor | None, before: Tensor | None, lend: bool, relative: Tensor | None
    ) -> Attended:
        if self.norm_first:
            y, maps = self.attention(self.attention_norm(x), bias, before, lend, relative)
            x = x + y + self.ffn(self.ffn_norm(x + y))
        else:
            y, maps = self.attention(x, bias, before, lend, relative)
            x = self.attention_norm(x + y)
            x = self.ffn_norm(x + self.ffn(x))
        return x if self.adapter is None else x + self.adapter(x), maps


class Model(nn.Module):
    """The whole model; `config` is config.json's content."""

    def __init__(self, config: dict):
        super().__init__()
        width, position = config["width"], config["position"]
        self.front = FRONTS[config["front"]["kind"]](config["front"])
        self.project = dense(self.front.size, width, config["project"]) if config["project"] else nn.Identity()
        self.position = POSITIONS[position["kind"]](width, position)
        self.norm, self.norm_first = nn.LayerNorm(width, EPSILON), config["norm_first"]
        front, ratio = config.get("shortening"), config["time_reduction"]
        self.shortening = Shortening(self.front.size, front) if front else None
        reduction = {"kind": "strided_convolution", "ratio": ratio}
        self.reduction = Shortening(width, reduction) if ratio > 1 else None
        short = config.get("length_adapter")
        self.length_adapter = LengthAdapter(width, short) if short else None
        joined = short["stride"] ** short["layers"] if short else 1
        self.layers = nn.ModuleList([Layer(config, layer) for layer in config["layers"]])
        steps = (self.shortening, self.reduction, *(layer.shortening for layer in self.layers))
        grouped = math.prod(step.ratio for step in steps if step is not None)
        up = config.get("upsampling")
        self.upsampling = Upsampling(width, up, grouped) if up else None
        # Samples from one frame of the output to the next.
        self.stride = self.front.hop * joined * (1 if up else grouped)
        self.lends = [layer.attention.reuse for layer in self.layers[1:]] + [False] * bool(self.layers)
        self.ctc = (
            nn.Linear(short["width"] if short else width, config["ctc"]["outputs"]) if config.get("ctc") else None
        )
        self.relative = Relative(config["relative"]) if config.get("relative") else None

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> dict:
        """Run `samples: (batch, samples)`.

        Return `hidden`, `last` (the output), its `lengths` in frames, and `logits` where there is a CTC layer.
        """
        x, lengths = self.front(samples, lengths)
        frames, whole = x.shape[1], lengths
        if self.shortening is not None:
            x, lengths = self.shortening(x, lengths)
        x, valid = self.project(x), None
        if lengths is not None:
            valid = first(lengths, x.shape[1])[..., None]
            x = x * valid
        x = x + self.position(x, valid)
        x = x if self.norm_first else self.norm(x)
        if self.reduction is not None:
            x, lengths = self.reduction(x, lengths)
        bias, relative = self.seen(x, lengths)
        hidden, maps = [x], None
        for i, (layer, lend) in enumerate(zip(self.layers, self.lends, strict=True)):
            if layer.shortening is not None:
                x, lengths = layer.shortening(x, lengths)
                bias, relative = self.seen(x, lengths)
                hidden = hidden if i else [x]
            x, maps = layer(x, bias, maps, lend, relative)
            hidden.append(x)
        x = self.norm(x) if self.norm_first else x
        if self.upsampling is not None:
            x, lengths = self.upsampling(x, lengths, frames, whole)
        if self.length_adapter is not None:
            x, lengths = self.length_adapter(x, lengths)
        out = {"hidden": hidden, "last": x, "lengths": lengths}
        return out if self.ctc is None else {**out, "logits": self.ctc(out["last"])}

    def seen(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return what is added to the scores of frames beyond `lengths`, and by relative positions."""
        relative = None if self.relative is None else self.relative(x.shape[1])
        if lengths is None:
            return None, relative
        unseen = ~first(lengths, x.shape[1])[:, None, None]
        bias = torch.zeros(unseen.shape, device=x.device).masked_fill(unseen, torch.finfo(torch.float32).min)
        return bias, relative
