"""Presets of HuBERT's published relatives, as encoders without their pre-training outputs.

Parameters are those of transformers' models of the same configuration, which a test counts.
"""

from dataclasses import replace

from jaxssl.models.arch import (
    Arch,
    Attention,
    ConvolutionStack,
    Dropout,
    FeedForward,
    Layer,
    Sinusoids,
    Waveform,
    Whisper,
    hubert_base,
    transformer,
)

LARGE = Waveform(norm="layer", bias=True, normalize=True)  # the extractor of wav2vec 2.0 Large and all after it


def wav2vec2_base() -> Arch:
    """Return wav2vec 2.0 Base: HuBERT Base's encoder (Baevski et al. 2020)."""
    return replace(hubert_base(), head=None)


def wav2vec2_large() -> Arch:
    """Return wav2vec 2.0 Large as trained on LV-60 and, as XLSR-53, on 53 languages: pre-LN, biased convolutions.

    That of LibriSpeech alone is another: it has Base's extractor and post-LN.
    """
    return _large(1024, layers=24, heads=16)


def xls_r_300m() -> Arch:
    """Return XLS-R of 300 million parameters: wav2vec 2.0 Large (Babu et al. 2021); MMS has it too."""
    return wav2vec2_large()


def xls_r_1b() -> Arch:
    """Return XLS-R of a billion parameters: 48 layers of 1280 (Babu et al. 2021, table 2); MMS has it too."""
    return _large(1280, layers=48, heads=16)


def xls_r_2b() -> Arch:
    """Return XLS-R of two billion parameters: 48 layers of 1920 (Babu et al. 2021, table 2)."""
    return _large(1920, layers=48, heads=16)


def unispeech_sat_base() -> Arch:
    """Return UniSpeech-SAT Base and Base+: HuBERT Base's encoder (Chen et al. 2022)."""
    return replace(hubert_base(), head=None)


def unispeech_sat_large() -> Arch:
    """Return UniSpeech-SAT Large: pre-LN, a layer norm at every convolution.

    Inferred: its convolutions have no biases, as HuBERT Large's; with biases it is wav2vec 2.0 Large.
    """
    return replace(_large(1024, layers=24, heads=16), front=replace(LARGE, bias=False))


def data2vec_audio_base() -> Arch:
    """Return data2vec Base: a layer norm at every convolution, post-LN, five convolutions for positions."""
    return replace(
        hubert_base(),
        front=Waveform(norm="layer", normalize=True),
        position=ConvolutionStack(),
        head=None,
    )


def data2vec_audio_large() -> Arch:
    """Return data2vec Large: as Base, 24 layers of 1024.

    Inferred: its extractor and norms are Base's; transformers knows no others for this family.
    """
    return replace(data2vec_audio_base(), width=1024, layers=transformer(16, 64, 4096) * 24)


def whisper(width: int, layers: int, *, bins: int = 80) -> Arch:
    """Return the encoder of Whisper (Radford et al. 2022, table 1), whose heads are 64 wide.

    tiny: width 384, 4 layers; base: 512, 6; small: 768, 12; medium: 1024, 24; large: 1280, 32, of v3 and later with
    128 Mel bins.
    """
    layer = Layer(Attention(width // 64, 64, key_bias=False), FeedForward(4 * width))
    return Arch(
        front=Whisper(width, width, bins=bins),
        width=width,
        layers=(layer,) * layers,
        norm_first=True,
        position=Sinusoids("halves"),
        project=None,
        dropout=Dropout(hidden=0.0, attention=0.0),
    )


def _large(width: int, *, layers: int, heads: int) -> Arch:
    return Arch(
        front=LARGE,
        width=width,
        layers=transformer(heads, width // heads, 4 * width) * layers,
        norm_first=True,
        mask_embedding=True,
        dropout=Dropout(hidden=0.0, attention=0.0),
    )
