"""A model that streams as an ONNX graph: a chunk and the state in, frames and the next state out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxssl.data.logmel import Stats
from jaxssl.inference import sound, streaming
from jaxssl.inference.specialise import dequantized, unpacked
from jaxssl.models.arch import Arch
from jaxssl.models.model import Params
from tools.graphs.traced import onnx_of

FILE, TOLD = "model.onnx", "stream.json"


def write(arch: Arch, params: Params, folder: Path, *, size: int, batch: int = 1, stats: Stats | None = None) -> None:
    """Write model.onnx and stream.json, which says what a program that runs it must know.

    The graph's inputs are `chunk`, (batch, size) samples at 16 kHz, `lengths`, (batch,), valid samples of each row, and
    `state/…`, each zeros before the first chunk; its outputs `last`, (batch, frames, width), `logits` where there are
    some, `valid`, (batch, frames), and `next/…`, the state for the chunk after. Log-Mel features are made inside.

    Args:
        arch: of a model that can stream.
        params: its parameters.
        folder: that is there.
        size: of a chunk, in samples.
        batch: streams at once.
        stats: of a log-Mel model's features; None: they stay as they are.

    Raises:
        InputError: the model cannot stream, or the size is no multiple of `sound.unit`.
    """
    import onnx

    arch, params = unpacked(*dequantized(arch, params))
    first = sound.start(arch, batch)
    names = ["/".join(key.key for key in path) for path, _ in jax.tree.leaves_with_path(first)]
    chunk = jnp.zeros((batch, size))
    lengths = jnp.full(batch, size, jnp.int32)

    def program(chunk: jax.Array, lengths: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        state = jax.tree.unflatten(jax.tree.structure(first), arrays)
        state, out = sound.step(arch, params, stats, state, chunk, lengths)
        logits = () if out.logits is None else (out.logits,)
        return (out.last, *logits, out.valid, *jax.tree.leaves(state))

    results = ["last", *["logits"] * (arch.head is not None), "valid", *(f"next/{name}" for name in names)]
    inputs = ["chunk", "lengths", *(f"state/{name}" for name in names)]
    model = onnx_of(program, [chunk, lengths, *jax.tree.leaves(first)], inputs, results)
    onnx.save_model(model, folder / FILE, save_as_external_data=True, location=f"{FILE}.data")
    (folder / f"{FILE}.data").chmod(0o644)  # readable for all, as the file beside it
    told: dict[str, Any] = {
        "chunk": size,
        "batch": batch,
        "delay_frames": sound.delay(arch),
        "lookahead": asdict(streaming.lookahead(arch)),
    }
    (folder / TOLD).write_text(json.dumps(told, indent=1))


def read(folder: Path) -> "Session":
    """Read what `write` wrote, to run on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    return Session(session, json.loads((folder / TOLD).read_text()))


def form(
    arch: Arch, params: Params, stats: Stats | None, folder: Path, *, ms: float
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Write a graph of one stream and chunks of `ms` milliseconds; read back, it runs waveforms row by row.

    Raises:
        InputError: as `write`.
    """
    write(arch, params, folder, size=sound.samples_of(arch, ms), stats=stats)
    session = read(folder)

    def run(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        found = [session.stream(samples[i : i + 1], lengths[i : i + 1]) for i in range(len(samples))]
        frames = arch.reduced(arch.front.frames(samples.shape[1]))
        return np.concatenate(found)[:, :frames]

    return run


class Session:
    """Streams of a graph in ONNX Runtime, all begun and ended together."""

    def __init__(self, session: Any, told: dict[str, Any]):
        self.session, self.told = session, told
        self.results = [each.name for each in session.get_outputs()]
        kinds = {"tensor(float)": np.float32, "tensor(bool)": np.bool_, "tensor(int32)": np.int32}
        inputs = {each.name: each for each in session.get_inputs()}
        self.chunk = tuple(inputs["chunk"].shape)
        self.start = {n: np.zeros(e.shape, kinds[e.type]) for n, e in inputs.items() if n.startswith("state/")}

    def step(
        self, state: dict[str, np.ndarray], chunk: np.ndarray, lengths: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Run a chunk; return the state and what the graph gives by name."""
        fed = {"chunk": chunk.astype(np.float32), "lengths": lengths.astype(np.int32), **state}
        found = dict(zip(self.results, self.session.run(self.results, fed), strict=True))
        return {name: found.pop(f"next/{name.removeprefix('state/')}") for name in state}, found

    def stream(self, inputs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Run whole utterances, (batch, samples), of which `lengths` are valid; return the encoder's output."""
        state, found = self.start, []
        for chunk, valid in self.pieces(inputs, lengths):
            state, out = self.step(state, chunk, valid)
            found.append(out["last"])
        return np.concatenate(found, axis=1)[:, self.told["delay_frames"] :]

    def pieces(self, inputs: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Cut samples into chunks, and as many more of zeros, of which none is valid, as bring out what is held."""
        size, frames = self.told["chunk"], self.told["delay_frames"]
        unit = size // self.session.get_outputs()[0].shape[1]
        total = inputs.shape[1] + frames * unit
        padded = np.pad(inputs, ((0, 0), (0, size - 1 + frames * unit)))
        for begin in range(0, total, size):
            yield padded[:, begin : begin + size], np.clip(lengths - begin, 0, size)
