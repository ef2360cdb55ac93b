"""The study's two weight-pruning runs, repeated with our own training step, masks and calendar."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from compress.address import flatten
from compress.sparse import apply_masks, entry_masks
from jaxssl.convert import sources
from jaxssl.convert.naming import build
from jaxssl.models.arch import Dropout
from jaxssl.models.sites import entries
from jaxssl.training.calendar import Calendar, Gate, Progress, end, update
from jaxssl.training.losses import MaskedPrediction, means
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.step import make_step, start
from tests import golden

SPARSITIES = (0.2, 0.5, 0.9)
FRAMES = 151  # of the longest batch; all are padded to it, so that one program serves a run
NAMES = {"pruned": "pruned", "not-converge": "held"}


@dataclass(frozen=True)
class Run:
    """What a run did: the loss of each update, (update, "pruned" | "held"), and the masks after each event."""

    losses: list[float]
    events: list[tuple[int, str]]
    masks: list[Mapping[str, np.ndarray]]


@pytest.fixture(scope="module")
def source(shared):
    """The checkpoint from which both runs start."""
    found = sources.describe(shared / "melhubert/ckpt/tiny20.ckpt")
    return replace(found, arch=replace(found.arch, dropout=Dropout(0.0, 0.0)))


@pytest.fixture(scope="module")
def program(source):
    """The optimiser and the step of both runs; the learning rate is a part of the state, so that one compiles."""
    optimizer = optax.inject_hyperparams(lambda rate: Optimizer(learning_rate=rate, clip=10.0).build())(rate=0.0)
    step = make_step(source.arch, MaskedPrediction((32,)), optimizer, view=apply_masks, stack="scan")
    return optimizer, step


def replay(folder, source, program, calendar, rate):
    """Train as they did: Adam goes on over events; only what the loss sees of the parameters changes."""
    params, _ = build(source.arch, source.tensors, source.dialect)
    paths = [path for group in entries(source.arch) for path in group]
    masks = {path: np.ones(leaf.shape, bool) for path, leaf in flatten(params).items() if path in paths}
    optimizer, step = program
    state, updates = start(params, optimizer, seed=0, held=held(masks)), batches(folder)
    state.optimizer.hyperparams["rate"] = jnp.float32(rate)
    run, progress, number = Run([], [], []), Progress(), 0
    while number < end(calendar, progress):
        state, sums = step(state, [updates[number]])
        number, holds = number + 1, progress.held
        run.losses.append(means(sums)["loss"])
        progress, fired = update(calendar, progress, number, run.losses[-1])
        if fired:
            masks = entry_masks(state.params, [paths], SPARSITIES[progress.fired - 1], before=masks)
            state = replace(state, held=held(masks))
            run.masks.append(masks)
        if fired or progress.held > holds:
            run.events.append((number, "pruned" if fired else "held"))
    return run


def held(masks):
    """Copy masks to the device, for a step reuses the memory of its state."""
    return {path: jnp.array(mask, copy=True) for path, mask in masks.items()}


def batches(folder):
    """List the batch of each of their updates."""
    stored, masks = np.load(folder.parents[1] / "mini/batches-20ms-bs2.npz"), np.load(folder / "input_masks.npz")
    found = []
    for number, index in enumerate(trace(folder)["batch_index"][: len(masks.files)]):
        inputs, lengths, labels = golden.batch(stored, index)
        more = ((0, 0), (0, FRAMES - labels.shape[1]))
        inputs, mask = jnp.pad(inputs, (*more, (0, 0))), jnp.pad(masks[f"mask_{number:03d}"], more)
        labels = jnp.pad(labels, more, constant_values=-1)
        found.append({"inputs": inputs, "lengths": lengths, "labels": labels, "mask": mask})
    return found


def trace(folder):
    return json.loads((folder / "trace.json").read_text())


def decisions(folder):
    rows = [row for row in trace(folder)["events"] if row["kind"] == "weight"]
    return [(row["global_step"], NAMES[row["state"]]) for row in rows], [row["zeros"] for row in rows]


def zeros(masks):
    return sum(int((~mask).sum()) for mask in masks.values())


def golden_masks(source, path):
    """Read stored masks by our paths; what they do not name stays whole."""
    stored, arrays = np.load(path), {}
    for name, tensor in source.tensors.items():
        mask = stored[f"{name}_mask"] if f"{name}_mask" in stored else np.ones(tensor.shape)
        arrays[name] = golden.Array(mask.astype(np.float32))
    return {path: leaf != 0 for path, leaf in flatten(build(source.arch, arrays, source.dialect)[0]).items()}


@pytest.mark.slow
def test_the_studys_pruning_run_is_followed(shared, source, program):
    """30 updates, events after 5, 15 and 25: their losses, and the masks they stored."""
    folder = shared / "melhubert/weight/run30"
    run = replay(folder, source, program, Calendar((5, 15, 25), 30), rate=5e-4)
    np.testing.assert_allclose(run.losses, trace(folder)["loss"], rtol=1e-4)
    assert (run.events, [zeros(masks) for masks in run.masks]) == decisions(folder)
    for i, masks in enumerate(run.masks):
        theirs = golden_masks(source, folder / f"weight_masks_{i}.npz")
        assert {path for path, mask in theirs.items() if not mask.all()} <= set(masks)
        other = {path: int((mask != theirs[path]).sum()) for path, mask in masks.items()}
        assert sum(other.values()) <= 0.001 * sum(mask.size for mask in masks.values()), f"event {i}: {other}"


@pytest.mark.slow
def test_the_studys_gate_holds_our_run_back(shared, source, program):
    """40 updates become 56, as two events are held for 8 each; the gate sees our losses, not theirs."""
    folder = shared / "melhubert/weight/converge"
    calendar = Calendar((8, 16, 24), 40, Gate(0.5, 3, -0.1, drop_next=True), delay=8)
    run = replay(folder, source, program, calendar, rate=1e-3)
    assert run.events == [(8, "pruned"), (16, "held"), (24, "pruned"), (32, "held"), (40, "pruned")]
    assert run.events == decisions(folder)[0]
    assert [zeros(masks) for masks in run.masks] == [19930, 49824, 89683]
    theirs = trace(folder)["loss"]
    np.testing.assert_allclose(run.losses[:24], theirs[:24], rtol=1e-4)
    # From the second event on an entry or two at the threshold goes the other way, by the processor's rounding.
    np.testing.assert_allclose(run.losses, theirs, rtol=1e-3)
