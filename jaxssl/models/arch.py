"""What a model is, as a small frozen value: parts, and the few numbers that belong to none.

`Arch` holds everything that the arrays' shapes follow from, and what shapes cannot tell (strides, dropout rates).
Layers are listed one by one, because compressed models have layers that differ. A new part is one file and one line in
a union below.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from compress.errors import InputError
from jaxssl.models.adapter import Adapter
from jaxssl.models.conformer import ConvolutionModule, Macaron
from jaxssl.models.feed_forward import FeedForward, NoFeedForward
from jaxssl.models.fronts.convolved_mel import MEL_CONVS, ConvolvedMel
from jaxssl.models.fronts.mel_frames import LogMel
from jaxssl.models.fronts.strided_conv import Conv
from jaxssl.models.fronts.waveform import HUBERT_CONVS, Waveform
from jaxssl.models.fronts.whisper_frames import Whisper
from jaxssl.models.length_adapter import LengthAdapter
from jaxssl.models.mixers.attention import Attention
from jaxssl.models.mixers.gated_attention import GatedAttention, RelativeBias
from jaxssl.models.mixers.mamba import Mamba
from jaxssl.models.mixers.mamba2 import Mamba2
from jaxssl.models.mixers.summary_mixing import SummaryMixing
from jaxssl.models.names import CONV, FLAT, Rule, dense_rules, norm_rules
from jaxssl.models.outputs.cluster import ClusterHead
from jaxssl.models.outputs.cosine import CosineHead
from jaxssl.models.part import FULL, Blocks, Dialect, Dropout, Form, Full, Rank
from jaxssl.models.positions.convolution import PositionalConvolution
from jaxssl.models.positions.convolution_stack import ConvolutionStack
from jaxssl.models.positions.scaled_convolution import ScaledConvolution
from jaxssl.models.positions.sinusoid import Sinusoids
from jaxssl.models.rates.grouping import AveragePooling, StridedConvolution
from jaxssl.models.rates.integrate_and_fire import IntegrateAndFire
from jaxssl.models.rates.merging import KeyMerging
from jaxssl.models.rates.upsampling import Repeat, TransposedConvolution

SAMPLE_RATE = 16_000  # every model of this family reads 16 kHz mono

Front = Waveform | LogMel | Whisper | ConvolvedMel
Mixer = Attention | GatedAttention | Mamba | Mamba2 | SummaryMixing
Feed = FeedForward | NoFeedForward
AnyBlock = Mixer | Feed | ConvolutionModule
Position = PositionalConvolution | ConvolutionStack | ScaledConvolution | Sinusoids
Head = ClusterHead | CosineHead
Grouping = AveragePooling | StridedConvolution
Shortening = Grouping | IntegrateAndFire
Inner = Grouping | IntegrateAndFire | KeyMerging  # what may stand before a layer
Upsampling = Repeat | TransposedConvolution

__all__ = [
    "Adapter",
    "Arch",
    "Attention",
    "AveragePooling",
    "Blocks",
    "ClusterHead",
    "Conv",
    "ConvolutionModule",
    "ConvolutionStack",
    "ConvolvedMel",
    "CosineHead",
    "Dropout",
    "FULL",
    "FeedForward",
    "Form",
    "Full",
    "GatedAttention",
    "HUBERT_CONVS",
    "IntegrateAndFire",
    "KeyMerging",
    "Layer",
    "LengthAdapter",
    "LogMel",
    "MEL_CONVS",
    "Macaron",
    "Mamba",
    "Mamba2",
    "Mixer",
    "NoFeedForward",
    "PositionalConvolution",
    "Rank",
    "RelativeBias",
    "Repeat",
    "ScaledConvolution",
    "Sinusoids",
    "StridedConvolution",
    "SummaryMixing",
    "TransposedConvolution",
    "Upsampling",
    "Waveform",
    "Whisper",
]


@dataclass(frozen=True)
class Layer:
    """One layer of the encoder: a token mixer and a feed-forward block, if any, each with a residual and a norm.

    A Conformer's layer has a convolution between them, and a macaron block before both, which halves both feed-forward
    blocks and ends the layer with a norm. An adapter, where there is one, comes after all. A shortening makes the
    sequence shorter before them, for this layer and all that follow.
    """

    mixer: Mixer
    ffn: Feed
    adapter: Adapter | None = None
    shortening: Inner | None = None
    macaron: Macaron | None = None
    convolution: ConvolutionModule | None = None

    @property
    def blocks(self) -> tuple[AnyBlock, ...]:
        """The residual branches: mixer and feed-forward block, then what a Conformer's layer has beside them."""
        return self.mixer, self.ffn, *(block for block in (self.macaron, self.convolution) if block is not None)

    @property
    def conformer(self) -> bool:
        """Whether it has more than a mixer and a feed-forward block."""
        return len(self.blocks) > 2

    def changed(self, change: Callable[[Any], Any]) -> "Layer":
        """Return the layer with `change` made to each of its blocks."""
        more = {name: change(block) for name in ("macaron", "convolution") if (block := getattr(self, name))}
        return replace(self, mixer=change(self.mixer), ffn=change(self.ffn), **more)

    @property
    def heads(self) -> int:
        """Heads that can go; 0 where the mixer is no attention."""
        return next((units.size for units in self.mixer.units() if units.name == "heads"), 0)

    @property
    def attention(self) -> Attention | GatedAttention:
        """The mixer of a layer of attention, for what is asked of attention alone.

        Raises:
            InputError: it mixes frames in another way.
        """
        if isinstance(self.mixer, Attention | GatedAttention):
            return self.mixer
        raise InputError(f"a layer's mixer is {self.mixer.kind}, and this is for attention alone; use another model")


