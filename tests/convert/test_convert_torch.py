"""The command: what it writes, prints and returns."""

import json
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from jaxssl.convert import conversion
from jaxssl.convert.conversion import convert, read
from jaxssl.models import checkpoint
from tests.convert import files
from tests.convert.test_pickle_reader import Call, program, save_zip
from tests.processes import finish
from tools.convert_torch import main


@pytest.fixture
def source(torch, tmp_path):
    path = tmp_path / "hubert.pt"
    cfg = {"model": files.MODEL, "task": files.TASK}
    torch.save({"cfg": cfg, "model": files.draw(torch, files.hubert_shapes()), "optimizer": torch.ones(5)}, path)
    return path


@pytest.fixture
def ctc(torch, tmp_path):
    path = tmp_path / "ctc.pt"
    cfg = {"model": {"_name": "hubert_ctc", "w2v_args": None}, "task": {"normalize": False}}
    torch.save({"cfg": cfg, "model": files.draw(torch, files.ctc_shapes())}, path)
    return path


@pytest.fixture
def speech(tmp_path):
    path = tmp_path / "speech.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=8000), 16000)
    return path


def test_a_model_folder_comes_out(source, tmp_path, capsys):
    assert main([str(source), str(tmp_path / "out")]) == 0
    arch, params = checkpoint.load(tmp_path / "out")
    expected = read(source)
    assert arch == expected.arch
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected.params))
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    assert provenance["kind"] == "fairseq HuBERT"
    assert list(provenance["files"]) == [str(source)]
    assert len(provenance["files"][str(source)]) == 64
    assert f"written to {tmp_path / 'out'}" in capsys.readouterr().out


def test_the_ctc_layer_appears_with_the_model(ctc, tmp_path, capsys):
    assert main([str(ctc), str(tmp_path / "out"), "--heads", "4"]) == 0
    assert sorted(path.name for path in (tmp_path / "out/ctc").iterdir()) == ["ctc.safetensors", "symbols.json"]
    out = capsys.readouterr().out
    assert "note: the file does not hold its encoder's configuration" in out
    assert "beside the model: ctc/ctc.safetensors" in out


def test_an_existing_folder_is_left_alone(source, tmp_path, capsys):
    out = tmp_path / "out"
    convert(source, out)
    assert main([str(source), str(out)]) == 2
    assert "already there" in capsys.readouterr().err
    assert main([str(source), str(out), "--force"]) == 0
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    assert main([str(source), str(tmp_path / "notes"), "--force"]) == 2
    assert (tmp_path / "notes/a.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["missing.pt", "folder", "text.pt", "empty.pt", "other.pt", "alone.safetensors"])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.pt").write_text("hello\n")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "alone.safetensors").touch()
    save_zip(tmp_path / "other.pt", program({"weights": 1}))
    assert main([str(tmp_path / name), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert name in error
    assert not (tmp_path / "out").exists()


def test_a_hostile_file_leaves_nothing(tmp_path, capsys):
    path = save_zip(tmp_path / "x.pt", program({"model": Call("os", "system", f"touch {tmp_path / 'ran'}"), "cfg": {}}))
    assert main([str(path), str(tmp_path / "out")]) == 2
    assert "os.system" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt"]


def test_a_failing_disk_leaves_nothing(source, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    monkeypatch.setattr(conversion, "_ctc_files", lambda ctc: {"ctc/x": b""})
    monkeypatch.setattr(checkpoint, "_dump", fail)
    assert main([str(source), str(tmp_path / "out")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hubert.pt"]


def test_stats_belong_to_log_mel_models(source, tmp_path, shared):
    stats = tmp_path / "stats.npy"
    np.save(stats, np.stack([np.zeros(40), np.ones(40)]).astype(np.float32))
    with pytest.raises(InputError, match="the model reads waveforms"):
        convert(source, tmp_path / "out", stats=stats)
    assert not (tmp_path / "out").exists()
    convert(shared / "melhubert/ckpt/tiny20.ckpt", tmp_path / "out", stats=stats)
    assert (tmp_path / "out/stats.npy").read_bytes() == stats.read_bytes()


def test_verifying_without_the_framework_says_so_and_fails(source, tmp_path, speech, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fairseq.checkpoint_utils", None)
    assert main([str(source), str(tmp_path / "out"), "--verify", str(speech)]) == 2
    captured = capsys.readouterr()
    assert "nothing was verified: fairseq is not installed" in captured.err
    assert checkpoint.is_model(tmp_path / "out")


@pytest.fixture
def folder(torch, transformers, tmp_path):
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    transformers.HubertModel(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def test_verifying_against_transformers(folder, tmp_path, speech, capsys):
    assert main([str(folder), str(tmp_path / "out"), "--verify", str(speech)]) == 0
    out = capsys.readouterr().out
    for name in ("layer 1", "layer 2", "encoder output"):
        assert f"speech.wav: {name} differs by at most" in out


def test_a_wrong_conversion_fails_verification(folder, tmp_path, speech, capsys, monkeypatch):
    from jaxssl.convert import naming

    real = naming._convert
    monkeypatch.setattr(naming, "_convert", lambda *args: 1.1 * real(*args))
    assert main([str(folder), str(tmp_path / "out"), "--verify", str(speech)]) == 2
    assert "differs from transformers by" in capsys.readouterr().err


def test_time_first_layers_of_fairseq_are_watched(torch, source, tmp_path, speech, capsys, monkeypatch):
    """A stand-in with fairseq's calls and axis order, for where fairseq itself cannot be installed."""

    class Layer(torch.nn.Module):
        def forward(self, x):
            return x + 100, (None, None)

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(), Layer()])

        def forward(self, x):
            for layer in self.layers:
                x, _ = layer(x)
            return x.transpose(0, 1), []

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder()

        def extract_features(self, wave, padding_mask, mask):
            assert (padding_mask, mask) == (None, False)
            return self.encoder(torch.zeros(wave.shape[1] // 40, 1, files.WIDTH))

    utils = ModuleType("fairseq.checkpoint_utils")
    utils.load_model_ensemble_and_task = lambda paths: ([Model()], None, None)
    monkeypatch.setitem(sys.modules, "fairseq", ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.checkpoint_utils", utils)
    assert main([str(source), str(tmp_path / "out"), "--verify", str(speech)]) == 2
    captured = capsys.readouterr()
    assert "layer 2 differs by at most 2.0" in captured.out
    assert "the conversion differs from fairseq by 2.0" in captured.err


@pytest.mark.slow
def test_it_starts_as_a_file_and_as_a_module(source, tmp_path):
    for i, command in enumerate((["tools/convert_torch.py"], ["-m", "tools.convert_torch"])):
        out = tmp_path / str(i)
        done = finish(*command, source, out)
        assert done.returncode == 0, done.stderr
        assert checkpoint.is_model(out)
