"""What every source says of input that cannot be used: one line, with the array and the numbers."""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import safetensors.numpy

from compress.errors import InputError
from jaxssl.convert import huggingface, pickle_reader, sources
from jaxssl.convert.config import Ctc
from jaxssl.convert.conversion import _ctc_files, read
from jaxssl.convert.naming import build, finite
from tests.archs import BASE
from tests.convert.pickles import Build, Call, program, save_zip

SOURCES = {
    "distilhubert_s3prl/distilhubert_s3prl.ckpt": None,
    "torchaudio_hubert_base/torchaudio_hubert_base.pth": 4,
    "dphubert/dphubert.pth": None,
    "armhubert/armhubert.ckpt": None,
    "fithubert_tr/fithubert_tr.ckpt": None,
    "lighthubert/lighthubert_tiny.pt": None,
    "data2vec_fairseq/data2vec_fairseq.pt": None,
    "hf_wav2vec2_base": None,
    "hf_hubert_25hz_bn": None,
    "hf_data2vec_audio_base": None,
    "hf_mms_ctc_adapter": None,
}


@dataclass(frozen=True)
class Broken:
    """A tensor with a number that is none, or with a row too many."""

    whole: object
    row: int = 0

    @property
    def shape(self):
        return (self.whole.shape[0] + self.row, *self.whole.shape[1:])

    @property
    def dtype(self):
        return self.whole.dtype

    def read(self):
        array = np.array(self.whole.read())
        array.flat[-1] = np.nan
        return array


@pytest.fixture(params=SOURCES)
def source(shared, request):
    return sources.describe(shared / "encoders" / request.param, heads=SOURCES[request.param])


def broken(source, **how):
    name = next(
        name
        for name in source.tensors
        if name.endswith(("layers.0.fc2.bias", "layers.0.self_attn.v_proj.bias", "layers.0.attention.v_proj.bias"))
    )
    return name, replace(source, tensors={**source.tensors, name: Broken(source.tensors[name], **how)})


def built(source):
    return build(source.arch, source.tensors, source.dialect, left=source.left, where="the file")


def test_numbers_that_are_none_are_named(source):
    name, changed = broken(source)
    with pytest.raises(
        InputError, match=rf"^the file: {name} has 1 of \d+ numbers that are NaN or infinite in float32; copy"
    ):
        built(changed)


def test_shapes_that_contradict_the_configuration_are_named(source):
    name, changed = broken(source, row=1)
    with pytest.raises(InputError, match=rf"of another shape: {name} is \(\d+,\), the model wants \(\d+,\)"):
        built(changed)


def test_large_numbers_are_finite():
    array = np.full(4, 3e38, np.float32)
    assert finite(array, "x") is array
    with pytest.raises(InputError, match="x has 2 of 4 numbers"):
        finite(np.array([np.inf, -np.inf, 0, 1], np.float32), "x")


def test_an_unknown_model_type_is_named_with_those_that_are_known(shared, tmp_path):
    folder = shutil.copytree(shared / "encoders/hf_wav2vec2_base", tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "sew-d"}))
    with pytest.raises(InputError, match=r"model_type is 'sew-d'; what is supported: 'hubert', 'wav2vec2'"):
        read(folder)
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    with pytest.raises(InputError, match="layer_norm_eps is 1e-06; what is supported: 1e-05"):
        read(folder)


def test_of_two_files_in_a_folder_the_content_decides(shared, tmp_path):
    shutil.copy(shared / "encoders/dphubert/dphubert.pth", tmp_path / "b.pth")
    assert read(tmp_path).kind == "DPHuBERT"
    (tmp_path / "a.pt").write_bytes(b"nothing")
    notes = read(tmp_path).notes
    assert "of the folder's 2 files b.pth was taken" in notes
    assert any(note.startswith(f"not taken: {tmp_path / 'a.pt'}: not a PyTorch file") for note in notes)
    shutil.copy(tmp_path / "b.pth", tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"2 of its 3 files are models \(b\.pth, c\.pth\); give one of them"):
        read(tmp_path)


