"""Folders of Hugging Face's models give what transformers computes, in every form they are saved in."""

import json
import os
import re

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.models.arch import Adapter, ConvolutionStack, ScaledConvolution
from tests.archs import forward, transformer_layer

TOLERANCE = 1e-4
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 9,
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
OLD = {"original0": "weight_g", "original1": "weight_v"}


@pytest.fixture(scope="module")
def hubert(torch, transformers):
    """Build a random model, with biases and norms that are not at their initial 0 and 1."""

    def build(kind="HubertModel", **config):
        torch.manual_seed(0)
        family = re.match("Hubert|Wav2Vec2|UniSpeechSat|UniSpeech|Data2VecAudio", kind)[0]
        model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**config)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm.weight" in name:
                    parameter += 0.1 * torch.randn_like(parameter)
        return model

    return build


def compare(torch, model, folder, lengths=(7000, 4120)):
    """Run a padded batch through both; return ours."""
    converted = read(folder)
    rng = np.random.default_rng(1)
    wave = np.stack([np.pad(rng.normal(size=n), (0, max(lengths) - n)) for n in lengths]).astype(np.float32)
    attention = torch.from_numpy(np.arange(max(lengths))[None] < np.array(lengths)[:, None]).long()
    with torch.no_grad():
        theirs = model(torch.from_numpy(wave), attention_mask=attention, output_hidden_states=True)
    ours = forward(converted.arch, converted.params, wave, np.array(lengths, np.int32), padding="transformers")
    pairs = [*zip(ours.hidden, theirs.hidden_states, strict=True), (ours.last, theirs.last_hidden_state)]
    for own, other in pairs:
        for row, frames in enumerate(ours.lengths[-1].tolist()):
            np.testing.assert_allclose(own[row, :frames], other[row, :frames].numpy(), rtol=0, atol=TOLERANCE)
    return converted


def old_names(model):
    state = model.state_dict()
    return {
        name.replace("parametrizations.weight.", "").replace(last, OLD.get(last, last)): tensor
        for name, tensor in state.items()
        for last in [name.rsplit(".", 1)[-1]]
    }


@pytest.mark.parametrize("variant", [{}, LARGE])
def test_both_norms(torch, hubert, tmp_path, variant):
    model = hubert(**TINY, **variant)
    model.save_pretrained(tmp_path)
    converted = compare(torch, model, tmp_path)
    assert converted.arch.layers == (transformer_layer(4, 48, head_dim=8),) * 2
    assert converted.arch.head is None
    assert converted.arch.mask_embedding
    assert converted.arch.front.normalize is False
    assert any("no preprocessor_config.json" in note for note in converted.notes)


