"""Presets: our models, and the structure of the systems that the study compares with.

A compared system is its encoder alone, as it is used once distillation is over; its weights are random here, for
parameters, MACs and time need none. Each says what is known, from which source, and what was inferred; the figures
that it is checked against are in `experiments.reports.compared`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from jaxssl.models.arch import (
    HUBERT_CONVS,
    Arch,
    Attention,
    Conv,
    ConvolutionModule,
    ConvolvedMel,
    Dropout,
    FeedForward,
    GatedAttention,
    Layer,
    Macaron,
    Mamba,
    Mixer,
    NoFeedForward,
    PositionalConvolution,
    RelativeBias,
    Sinusoids,
    SummaryMixing,
    Waveform,
    hubert_base,
    hubert_large,
    hubert_xlarge,
    melhubert,
    melhubert_mini,
    melhubert_tiny,
    transformer,
)
from jaxssl.models.relatives import (
    data2vec_audio_base,
    data2vec_audio_large,
    unispeech_sat_base,
    unispeech_sat_large,
    wav2vec2_base,
    wav2vec2_large,
    whisper,
    xls_r_1b,
    xls_r_2b,
    xls_r_300m,
)

STUDENT = Dropout(activation=0.1, features=0.05)  # in training, of FitHuBERT, ARMHuBERT and STaRHuBERT


def distilhubert() -> Arch:
    """Return DistilHuBERT: HuBERT's extractor, its first two layers, no norm of the features (Chang et al. 2022).

    Known exactly: the released configuration gives all sizes and 23,491,200 parameters without prediction heads.
    """
    base = hubert_base()
    return replace(
        base,
        front=Waveform(gradient_scale=0.1, feature_norm=False),
        layers=base.layers[:2],
        mask_embedding=False,
        dropout=Dropout(activation=0.1),
        head=None,
    )


def wavlm_base() -> Arch:
    """Return WavLM Base, whose shape Base+ shares: HuBERT Base with gated relative positions (Chen et al. 2022).

    Known exactly: the published code and configurations give all sizes; 94,381,936 parameters, as transformers counts.
    """
    return _gated(replace(hubert_base(), head=None), 12)


def wavlm_large() -> Arch:
    """Return WavLM Large: HuBERT Large with gated relative positions; for the rest see `wavlm_base`."""
    return _gated(replace(hubert_large(), head=None), 16)


def mamba_hubert(ffn: int = 0) -> Arch:
    """Return Mamba HuBERT Base: HuBERT Base with Mamba in place of attention (arXiv 2506.12606).

    Known exactly: the released code and configuration give all sizes, 78,200,960 parameters, and 94,754,432 with
    feed-forward blocks of 896.

    Args:
        ffn: hidden units of the feed-forward blocks; 0: there are none.
    """
    base = hubert_base()
    layer = Layer(Mamba(3 * base.width, state=24, rank=48), FeedForward(ffn) if ffn else NoFeedForward())
    return replace(base, layers=(layer,) * 12)


def summary_mixing_conformer() -> Arch:
    """Return SummaryMixing's wav2vec 2.0: a Conformer over log-Mel frames, 8 heads of 96 (arXiv 2407.13377).

    Known exactly: the published recipe gives all sizes. Its 154.8 million parameters are these, 154,091,520, and what
    pre-training adds: a projection to 256, a quantiser of 2 × 320 codewords and its projection, 672,896.
    """
    return _conformer(SummaryMixing(8, 96, 96, 96, 96, norm=True))


def attention_conformer() -> Arch:
    """Return what SummaryMixing's wav2vec 2.0 is compared with: the same Conformer around attention of 8 heads.

    Known exactly, from the same source: 165.3 million with what pre-training adds, so attention without positions.
    """
    return _conformer(Attention(8, 96))


def _conformer(mixer: Mixer) -> Arch:
    """Return the Conformer of that recipe, Swish everywhere, around a mixer."""
    layer = Layer(
        mixer,
        FeedForward(3072, activation="silu"),
        macaron=Macaron(3072, activation="silu"),
        convolution=ConvolutionModule(768),
    )
    return Arch(
        front=ConvolvedMel(),
        width=768,
        layers=(layer,) * 12,
        norm_first=True,
        position=Sinusoids(),
        mask_embedding=True,
        dropout=Dropout(activation=0.1, features=0.1, layer=0.05),
    )


def fithubert() -> Arch:
    """Return FitHuBERT: a thin extractor, half the frames, 12 layers of 480 (Lee et al. 2022).

    Known exactly: the released configuration gives all sizes. Of the published 22.49 million parameters 1,291,968 are
    no encoder: the last layer's distillation head (transposed convolution and projection, 830,688) and a second
    transposed convolution that the released code makes and does not use (461,280).
    """
    return Arch(
        front=Waveform(_thin(512), gradient_scale=0.1),
        width=480,
        layers=transformer(12, 40, 480) * 12,
        dropout=STUDENT,
        time_reduction=2,
    )


def lighthubert(width: int, *, heads: Sequence[int], ffn: Sequence[int]) -> Arch:
    """Return any subnet of LightHuBERT: HuBERT Base with another width, and heads and units layer by layer.

    Known from the released code (Wang et al. 2022): heads are 64 wide at every width, `ffn` is 3 to 4 times the width,
    the extractor is HuBERT's, and positions keep 16 groups.

    Args:
        width: 512, 640 or 768 in the base supernet; 256, 384 or 512 in the small one.
        heads: of each layer; 8, 10 or 12, in the small supernet 4, 6 or 8.
        ffn: hidden units of each layer.
    """
    return replace(
        hubert_base(),
        width=width,
        layers=tuple(layer for sizes in zip(heads, ffn, strict=True) for layer in transformer(sizes[0], 64, sizes[1])),
        dropout=Dropout(),
        head=None,
    )


def lighthubert_small() -> Arch:
    """Return LightHuBERT's a_small: 12 layers of 384, 6 heads, 1536 units.

    Inferred: these are the small supernet's default subnet in the released code; what the paper's search found is in
    none of our sources. 26.87 million parameters against 27.0 published. The published MACs, 860.7 G, are these, 857.0,
    with the prediction head (384 to 768: 3.3) and frames padded to even numbers (0.4). There are subnets that fit both
    figures as they are, such as one with 8 heads in two layers and 1152 units in one, but none is the only one.
    """
    return lighthubert(384, heads=(6,) * 12, ffn=(1536,) * 12)


def armhubert() -> Arch:
    """Return ARMHuBERT: 12 layers of 480, every second one with the maps of the one before (Jang et al. 2023).

    Known exactly: the released configuration gives all sizes, and no projection, the extractor being as wide as the
    encoder. The published 26.45 million parameters count the twelve projections to the teacher's width, used in
    distillation only: 12 · (480 · 768 + 768) = 4,432,896; so do the published MACs.
    """
    return _reusing(480, ffn=864)


def armhubert_small() -> Arch:
    """Return ARMHuBERT-S: 12 layers of 432, 816 units; for the rest see `armhubert`.

    Known exactly, from the same source. The published 22.39 million count twelve projections, 3,990,528.
    """
    return _reusing(432, ffn=816)


def starhubert() -> Arch:
    """Return STaRHuBERT: ARMHuBERT-S without reuse, 976 units (Jang et al. 2024).

    From the released code: the extractor and the lack of a projection and of a mask embedding. From memory: 432 and
    976. They give 22,308,592 parameters and 463.45 G MACs against 22.31 million and 463.5 G published, which no other
    width of the family does with the same extractor.
    """
    return Arch(
        front=Waveform(_thin(432)),
        width=432,
        layers=transformer(12, 36, 976) * 12,
        dropout=STUDENT,
        project=None,
    )


def dphubert() -> Arch:
    """Return a stand-in for DPHuBERT: HuBERT Base, every layer pruned alike to its published size (Peng et al. 2023).

    Inferred: the published model has other channels, heads and units in every layer, which we have no source of. These
    (440 channels, 2 heads, 577 units) are those of equal layers that give both published figures, 23.59 million
    parameters and 654.1 G MACs. Its time is that of as much work, not of the same shapes.
    """
    return replace(
        hubert_base(),
        front=Waveform(tuple(replace(conv, channels=440) for conv in HUBERT_CONVS), gradient_scale=0.1),
        layers=transformer(2, 64, 577) * 12,
        head=None,
    )


def _thin(channels: int) -> tuple[Conv, ...]:
    """List the convolutions of FitHuBERT's extractor: few channels early, where frames are many."""
    return (
        Conv(128, 10, 5),
        Conv(256, 1, 1),
        *(Conv(256, 3, 2),) * 4,
        Conv(channels, 1, 1),
        *(Conv(channels, 2, 2),) * 2,
    )


