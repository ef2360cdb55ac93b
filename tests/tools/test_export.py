"""Deployed forms compute what the model does, whatever its architecture, and nothing that does not is written."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.convert.to_ctc import Outputs
from jaxssl.data.logmel import Stats, stats_bytes
from jaxssl.models import checkpoint
from jaxssl.models.arch import AveragePooling, KeyMerging, Repeat, StridedConvolution, TransposedConvolution
from tests.archs import ARCHS, BASE, MEL, SOFTENED, STUDENT, UNEVEN, forward, fresh, weights
from tools import export
from tools.pytorch import formats

STATS = Stats(np.full(5, 3, np.float32), np.full(5, 2, np.float32))
# Without VNNI, ONNX Runtime adds pairs of products in 16 bits, which saturate: it is further off there.
CPU = Path("/proc/cpuinfo")
INT8 = 0.1 if not CPU.is_file() or "vnni" in CPU.read_text() else 0.6
QUICK = {"seconds": 0.2, "rounds": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Where small models are, saved when asked for; log-Mel ones have statistics."""
    place = tmp_path_factory.mktemp("models")

    def folder(name):
        if not (place / name).exists():
            arch = ARCHS[name]
            extra = {"stats.npy": stats_bytes(STATS)} if arch.front.kind == "logmel" else {}
            params = fresh(arch)  # of which int8 takes as little as of real ones
            checkpoint.save(place / name, arch, params, extra=extra)
        return place / name

    return folder


def exported(saved, tmp_path, name, *forms):
    out = tmp_path / "out"
    return out, {row["form"]: row for row in export.run(export.Options(str(saved(name)), out, forms, **QUICK))}


@pytest.fixture(scope="module")
def onnx(torch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["large", "uneven", "student", "reusing", "wavlm"])
def test_torch_and_stablehlo_agree(torch, saved, tmp_path, name):
    out, rows = exported(saved, tmp_path, name, "torch", "stablehlo")
    assert {name: row["error"] <= 1e-4 for name, row in rows.items()} == {"jax": True, "torch": True, "stablehlo": True}
    assert all(row["speedup"] > 0 and row["bytes"] > 0 for row in rows.values())
    assert json.loads((out / "export.json").read_text())["forms"] == list(rows.values())


@pytest.mark.slow
def test_forms_that_cannot_be_the_model_are_named_and_the_others_written(torch, saved, tmp_path):
    out, rows = exported(saved, tmp_path, "convolution-stack", "dphubert", "stablehlo", "torch")
    assert "DPHuBERT's code cannot be this model" in rows.pop("dphubert")["refused"]
    assert all(row["error"] <= 1e-4 for row in rows.values())
    assert not (out / "dphubert").exists()
    told = json.loads((out / "export.json").read_text())["forms"]
    assert told[-1]["form"] == "dphubert"
    with pytest.raises(InputError, match="^1 of 3 forms not written: DPHuBERT"):  # after the table
        export.show(told, export.Options("", out))
    with pytest.raises(InputError, match="DPHuBERT's code cannot be this model"):
        exported(saved, tmp_path / "other", "convolution-stack", "dphubert")
    assert not (tmp_path / "other/out").exists()


