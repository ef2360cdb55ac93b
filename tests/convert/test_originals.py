"""Files of the tools that made the models: s3prl, torchaudio, and bare state dicts give what their tools compute."""

from dataclasses import replace

import pytest

from compress.errors import InputError
from jaxssl.convert.conversion import read
from tests.archs import forward
from tests.convert import files
from tests.golden import meets, recorded, together, utterances

ATOL = 1e-4
FILES = {  # with heads where the file does not say, and what its arrays begin with
    "distilhubert_s3prl/distilhubert_s3prl.ckpt": (None, "batch"),
    "torchaudio_hubert_base/torchaudio_hubert_base.pth": (4, "batch_lengths"),
    "dphubert/dphubert.pth": (None, "batch_lengths"),
    "dpwavlm/dpwavlm.pth": (None, "batch_lengths"),
    "torchaudio_wavlm_base/torchaudio_wavlm_base.pth": (4, "batch_nolengths"),
    "mamba_hubert/mamba_hubert.pt": (None, "batch"),
}
WRITERS = {
    "distilhubert_s3prl": "s3prl DistilHuBERT",
    "dphubert": "DPHuBERT",
    "dpwavlm": "DPWavLM",
    "torchaudio_wavlm_base": "state dict of torchaudio",
    "torchaudio_hubert_base": "state dict of torchaudio",
    "mamba_hubert": "fairseq HuBERT",
}


@pytest.fixture(scope="module", params=FILES)
def original(shared, request):
    path, (heads, batch) = shared / "encoders" / request.param, FILES[request.param]
    return read(path, heads=heads), recorded(path.parent), utterances(shared), batch


def met(ours, golden, start, **words):
    """Compare every array that both have; each layer must be there, alone but the first."""
    found = {f"layer_{i}": hidden for i, hidden in enumerate(ours.hidden)} | {"forward": ours.last, "last": ours.last}
    found |= {"projected": ours.features, "conv_out_btc": ours.extracted, "conv_out": ours.extracted}
    named = {f"{start}_{name}": array for name, array in found.items() if f"{start}_{name}" in golden}
    meets(named, golden, atol=ATOL, **words)
    return named


def test_alone(original):
    converted, golden, waves, _ = original
    assert "single_1_layer_1" in met(forward(converted.arch, converted.params, waves[1][None]), golden, "single_1")


def test_every_layer_of_a_padded_batch(original):
    converted, golden, waves, batch = original
    padded, lengths = together(waves)
    if batch == "batch_nolengths":  # torchaudio's WavLM takes none: padding is silence like any other
        ours = forward(converted.arch, converted.params, padded)
        found = met(ours, golden, batch)
    else:
        golden = {name: array for name, array in golden.items() if name != "batch_conv_out"}  # channels before frames
        counted = "fairseq" if converted.kind.startswith("fairseq") else "transformers"
        ours = forward(converted.arch, converted.params, padded, lengths, padding=counted)
        found = met(ours, golden, batch, lengths=ours.lengths[-1])
    assert {f"{batch}_layer_{i}" for i in range(1, len(ours.hidden))} <= found.keys()


def test_writers_are_told(shared):
    for name, kind in WRITERS.items():
        path = next(path for path in FILES if path.startswith(f"{name}/"))
        assert read(shared / "encoders" / path, heads=4).kind == kind


