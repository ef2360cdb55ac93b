"""What stands between the feed-forward maps: transformers' functions by transformers' names, wherever a model goes."""

import importlib
import json
from dataclasses import replace
from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from compress.errors import InputError
from jaxssl.convert import to_huggingface
from jaxssl.convert.conversion import read
from jaxssl.convert.to_torch import state
from jaxssl.models.activations import FUNCTIONS, SYNONYMS, Activation
from jaxssl.models.arch import FeedForward
from jaxssl.models.arch_json import from_json, to_json
from jaxssl.models.describe import describe
from tests.archs import BASE, MEL, forward, noise, weights

NAMES = get_args(Activation)
PARAMETRIC = {"prelu", "xielu"}  # with weights of their own, which no model of this family has


def with_activation(arch, name):
    layers = tuple(replace(layer, ffn=replace(layer.ffn, activation=name)) for layer in arch.layers)
    return replace(arch, layers=layers)


def test_every_name_of_transformers_is_its_function(torch, transformers):
    from transformers.activations import ACT2CLS, ACT2FN

    assert set(FUNCTIONS) == set(NAMES)
    x = np.linspace(-12, 12, 481, dtype=np.float32)
    for name in ACT2CLS.keys() - PARAMETRIC - {"gelu_tanh"}:
        ours = FUNCTIONS[SYNONYMS.get(name, name)](jnp.asarray(x))
        np.testing.assert_allclose(ours, ACT2FN[name](torch.tensor(x)), atol=2e-6, err_msg=name)


def test_the_exported_modules_are_the_same_functions(torch):
    module = importlib.import_module("tools.pytorch.standalone.blocks")
    x = np.linspace(-12, 12, 481, dtype=np.float32)
    assert set(module.ACTIVATIONS) == set(NAMES)
    for name, function in module.ACTIVATIONS.items():
        np.testing.assert_allclose(function(torch.tensor(x)), FUNCTIONS[name](jnp.asarray(x)), atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", ["relu", "silu"])
def test_it_stays_where_an_arch_goes(torch, name):
    arch, params = with_activation(MEL, name), weights(MEL)
    assert from_json(json.loads(json.dumps(to_json(arch)))) == arch == describe(arch, params)
    inputs = noise(arch, 0)
    assert not np.allclose(forward(arch, params, inputs).last, forward(MEL, params, inputs).last, atol=1e-4)
    module = importlib.import_module("tools.pytorch.standalone.model")
    model = module.Model(json.loads(json.dumps(to_json(arch))))
    model.load_state_dict({path: torch.tensor(array) for path, array in state(arch, params, None).items()})
    known = importlib.import_module("tools.pytorch.standalone.blocks").ACTIVATIONS
    hidden = torch.randn(1, 5, arch.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.layers[0].ffn.fc2(known[name](model.layers[0].ffn.fc1(hidden)))
        np.testing.assert_array_equal(model.layers[0].ffn(hidden), expected)


def test_what_was_written_before_there_were_others_is_gelu():
    values = json.loads(json.dumps(to_json(MEL)))
    for layer in values["layers"]:
        del layer["ffn"]["activation"]
    assert from_json(values) == MEL
    assert FeedForward(3).activation == "gelu"
    values["layers"][0]["ffn"]["activation"] = "softmax"
    with pytest.raises(InputError, match="layers/0/ffn/activation is 'softmax', none of 'gelu'"):
        from_json(values)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_for_hubert_model_says_it(torch, transformers, tmp_path, name):
    arch = with_activation(replace(BASE, head=None), name)
    config, features, tensors = to_huggingface.folder(arch, weights(arch))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(features))
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert {layer.ffn.activation for layer in read(tmp_path).arch.layers} == {name}
    model = transformers.HubertModel.from_pretrained(tmp_path)
    x = np.linspace(-9, 9, 31, dtype=np.float32)
    found = model.encoder.layers[0].feed_forward.intermediate_act_fn(torch.tensor(x))
    np.testing.assert_allclose(found, FUNCTIONS[name](jnp.asarray(x)), atol=2e-6)


@pytest.mark.parametrize("hidden_act", ["relu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu"])
def test_a_model_of_transformers_with_it(torch, transformers, tmp_path, hidden_act):
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20, "num_hidden_layers": 1}
    sizes |= {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
    sizes |= {"num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 2, "initializer_range": 0.5}
    model = transformers.HubertModel(transformers.HubertConfig(**sizes, hidden_act=hidden_act)).eval()
    model.save_pretrained(tmp_path)
    converted, wave = read(tmp_path), np.random.default_rng(0).normal(size=(1, 400)).astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.tensor(wave)).last_hidden_state.numpy()
    np.testing.assert_allclose(forward(converted.arch, converted.params, wave).last, theirs, atol=1e-5)
