"""HuBERT's front end: strided convolutions over samples, and the modules they are made of.

As in `layers`, every module computes in the dtype of its input and keeps its parameters in float32.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from compress.address import Axis, Matrix
from compress.errors import InputError
from compress.quantize import float32
from jaxssl.models import choice
from jaxssl.models.fronts.samples import FromSamples
from jaxssl.models.fronts.strided_conv import Conv, StridedConv
from jaxssl.models.fronts.time_norm import TimeNorm
from jaxssl.models.held import Memory
from jaxssl.models.keys import Keys
from jaxssl.models.layers import NORM_EPSILON, LayerNorm, frame_mask, gelu
from jaxssl.models.names import CONV, FLAT, Rule, dense_rules, norm_rules
from jaxssl.models.packed import packed_convolution
from jaxssl.models.part import Arrays, Featured, Names, Padding, check_counts
from jaxssl.models.strides import Stride

HUBERT_CONVS = (Conv(512, 10, 5), *(Conv(512, 3, 2),) * 4, *(Conv(512, 2, 2),) * 2)


@dataclass(frozen=True)
class Waveform(FromSamples):
    """Strided convolutions over raw samples at 16 kHz.

    Attributes:
        convs: the convolutions, first to last.
        norm: "group" normalises each channel over time after the first convolution only (Base); "layer" normalises
            the channels of every frame after every convolution (Large, X-Large).
        bias: whether the convolutions have a bias.
        normalize: whether each utterance is brought to zero mean and unit variance first.
        gradient_scale: factor on the gradient that reaches the convolutions in training (fairseq's
            `feature_grad_mult`); 0 freezes them.
        feature_norm: whether the last convolution's output is normalised over channels (DistilHuBERT does not).
        scaled: whether that output is multiplied by a weight of each channel first, as pruning left DPHuBERT's; behind
            it comes a norm over channels, before it a GELU, and neither can take the weights over.
        counts: by what fairseq's code of the model's family counts the frames of a padded row that are valid: by
            "samples", shared out among all frames (HuBERT), or as the "convolutions" give (wav2vec 2.0, data2vec).
        int8: whether convolutions behind the first have int8 kernels, with scales beside them; the first one, whose
            windows are a few samples, has never.
    """

    convs: tuple[Conv, ...] = HUBERT_CONVS
    norm: Literal["group", "layer"] = "group"
    bias: bool = False
    normalize: bool = False
    gradient_scale: float = 1.0
    feature_norm: bool = True
    scaled: bool = False
    counts: Literal["samples", "convolutions"] = "samples"
    int8: bool = False
    kind: Literal["waveform"] = "waveform"

    features: ClassVar = False  # whether inputs are features, normalised by a corpus's statistics
    most: ClassVar = None  # inputs that it takes at most; None: any number
    rate: ClassVar = 16_000  # inputs (samples) a second
    penalty: ClassVar = 10.0  # weight of the mean square of its output in pre-training (Hsu et al. 2021)
    spans: ClassVar = (0.8, 10)  # masked in pre-training: share of frames, frames of a span
    names: ClassVar[Names] = {
        "fairseq": (
            *dense_rules(r"feature_extractor\.conv_layers\.(\d+)\.0", r"front/convs/\1/conv", CONV),
            *norm_rules(r"feature_extractor\.conv_layers\.(\d+)\.2\.1", r"front/convs/\1/norm"),  # layer norm
            *norm_rules(r"feature_extractor\.conv_layers\.(\d+)\.2", r"front/convs/\1/norm"),  # group norm
            *norm_rules(r"layer_norm", "front/norm"),
        ),
        "huggingface": (
            *dense_rules(r"feature_extractor\.conv_layers\.(\d+)\.conv", r"front/convs/\1/conv", CONV),
            *norm_rules(r"feature_extractor\.conv_layers\.(\d+)\.layer_norm", r"front/convs/\1/norm"),
            *norm_rules(r"feature_projection\.layer_norm", "front/norm"),
            Rule(r"feature_extractor\.dummy_weight", "front/scale", FLAT),  # DPHuBERT's, no transformer's
        ),
    }

    @property
    def size(self) -> int:
        """Width of the features handed to the encoder."""
        return self.convs[-1].channels

    @property
    def hop(self) -> int:
        """Inputs from one frame to the next."""
        return math.prod(conv.stride for conv in self.convs)

    @property
    def field(self) -> int:
        """Inputs that a frame sees (its receptive field)."""
        hop, field = 1, 1
        for conv in self.convs:
            field, hop = field + (conv.kernel - 1) * hop, hop * conv.stride
        return field

    @property
    def samples(self) -> tuple[int, int]:
        """Return hop and field in samples, which are the inputs."""
        return self.hop, self.field

    @property
    def centre(self) -> int:
        """Sample in the middle of the first frame."""
        return self.field // 2

    def frames(self, samples: Any) -> Any:
        """Count the frames that `samples` samples give (an int or an array of ints)."""
        for conv in self.convs:
            samples = (samples - conv.kernel) // conv.stride + 1
        return samples

    def heard(self, inputs: Any) -> Any:
        """Count the frames of that many inputs, which are samples."""
        return self.frames(inputs)

    def shape(self, samples: int) -> tuple[int, ...]:
        """Return the shape of one utterance's inputs."""
        return (samples,)

    def macs(self, samples: int) -> int:
        """Count the multiply-accumulates of one utterance."""
        total, channels = 0, 1
        for conv in self.convs:
            samples = (samples - conv.kernel) // conv.stride + 1
            total += samples * conv.kernel * channels * conv.channels
            channels = conv.channels
        return total

    def activation_bytes(self, samples: int, itemsize: int) -> float:
        """Return the bytes that one utterance leaves for the backward pass: 3 · itemsize an entry, 8 more a norm."""
        total = 0.0
        for conv in self.convs:
            samples = (samples - conv.kernel) // conv.stride + 1
            total += samples * conv.channels * (3 * itemsize + (8 if self.norm == "layer" else 0))
        return total

    def channels(self, project: str | None) -> tuple[Axis, ...]:
        """List the channels that can go without a trace, `front/convs/<i>/channels`, first to last.

        With a norm over the channels of a frame (Large's extractor, and the norm of the features, which the last
        convolution feeds) the others would change with one.

        Args:
            project: path of the array that reads the features, its first axis; None: nothing does.

        Raises:
            InputError: convolutions are int8.
        """
        if self.int8:
            raise InputError(
                "front: its convolutions are int8, and a cut would leave their scales; dequantize the model first "
                "(jaxssl.inference.specialise.dequantized)"
            )
        if self.norm == "layer":
            return ()
        last = () if self.feature_norm or project is None else ((project, 0),)
        readers = (*((f"front/convs/{i}/conv/kernel", 1) for i in range(1, len(self.convs))), *last)
        return tuple(self._channels(i, reader) for i, reader in enumerate(readers))

    def _channels(self, index: int, reader: tuple[str, int]) -> Axis:
        at = f"front/convs/{index}"
        scale = ((f"{at}/norm/scale", 0), (f"{at}/norm/bias", 0)) if index == 0 else ()
        bias = ((f"{at}/conv/bias", 0),) if self.bias else ()
        after = (("front/scale", 0),) if self.scaled and index == len(self.convs) - 1 else ()
        leaves = ((f"{at}/conv/kernel", 2), *bias, *scale, *after, reader)
        return Axis(f"{at}/channels", self.convs[index].channels, leaves, reader[0].rpartition("/")[0])

    def convolutions(self) -> tuple[Matrix, ...]:
        """List the convolutions that can be int8, as maps of windows, (taps, in, out)."""
        pairs = enumerate(zip(self.convs, self.convs[1:], strict=False), 1)
        shapes = {i: (conv.kernel, before.channels, conv.channels) for i, (before, conv) in pairs}
        return tuple(
            Matrix(f"front/convs/{i}/conv", 2, shape, int8=self.int8, bias=self.bias) for i, shape in shapes.items()
        )

    def read(self, arrays: Arrays) -> "Waveform":
        """Return the front end that these arrays are; strides and the norm's kind are this one's."""
        kernels = [arrays["convs"][str(i)]["conv"]["kernel"] for i in range(len(self.convs))]
        convs = [replace(conv, channels=kernel.shape[2]) for conv, kernel in zip(self.convs, kernels, strict=True)]
        int8 = any("kernel_scale" in each["conv"] for each in arrays["convs"].values())
        return replace(self, convs=tuple(convs), feature_norm="norm" in arrays, scaled="scale" in arrays, int8=int8)

    @property
    def pieces(self) -> int:
        """How many numbered pieces with arrays of their own it has."""
        return len(self.convs)

    def check(self) -> None:
        """Refuse no convolutions, ones without channels, taps or strides, and a scale of gradients that is none.

        Raises:
            InputError: the message says which.
        """
        check_counts("front", convs=len(self.convs))
        for i, conv in enumerate(self.convs):
            check_counts(f"front/convs/{i}", channels=conv.channels, kernel=conv.kernel, stride=conv.stride)
        if not 0 <= self.gradient_scale < math.inf:
            raise InputError(f"front: gradient_scale is {self.gradient_scale}; use 0 or more")

    @property
    def strides(self) -> tuple[Stride, ...]:
        """The convolutions in a stream, each as late as those before it make it."""
        found, late = [], 0
        for conv in self.convs:
            found.append(Stride(conv.kernel, conv.stride, late))
            late = found[-1].delay
        return tuple(found)

    @property
    def ahead(self) -> int:
        """Frames that it waits for in a stream."""
        return self.strides[-1].delay

    def check_stream(self) -> None:
        """Refuse what needs the whole utterance.

        Raises:
            InputError: a norm over time, or of the whole waveform.
        """
        if self.norm == "group":
            raise InputError("front: a group norm over time needs the whole utterance; use norm 'layer' to stream")
        if self.normalize:
            raise InputError(
                "front: normalize needs the whole utterance; scale the samples yourself and set it false to stream"
            )

    def memory(self, batch: int) -> dict[str, Memory]:
        """Return what each convolution holds before the first sample."""
        widths = (1, *(conv.channels for conv in self.convs))
        return {str(i): each.memory(batch, widths[i]) for i, each in enumerate(self.strides)}

    def packs(self, index: int) -> bool:
        """Tell whether a prepared model has the kernel of a convolution packed: norms over time do without it."""
        return choice.packs(int8=self.int8 and index > 0) and not (self.norm == "group" and index == 0)

    def prepare(self, arrays: Arrays, dtype: Any) -> Arrays:
        """Return the arrays in the form that `jaxssl.models.choice` says for this device, for running in `dtype`."""
        convs = dict(arrays["convs"])
        for i in filter(self.packs, range(len(self.convs))):
            conv = float32(convs[str(i)]["conv"])
            convs[str(i)] = {
                **convs[str(i)],
                "conv": {**conv, "kernel": packed_convolution(conv["kernel"], dtype=dtype)},
            }
        return {**arrays, "convs": convs}

    def build(self, *, prepared: bool, rngs: Keys) -> "Extractor":
        """Make the module."""
        return Extractor(self, prepared=prepared, rngs=rngs)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: Array, scale: float) -> Array:
    """Return `x`; what flows back through it is multiplied by `scale`."""
    return x


