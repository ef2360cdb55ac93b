"""The compared systems against their published figures, and the structure their presets promise."""

import pytest

from jaxssl.models import cost
from jaxssl.models.arch import HUBERT_CONVS, Waveform, hubert_base
from jaxssl.models.zoo import PRESETS, fithubert, lighthubert, lighthubert_small
from tests.archs import transformer_layer

UTTERANCES_S = sum(cost.UTTERANCES) / 16_000
FRAMES = sum(hubert_base().frames(samples) for samples in cost.UTTERANCES)

# Encoder parameters by these structures, what the published count has beyond them, and the published count.
PROJECTIONS = {width: 12 * (width * 768 + 768) for width in (432, 480)}
PRETRAINING = (768 * 256 + 256) + (512 * 640 + 640) + 640 * 128 + (256 * 256 + 256)  # projection, quantiser, targets
UPSAMPLING = 480 * 480 * 2 + 480
KNOWN = {
    "distilhubert": (23_491_200, 0, 23_491_200),
    "fithubert": (21_200_096, 2 * UPSAMPLING + 480 * 768 + 768, 22.49e6),
    "mamba-hubert-base": (78_200_960, 0, 78.2e6),
    "mamba-mlp-hubert-base": (94_754_432, 0, 94.7e6),
    "summary-mixing-conformer": (154_091_520, PRETRAINING, 154.8e6),
    "attention-conformer": (164_662_272, PRETRAINING, 165.3e6),
    "armhubert": (22_015_552, PROJECTIONS[480], 26.45e6),
    "armhubert-small": (18_403_552, PROJECTIONS[432], 22.39e6),
    "starhubert": (22_308_592, 0, 22.31e6),
}
# MACs over the 32 utterances, in G; those of the last two rows beyond the encoder.
MACS = {
    "distilhubert": (785.2, 0),
    "fithubert": (1.41 * UTTERANCES_S, 0),
    "starhubert": (463.5, 0),
    "dphubert": (654.1, 0),
    "armhubert": (2.23 * UTTERANCES_S, FRAMES * 12 * 480 * 768 / 1e9),
    "lighthubert-small": (860.7, FRAMES * 384 * 768 / 1e9),
}


@pytest.mark.parametrize(("name", "figures"), KNOWN.items(), ids=KNOWN)
def test_parameters_are_the_published_ones(name, figures):
    encoder, more, published = figures
    assert cost.parameters(PRESETS[name]()) == encoder
    assert encoder + more == pytest.approx(published, rel=1e-3)


def test_wavlm_has_transformers_parameters(torch, transformers):
    assert PRESETS["wavlm-base-plus"]() == (base := PRESETS["wavlm-base"]())
    assert cost.parameters(base) == 94_381_936 == _count(torch, transformers)
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    large |= {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    assert cost.parameters(PRESETS["wavlm-large"]()) == 315_453_120 == _count(torch, transformers, **large)


def _count(torch, transformers, **config):
    with torch.device("meta"):
        model = transformers.WavLMModel(transformers.WavLMConfig(**config))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "rel"), [("dphubert", 1e-3), ("lighthubert-small", 5e-3)])
def test_inferred_structures_are_near_the_published_count(name, rel):
    published = {"dphubert": 23.59e6, "lighthubert-small": 27.0e6}[name]
    assert cost.parameters(PRESETS[name]()) == pytest.approx(published, rel=rel)


@pytest.mark.parametrize(("name", "figures"), MACS.items(), ids=MACS)
def test_macs_are_the_published_ones(name, figures):
    published, more = figures
    ours = cost.macs_per_second(PRESETS[name]()).total * UTTERANCES_S / 1e9
    assert ours + more == pytest.approx(published, rel=1e-2 if name == "fithubert" else 1e-3)


def test_reuse_halves_the_maps_and_the_scores():
    """A reusing layer has no q, no k and no scores: counted by hand for one layer of ARMHuBERT."""
    arch = PRESETS["armhubert"]()
    assert [layer.mixer.reuse for layer in arch.layers] == [False, True] * 6
    one, two = (cost.macs(arch, n) for n in (16_000, 32_000))
    frames = [arch.frames(n) for n in (16_000, 32_000)]
    for found, t in zip((one, two), frames, strict=True):
        assert found.attention_maps == t * 6 * (4 + 2) * 480 * 480
        assert found.attention_core == t * t * 6 * (2 + 1) * 480


def test_fithubert_runs_at_half_the_frames():
    arch = fithubert()
    assert (arch.front.frames(16_000), arch.frames(16_000)) == (49, 24)
    assert cost.macs(arch, 16_000).reduction == 24 * 2 * 480 * 480


def test_thin_extractors_have_huberts_frames():
    for samples in (400, 719, 720, 16_000, 54_321):
        fronts = [make().front for make in PRESETS.values()]
        thin = {front.frames(samples) for front in fronts if front.kind == "waveform"}
        assert thin == {Waveform(HUBERT_CONVS).frames(samples)}


def test_any_subnet_of_lighthubert_can_be_named():
    arch = lighthubert(256, heads=[4, 6, 8], ffn=[768, 896, 1024])
    assert arch.layers == tuple(transformer_layer(*sizes, head_dim=64) for sizes in ((4, 768), (6, 896), (8, 1024)))
    assert (arch.width, {layer.mixer.head_dim for layer in arch.layers}) == (256, {64})
    assert lighthubert(384, heads=(6,) * 12, ffn=(1536,) * 12) == lighthubert_small()
    full = lighthubert(768, heads=(12,) * 12, ffn=(3072,) * 12)
    assert cost.parameters(full) == 94_371_712  # the supernet itself is HuBERT Base
