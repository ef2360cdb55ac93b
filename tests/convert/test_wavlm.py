"""WavLM as Microsoft published it gives what its own code computed; folders of transformers go there and back."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.analysis.attention_maps import attention_maps
from jaxssl.convert import pickle_reader, wavlm
from jaxssl.convert.conversion import read
from jaxssl.convert.stand_ins import entries
from jaxssl.convert.to_huggingface import folder
from jaxssl.models.arch import GatedAttention, Rank, RelativeBias
from tests.archs import BASE, forward, gated_layer, weights
from tests.golden import meets, recorded, together, utterances

ATOL = 1e-4


@pytest.fixture(scope="module")
def original(shared):
    return shared / "encoders/wavlm_original_base"


@pytest.fixture(scope="module")
def converted(original):
    return read(original / "wavlm_original_base.pt")


@pytest.fixture(scope="module")
def golden(original):
    return recorded(original)


@pytest.fixture(scope="module")
def waves(shared):
    return utterances(shared)


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
    padded, lengths = together(waves)
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
    return {
        name: entries(part) for name, part in entries(pickle_reader.load(original / "wavlm_original_base.pt")).items()
    }


TINY = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "conv_dim": (12,) * 3,
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 4, 2),
    "num_conv_pos_embeddings": 9,
    "num_conv_pos_embedding_groups": 4,
    "num_buckets": 18,
    "max_bucket_distance": 21,
    "vocab_size": 9,
    "attn_implementation": "eager",
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


@pytest.fixture(scope="module")
def random_wavlm(torch, transformers):
    """A model of odd sizes and what it was saved as, nothing at its initial value."""

    def build(folder, kind="WavLMModel", **config):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(transformers.WavLMConfig(**TINY, **config)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        return model, read(folder)

    return build


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' own doing
@pytest.mark.parametrize(("kind", "config"), [("WavLMForCTC", {}), ("WavLMForXVector", LARGE)])
def test_it_is_transformers_model_and_its_maps_too(torch, random_wavlm, tmp_path, kind, config):
    """In a padded batch; transformers gives the mean of the heads' maps, as PyTorch's function does."""
    model, ours = random_wavlm(tmp_path, kind, **config)
    assert ours.arch.relative == RelativeBias(3, 18, 21)
    assert ours.kind == f"Hugging Face {'WavLMForCTC' if kind.endswith('CTC') else 'WavLMModel'}"
    assert all(
        re.match(r"(projector|classifier|tdnn|feature_extractor|objective)\.", name) for name in ours.left_behind
    )
    lengths = np.array([1900, 1311], np.int32)
    wave = np.random.default_rng(1).normal(size=(2, 1900)).astype(np.float32)
    wave[1, lengths[1] :] = 0
    seen = torch.from_numpy((np.arange(1900)[None] < lengths[:, None]).astype(np.int64))
    with torch.no_grad():
        theirs = model.base_model(
            torch.from_numpy(wave), attention_mask=seen, output_hidden_states=True, output_attentions=True
        )
    mine = forward(ours.arch, ours.params, wave, lengths, padding="transformers")
    frames = np.asarray(mine.lengths[-1])
    names = [f"hidden {i}" for i in range(3)]
    wanted = dict(zip(names, (each.numpy() for each in theirs.hidden_states), strict=True))
    found = dict(zip(names, mine.hidden, strict=True))
    meets(found | {"last": mine.last}, wanted | {"last": theirs.last_hidden_state.numpy()}, atol=ATOL, lengths=frames)
    if not config:
        return  # its group norm runs over the padding there, and over each row alone here
    shown, _ = jax.jit(attention_maps, static_argnums=0)(ours.arch, ours.params, wave, lengths)
    found = {f"maps {i}": maps.mean(1) for i, maps in shown.items()}
    wanted = {f"maps {i}": maps.numpy()[:, 0] for i, maps in enumerate(theirs.attentions)}
    for row, count in enumerate(frames):
        cropped = ({name: maps[row, :count, :count] for name, maps in each.items()} for each in (found, wanted))
        meets(*cropped, atol=ATOL)


def test_there_and_back(torch, transformers, random_wavlm, tmp_path):
    model, ours = random_wavlm(tmp_path / "theirs", **LARGE)
    config, _, tensors = folder(ours.arch, ours.params)
    back = transformers.WavLMModel(transformers.WavLMConfig(**config))
    back.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    own = model.state_dict()
    for name, tensor in back.state_dict().items():
        torch.testing.assert_close(tensor, own[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((gated_layer((0, 1, 3), 24),), "heads were cut"),
        ((gated_layer(range(4), 24), gated_layer(range(4), 20)), "its layers differ"),
        ((gated_layer(range(4), 24, q=Rank(2)),), "maps are factorised"),
        ((gated_layer((), 24),), "blocks were emptied"),
    ],
)
def test_what_transformers_class_cannot_be_is_refused(layers, message):
    arch = replace(BASE, layers=layers, relative=RelativeBias(4), head=None)
    with pytest.raises(InputError, match=f"WavLMModel cannot be this model: {message}"):
        folder(arch, weights(arch))