def transformer(heads: int, head_dim: int, size: int) -> tuple[Layer]:
    """Return a tuple of one plain Transformer layer, to be repeated; `size` is that of its feed-forward block."""
    return (Layer(Attention(heads, head_dim), FeedForward(size)),)


@dataclass(frozen=True)
class Arch:
    """A speech self-supervised encoder: front end, layers, optional pre-training head.

    Attributes:
        front: `Waveform` (HuBERT), `LogMel` (MelHuBERT), `Whisper` or `ConvolvedMel`.
        width: size of the residual stream.
        layers: the layers, first to last.
        norm_first: pre-LN when true (Large), post-LN when false (Base, MelHuBERT).
        position: what tells frames where they are.
        mask_embedding: whether masked frames take a learned vector (otherwise their features are set to 0).
        project: form of the map from features to `width`; None: there is none, for features that are `width` wide can
            do without (ARMHuBERT).
        time_reduction: frames that become one before the first layer, by a strided convolution (FitHuBERT).
        relative: table of relative positions that all layers' attention shares (WavLM), or None.
        length_adapter: strided convolutions behind the encoder, or None.
        shortening: what makes the front end's features a shorter sequence, before they are projected; layers may have
            one too, in groups of a fixed size or of frames whose keys are alike. None: nothing does.
        upsampling: what brings the encoder's output back to the frames of the front end, where something made them
            fewer, or None.
        prepared: whether weights are in the form that runs fastest here (`inference.prepack`), not as checkpoints.
        dropout: probabilities in training.
        head: pre-training output, or None.
    """

    front: Front
    width: int
    layers: tuple[Layer, ...]
    norm_first: bool = False
    position: Position = field(default_factory=PositionalConvolution)
    mask_embedding: bool = False
    project: Form | None = FULL
    dropout: Dropout = field(default_factory=Dropout)
    head: Head | None = None
    time_reduction: int = 1
    prepared: bool = False
    relative: RelativeBias | None = None
    length_adapter: LengthAdapter | None = None
    shortening: Shortening | None = None
    upsampling: Upsampling | None = None

    def frames(self, samples: Any, *, layer: int | None = None) -> Any:
        """Count the frames of `samples` samples (an int or an array of ints) that layer `layer` works on.

        Layers are counted from 0; None is the encoder's output. A last partial frame is none. Where frames fire by
        what is said, these are those there is room for, and how many are valid `Output.lengths` says.
        """
        return self.reduced(self.front.frames(samples), layer=layer)

    def reduced(self, frames: Any, *, layer: int | None = None) -> Any:
        """Count the frames that layer `layer` works on, None: the output's, of `frames` frames of the front end."""
        if layer is None and self.upsampling is not None:
            return frames
        frames = self.shortened(frames) // self.time_reduction
        for each in self.layers if layer is None else self.layers[: layer + 1]:
            frames = each.shortening.frames(frames) if each.shortening else frames
        return frames

    def shortened(self, frames: Any) -> Any:
        """Count the frames that are projected, of `frames` frames of the front end."""
        return self.shortening.frames(frames) if self.shortening else frames

    @property
    def grouped(self) -> int:
        """Frames of the front end that the encoder, before any upsampling, makes one where their number is fixed."""
        return self.time_reduction * math.prod(part.ratio for part in self.rates)

    @property
    def rates(self) -> tuple[Shortening | Inner, ...]:
        """What makes sequences shorter, first to last; a strided convolution before the first layer is none of them."""
        return tuple(part for part in (self.shortening, *(layer.shortening for layer in self.layers)) if part)

    @property
    def regular(self) -> bool:
        """Whether a fixed number of frames becomes one wherever some do."""
        return all(part.regular for part in self.rates)

    @property
    def firing(self) -> IntegrateAndFire | None:
        """What fires, behind the front end or before a layer; None: nothing does."""
        return next((part for part in self.rates if isinstance(part, IntegrateAndFire)), None)

    @property
    def fires_at(self) -> int | None:
        """The layer before which frames fire; None: behind the front end, or nowhere."""
        layers = enumerate(self.layers)
        return next((i for i, layer in layers if isinstance(layer.shortening, IntegrateAndFire)), None)

    def refired(self, part: IntegrateAndFire) -> "Arch":
        """Return the arch with another part in place of what fires."""
        i = self.fires_at
        if i is None:
            return replace(self, shortening=part)
        layer = replace(self.layers[i], shortening=part)
        return replace(self, layers=(*self.layers[:i], layer, *self.layers[i + 1 :]))

    @property
    def shortens(self) -> bool:
        """Whether something makes sequences shorter, by a fixed number or not."""
        return self.time_reduction > 1 or bool(self.rates)

    @property
    def joined(self) -> int:
        """Frames of the front end from one frame of the output to the next."""
        return 1 if self.upsampling else self.grouped

    @property
    def least(self) -> int:
        """Frames of the front end that a model needs to return one."""
        return self.grouped * (self.length_adapter.least if self.length_adapter else 1)

    def names(self, dialect: Dialect) -> tuple[Rule, ...]:
        """List what another program calls the model's arrays: those of its parts, and those of none."""
        parts = {type(part): part for layer in self.layers for part in (*layer.blocks, layer.adapter) if part}
        optional = (self.head, self.relative, self.length_adapter, self.shortening)
        outer = (self.front, self.position, *(part for part in optional if part))
        rules = (rule for part in (*outer, *parts.values()) for rule in part.names[dialect])
        return tuple(dict.fromkeys((*rules, *NAMES[dialect])))