@pytest.mark.slow
def test_stablehlo_takes_any_batch_and_length(saved, tmp_path, key):
    out, _ = exported(saved, tmp_path, "mel", "stablehlo")
    program = jax.export.deserialize(bytearray((out / "stablehlo/model.jax").read_bytes()))
    given = export.read(str(saved("mel")))
    for batch, count in ((1, 400), (3, 1999)):
        samples, lengths = 0.1 * jax.random.normal(key, (batch, count)), np.full(batch, count, np.int32)
        for ours, theirs in zip(given.forward(samples, lengths), program.call(samples, lengths), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow  # PyTorch's exporter takes half a minute for each
@pytest.mark.parametrize("name", ["uneven", "large", "student"])
def test_onnx_agrees_at_any_length(onnx, saved, tmp_path, name):
    import onnxruntime

    out, rows = exported(saved, tmp_path, name, "onnx", "onnx-int8")
    assert rows["onnx"]["error"] <= 1e-4
    given = export.read(str(saved(name)))
    for form, tolerance in (("onnx", 1e-4), ("onnx-int8", INT8)):
        session = onnxruntime.InferenceSession(out / form / "model.onnx")
        for batch, count in ((3, 1600), (1, 560), (2, 2041)):
            samples = (0.1 * np.random.default_rng(count).normal(size=(batch, count))).astype(np.float32)
            lengths = np.array([count, 560, count])[:batch]
            last, frames = session.run(None, {"samples": samples, "lengths": lengths})
            expected, valid = given.forward(samples, lengths)
            assert frames.tolist() == np.asarray(valid).tolist()
            assert export.difference(last, np.asarray(expected), frames) <= tolerance


HALVED = replace(BASE.layers[1], shortening=StridedConvolution(2))
PARTS = {
    **{name: ARCHS[name] for name in ("whisper", "scaled-convolution", "sinusoid")},
    "convolution-stack": ARCHS["convolution-stack"],
    **{name: ARCHS[name] for name in ("shortened", "firing", "summary", "mamba", "conformer")},
    "merging": replace(
        MEL, layers=(MEL.layers[0], replace(MEL.layers[1], shortening=KeyMerging(600))), upsampling=Repeat()
    ),
    "shortened-waves": replace(
        BASE, layers=(BASE.layers[0], HALVED), shortening=AveragePooling(3), upsampling=TransposedConvolution(6)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_every_part_goes_out_in_every_form(onnx, cache, tmp_path, name):
    arch = PARTS[name]
    given = formats.Given(arch, weights(arch), STATS if arch.front.features else None)
    samples = (0.1 * np.random.default_rng(0).normal(size=(3, 9000))).astype(np.float32)
    lengths = np.array([9000, 5000, 3210])
    ours, frames = given.forward(jax.numpy.asarray(samples), jax.numpy.asarray(lengths))
    for form in ("torch", "onnx", "onnx-int8", "stablehlo", "huggingface-code"):
        out = tmp_path / form
        out.mkdir()
        error = export.difference(formats.FORMATS[form](given, out)(samples, lengths), ours, np.asarray(frames))
        assert error <= (0.6 if form == "onnx-int8" else 1e-4), form  # int8 of random weights


@pytest.fixture(scope="module")
def mini(onnx, tmp_path_factory):
    """The model of the package in both forms, and what was told of them."""
    out, real, made = tmp_path_factory.mktemp("mini") / "out", formats.export_onnx, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "export_onnx", lambda given: (made.append(given), real(given))[1])
        rows = export.run(export.Options("melhubert-mini", out, ("onnx", "onnx-int8"), seconds=0.5, rounds=1))
    assert len(made) == 1  # PyTorch's exporter is what takes long
    return out, rows


@pytest.mark.slow
def test_onnx_runtime_keeps_norms_apart(mini, tmp_path):
    """What was measured to be slow is not in the graph that runs: sums fused into norms, and the transform."""
    import onnx as library
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(mini[0] / "onnx/model.onnx", options)
    graph = library.load(options.optimized_model_filepath, load_external_data=False).graph
    made = {node.op_type for node in graph.node}
    assert "LayerNormalization" in made
    assert not made & {"SkipLayerNormalization", "DFT"}


@pytest.mark.slow
def test_int8_is_smaller_and_close(mini):
    _, (ours, _, int8) = mini
    assert int8["bytes"] < 0.35 * ours["bytes"]
    assert 1e-4 < int8["error"] < INT8


@pytest.mark.parametrize("name", ["base", "large"])
def test_hugging_face_loads_it_and_so_do_we(torch, transformers, saved, tmp_path, name):
    out, rows = exported(saved, tmp_path, name, "huggingface")
    assert rows["huggingface"]["error"] <= 1e-4
    _, loading = transformers.HubertModel.from_pretrained(out / "huggingface", output_loading_info=True)
    assert not any(loading.values())  # nothing missing, nothing left over
    back, (arch, params) = read(out / "huggingface"), checkpoint.load(saved(name))
    samples = 0.1 * np.random.default_rng(0).normal(size=(1, 2000)).astype(np.float32)
    np.testing.assert_allclose(
        forward(back.arch, back.params, samples).last, forward(arch, params, samples).last, atol=1e-5
    )


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        (MEL, "its front end is another"),
        (UNEVEN, "its front end is another"),
        (STUDENT, "output is scaled"),
        (ARCHS["wave-uneven"], "layers differ"),
    ],
)
def test_what_hubertmodel_cannot_be_is_told(torch, transformers, tmp_path, arch, reason):
    given = formats.Given(arch, weights(arch), None)
    with pytest.raises(InputError, match=f"HubertModel cannot be this model: .*{reason}"):
        formats.huggingface(given, tmp_path)