def _scale_forward(x: Array, scale: float) -> tuple[Array, None]:
    return x, None


def _scale_backward(scale: float, _: None, gradient: Array) -> tuple[Array]:
    return (scale * gradient,)


scale_gradient.defvjp(_scale_forward, _scale_backward)


class ConvLayer(nnx.Module):
    """One step of the extractor: convolution, norm where the model has one, GELU."""

    def __init__(self, front: Waveform, index: int, *, prepared: bool, rngs: Keys):
        spec, inputs = front.convs[index], front.convs[index - 1].channels if index else 1
        forms = {"int8": front.int8 and index > 0, "packed": prepared and front.packs(index)}
        self.conv = StridedConv(inputs, spec, bias=front.bias, **forms, rngs=rngs)
        if front.norm == "layer":
            self.norm = LayerNorm(spec.channels, rngs=rngs)
        elif index == 0:
            self.norm = TimeNorm(spec.channels, packed=prepared and choice.packs())

    def __call__(self, x: Array, lengths: Array | None) -> Array:
        """Map `x: (batch, time, in)` to (batch, fewer, channels); `lengths` count the output's valid frames."""
        match getattr(self, "norm", None):
            case None:
                return self.conv(x, "gelu")
            case TimeNorm() as norm:  # takes away any bias that the convolution has
                return norm(x, self.conv.kernel[...], self.conv.spec.stride, lengths)
            case norm:
                return gelu(norm(self.conv(x)))


