"""A speech encoder of any shape for PyTorch: this file, config.json and model.safetensors are all there is.

    from model import load
    model = load("exported")
    out = model(samples, lengths)  # (batch, samples) at 16 kHz in [-1, 1], (batch,) valid ones
    out["hidden"]  # input of the first layer, then each layer's output, every one (batch, frames, width)
    out["logits"]  # (batch, frames, symbols), of a model with a CTC layer; config.json lists the symbols

Layers may have any number of heads and feed-forward units, none included, maps of low rank, and mixers other than
attention. What stands beside an
utterance in a padded batch never changes its frames. `jaxssl`'s tools/export.py writes these folders.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .blocks import Adapter, Attended, Attention, ConvolutionModule, FeedForward, LengthAdapter, Relative, dense
from .fronts import EPSILON, FRONTS, first
from .mixers import MIXERS
from .positions import POSITIONS
from .rates import Grouping, Merging, Short, Upsampling, shortening


def load(folder: str | Path) -> "Model":
    """Return the model of an exported folder, in evaluation mode."""
    model = Model(json.loads((Path(folder) / "config.json").read_text()))
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()


class Seen(NamedTuple):
    """What mixers are told of the frames."""

    bias: Tensor | None  # added to attention's scores: which frames are valid
    relative: Tensor | None  # the same by relative positions
    valid: Tensor | None  # (batch, frames, 1)


class Layer(nn.Module):
    """A mixer and a feed-forward block, norms before them (`norm_first`) or after the sums, an adapter behind both.

    A Conformer's has a convolution between them and a macaron block before both.
    """

    def __init__(self, config: dict, layer: dict):
        super().__init__()
        width, self.norm_first = config["width"], config["norm_first"]
        self.place, mixer = MIXERS.get(layer["mixer"]["kind"], ("attention", Attention))
        setattr(self, self.place, mixer(width, layer["mixer"]))
        setattr(self, f"{self.place}_norm", nn.LayerNorm(width, EPSILON))
        self.feeds = layer["ffn"]["kind"] != "no_feed_forward"
        if self.feeds:
            self.ffn, self.ffn_norm = FeedForward(width, layer["ffn"]), nn.LayerNorm(width, EPSILON)
        macaron, convolution = layer.get("macaron"), layer.get("convolution")
        self.halved, self.convolves = macaron is not None, convolution is not None
        if macaron is not None:
            self.macaron, self.macaron_norm = FeedForward(width, macaron), nn.LayerNorm(width, EPSILON)
            self.last_norm = nn.LayerNorm(width, EPSILON)
        if convolution is not None:
            self.convolution = ConvolutionModule(width, convolution)
            self.convolution_norm = nn.LayerNorm(width, EPSILON)
        self.adapter = Adapter(width, layer["adapter"]["size"]) if layer.get("adapter") else None
        self.shortening = shortening(width, layer.get("shortening"))  # which the model runs before the layer

    def forward(self, x: Tensor, seen: Seen, before: Tensor | None, lend: bool) -> Attended:
        norm = getattr(self, f"{self.place}_norm")
        x = x + 0.5 * self.macaron(self.macaron_norm(x)) if self.halved else x
        y, maps = self.mix(norm(x) if self.norm_first else x, seen, before, lend)
        x = x + y if self.norm_first else norm(x + y)
        x = x + self.convolution(self.convolution_norm(x), seen.valid) if self.convolves else x
        if self.feeds and self.halved:
            x = x + 0.5 * self.ffn(self.ffn_norm(x))
        elif self.feeds:
            x = x + self.ffn(self.ffn_norm(x)) if self.norm_first else self.ffn_norm(x + self.ffn(x))
        x = self.last_norm(x) if self.halved else x
        return x if self.adapter is None else x + self.adapter(x), maps

    def shorten(self, x: Tensor, lengths: Tensor | None, sizes: Tensor | None) -> Short:
        """Make its input a shorter sequence; `sizes` are the frames that each was made of so far."""
        assert self.shortening is not None
        if not isinstance(self.shortening, Merging):
            return self.shortening(x, lengths)
        keys = getattr(self, self.place).k(getattr(self, f"{self.place}_norm")(x) if self.norm_first else x)
        return self.shortening(x, lengths, keys, sizes)

    def mix(self, x: Tensor, seen: Seen, before: Tensor | None, lend: bool) -> Attended:
        mixer = getattr(self, self.place)
        if self.place == "attention":
            return mixer(x, seen.bias, before, lend, seen.relative)
        return mixer(x, seen.valid), None


class Model(nn.Module):
    """The whole model; `config` is config.json's content."""

    def __init__(self, config: dict):
        super().__init__()
        width, position = config["width"], config["position"]
        self.front = FRONTS[config["front"]["kind"]](config["front"])
        self.project = dense(self.front.size, width, config["project"]) if config["project"] else nn.Identity()
        self.position = POSITIONS[position["kind"]](width, position)
        self.norm, self.norm_first = nn.LayerNorm(width, EPSILON), config["norm_first"]
        self.shortening, ratio = shortening(self.front.size, config.get("shortening")), config["time_reduction"]
        reduction = {"kind": "strided_convolution", "ratio": ratio}
        self.reduction = Grouping(width, reduction) if ratio > 1 else None
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
        reuses = [layer["mixer"].get("reuse", False) for layer in config["layers"]]
        self.lends = [*reuses[1:], False][: len(reuses)]
        self.ctc = (
            nn.Linear(short["width"] if short else width, config["ctc"]["outputs"]) if config.get("ctc") else None
        )
        self.relative = Relative(config["relative"]) if config.get("relative") else None

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> dict:
        """Run `samples: (batch, samples)`.

        Return `hidden`, `last` (the output), its `lengths` in frames, and `logits` where there is a CTC layer.
        """
        x, lengths = self.front(samples, lengths)
        frames, whole, way, sizes = x.shape[1], lengths, [], None
        if self.shortening is not None:
            x, lengths, restore, sizes = self.shortening(x, lengths)
            way.append(restore)
        x, valid = self.project(x), None
        if lengths is not None:
            valid = first(lengths, x.shape[1])[..., None]
            x = x * valid
        x = x + self.position(x, valid)
        x = x if self.norm_first else self.norm(x)
        if self.reduction is not None:
            x, lengths, restore, sizes = self.reduction(x, lengths)
            way.append(restore)
        seen = self.seen(x, lengths)
        hidden, maps = [x], None
        for i, (layer, lend) in enumerate(zip(self.layers, self.lends, strict=True)):
            if layer.shortening is not None:
                x, lengths, restore, sizes = layer.shorten(x, lengths, sizes)
                way.append(restore)
                seen = self.seen(x, lengths)
                hidden = hidden if i else [x]
            x, maps = layer(x, seen, maps, lend)
            hidden.append(x)
        x = self.norm(x) if self.norm_first else x
        if self.upsampling is not None:
            x, lengths = self.upsampling(x, lengths, frames, whole, way)
        if self.length_adapter is not None:
            x, lengths = self.length_adapter(x, lengths)
        out = {"hidden": hidden, "last": x, "lengths": lengths}
        return out if self.ctc is None else {**out, "logits": self.ctc(out["last"])}

    def seen(self, x: Tensor, lengths: Tensor | None) -> Seen:
        """Tell mixers which frames there are."""
        relative = None if self.relative is None else self.relative(x.shape[1])
        if lengths is None:
            return Seen(None, relative, None)
        valid = first(lengths, x.shape[1])
        unseen = ~valid[:, None, None]
        bias = torch.zeros(unseen.shape, device=x.device).masked_fill(unseen, torch.finfo(torch.float32).min)
        return Seen(bias, relative, valid[..., None])
