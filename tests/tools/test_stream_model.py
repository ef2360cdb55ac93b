"""A stream through ONNX Runtime gives what the whole utterance gives."""

import importlib
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data import audio
from jaxssl.data.logmel import Stats, stats_bytes
from jaxssl.inference import streaming
from jaxssl.inference.encode import front_inputs
from jaxssl.models import checkpoint
from tests.archs import MEL, forward, noise, weights
from tests.inference.test_streaming import MORE, STREAMING
from tools import export

ALL = STREAMING | MORE


@pytest.fixture(scope="module")
def stream_model():
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    return importlib.import_module("tools.graphs.stream_model")


def streamed(stream_model, arch, folder, inputs, lengths, *, frames=3):
    """The model's output through the graph that was written."""
    stream_model.write(arch, weights(arch), folder, size=frames * streaming.unit(arch), batch=len(inputs))
    return stream_model.read(folder).stream(np.asarray(inputs), lengths)


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        *((name, 3) for name in STREAMING),
        *(pytest.param(name, 2, marks=pytest.mark.slow) for name in MORE),
        pytest.param("causal", 1, marks=pytest.mark.slow),  # whose loops run once
    ],
)
def test_a_graph_streams_as_the_whole_utterance_runs(stream_model, tmp_path, name, frames):
    arch = ALL[name]
    inputs = noise(arch, 0, frames=21)
    lengths = np.array([inputs.shape[1], inputs.shape[1] * 3 // 5], np.int32)
    whole = forward(arch, weights(arch), inputs, lengths)
    found = streamed(stream_model, arch, tmp_path, inputs, lengths, frames=frames)
    for row, count in enumerate(np.asarray(whole.lengths[-1])):
        np.testing.assert_allclose(found[row, :count], whole.last[row, :count], atol=1e-5)


@pytest.mark.parametrize("name", ["pre-norm", "waveform"])
def test_a_file_streams_through_the_graph(stream_model, shared, tmp_path, name):
    """Speech, a second of it, which ends within a chunk."""
    arch = ALL[name]
    samples = audio.read(audio.find([shared / "speech"])[0]).samples[None, :16_100]
    samples = samples[:, :2000] if arch.front.hop == 40 else samples
    inputs, _ = front_inputs(arch, jnp.asarray(samples), None, None)
    whole = forward(arch, weights(arch), inputs).last
    found = streamed(stream_model, arch, tmp_path, inputs, np.array([inputs.shape[1]]), frames=4)
    np.testing.assert_allclose(found[:, : whole.shape[1]], whole, atol=1e-4)


@pytest.mark.slow
def test_the_command_writes_what_agrees(stream_model, tmp_path):
    arch = ALL["causal"]
    stats = Stats(np.full(5, 3, np.float32), np.full(5, 2, np.float32))
    checkpoint.save(tmp_path / "model", arch, weights(arch), extra={"stats.npy": stats_bytes(stats)})
    words = {"format": ("onnx-stream",), "chunk": 100.0, "seconds": 0.2, "rounds": 1}
    rows = export.run(export.Options(str(tmp_path / "model"), tmp_path / "out", **words))
    assert rows[1]["error"] <= 1e-4
    told = json.loads((tmp_path / "out/onnx-stream/stream.json").read_text())
    assert told["chunk"] == 5
    assert told["lookahead"]["ms"] == 15
    assert told["mean"] == [3.0] * 5
    with pytest.raises(InputError, match="--chunk 30: no multiple of a frame of 20 ms; give 40"):
        export.run(export.Options(str(tmp_path / "model"), tmp_path / "other", **words | {"chunk": 30.0}))


def test_what_cannot_stream_is_not_written(stream_model, tmp_path):
    with pytest.raises(InputError, match="layers/0: attention sees all frames"):
        stream_model.write(MEL, weights(MEL), tmp_path, size=4)
    arch = replace(STREAMING["student"], head=None)
    with pytest.raises(InputError, match="a chunk of 60 inputs is no multiple of 80"):
        stream_model.write(arch, weights(arch), tmp_path, size=60)
    assert list(tmp_path.iterdir()) == []


def test_an_operation_that_onnx_has_not_is_told(stream_model):
    with pytest.raises(InputError, match="onnx: sort has no operation there; export stablehlo"):
        stream_model.onnx_of(lambda x: (jnp.sort(x),), [jax.ShapeDtypeStruct((3,), jnp.float32)], ["x"], ["y"])