@pytest.fixture
def cache(transformers, tmp_path, monkeypatch):
    """A place of its own for the code that transformers copies out of a model's folder."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which that place is added
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["uneven", "student", "softened"])
def test_hugging_faces_automodel_takes_any_architecture(torch, transformers, cache, tmp_path, name):
    """With the folder's own code, which knows nothing of this project; what stands beside an utterance matters not."""
    arch = SOFTENED if name == "softened" else ARCHS[name]
    given = formats.Given(arch, weights(arch), STATS if arch.front.kind == "logmel" else None)
    samples = (0.1 * np.random.default_rng(0).normal(size=(2, 2000))).astype(np.float32)
    lengths = np.array([1300, 2000])
    (tmp_path / "x").mkdir()
    found = formats.huggingface_code(given, tmp_path / "x")(samples, lengths)
    ours, frames = jax.jit(given.forward)(samples, lengths)
    assert export.difference(found, np.asarray(ours), np.asarray(frames)) <= 1e-4
    code = "".join((tmp_path / "x" / file).read_text() for file in ("model.py", "modeling.py"))
    assert "import jaxssl" not in code
    assert "from jaxssl" not in code
    model, loading = transformers.AutoModel.from_pretrained(
        tmp_path / "x", trust_remote_code=True, output_loading_info=True
    )
    assert not any(loading.values())
    hidden = model(torch.tensor(samples), output_hidden_states=True).hidden_states
    assert len(hidden) == 1 + len(arch.layers)


def test_a_ctc_layer_goes_out_with_any_architecture(torch, transformers, cache, tmp_path):
    arch = replace(ARCHS["wave-uneven"], layers=ARCHS["wave-uneven"].layers[:1])
    draw = np.random.default_rng(0)
    layer = Outputs(draw.normal(size=(4, 16)).astype(np.float32), np.ones(4, np.float32), ("a", "|", "b", "[PAD]"), 3)
    given = formats.Given(arch, weights(arch), None, layer)
    samples, lengths = (0.1 * draw.normal(size=(2, 2000))).astype(np.float32), np.array([1300, 2000])
    for form in ("torch", "code"):
        (tmp_path / form).mkdir()
    last = formats.torch(given, tmp_path / "torch")(samples, lengths)
    formats.huggingface_code(given, tmp_path / "code")
    model, loading = transformers.AutoModelForCTC.from_pretrained(
        tmp_path / "code", trust_remote_code=True, output_loading_info=True
    )
    assert not any(loading.values())
    assert model.config.pad_token_id == 3
    mask = torch.tensor(np.arange(2000) < lengths[:, None])
    with torch.no_grad():
        found = model(torch.tensor(samples), mask, output_hidden_states=True)
    assert len(found.hidden_states) == 1 + len(arch.layers)
    np.testing.assert_allclose(found.logits, last @ layer.weight.T + layer.bias, atol=1e-5)
    module = formats.written(tmp_path / "torch").load(tmp_path / "torch")
    with torch.no_grad():
        np.testing.assert_allclose(
            module(torch.tensor(samples), torch.tensor(lengths))["logits"], found.logits, atol=1e-5
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "code")
    assert tokenizer.decode([3, 0, 0, 3, 2, 1, 0]) == "ab a"


def test_s3prl_finds_its_upstream(torch, saved, tmp_path, monkeypatch):
    """What s3prl asks of an upstream: waveforms of any lengths in, a list of (batch, frames, width) out, the stride."""
    out, _ = exported(saved, tmp_path, "mel", "torch")
    spec = importlib.util.spec_from_file_location(
        "upstream", out / "torch/hubconf.py", submodule_search_locations=[str(out / "torch")]
    )
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "upstream", package)
    spec.loader.exec_module(package)
    expert = package.jaxssl_local()
    assert expert.get_downsample_rates("hidden_states") == 320
    wavs = [torch.randn(count) * 0.1 for count in (16_000, 9_000)]
    found = expert(wavs)
    assert len(found["hidden_states"]) == 1 + len(MEL.layers)
    assert {tuple(layer.shape) for layer in found["hidden_states"]} == {(2, 49, MEL.width)}
    alone = expert(wavs[1:])["last_hidden_state"][0]
    np.testing.assert_allclose(found["last_hidden_state"][1, : len(alone)].detach(), alone.detach(), atol=1e-5)
    for name in list(sys.modules):
        if name.startswith("upstream."):
            monkeypatch.delitem(sys.modules, name)


def test_what_differs_is_not_written(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        formats.FORMATS, "stablehlo", lambda given, folder: lambda samples, lengths: np.ones((2, 300, 16))
    )
    assert export.main([str(saved("mel")), str(tmp_path / "out"), "--format", "stablehlo"]) == 2
    assert "stablehlo: differs from ours by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "out"], "no model here"),
        (["mel", "."], "already there"),
        (["mel", "out", "--rounds", "0"], "--rounds 0"),
        (["bare", "out"], "stats.npy: missing"),
    ],
)
def test_bad_requests_are_one_line(saved, tmp_path, monkeypatch, capsys, words, message):
    place = saved("mel").parent
    if words[0] == "bare":
        checkpoint.save(place / "bare", MEL, weights(MEL))
    monkeypatch.chdir(tmp_path)
    assert export.main([str(place / words[0]), *words[1:]]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_form_without_its_program_is_refused(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert export.main([str(saved("mel")), str(tmp_path / "out"), "--format", "onnx"]) == 2
    assert "pip install torch onnx onnxscript onnxruntime" in capsys.readouterr().err
