"""Folders that transformers wrote of HuBERT's relatives give, layer by layer, what transformers computed."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from jaxssl.convert.conversion import read
from tests.archs import forward
from tests.golden import meets, recorded, together, utterances

FOLDERS = {
    "hf_wav2vec2_base": "Wav2Vec2Model",
    "hf_wav2vec2_base_ctc": "Wav2Vec2ForCTC",
    "hf_wav2vec2_base_pretraining": "Wav2Vec2Model",
    "hf_unispeech_sat_base": "UniSpeechSatModel",
    "hf_distilhubert": "HubertModel",
    "hf_data2vec_audio_base": "Data2VecAudioModel",
    "hf_hubert_25hz_bn": "HubertModel",
    "hf_mms_ctc_adapter": "Wav2Vec2ForCTC",
    "hf_wavlm_base": "WavLMModel",
}
ATOL = 1e-4


@pytest.fixture(scope="module", params=FOLDERS)
def folder(shared, request):
    return shared / "encoders" / request.param


@pytest.fixture(scope="module")
def golden(folder):
    return recorded(folder)


@pytest.fixture(scope="module")
def waves(shared, folder):
    """The utterances as transformers' own extractor prepares them: each by itself, its variance plus 1e-7."""
    rows = utterances(shared)
    if json.loads((folder / "preprocessor_config.json").read_text())["do_normalize"]:
        rows = [(row - row.mean()) / np.sqrt(row.var() + 1e-7) for row in rows]
    return [row.astype(np.float32) for row in rows]


@pytest.fixture(scope="module")
def converted(folder):
    found = read(folder)
    return replace(found, arch=replace(found.arch, front=replace(found.arch.front, normalize=False)))


def test_its_class_is_told_and_what_is_no_encoder_stays_behind(folder, converted):
    assert converted.kind == f"Hugging Face {FOLDERS[folder.name]}"
    trained_with = r"(quantizer|project_hid|project_q)\..*"
    assert all(re.fullmatch(trained_with, name) for name in converted.left_behind)
    assert len(converted.left_behind) == (7 if folder.name.endswith("pretraining") else 0)
    assert ("ctc/ctc.safetensors" in converted.extra) is ("ctc" in folder.name)


def test_alone(converted, golden, waves):
    ours = forward(converted.arch, converted.params, waves[1][None])
    found = {"layer_1": ours.hidden[1], "last_hidden_state": ours.last}
    wanted = {name: golden[f"single_1_{name}"] for name in found if f"single_1_{name}" in golden}
    meets({name: found[name] for name in wanted}, wanted, atol=ATOL)
    assert "layer_1" in wanted


def test_every_layer_of_a_batch(converted, golden, waves):
    """Without a mask padding is silence like any other, as transformers has it for models with a group norm.

    All of a row is then valid, which is what no lengths mean; the program is that of a masked batch.
    """
    padded, lengths = together(waves)
    masked = converted.arch.front.norm == "layer"
    lengths = lengths if masked else np.full_like(lengths, padded.shape[1])
    ours = forward(converted.arch, converted.params, padded, lengths, padding="transformers")
    found = {f"layer_{i}": hidden for i, hidden in enumerate(ours.hidden)}
    batch = "batch_mask" if masked else "batch_nomask"
    wanted = {name: golden[f"{batch}_{name}"] for name in found if f"{batch}_{name}" in golden}
    meets({name: found[name] for name in wanted}, wanted, atol=ATOL, lengths=ours.lengths[-1])
    assert f"layer_{len(converted.arch.layers)}" in wanted


def test_a_masked_batch(converted, golden, waves):
    padded, lengths = together(waves)
    ours = forward(converted.arch, converted.params, padded, lengths, padding="transformers")
    frames = int(ours.lengths[-1][1])
    assert frames == golden["frame_mask"][1].sum()
    row = golden.get("batch_mask_row1_last_hidden_state", golden.get("batch_mask_last_hidden_state", [[], []])[1])
    meets({"last_hidden_state": ours.last[1, :frames]}, {"last_hidden_state": row[:frames]}, atol=ATOL)
