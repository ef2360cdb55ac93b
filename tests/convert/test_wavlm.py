"""WavLM as Microsoft published it gives what its own code computed; folders of transformers go there and back."""

import json

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert import wavlm
from jaxssl.convert.conversion import read
from jaxssl.models.arch import GatedAttention, RelativeBias
from tests.archs import forward
from tests.golden import meets

ATOL = 1e-4


@pytest.fixture(scope="module")
def original(shared):
    return shared / "encoders/wavlm_original_base"


@pytest.fixture(scope="module")
def converted(original):
    return read(original / "wavlm_original_base.pt")


@pytest.fixture(scope="module")
def golden(original):
    arrays = dict(np.load(original / "golden.npz"))
    return arrays | {name: arrays[kept] for name, kept in json.loads(str(arrays.pop("aliases_json"))).items()}


@pytest.fixture(scope="module")
def waves(shared):
    arrays = np.load(shared / "encoders/inputs.npz")
    return [arrays["raw_0"].astype(np.float32), arrays["raw_1"].astype(np.float32)]


def test_it_is_described(converted):
    assert (converted.kind, converted.left_behind) == ("WavLM", ())
    assert converted.arch.relative == RelativeBias(4, 320, 800)
    assert {layer.mixer for layer in converted.arch.layers} == {GatedAttention((0, 1, 2, 3), 16)}


def test_the_original_alone(converted, golden, waves):
    ours = forward(converted.arch, converted.params, waves[1][None])
    found = {"projected": ours.features, "layer_1": ours.hidden[1], "last": ours.last}
    meets({f"single_1_{name}": array for name, array in found.items()}, golden, atol=ATOL)


def test_the_original_in_a_batch(converted, golden, waves):
    """Its mask counts frames by dividing the padded length: 77 here, where convolutions make 76."""
    padded = np.stack([waves[0], np.pad(waves[1], (0, len(waves[0]) - len(waves[1])))])
    lengths = np.array([len(wave) for wave in waves], np.int32)
    ours = forward(converted.arch, converted.params, padded, lengths, padding="fairseq")
    frames = np.asarray(ours.lengths[-1])
    assert frames.tolist() == (~golden["batch_frame_padding_mask"]).sum(1).tolist() == [124, 77]
    found = {f"batch_layer_{i}": hidden for i, hidden in enumerate(ours.hidden)} | {"batch_last": ours.last}
    meets(found, golden, atol=ATOL, lengths=frames)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gru_rel_pos": False}, "gru_rel_pos is False"),
        ({"expand_attention_head_size": 32}, "expand_attention_head_size is 32"),
        ({"num_buckets": 32}, "num_buckets is 32 in the configuration and 320 in the arrays"),
    ],
)
def test_other_positions_are_refused_by_name(original, change, message):
    state = _state(original)
    with pytest.raises(InputError, match=message):
        wavlm.describe(original, state | {"cfg": state["cfg"] | change})


def _state(original):
    from jaxssl.convert import pickle_reader
    from jaxssl.convert.stand_ins import entries

    return {
        name: entries(part) for name, part in entries(pickle_reader.load(original / "wavlm_original_base.pt")).items()
    }
