"""What a model is, as a small frozen value that reads and writes as JSON.

`Arch` holds everything that the arrays' shapes follow from, and the few numbers that shapes cannot tell (strides,
dropout rates). Layers are listed one by one, because compressed models have layers that differ.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from compress.errors import InputError

SAMPLE_RATE = 16_000  # every model of this family reads 16 kHz mono


@dataclass(frozen=True)
class Conv:
    """One convolution of the waveform extractor."""

    channels: int
    kernel: int
    stride: int


HUBERT_CONVS = (Conv(512, 10, 5), *(Conv(512, 3, 2),) * 4, *(Conv(512, 2, 2),) * 2)


@dataclass(frozen=True)
class Waveform:
    """HuBERT's front end: strided convolutions over raw samples.

    Attributes:
        convs: the convolutions, first to last.
        norm: "group" normalises each channel over time after the first convolution only (Base); "layer" normalises
            the channels of every frame after every convolution (Large, X-Large).
        bias: whether the convolutions have a bias.
        normalize: whether each utterance is brought to zero mean and unit variance first.
        gradient_scale: factor on the gradient that reaches the convolutions in training (fairseq's
            `feature_grad_mult`); 0 freezes them.
        feature_norm: whether the last convolution's output is normalised over channels (DistilHuBERT does not).
    """

    convs: tuple[Conv, ...] = HUBERT_CONVS
    norm: Literal["group", "layer"] = "group"
    bias: bool = False
    normalize: bool = False
    gradient_scale: float = 1.0
    feature_norm: bool = True
    kind: Literal["waveform"] = "waveform"

    @property
    def size(self) -> int:
        """Width of the features handed to the encoder."""
        return self.convs[-1].channels

    def frames(self, samples: Any) -> Any:
        """Count the frames that `samples` samples give (an int or an array of ints)."""
        for conv in self.convs:
            samples = (samples - conv.kernel) // conv.stride + 1
        return samples


@dataclass(frozen=True)
class LogMel:
    """MelHuBERT's front end: log-Mel frames of 10 ms, `stack` of them side by side.

    Attributes:
        bins: Mel bins of one 10 ms frame.
        stack: frames joined into one: 1 gives a 10 ms model, 2 a 20 ms model.
    """

    bins: int = 40
    stack: int = 2
    kind: Literal["logmel"] = "logmel"

    @property
    def size(self) -> int:
        """Width of the features handed to the encoder."""
        return self.bins * self.stack

    def frames(self, samples: Any) -> Any:
        """Count the frames that `samples` samples give: 25 ms windows every 10 ms, stacked, the last padded."""
        return -(-(1 + (samples - 400) // 160) // self.stack)


@dataclass(frozen=True)
class Ranks:
    """Rank of each dense map of a layer; None leaves it dense."""

    q: int | None = None
    k: int | None = None
    v: int | None = None
    out: int | None = None
    fc1: int | None = None
    fc2: int | None = None


@dataclass(frozen=True)
class Packed:
    """Blocks of each dense map of a layer that keeps only some: (size, kept in each column); None is no such map."""

    q: tuple[int, int] | None = None
    k: tuple[int, int] | None = None
    v: tuple[int, int] | None = None
    out: tuple[int, int] | None = None
    fc1: tuple[int, int] | None = None
    fc2: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layer:
    """Shape of one Transformer layer. `heads` and `ffn` may be 0: the block is then its output bias.

    With `reuse` the layer has no q and k: its heads weigh values by the attention maps of the layer before (ARMHuBERT,
    Jang et al. 2023), which must have as many heads. With `int8` all its dense maps are int8 (`compress.quantize`).
    """

    heads: int
    ffn: int
    ranks: Ranks = Ranks()
    packed: Packed = Packed()
    reuse: bool = False
    int8: bool = False


@dataclass(frozen=True)
class Dropout:
    """Dropout probabilities in training.

    Attributes:
        hidden: on the encoder's input and on each block's output.
        attention: on attention weights.
        activation: on the feed-forward block's hidden units.
        features: on the projected features (HuBERT's `dropout_input`).
        layer: chance that a layer is skipped (LayerDrop).
    """

    hidden: float = 0.1
    attention: float = 0.1
    activation: float = 0.0
    features: float = 0.0
    layer: float = 0.0


@dataclass(frozen=True)
class ClusterHead:
    """MelHuBERT's pre-training output: one linear map to cluster logits."""

    clusters: int
    kind: Literal["cluster"] = "cluster"


@dataclass(frozen=True)
class CosineHead:
    """HuBERT's pre-training output: cosine to learned codewords, divided by `temperature`.

    Attributes:
        size: width of a codeword.
        codewords: how many of them each label set has; most models have one set.
        untied: whether each label set has a projection of its own.
    """

    size: int
    codewords: tuple[int, ...]
    untied: bool = True
    temperature: float = 0.1
    kind: Literal["cosine"] = "cosine"


@dataclass(frozen=True)
class Arch:
    """A speech self-supervised Transformer: front end, encoder, optional pre-training head.

    Attributes:
        front: `Waveform` (HuBERT) or `LogMel` (MelHuBERT).
        width: size of the residual stream.
        head_dim: size of one attention head; the same everywhere.
        layers: the Transformer layers, first to last.
        norm_first: pre-LN when true (Large), post-LN when false (Base, MelHuBERT).
        position_kernel: taps of the convolution that gives positions.
        position_groups: its groups.
        mask_embedding: whether masked frames take a learned vector (otherwise their features are set to 0).
        project_rank: rank of the map from features to `width`; None is dense.
        project: whether there is such a map; features that are `width` wide can do without (ARMHuBERT).
        time_reduction: frames that become one before the first layer, by a strided convolution (FitHuBERT).
        prepared: whether weights are in the form that runs fastest on CPUs (`inference.prepack`), not as checkpoints.
        dropout: probabilities in training.
        head: pre-training output, or None.
    """

    front: Waveform | LogMel
    width: int
    head_dim: int
    layers: tuple[Layer, ...]
    norm_first: bool = False
    position_kernel: int = 128
    position_groups: int = 16
    mask_embedding: bool = False
    project_rank: int | None = None
    dropout: Dropout = field(default_factory=Dropout)
    head: ClusterHead | CosineHead | None = None
    project: bool = True
    time_reduction: int = 1
    prepared: bool = False

    def frames(self, samples: Any) -> Any:
        """Count the encoder's frames for `samples` samples (an int or an array of ints); a last partial one is none."""
        return self.front.frames(samples) // self.time_reduction


def hubert_base() -> Arch:
    """Return HuBERT Base: 12 layers of 768, group norm, post-LN (Hsu et al. 2021, table 1)."""
    return Arch(
        front=Waveform(gradient_scale=0.1),
        width=768,
        head_dim=64,
        layers=(Layer(12, 3072),) * 12,
        mask_embedding=True,
        dropout=Dropout(features=0.1, layer=0.05),
        head=CosineHead(256, (504,)),
    )


def hubert_large() -> Arch:
    """Return HuBERT Large: 24 layers of 1024, layer norm, pre-LN, normalised waveforms."""
    return Arch(
        front=Waveform(norm="layer", normalize=True),
        width=1024,
        head_dim=64,
        layers=(Layer(16, 4096),) * 24,
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
        head_dim=80,
        layers=(Layer(16, 5120),) * 48,
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
        head_dim=64,
        layers=(Layer(12, 3072),) * layers,
        dropout=Dropout(activation=0.1),
        head=ClusterHead(512),
    )


def melhubert_mini() -> Arch:
    """Return a MelHuBERT of 5 million parameters: 6 layers of 256, 8 heads of 32, 1024 hidden units, 20 ms."""
    return Arch(
        front=LogMel(stack=2),
        width=256,
        head_dim=32,
        layers=(Layer(8, 1024),) * 6,
        position_kernel=64,
        dropout=Dropout(attention=0.0),
        head=ClusterHead(100),
    )


def melhubert_tiny() -> Arch:
    """Return a MelHuBERT of 0.6 million parameters that trains in minutes on two cores: 3 layers of 128, 20 ms."""
    return Arch(
        front=LogMel(stack=2),
        width=128,
        head_dim=32,
        layers=(Layer(4, 512),) * 3,
        position_kernel=32,
        dropout=Dropout(attention=0.0),
        head=ClusterHead(100),
    )


def to_json(arch: Arch) -> dict[str, Any]:
    """Write an arch as plain JSON values."""
    return dataclasses.asdict(arch)


def from_json(values: Mapping[str, Any]) -> Arch:
    """Read what `to_json` wrote.

    Raises:
        InputError: a field is unknown, missing or not of its kind.
    """
    try:
        values = dict(values)
        values["front"] = _front(values["front"])
        values["layers"] = tuple(_layer(layer) for layer in values["layers"])
        values["dropout"] = Dropout(**values["dropout"])
        values["head"] = _head(values["head"])
        return Arch(**values)
    except (KeyError, TypeError) as error:
        raise InputError(f"not a description of a model: {error}; it may be of another version of jaxssl") from error


def _front(values: Mapping[str, Any]) -> Waveform | LogMel:
    if values["kind"] == "logmel":
        return LogMel(**values)
    return Waveform(**{**values, "convs": tuple(Conv(**conv) for conv in values["convs"])})


def _layer(values: Mapping[str, Any]) -> Layer:
    blocks = {name: value and tuple(value) for name, value in values.get("packed", {}).items()}
    return Layer(**{**values, "ranks": Ranks(**values["ranks"]), "packed": Packed(**blocks)})


def _head(values: Mapping[str, Any] | None) -> ClusterHead | CosineHead | None:
    if values is None:
        return None
    if values["kind"] == "cluster":
        return ClusterHead(**values)
    return CosineHead(**{**values, "codewords": tuple(values["codewords"])})
