"""Models as folders of transformers' classes: these compute what ours does, and the converter reads the same arrays."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import safetensors.numpy

from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.convert.to_ctc import Outputs, outputs
from jaxssl.convert.to_huggingface import folder
from jaxssl.models.arch import Adapter, ConvolutionStack, LengthAdapter, RelativeBias, ScaledConvolution, Sinusoids
from tests.archs import ARCHS, BASE, LARGE, MEL, forward, gated_layer, transformer_layer, weights
from tools.pytorch import formats

BASE = replace(BASE, head=None, layers=BASE.layers[:1])
LARGE = replace(LARGE, head=None, layers=LARGE.layers[:1])
COUNTED = replace(LARGE, front=replace(LARGE.front, counts="convolutions"))
WHISPER = replace(ARCHS["whisper"], layers=(transformer_layer(4, 9, key_bias=False),))
WHISPER = replace(WHISPER, front=replace(WHISPER.front, hidden=16, longest=50))
SLOWER = replace(BASE.front, convs=(*BASE.front.convs, BASE.front.convs[-1]))
FAMILIES = {
    "Hubert at 25 Hz": replace(BASE, front=SLOWER, position=ScaledConvolution(6, 4)),
    "Wav2Vec2 of MMS": replace(COUNTED, layers=(replace(LARGE.layers[0], adapter=Adapter(3)),), mask_embedding=False),
    "Data2VecAudio": replace(COUNTED, norm_first=False, position=ConvolutionStack(3, 4, 4)),
    "Whisper": WHISPER,
}
MORE = {
    "Hubert, odd taps, pre-norm": replace(LARGE, position=ScaledConvolution(7, 2)),
    "Hubert without a norm of features": replace(BASE, front=replace(BASE.front, feature_norm=False)),
    "Wav2Vec2, several layers": replace(COUNTED, layers=COUNTED.layers * 2),
    "Data2VecAudio, odd taps": replace(COUNTED, norm_first=False, position=ConvolutionStack(2, 5, 2)),
    "Wav2Vec2, a length adapter": replace(COUNTED, length_adapter=LengthAdapter(10, 2)),
    "WavLM, a length adapter": replace(
        LARGE,
        head=None,
        layers=(gated_layer(range(4), 24),) * 2,
        relative=RelativeBias(4, 12, 20),
        length_adapter=LengthAdapter(16, 1, 5, 3),
    ),
    "Data2VecAudio, a length adapter": replace(FAMILIES["Data2VecAudio"], length_adapter=LengthAdapter(12)),
    "Whisper, rounded": replace(WHISPER, position=Sinusoids("halves", "float16"), layers=WHISPER.layers * 2),
}


@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_transformers_computes_the_same_and_it_comes_back(torch, transformers, tmp_path, name):
    arch = (FAMILIES | MORE)[name]
    params = weights(arch)
    samples = 0.1 * np.random.default_rng(0).normal(size=(2, 2300)).astype(np.float32)
    lengths = np.array([2300, 1700])
    given = formats.Given(arch, params, None)
    found = formats.huggingface(given, tmp_path)(samples, lengths)
    fed, ends = formats.heard("huggingface", given, samples, lengths)
    if name.startswith("Whisper"):
        ends = None  # all of it
    ours = forward(arch, params, fed, ends)
    last, counts = map(np.asarray, ours.end)
    for row, count in enumerate(counts):
        np.testing.assert_allclose(found[row, :count], last[row, :count], atol=1e-4)
    _, told = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    missing = told.pop("missing_keys")
    assert len(missing) == 4 * name.startswith("Whisper")
    assert all(each.startswith("decoder.") for each in missing)
    assert not any(told.values())
    back = read(tmp_path)
    assert back.kind == f"Hugging Face {name.split(',')[0].split()[0]}Model"
    assert back.arch == arch
    jax.tree.map(np.testing.assert_array_equal, back.params, params)


@pytest.mark.parametrize("symbols", [["<s>", "<pad>", "</s>", "<unk>", "|", "A"], ["a", "|", "[UNK]", "[PAD]"], None])
def test_a_ctc_layer_goes_along(torch, transformers, tmp_path, symbols):
    """With its symbols, blank included, wherever that is; without them its columns alone."""
    arch, count = COUNTED, len(symbols or "abc")
    kernel = np.random.default_rng(0).normal(size=(16, count)).astype(np.float32)
    bias = np.arange(count, dtype=np.float32)
    files = {
        "ctc/ctc.safetensors": safetensors.numpy.save({"kernel": kernel, "bias": bias}),
        "ctc/symbols.json": json.dumps({"symbols": symbols}).encode(),
    }
    params = weights(arch)
    formats.huggingface(formats.Given(arch, params, None, outputs(files)), tmp_path)
    model, told = transformers.AutoModelForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == "Wav2Vec2ForCTC"
    assert not any(told.values())
    samples = np.random.default_rng(0).normal(size=(1, 2300)).astype(np.float32)
    samples = (samples - samples.mean()) / samples.std()
    with torch.no_grad():
        logits = model.eval()(torch.tensor(samples)).logits
    np.testing.assert_allclose(logits, np.asarray(forward(arch, params, samples).last) @ kernel + bias, atol=1e-4)
    back = read(tmp_path)
    assert back.arch == arch
    assert json.loads(back.extra["ctc/symbols.json"]) == {"symbols": symbols}
    for name, array in safetensors.numpy.load(back.extra["ctc/ctc.safetensors"]).items():
        np.testing.assert_array_equal(array, {"kernel": kernel, "bias": bias}[name])
    if symbols is not None:
        tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
        blank = tokenizer.pad_token_id
        assert model.config.pad_token_id == blank == symbols.index("[PAD]" if "[PAD]" in symbols else "<s>")
        written = [blank, symbols.index("|"), len(symbols) - 1 if blank == 0 else 0, blank]
        assert tokenizer.decode(written).strip() == ("A" if blank == 0 else "a")


def test_a_whisper_has_none(torch, transformers, tmp_path):
    layer = Outputs(np.zeros((3, 16), np.float32), np.zeros(3, np.float32), None, 0)
    with pytest.raises(InputError, match="no whisper model with a CTC layer"):
        formats.huggingface(formats.Given(WHISPER, weights(WHISPER), None, layer), tmp_path)
    with pytest.raises(InputError, match="ctc/ctc.safetensors or .* damaged"):
        outputs({"ctc/ctc.safetensors": b"", "ctc/symbols.json": b""})


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (replace(FAMILIES["Data2VecAudio"], norm_first=True), "Data2VecAudioModel .*: it norms before its blocks"),
        (replace(BASE, position=ConvolutionStack(3, 4, 4)), "Data2VecAudioModel .*: its extractor has one norm only"),
        (
            replace(FAMILIES["Wav2Vec2 of MMS"], position=ScaledConvolution(7, 2)),
            "Wav2Vec2Model .*: its positions are others",
        ),
        (replace(FAMILIES["Wav2Vec2 of MMS"], norm_first=False), "Wav2Vec2Model .*: its adapters are in post-norm"),
        (replace(BASE, position=Sinusoids()), "HubertModel .*: its positions are others"),
        (replace(BASE, layers=(transformer_layer(4, 9, key_bias=False),)), "HubertModel .*: its keys have no bias"),
        (ARCHS["whisper"], "WhisperModel .*: its first convolution has 12 channels, the second 16"),
        (replace(WHISPER, position=Sinusoids()), "WhisperModel .*: its positions are others"),
        (replace(WHISPER, layers=(transformer_layer(4, 9),)), "WhisperModel .*: its keys have a bias"),
        (MEL, "HubertModel .*: its front end is another"),
    ],
)
def test_what_no_class_can_be_is_told(arch, reason):
    with pytest.raises(InputError, match=f"{reason}.*; export it as huggingface-code, torch"):
        folder(arch, weights(arch))
