"""Subnets of LightHuBERT's supernet give what its code computes when it is set to them."""

import json
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert import lighthubert
from jaxssl.convert.conversion import read
from jaxssl.convert.windows import Part, Zeros
from jaxssl.models.fronts.waveform import standardise
from jaxssl.models.subnets import PUBLISHED
from jaxssl.models.supernet import layers_kept
from tests.archs import ARCHS, forward, transformer_layer
from tests.golden import meets

FILE = "encoders/lighthubert/lighthubert_tiny.pt"
run = partial(forward, stack="scan")  # twelve layers compile as one
SUBNET = {"embed_dim": 64, "heads_num": [1] * 10, "ffn_embed": [64] * 10}


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "encoders/lighthubert/golden.npz")


@pytest.mark.parametrize("subnet", ["max", "sub_a", "sub_b"])
def test_alone(shared, golden, subnet):
    """Its weights are stored in float16; of an utterance cut after it was normalised it pads 123 frames to 124."""
    inputs = np.load(shared / "encoders/inputs.npz")
    cut = np.asarray(standardise(jnp.asarray(inputs["raw_0"][None])))[:, :39680]
    converted = read(shared / FILE, subnet=None if subnet == "max" else str(golden[f"{subnet}_subnet_json"]))
    depth = len(converted.arch.layers)
    assert depth + 1 == golden[f"{subnet}_n_hidden"]
    ours = run(converted.arch, converted.params, inputs["raw_1"][None])
    meets({f"{subnet}_single_1_hidden_{depth}": ours.hidden[-1]}, golden, atol=1e-4)
    if (key := f"{subnet}_single_0_39680_hidden_{depth}") in golden.files:
        as_given = replace(converted.arch, front=replace(converted.arch.front, normalize=False))
        meets({key: run(as_given, converted.params, cut).hidden[-1]}, golden, atol=1e-4)
    if (key := f"{subnet}_batch_hidden_0") in golden.files:  # the first row has no padding
        ours = run(converted.arch, converted.params, inputs["raw_0"][None])
        meets({key: ours.features}, {key: golden[key][:1]}, atol=1e-4)


def test_the_largest_is_the_default_and_said(shared, golden):
    plain, named = read(shared / FILE), read(shared / FILE, subnet=str(golden["max_subnet_json"]))
    assert plain.arch == named.arch
    assert plain.notes == ("subnet: 12 layers of 128, the largest; convert_torch --subnet names another",)
    assert plain.left_behind == ("layer_pred_heads.11.weight",)
    np.testing.assert_array_equal(
        plain.params["layers"]["3"]["ffn"]["fc1"]["kernel"], named.params["layers"]["3"]["ffn"]["fc1"]["kernel"]
    )


def test_a_subnet_from_a_file(shared, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(SUBNET))
    arch = read(shared / FILE, subnet=str(tmp_path / "s.json")).arch
    assert (arch.width, len(arch.layers), arch.layers[0].ffn.size) == (64, 10, 64)


@pytest.mark.parametrize(("count", "kept"), [(12, range(12)), (11, range(11)), (6, (0, 1, 4, 5, 8, 9))])
def test_shallow_subnets_lack_the_last_layers_of_every_block(count, kept):
    assert layers_kept(count, 12) == list(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": None}, "embed_dim None, heads_num"),
        ({"heads_num": []}, "give a number and two lists"),
        ({"heads_num": [1] * 5}, "5 heads_num, 10 ffn_embed, layer_num 5"),
        ({"layer_num": 11}, "10 heads_num, 10 ffn_embed, layer_num 11; subnets of .* have 6 to 12 layers"),
        ({"embed_dim": 72}, r"embed_dim 72, .* has up to 128 \(in 16s\)"),
        ({"embed_dim": 256}, "embed_dim 256"),
        ({"heads_num": [3] * 10}, "up to 3 heads_num"),
        ({"ffn_embed": [160] * 10}, "160 ffn_embed; .* 2 times embed_dim"),
        ({"atten_dim": [128] * 10}, "atten_dim .* is not heads_num"),
        ({"slide_wsz": 32}, "slide_wsz is 32; what is supported: 'global'"),
        ({"slide_wsz": [32] * 10}, "slide_wsz is .*; what is supported: 'global'"),
    ],
)
def test_what_is_no_subnet_of_it(shared, change, message):
    with pytest.raises(InputError, match=message):
        read(shared / FILE, subnet=json.dumps(SUBNET | change))


def test_published_subnets_have_names(shared):
    base = replace(ARCHS["base"], width=512, layers=(transformer_layer(8, 2048, head_dim=64),) * 12)
    assert lighthubert._sizes(None, "lighthubert-small", base, 16) == PUBLISHED["lighthubert-small"]
    with pytest.raises(InputError, match="embed_dim 384, up to 6 heads_num and 1536 ffn_embed; .* has up to 128"):
        read(shared / FILE, subnet="lighthubert-small")


@pytest.mark.parametrize("text", ["{", "nowhere.json", "{} []"])
def test_what_is_no_subnet(shared, text):
    with pytest.raises(InputError, match="neither JSON nor a file of it"):
        read(shared / FILE, subnet=text)


def test_a_subnet_of_what_has_none_is_refused(shared):
    with pytest.raises(InputError, match="DPHuBERT is one model, with no subnets; leave out --subnet"):
        read(shared / "encoders/dphubert/dphubert.pth", subnet="{}")


def test_an_array_that_is_smaller_than_its_subnet_is_told_by_name():
    """As one of a damaged file, whose other arrays say another width."""
    part = Part(Zeros((16, 4)), (range(17), range(4)), "encoder.layer_norm.weight")
    assert part.shape == (17, 4)
    with pytest.raises(InputError, match=r"encoder\.layer_norm\.weight: 16 places on axis 0, 17 are asked for"):
        part.read()
