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
from jaxssl.inference import sound
from jaxssl.inference.encode import front_inputs
from jaxssl.models import checkpoint
from tests.archs import MEL, forward, weights
from tests.inference.test_streaming import MORE, STREAMING
from tools import export

ALL = STREAMING | MORE


@pytest.fixture(scope="module")
def stream_model():
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    return importlib.import_module("tools.graphs.stream_model")


def streamed(stream_model, arch, folder, samples, lengths, *, frames=3):
    """The model's output through the graph that was written."""
    size = frames * sound.unit(arch)
    stream_model.write(arch, weights(arch), folder, size=size, batch=len(samples), stats=stats_of(arch))
    return stream_model.read(folder).stream(np.asarray(samples), lengths)


def stats_of(arch):
    """Some statistics of a log-Mel model."""
    bins = np.arange(arch.front.bins, dtype=np.float32) if arch.front.features else None
    return None if bins is None else Stats(bins - 3, 1 + bins / 10)


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
    samples = np.random.default_rng(0).normal(size=(2, 21 * sound.unit(arch) + 20)).astype(np.float32) / 10
    lengths = np.array([samples.shape[1], samples.shape[1] * 3 // 5], np.int32)
    inputs, counts = front_inputs(arch, jnp.asarray(samples), jnp.asarray(lengths), stats_of(arch))
    whole = forward(arch, weights(arch), inputs, counts)
    found = streamed(stream_model, arch, tmp_path, samples, lengths, frames=frames)
    for row, count in enumerate(np.asarray(whole.lengths[-1])):
        np.testing.assert_allclose(found[row, :count], whole.last[row, :count], atol=1e-4)


@pytest.mark.parametrize("name", ["pre-norm", "waveform"])
def test_a_file_streams_through_the_graph(stream_model, shared, tmp_path, name):
    """Speech, a second of it, which ends within a chunk."""
    arch = ALL[name]
    samples = audio.read(audio.find([shared / "speech"])[0]).samples[None, :16_100]
    samples = samples[:, :2000] if arch.front.hop == 40 else samples
    inputs, _ = front_inputs(arch, jnp.asarray(samples), None, stats_of(arch))
    whole = forward(arch, weights(arch), inputs).last
    found = streamed(stream_model, arch, tmp_path, samples, np.array([samples.shape[1]]), frames=4)
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
    assert told["chunk"] == 1600
    assert told["lookahead"]["ms"] == 15
    with pytest.raises(InputError, match="--chunk 30: no multiple of a frame of 20 ms; give 40"):
        export.run(export.Options(str(tmp_path / "model"), tmp_path / "other", **words | {"chunk": 30.0}))


def test_what_cannot_stream_is_not_written(stream_model, tmp_path):
    with pytest.raises(InputError, match="layers/0: attention sees all frames"):
        stream_model.write(MEL, weights(MEL), tmp_path, size=1280)
    arch = replace(STREAMING["student"], head=None)
    with pytest.raises(InputError, match=r"samples of shape \(1, 60\): give \(batch, samples\), of a multiple of 80"):
        stream_model.write(arch, weights(arch), tmp_path, size=60)
    assert list(tmp_path.iterdir()) == []


def test_an_operation_that_onnx_has_not_is_told(stream_model):
    with pytest.raises(InputError, match="onnx: only a Fourier transform of one real axis"):
        stream_model.onnx_of(lambda x: (jnp.fft.fft(x).real,), [jax.ShapeDtypeStruct((4,), jnp.float32)], ["x"], ["y"])
    with pytest.raises(InputError, match="onnx: a gather of more than one axis"):
        stream_model.onnx_of(lambda x: (x[[0, 1], [1, 0]],), [jax.ShapeDtypeStruct((2, 2), jnp.float32)], ["x"], ["y"])
    with pytest.raises(InputError, match="onnx: sort has no operation there; export stablehlo"):
        stream_model.onnx_of(lambda x: (jnp.sort(x),), [jax.ShapeDtypeStruct((3,), jnp.float32)], ["x"], ["y"])
