"""What every source says of input that cannot be used: one line, with the array and the numbers."""

import json
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert import sources
from jaxssl.convert.conversion import read
from jaxssl.convert.naming import build, finite

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
    with pytest.raises(InputError, match=rf"^the file: {name} has 1 of \d+ numbers that are NaN or infinite; copy"):
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
    (folder / "config.json").write_text(json.dumps(config | {"add_adapter": True}))
    with pytest.raises(InputError, match="add_adapter is True; what is supported: False"):
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