def test_distilhuberts_heads_are_left_behind(shared):
    converted = read(shared / "encoders/distilhubert_s3prl/distilhubert_s3prl.ckpt")
    assert set(converted.left_behind) == {f"output_layer.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}
    assert "[4, 8, 12]" in converted.notes[0]
    assert not converted.arch.front.feature_norm


def test_dphuberts_layers_are_counted_one_by_one(shared):
    converted = read(shared / "encoders/dphubert/dphubert.pth")
    layers = converted.arch.layers
    assert [(layer.mixer.heads, layer.ffn.size) for layer in layers] == [(3, 95), (0, 78), (4, 0), (1, 91)]
    assert [conv.channels for conv in converted.arch.front.convs] == [18, 18, 23, 17, 19, 22, 23]
    assert converted.arch.front.scaled
    assert "pruned away: attention of layer 1, feed-forward block of layer 2" in converted.notes


def test_dpwavlms_heads_keep_their_numbers(shared):
    """What each reads of its layer's input, and which column of the table is its own, is told by them."""
    converted = read(shared / "encoders/dpwavlm/dpwavlm.pth")
    assert [layer.mixer.remaining for layer in converted.arch.layers] == [(1, 2, 3), (0, 2), (), (3,)]
    assert converted.arch.relative.heads == 4
    assert "pruned away: feed-forward block of layer 1, attention of layer 2" in converted.notes


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "dphubert",
            {"encoder_use_attention": [True] * 4},
            "encoder_use_attention is .*, layer 1 has 0 rows",
        ),
        ("dphubert", {"encoder_head_dim": 7}, "has 48 rows, no multiple of head size 7"),
        (
            "dphubert",
            {"encoder_pos_conv_groups": 4},
            "encoder_pos_conv_groups is 4 in the configuration and 16 in the arrays",
        ),
        (
            "dphubert",
            {"extractor_conv_layer_config": "none"},
            "extractor_conv_layer_config none is no list",
        ),
        ("dphubert", {"extractor_mode": "batch_norm"}, "extractor_mode is 'batch_norm'"),
        (
            "dpwavlm",
            {"encoder_remaining_heads": [[1, 2, 4]] * 4},
            r"of layer 0 is \[1, 2, 4\], no list of heads below 4",
        ),
        ("dpwavlm", {"encoder_remaining_heads": [[0]] * 4}, r"of layer 0 is \[0\], its arrays have 3 heads"),
        ("dpwavlm", {"encoder_remaining_heads": "all"}, "of layer 0 is None, no list of heads"),
        (
            "dpwavlm",
            {"encoder_total_num_heads": [4, 4, 3, 4]},
            r"encoder_total_num_heads is \[4, 4, 3, 4\], not one number",
        ),
        (
            "dpwavlm",
            {"encoder_num_buckets": 32},
            "encoder_num_buckets is 32 in the configuration and 320 in the arrays",
        ),
    ],
)
def test_what_a_configuration_cannot_be(torch, shared, tmp_path, file, change, message):
    state = torch.load(shared / f"encoders/{file}/{file}.pth", weights_only=True)
    torch.save({**state, "config": state["config"] | change}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "x.pth")


def test_heads_that_no_width_tells_are_asked_for(shared):
    with pytest.raises(
        InputError,
        match="no published model is 64 wide; say .*convert_torch .* OUT --heads N, and",
    ):
        read(shared / "encoders/torchaudio_hubert_base/torchaudio_hubert_base.pth")


@pytest.mark.parametrize(
    "folder", ["hf_wav2vec2_base", "hf_data2vec_audio_base", "hf_wav2vec2_base_ctc", "hf_wavlm_base"]
)
def test_a_bare_state_dict_is_the_folders_model(torch, shared, tmp_path, folder):
    import safetensors.torch

    torch.save(safetensors.torch.load_file(shared / "encoders" / folder / "model.safetensors"), tmp_path / "x.bin")
    bare, whole = read(tmp_path / "x.bin", heads=4), read(shared / "encoders" / folder)
    assumed = {name: getattr(bare.arch.front, name) for name in ("normalize", "counts")}  # which arrays do not tell
    front = replace(whole.arch.front, **assumed)
    assert bare.arch == replace(whole.arch, front=front, dropout=bare.arch.dropout)
    assert any("normalize" in note and "assumed" in note for note in bare.notes)
    assert bare.kind == "state dict of Hugging Face"
    assert any("heads 4 (as --heads says)" in note for note in bare.notes)
    assert ("ctc/ctc.safetensors" in bare.extra) is folder.endswith("ctc")


def test_strides_that_no_published_kernel_tells_are_refused(torch, tmp_path):
    torch.save({"feature_extractor.conv_layers.0.conv.weight": torch.zeros(8, 1, 7)}, tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"conv_layers\.0\.conv\.weight with kernel 7 leaves its stride unknown"):
        read(tmp_path / "x.bin", heads=4)


def test_a_contentvec_that_listens_to_speakers_is_refused_by_name(torch, tmp_path):
    model = files.MODEL | {"_name": "contentvec"}
    torch.save(
        {"cfg": {"model": model, "task": files.TASK}, "model": files.draw(torch, files.encoder_shapes())},
        tmp_path / "x.pt",
    )
    with pytest.raises(InputError, match=r"ContentVec whose layer norms depend on a speaker.*legacy"):
        read(tmp_path / "x.pt")


def test_verifying_calls_no_program_that_does_not_know_the_file(torch, shared):
    from tools.pytorch import verify

    path = shared / "encoders/dphubert/dphubert.pth"
    with pytest.raises(InputError, match="no other program is called for DPHuBERT"):
        list(verify.compare(path, read(path), [path]))
