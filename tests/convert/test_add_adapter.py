"""Length adapters of transformers' models (`add_adapter`): the same frames, alone and in a padded batch."""

import json
from functools import lru_cache

import numpy as np
import pytest
import safetensors.numpy

from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.models.arch import LengthAdapter
from tests.archs import forward

TOLERANCE = 1e-4
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 9,
    "add_adapter": True,
}
MODELS = {
    "Wav2Vec2ForCTC": ({"output_hidden_size": 24, "num_adapter_layers": 2}, LengthAdapter(24, 2)),
    "WavLMModel": (
        {"num_adapter_layers": 1, "adapter_kernel_size": 5, "adapter_stride": 3},
        LengthAdapter(32, 1, 5, 3),
    ),
    "Data2VecAudioModel": ({"output_hidden_size": 40, "conv_pos_kernel_size": 3}, LengthAdapter(40)),
}
LENGTHS = (7000, 4400)  # 21 and 13 frames, so that windows reach beyond the shorter one's last


@pytest.fixture(scope="module")
def made(torch, transformers, tmp_path_factory):
    """Make a random model of transformers, its folder, and the folder as ours."""

    @lru_cache
    def make(kind):
        torch.manual_seed(0)
        family = kind.partition("Model")[0].partition("For")[0]
        model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**TINY | MODELS[kind][0])).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm.weight" in name:
                    parameter += 0.1 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        return model, folder, read(folder)

    return make


@pytest.fixture(scope="module")
def waves():
    draw = np.random.default_rng(1)
    return np.stack([np.pad(draw.normal(size=n), (0, max(LENGTHS) - n)) for n in LENGTHS]).astype(np.float32)


def theirs(torch, model, waves, **words):
    with torch.no_grad():
        return model.base_model(torch.from_numpy(waves), **words).last_hidden_state.numpy()


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_described_and_nothing_is_left_behind(made, kind):
    converted = made(kind)[2]
    assert converted.arch.length_adapter == MODELS[kind][1]
    assert converted.left_behind == ()


def test_alone(torch, made, waves):
    model, _, converted = made("WavLMModel")
    row = waves[1:, : LENGTHS[1]]
    ours = forward(converted.arch, converted.params, row).end[0]
    np.testing.assert_allclose(ours, theirs(torch, model, row), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # in transformers' WavLM
def test_in_a_padded_batch(torch, made, waves, kind):
    model, _, converted = made(kind)
    mask = torch.from_numpy(np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]).long()
    found = theirs(torch, model, waves, attention_mask=mask)
    ours = forward(converted.arch, converted.params, waves, np.array(LENGTHS, np.int32), padding="transformers")
    for row, frames in enumerate(ours.shortened_lengths.tolist()):
        assert frames == converted.arch.length_adapter.frames((21, 13)[row])
        np.testing.assert_allclose(ours.shortened[row, :frames], found[row, :frames], rtol=0, atol=TOLERANCE)


def test_the_output_layer_stands_on_it(torch, made, waves):
    model, _, converted = made("Wav2Vec2ForCTC")
    arrays = safetensors.numpy.load(converted.extra["ctc/ctc.safetensors"])
    assert arrays["kernel"].shape == (24, 9)
    with torch.no_grad():
        logits = model(torch.from_numpy(waves[1:, : LENGTHS[1]])).logits.numpy()
    ours = forward(converted.arch, converted.params, waves[1:, : LENGTHS[1]]).end[0]
    np.testing.assert_allclose(np.asarray(ours) @ arrays["kernel"] + arrays["bias"], logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_adapter": False}, "add_adapter is False in the configuration and True in the arrays"),
        ({"num_adapter_layers": 3}, "num_adapter_layers is 3 in the configuration and 2 in the arrays"),
        ({"output_hidden_size": 32}, "output_hidden_size is 32 in the configuration and 24 in the arrays"),
        ({"adapter_stride": 0}, "stride=0.*are 1 or more"),
    ],
)
def test_contradictions_are_told(made, tmp_path, change, message):
    folder = made("Wav2Vec2ForCTC")[1]
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        read(tmp_path)