NAMES: Mapping[Dialect, tuple[Rule, ...]] = {
    "fairseq": (
        *dense_rules(r"(?:post|pre)_extract_proj", "project"),
        Rule(r"mask_emb", "mask_embedding", FLAT),
        *dense_rules(r"encoder\.layers\.0", "reduction", CONV),  # FitHuBERT counts it among the layers
        *norm_rules(r"encoder\.layer_norm", "norm"),
        *norm_rules(r"encoder\.layers\.(\d+)\.self_attn_layer_norm", r"layers/\1/attention_norm"),
        *norm_rules(r"encoder\.layers\.(\d+)\.final_layer_norm", r"layers/\1/ffn_norm"),
    ),
    "huggingface": (
        *dense_rules(r"feature_projection\.projection", "project"),
        Rule(r"masked_spec_embed", "mask_embedding", FLAT),
        *norm_rules(r"encoder\.layer_norm", "norm"),
        *norm_rules(r"encoder\.layers\.(\d+)\.layer_norm", r"layers/\1/attention_norm"),
        *norm_rules(r"encoder\.layers\.(\d+)\.final_layer_norm", r"layers/\1/ffn_norm"),
    ),
}


def hubert_base() -> Arch:
    """Return HuBERT Base: 12 layers of 768, group norm, post-LN (Hsu et al. 2021, table 1)."""
    return Arch(
        front=Waveform(gradient_scale=0.1),
        width=768,
        layers=transformer(12, 64, 3072) * 12,
        mask_embedding=True,
        dropout=Dropout(features=0.1, layer=0.05),
        head=CosineHead(256, (504,)),
    )


def hubert_large() -> Arch:
    """Return HuBERT Large: 24 layers of 1024, layer norm, pre-LN, normalised waveforms."""
    return Arch(
        front=Waveform(norm="layer", normalize=True),
        width=1024,
        layers=transformer(16, 64, 4096) * 24,
        norm_first=True,
        mask_embedding=True,
        dropout=Dropout(hidden=0.0, attention=0.0),
        head=CosineHead(768, (500,)),
    )


def hubert_xlarge() -> Arch:
    """Return HuBERT X-Large: 48 layers of 1280 with 16 heads of 80 (from memory of the paper's table, not checked)."""
    return Arch(
        front=Waveform(norm="layer", normalize=True),
        width=1280,
        layers=transformer(16, 80, 5120) * 48,
        norm_first=True,
        mask_embedding=True,
        dropout=Dropout(hidden=0.0, attention=0.0),
        head=CosineHead(1024, (500,)),
    )


def melhubert(period_ms: Literal[10, 20] = 20, *, layers: int = 12) -> Arch:
    """Return MelHuBERT with frames of 10 or 20 ms and `layers` layers (Lin et al. 2022)."""
    return Arch(
        front=LogMel(stack=period_ms // 10),
        width=768,
        layers=transformer(12, 64, 3072) * layers,
        dropout=Dropout(activation=0.1),
        head=ClusterHead(512),
    )


def melhubert_mini() -> Arch:
    """Return a MelHuBERT of 5 million parameters: 6 layers of 256, 8 heads of 32, 1024 hidden units, 20 ms."""
    return Arch(
        front=LogMel(stack=2),
        width=256,
        layers=transformer(8, 32, 1024) * 6,
        position=PositionalConvolution(64),
        dropout=Dropout(attention=0.0),
        head=ClusterHead(100),
    )


def melhubert_tiny() -> Arch:
    """Return a MelHuBERT of 0.6 million parameters that trains in minutes on two cores: 3 layers of 128, 20 ms."""
    return Arch(
        front=LogMel(stack=2),
        width=128,
        layers=transformer(4, 32, 512) * 3,
        position=PositionalConvolution(32),
        dropout=Dropout(attention=0.0),
        head=ClusterHead(100),
    )