def _gated(plain: Arch, heads: int) -> Arch:
    """Give a model's attention relative positions, 320 buckets up to 800 frames apart."""
    layer = plain.layers[0]
    gated = replace(layer, mixer=GatedAttention(tuple(range(heads)), layer.attention.head_dim))
    return replace(plain, layers=(gated,) * len(plain.layers), relative=RelativeBias(heads))


def _reusing(width: int, *, ffn: int) -> Arch:
    maps = Attention(12, width // 12)
    return Arch(
        front=Waveform(_thin(width)),
        width=width,
        layers=(Layer(maps, FeedForward(ffn)), Layer(replace(maps, reuse=True), FeedForward(ffn))) * 6,
        mask_embedding=True,
        dropout=STUDENT,
        project=None,
    )


def melhubert_mini_streaming() -> Arch:
    """Return MelHuBERT mini for streams: positions of the past alone, attention to 2 s before and 40 ms after a frame.

    So an output hears 240 ms behind its frame, beside the features' own window of 25 ms (`inference.streaming`).
    """
    layers = (Layer(Attention(8, 32, left=100, right=2), FeedForward(1024)),) * 6
    return replace(melhubert_mini(), layers=layers, position=PositionalConvolution(64, causal=True))


PRESETS: dict[str, Callable[[], Arch]] = {
    "hubert-base": hubert_base,
    "hubert-large": hubert_large,
    "hubert-xlarge": hubert_xlarge,
    "wav2vec2-base": wav2vec2_base,
    "wav2vec2-large": wav2vec2_large,
    "xls-r-300m": xls_r_300m,
    "xls-r-1b": xls_r_1b,
    "xls-r-2b": xls_r_2b,
    "unispeech-sat-base": unispeech_sat_base,
    "unispeech-sat-large": unispeech_sat_large,
    "data2vec-audio-base": data2vec_audio_base,
    "data2vec-audio-large": data2vec_audio_large,
    "whisper-tiny": lambda: whisper(384, 4),
    "whisper-base": lambda: whisper(512, 6),
    "whisper-small": lambda: whisper(768, 12),
    "whisper-medium": lambda: whisper(1024, 24),
    "whisper-large-v3": lambda: whisper(1280, 32, bins=128),
    "melhubert-20ms": melhubert,
    "melhubert-10ms": lambda: melhubert(10),
    "melhubert-mini": melhubert_mini,
    "melhubert-mini-streaming": melhubert_mini_streaming,
    "melhubert-tiny": melhubert_tiny,
    "wavlm-base": wavlm_base,
    "wavlm-base-plus": wavlm_base,
    "wavlm-large": wavlm_large,
    "mamba-hubert-base": mamba_hubert,
    "mamba-mlp-hubert-base": lambda: mamba_hubert(896),
    "summary-mixing-conformer": summary_mixing_conformer,
    "attention-conformer": attention_conformer,
    "distilhubert": distilhubert,
    "fithubert": fithubert,
    "lighthubert-small": lighthubert_small,
    "armhubert": armhubert,
    "armhubert-small": armhubert_small,
    "starhubert": starhubert,
    "dphubert": dphubert,
}