class Extractor(nnx.Module):
    """Computes `Waveform`: the convolutions and, where the model has one, the norm of their output."""

    def __init__(self, part: Waveform, *, prepared: bool, rngs: Keys):
        self.part = part
        self.convs = nnx.List([ConvLayer(part, i, prepared=prepared, rngs=rngs) for i in range(len(part.convs))])
        if part.scaled:
            self.scale = nnx.Param(jnp.ones(part.size))
        if part.feature_norm:
            self.norm = LayerNorm(part.size, rngs=rngs)

    def __call__(self, samples: Array, lengths: Array | None, *, dtype: Any, padding: Padding) -> Featured:
        """Turn `samples: (batch, samples)`, of which `lengths` are valid, into features (batch, time, channels)."""
        if self.part.normalize:
            samples = standardise(samples, lengths)
        seen = lengths if padding == "independent" else None
        extracted = self.extract(samples.astype(dtype), seen)
        features = self.norm(extracted) if hasattr(self, "norm") else extracted
        if lengths is None:
            return Featured(features, None, extracted)
        if padding == "fairseq" and self.part.counts == "samples":
            return Featured(features, _by_samples(lengths, samples.shape[1], features.shape[1]), extracted)
        return Featured(features, self.part.frames(lengths), extracted)

    def extract(self, samples: Array, lengths: Array | None) -> Array:
        """Run the convolutions over `samples: (batch, samples)`."""
        x = samples[..., None]
        for spec, conv in zip(self.part.convs, self.convs, strict=True):
            lengths = None if lengths is None else (lengths - spec.kernel) // spec.stride + 1
            x = conv(x, lengths)
        x = x * self.scale[...].astype(x.dtype)[None, None] if hasattr(self, "scale") else x
        return scale_gradient(x, self.part.gradient_scale)

    def stream(self, samples: Array, valid: Array, memory: dict[str, Memory]) -> tuple[Array, Array, dict[str, Memory]]:
        """Run a chunk of a stream, `samples: (batch, samples)`; return features and which are valid."""
        x, held = samples[..., None], {}
        for i, (stride, conv) in enumerate(zip(self.part.strides, self.convs, strict=True)):
            x, valid, held[str(i)] = stride.stream(partial(conv, lengths=None), x, valid, memory[str(i)])
        x = x * self.scale[...].astype(x.dtype)[None, None] if hasattr(self, "scale") else x
        return (self.norm(x) if hasattr(self, "norm") else x), valid, held


def standardise(samples: Array, lengths: Array | None = None) -> Array:
    """Bring each row of `samples: (batch, samples)` to zero mean and unit variance over its valid samples."""
    valid = None if lengths is None else frame_mask(lengths, samples.shape[1])
    mean = samples.mean(1, keepdims=True, where=valid)
    variance = jnp.square(samples - mean).mean(1, keepdims=True, where=valid)
    out = (samples - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)
    return out if valid is None else jnp.where(valid, out, jnp.zeros_like(out))


def _by_samples(lengths: Array, samples: int, frames: int) -> Array:
    """Count valid frames as fairseq's HuBERT does: a frame is padding when all its `samples // frames` samples are."""
    block = samples // frames
    return jnp.minimum(-(-lengths // block), frames)
