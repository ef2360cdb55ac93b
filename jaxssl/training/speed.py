"""How fast a model trains: whole updates of masked prediction, compiled ahead of time, run on noise.

Speed does not depend on what the numbers are, so noise of the right shapes serves; utterances are all of one length,
so that no time goes into padding.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from compress.errors import InputError
from jaxssl.data.masking import spans
from jaxssl.inference.latency import Load, Program
from jaxssl.models import cost
from jaxssl.models.arch import SAMPLE_RATE, Arch
from jaxssl.models.model import Params
from jaxssl.models.stack import Stack
from jaxssl.runtime import memory
from jaxssl.runtime.room import Room
from jaxssl.training.losses import MaskedPrediction
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.step import State, make_step, start


def objective(arch: Arch) -> MaskedPrediction:
    """Return the loss the model's family is pre-trained with: HuBERT adds 10 times its feature penalty.

    Raises:
        InputError: the model has no output layer.
    """
    if arch.head is None:
        raise InputError("this arch has no output layer (head null): masked prediction needs one; take a preset")
    return MaskedPrediction(arch.head.sets, penalty=arch.front.penalty)


def example(arch: Arch, load: Load, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Make up a batch: normal noise, random labels, and masks drawn as in pre-training; none padded.

    Returns:
        `inputs`, `lengths`, `labels` and `mask`, as `jaxssl.data.batches.Batch` names and shapes them.

    Raises:
        InputError: the utterances are too short for one frame.
    """
    rng, samples = np.random.default_rng(seed), round(load.seconds * SAMPLE_RATE)
    frames = arch.front.frames(samples)
    if frames < 1:
        raise InputError(f"{load.seconds:g} s give {frames} frames; give 0.025 s or more")
    shape, clusters, (probability, span) = (
        (load.batch, *arch.front.shape(samples)),
        objective(arch).clusters,
        arch.front.spans,
    )
    labels = [rng.integers(0, count, (load.batch, frames), dtype=np.int32) for count in clusters]
    return {
        "inputs": rng.standard_normal(shape, np.float32),
        "lengths": np.full(load.batch, shape[1], np.int32),
        "labels": labels[0] if len(labels) == 1 else np.stack(labels, -1),
        "mask": spans(rng, [frames] * load.batch, frames, probability=probability, span=span),
    }


def compile_steps(
    arch: Arch,
    params: Params,
    load: Load,
    *,
    stacks: Sequence[Stack] = ("unroll",),
    dtype: Any = jnp.float32,
    seed: int = 0,
    tick: Callable[[], Any] = lambda: None,
) -> dict[Stack, Program]:
    """Compile forward, backward and Adam as one program for each way to run the stack, and run each once.

    All of them go on with one state, so that a device need not hold it more than once.

    Args:
        arch: its dropout is on.
        params: where training starts; they are copied.
        load: of one update.
        stacks: see `jaxssl.models.model.apply`.
        dtype: of the computation; parameters, gradients and moments stay float32.
        seed: of the batch and of dropout.
        tick: called after every program, for a progress bar.
    """
    optimizer, batch = Optimizer().build(), jax.device_put(example(arch, load, seed=seed))
    state, place, programs = [start(params, optimizer, seed=seed)], Room(), dict[Stack, Program]()
    for stack in stacks:
        step = make_step(arch, objective(arch), optimizer, dtype=dtype, stack=stack)
        programs[stack] = _compile(step.whole, state, batch, load, place)
        tick()
    return programs


def macs(arch: Arch, load: Load) -> float:
    """Count the MACs of one update: three times the forward pass's (PaLM, appendix B), nothing for recomputation."""
    return 3 * load.batch * cost.macs(arch, round(load.seconds * SAMPLE_RATE)).total


def _compile(step: Any, state: list[State], batch: Any, load: Load, place: Room) -> Program:
    """Compile one update of the state that `state` holds and the updates replace."""
    begin = time.perf_counter()
    compiled = step.lower(state[0], batch).compile()
    compile_s = time.perf_counter() - begin

    def run() -> None:
        state[0], sums = place.run(step, state[0], batch)
        jax.block_until_ready((state[0], sums))
        memory.tidy()

    begin = time.perf_counter()
    run()
    return Program(run, load, compile_s, time.perf_counter() - begin, _memory(compiled))


def _memory(compiled: Any) -> int | None:
    """Return what XLA plans for the program, in bytes; the new state lies where the old one was and counts once."""
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    both = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return both + plan.temp_size_in_bytes