@pytest.mark.parametrize(
    "form", ["old names, safetensors", "old names, bin", "bin", "sharded", "sharded bin", "bfloat16"]
)
def test_every_form(torch, hubert, tmp_path, form):
    from safetensors.torch import save_file

    model = hubert(**TINY)
    model.save_pretrained(tmp_path)
    expected = read(tmp_path)
    if form == "bfloat16":
        model = model.bfloat16().float()
        save_file({name: t.bfloat16() for name, t in model.state_dict().items()}, tmp_path / "model.safetensors")
    elif form == "sharded":
        (tmp_path / "model.safetensors").unlink()
        model.save_pretrained(tmp_path, max_shard_size="40KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
    else:
        state = old_names(model) if form.startswith("old") else model.state_dict()
        (tmp_path / "model.safetensors").unlink()
        write = {"old names, safetensors": save_file}.get(form)
        if write:
            write({name: t.contiguous() for name, t in state.items()}, tmp_path / "model.safetensors")
        elif form == "sharded bin":
            _shard(torch, state, tmp_path)
        else:
            torch.save(state, tmp_path / "pytorch_model.bin")
    assert compare(torch, model, tmp_path).arch == expected.arch


def _shard(torch, state, folder):
    names = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(names.values()):
        torch.save({name: state[name] for name in state if names[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


def test_ctc(torch, hubert, tmp_path):
    import safetensors.numpy

    model = hubert("HubertForCTC", **TINY)
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate("<>|abcdef")}))
    converted = compare(torch, model.hubert, tmp_path)
    assert converted.kind == "Hugging Face HubertForCTC"
    arrays = safetensors.numpy.load(converted.extra["ctc/ctc.safetensors"])
    np.testing.assert_array_equal(arrays["kernel"], model.lm_head.weight.detach().numpy().T)
    assert json.loads(converted.extra["ctc/symbols.json"]) == {"symbols": list("<>|abcdef")}


def test_a_classifier_is_left_behind(torch, hubert, tmp_path):
    hubert("HubertForSequenceClassification", **TINY).save_pretrained(tmp_path)
    left = read(tmp_path).left_behind
    assert set(left) == {"projector.weight", "projector.bias", "classifier.weight", "classifier.bias"}


RELATIVES = (
    "Wav2Vec2Model",
    "Wav2Vec2ForPreTraining",
    "Wav2Vec2ForSequenceClassification",
    "Wav2Vec2ForAudioFrameClassification",
    "Wav2Vec2ForXVector",
    "UniSpeechModel",
    "UniSpeechForPreTraining",
    "UniSpeechSatModel",
    "UniSpeechSatForPreTraining",
)


@pytest.mark.parametrize("kind", RELATIVES)
def test_relatives_are_encoders_alike_whatever_stands_around_them(torch, hubert, tmp_path, kind):
    """With a layer norm at each convolution and before each block, as wav2vec 2.0 Large and XLS-R have them."""
    model = hubert(kind, **TINY, **LARGE)
    model.save_pretrained(tmp_path)
    converted = compare(torch, model.base_model, tmp_path)
    assert converted.kind == f"Hugging Face {re.split('Model|For', kind)[0]}Model"
    inside = f"{model.base_model_prefix}." if not kind.endswith("Model") else ""
    assert set(converted.left_behind) == {name for name in model.state_dict() if not name.startswith(inside)}


def test_adapters_end_the_layers_of_pre_norm_models_and_no_others(torch, hubert, tmp_path):
    model = hubert("Wav2Vec2Model", **TINY, **LARGE, adapter_attn_dim=5)
    model.save_pretrained(tmp_path)
    assert [layer.adapter for layer in compare(torch, model, tmp_path).arch.layers] == [Adapter(5)] * 2
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"adapter_attn_dim": 6}))
    with pytest.raises(InputError, match="adapter_attn_dim is 6 in the configuration and 5 in the arrays"):
        read(tmp_path)
    hubert("Wav2Vec2Model", **TINY, adapter_attn_dim=5).save_pretrained(tmp_path / "post")
    assert read(tmp_path / "post").arch.layers[0].adapter is None


def test_symbols_of_many_languages_are_those_of_the_one_whose_adapters_are_there(torch, hubert, tmp_path):
    hubert("Wav2Vec2ForCTC", **TINY | {"vocab_size": 3}, **LARGE, adapter_attn_dim=5).save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"eng": {"a": 1, "|": 0, "b": 2}, "xxx": {"z": 0}}))
    with pytest.raises(InputError, match=r"2 languages \(eng, xxx, …\), and target_lang of .* is None"):
        read(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"target_lang": "eng"}))
    converted = read(tmp_path)
    assert json.loads(converted.extra["ctc/symbols.json"]) == {"symbols": ["|", "a", "b"]}
    assert any("those of eng" in note for note in converted.notes)


def test_a_batch_norm_before_the_positional_convolution_is_folded(torch, hubert, tmp_path):
    model = hubert(**TINY | LARGE | {"num_conv_pos_embeddings": 6}, conv_pos_batch_norm=True)
    norm = model.encoder.pos_conv_embed.batch_norm
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.2, 2)
    model.save_pretrained(tmp_path)
    converted = compare(torch, model, tmp_path)
    assert converted.arch.position == ScaledConvolution(6, 4)
    assert any("batch norm" in note for note in converted.notes)
    (tmp_path / "model.safetensors").unlink()
    state = {name: each for name, each in model.state_dict().items() if not name.endswith("running_var")}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"batch_norm\.running_var is missing"):
        read(tmp_path)


