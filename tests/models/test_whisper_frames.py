"""Whisper's front end: its log-Mel, its frames, and what an utterance hears of what stands beside it."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.edit import cut
from compress.errors import InputError
from jaxssl.models import cost
from jaxssl.models.arch import Attention
from jaxssl.models.describe import describe
from jaxssl.models.fronts.whisper_frames import slaney_triangles, whisper_mel
from jaxssl.models.model import apply
from jaxssl.models.sites import channels, entries
from jaxssl.models.zoo import PRESETS
from tests.archs import ARCHS, forward, weights

ARCH = ARCHS["whisper"]
mel = jax.jit(whisper_mel, static_argnames="bins")


def wave(samples, seed=0):
    return np.random.default_rng(seed).standard_normal((1, samples)).astype(np.float32)


@pytest.mark.parametrize("bins", [80, 128])
def test_triangles_are_librosas(bins):
    librosa = pytest.importorskip("librosa")
    theirs = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=bins)
    np.testing.assert_allclose(slaney_triangles(bins).T, theirs, atol=1e-8)


def test_log_mel_is_that_of_transformers(shared):
    """Of 30 s with silence behind the speech, and of the speech alone."""
    arrays = np.load(shared / "encoders/inputs.npz")
    golden = np.load(shared / "encoders/hf_whisper/golden.npz")
    rows = np.stack([np.pad(arrays[f"raw_{i}"], (0, 480_000 - len(arrays[f"raw_{i}"]))) for i in range(2)])
    found = np.asarray(mel(rows))[:, golden["mel_frames_kept"]].transpose(0, 2, 1)
    np.testing.assert_allclose(found, golden["mel"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [3000, 3199])
def test_an_ending_is_mirrored_whatever_pads_it(transformers, samples):
    row = wave(samples)
    extractor = transformers.WhisperFeatureExtractor()
    theirs = extractor(row[0], sampling_rate=16_000, padding=False, truncation=False, return_tensors="np")
    padded = np.concatenate([row, np.full((1, 500), 1e3, np.float32)], 1)
    for found in (mel(row), mel(padded, np.array([samples]))[:, : samples // 160]):
        np.testing.assert_allclose(found[0].T, theirs["input_features"][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [4000, 4160, 4320])  # 25, 26 and 27 frames of 10 ms
def test_odd_and_even_numbers_of_frames_end_alike_in_a_batch(samples):
    row, params = wave(samples), weights(ARCH)
    alone = forward(ARCH, params, row).last
    padded = np.concatenate([row, wave(900, 1)], 1)
    together = forward(ARCH, params, padded, np.array([samples], np.int32))
    assert together.lengths[-1].tolist() == [alone.shape[1]] == [ARCH.front.frames(samples)]
    np.testing.assert_allclose(together.last[:, : alone.shape[1]], alone, rtol=1e-4, atol=1e-5)


def test_thirty_seconds_are_its_positions_and_no_more():
    front = PRESETS["whisper-tiny"]().front
    assert (front.frames(480_000), front.frames(480_159), front.frames(480_160)) == (1500, 1500, 1501)
    with pytest.raises(InputError, match=r"480160 samples give 1501 frames, the model has 1500 .* pieces of 30 s"):
        front.check_inputs(np.zeros((1, 480_160)), 1)
    with pytest.raises(InputError, match="61 frames, the model has 60 positions"):
        apply(ARCH, weights(ARCH), wave(61 * 320))
    with pytest.raises(InputError, match="159 samples are too few"):
        apply(ARCH, weights(ARCH), wave(159))


def test_inner_channels_that_are_nought_can_go():
    params, row = weights(ARCH), wave(4000)
    (axis,) = channels(ARCH)
    kernel, bias = (params["front"]["convs"]["0"][name] for name in ("kernel", "bias"))
    kernel[..., [2, 7]], bias[[2, 7]] = 0, 0  # gelu(0) is 0
    smaller = cut(params, axis, [i for i in range(12) if i not in (2, 7)])
    arch = describe(ARCH, smaller)
    assert arch.front == replace(ARCH.front, hidden=10)
    np.testing.assert_allclose(forward(arch, smaller, row).last, forward(ARCH, params, row).last, rtol=1e-4, atol=1e-5)


def test_keys_without_a_bias_are_told_by_their_arrays():
    assert not any("k/bias" in path for group in entries(ARCH) for path in group)
    with pytest.raises(InputError, match="no keys to be without a bias"):
        Attention(4, 4, reuse=True, key_bias=False).check("layers/1", ARCH.layers[0].mixer)


SIZES = {"tiny": (384, 4, 80), "base": (512, 6, 80), "small": (768, 12, 80), "medium": (1024, 24, 80)}


@pytest.mark.parametrize(("name", "size"), [*SIZES.items(), ("large-v3", (1280, 32, 128))])
def test_presets_have_the_published_parameters(torch, transformers, name, size):
    width, layers, bins = size
    config = transformers.WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        num_mel_bins=bins,
    )
    with torch.device("meta"):
        theirs = transformers.models.whisper.modeling_whisper.WhisperEncoder(config)
    learned = sum(each.numel() for each in theirs.parameters()) - 1500 * width  # positions, which nothing trains
    assert cost.parameters(PRESETS[f"whisper-{name}"]()) == learned