def test_beside_a_folder_of_hugging_face_the_other_model_is_told(shared, tmp_path):
    folder = shutil.copytree(shared / "encoders/hf_wav2vec2_base", tmp_path / "x")
    shutil.copy(shared / "encoders/dphubert/dphubert.pth", folder / "checkpoint_best.pth")
    (folder / "optimizer.pt").write_bytes(b"nothing")
    converted = read(folder)
    assert converted.kind == "Hugging Face Wav2Vec2Model"
    assert [note for note in converted.notes if "not read" in note] == ["not read: checkpoint_best.pth, a model too"]


def test_a_folder_whose_files_are_no_models_is_the_first_ones_error(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.pt: not a PyTorch file"):
        read(tmp_path)


class Odd:
    """What stands where a CTC layer's tensor belongs."""

    def __init__(self, shape, dtype="float32"):
        self.shape, self.dtype = shape, dtype

    def read(self):
        return np.ones(self.shape, self.dtype)


@pytest.mark.parametrize(
    ("kernel", "bias", "message"),
    [
        (Odd((7, 15)), None, r"kernel is float32 \(7, 15\), which is no map of the model's 16 numbers"),
        (Odd((0, 16)), None, "kernel is float32"),
        (Odd(()), None, r"kernel is float32 \(\)"),
        (Odd((16,)), None, "kernel is float32"),
        (Odd((1,) * 70), None, r"kernel is float32 \(1, 1, 1"),
        (Odd((7, 16), "int64"), None, "kernel is int64"),
        (Odd((7, 16)), Odd((6,)), r"bias is float32 \(6,\)"),
        (Odd((7, 16)), Odd((7, 1)), "bias is float32"),
        (Odd((7, 16)), Odd((7,), "bool"), "bias is bool"),
    ],
)
def test_an_output_layer_that_is_none(kernel, bias, message):
    with pytest.raises(InputError, match=f"the CTC layer's {message}"):
        _ctc_files(Ctc(kernel, bias, None), BASE)


def test_symbols_that_are_no_text():
    _ctc_files(Ctc(Odd((2, 16)), None, ["ä", "\U0001f600"]), BASE)
    with pytest.raises(InputError, match=r"1 of the CTC layer's 2 symbols are no text, first '\\ud83d'"):
        _ctc_files(Ctc(Odd((2, 16)), None, ["a", "\ud83d"]), BASE)
    with pytest.raises(InputError, match="2 outputs, its dictionary 3 symbols"):
        _ctc_files(Ctc(Odd((2, 16)), None, list("abc")), BASE)


def test_numbers_beyond_float32_are_infinite(torch, tmp_path):
    torch.save({"x": torch.tensor([1.0, 1e300], dtype=torch.float64)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="x has 1 of 2 numbers that are NaN or infinite in float32"):
        finite(pickle_reader.load(tmp_path / "x.pt")["x"].read(), "x")
    safetensors.numpy.save_file({"x": np.array([1, 1e300])}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="x has 1 of 2 numbers"):
        finite(huggingface._open(tmp_path / "x.safetensors")["x"].read(), "x")


@pytest.mark.parametrize("name", [[], ["hubert"], 3, {"a": 1}], ids=str)
def test_names_of_models_that_are_none(torch, tmp_path, name):
    tensors = {"layer_norm.weight": torch.zeros(3)}
    torch.save({"model": tensors, "cfg": {"model": {"_name": name}, "task": {}}}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="its model is called .*, which is no name"):
        read(tmp_path / "x.pt")


def test_dictionaries_that_are_a_number_are_none(torch, tmp_path):
    tensors = {"layer_norm.weight": torch.zeros(3)}
    told = {"dictionaries_symbols": 5, "model_cfg": {"_name": "wavlm"}, "task_cfg": 7}
    torch.save({"model_weight": tensors, **told}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="a model of type 'wavlm'"):
        read(tmp_path / "x.pt")


def test_an_object_that_calls_itself_a_tensor_is_none(tmp_path):
    """Its class is of a module that need not be there, and its state may hold any attribute."""
    posing = Build(Call("gone.module", "Parameter"), {"read": 1, "shape": (3,), "dtype": "float32"})
    save_zip(tmp_path / "x.pt", program({"model": {"mask_emb": posing}, "cfg": {"model": {}, "task": {}}}))
    with pytest.raises(InputError, match="mask_emb is no tensor"):
        read(tmp_path / "x.pt")