@pytest.mark.parametrize(("kernel", "groups"), [(5, 8), (4, 2)])
def test_data2vec_has_positions_by_several_convolutions(torch, hubert, tmp_path, kernel, groups):
    """Its code knows one extractor and one order of norms, whatever the configuration says of them."""
    positions = {"num_conv_pos_embeddings": 3, "num_conv_pos_embedding_groups": groups, "conv_pos_kernel_size": kernel}
    model = hubert("Data2VecAudioModel", **TINY | positions, do_stable_layer_norm=True, feat_extract_norm="group")
    model.save_pretrained(tmp_path)
    converted = compare(torch, model, tmp_path)
    assert converted.kind == "Hugging Face Data2VecAudioModel"
    assert converted.arch.position == ConvolutionStack(3, kernel, groups)
    assert (converted.arch.front.norm, converted.arch.norm_first) == ("layer", False)


def test_a_folder_that_names_no_model_type_is_huberts(hubert, tmp_path):
    hubert(**TINY).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": None}))
    assert read(tmp_path).kind == "Hugging Face HubertModel"


def test_distilhuberts_projection_has_no_norm(torch, hubert, tmp_path):
    model = hubert(**TINY, feat_proj_layer_norm=False)
    model.save_pretrained(tmp_path)
    assert not compare(torch, model, tmp_path).arch.front.feature_norm


@pytest.mark.parametrize("do_normalize", [True, False])
def test_the_preprocessor_says_whether_to_normalise(hubert, tmp_path, do_normalize):
    hubert(**TINY).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": do_normalize}))
    assert read(tmp_path).arch.front.normalize is do_normalize


def test_without_a_mask_embedding(hubert, tmp_path):
    hubert(**TINY, mask_time_prob=0.0).save_pretrained(tmp_path)
    assert read(tmp_path).arch.mask_embedding is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm is True in the configuration and False in the arrays"),
        ({"model_type": "moonshine"}, "model_type is 'moonshine'; what is supported: 'hubert', 'wav2vec2'"),
        ({"model_type": ["hubert"]}, r"model_type is \['hubert'\]"),
        ({"hidden_act": "prelu"}, "hidden_act is 'prelu'; what is supported: 'gelu', 'gelu_tanh'"),
        ({"feat_proj_layer_norm": False}, r"unknown.*feature_projection\.layer_norm"),
        ({"add_adapter": True}, "add_adapter is True"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps is 1e-12"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3 in the configuration and 2 in the arrays"),
        ({"conv_kernel": [10, 3]}, "no lists of equal length"),
    ],
)
def test_unsupported_configurations_are_refused_by_name(hubert, tmp_path, change, message):
    hubert(**TINY).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_both_spellings_at_once_are_reported(torch, hubert, tmp_path):
    model = hubert(**TINY)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({**model.state_dict(), **old_names(model)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"assigned twice: encoder\.pos_conv_embed\.conv\.weight_g"):
        read(tmp_path)


def test_incomplete_and_damaged_folders(tmp_path, hubert):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        read(tmp_path)
    hubert(**TINY).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for cut in (content[:-5], content[:100], b"", b"some text, no tensors"):
        weights.write_bytes(cut)
        with pytest.raises(InputError, match="damaged or cut short"):
            read(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"the weights .* are not"):
        read(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(InputError, match="1 of 1 shards are missing"):
        read(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": f"..{os.sep}x.safetensors"}}))
    with pytest.raises(InputError, match="no file of this folder"):
        read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read(tmp_path)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(
    "config",
    [{}, LARGE | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}],
    ids=["base", "large"],
)
def test_full_size(torch, hubert, tmp_path, config):
    model = hubert(**config)
    model.save_pretrained(tmp_path)
    compare(torch, model, tmp_path, (48000, 31000))
