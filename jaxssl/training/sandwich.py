"""Training of a supernet: every update the largest subnet, the smallest and random ones learn from a teacher.

The rule is that of universally slimmable networks (Yu and Huang 2019): what largest and smallest can do bounds the
others. LightHuBERT samples one subnet a step instead, after a first stage in which the supernet alone is distilled; so
may the largest subnet learn alone here at first.
Subnets are sizes in a batch (`jaxssl.models.supernet`), so that one program trains all of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxssl.models.arch import Arch
from jaxssl.models.stack import Stack
from jaxssl.models.subnets import Space
from jaxssl.models.supernet import Sizes, masked, sizes, stacked
from jaxssl.training.corpus import pretraining_loss
from jaxssl.training.distillation import Distillation, compared, once, split, student
from jaxssl.training.fit import Programs, Run
from jaxssl.training.lesson import Give, Lesson
from jaxssl.training.losses import Sums
from jaxssl.training.settings import optimizer, policy
from jaxssl.training.sharding import shardings
from jaxssl.training.step import Arrays, Loss, Objective, State, as_seen, compile_step, make_evaluation

SUBNETS = "subnets"  # in a batch: sizes of those that hear it, stacked


def sandwich(arch: Arch, loss: Distillation, *, dtype: Any = jnp.float32, stack: Stack = "unroll") -> Objective:
    """Return the objective of a supernet: the mean of `loss` over the subnets in a batch.

    Where that compares no logits, an output layer learns the labels on its own, as `distilling` has it. Reported beside
    the mean: `largest` and `smallest`, the losses of the first two; of the largest alone its own twice.

    Args:
        arch: of the supernet.
        loss: how each subnet learns.
        dtype: of the computation.
        stack: see `jaxssl.models.model.apply`.
    """

    def objective(params: Any, held: Any, batch: Arrays, key: Array | None) -> tuple[Array, Sums]:
        net, heads = split(params)
        mask = batch["mask"] if loss.masked else None

        def each(subnet: Sizes) -> tuple[Array, Array]:
            output = masked(
                arch, net, subnet, batch["inputs"], batch["lengths"], mask=mask, key=key, dtype=dtype, stack=stack
            )
            value, told = compared(arch, loss, net, heads, output, batch)
            return value, told["loss"][0]

        values, losses = jax.lax.map(each, batch[SUBNETS])  # one after the other: the memory of one forward pass fewer
        smallest = losses[min(1, losses.shape[0] - 1)]
        return values.mean(), once({"loss": losses.mean(), "largest": losses[0], "smallest": smallest})

    return objective


def drawing(give: Give, arch: Arch, space: Space, *, count: int | None, seed: int) -> Give:
    """Add to a batch the subnets that hear it: the largest, the smallest and `count` random ones; None: the largest.

    They depend on the seed and the batch's position only, so that a resumed run draws the same.
    """

    def giving(batch: Any, position: Any) -> Any:
        rng = np.random.default_rng((seed, position["epoch"], position["step"]))
        drawn = [space.largest]
        if count is not None:
            drawn += [space.smallest, *(space.draw(rng) for _ in range(count))]
        return {**give(batch, position), SUBNETS: stacked([sizes(arch, subnet) for subnet in drawn])}

    return giving


def supernet_programs(
    run: Run, arch: Arch, state: State, lesson: Lesson, space: Space, *, count: int | None, seed: int
) -> Programs:
    """Build what trains a supernet in a run folder, and validates its largest subnet.

    Args:
        run: opened.
        arch: of the supernet.
        state: which the programs are for.
        lesson: of whom and how all subnets learn.
        space: the subnets.
        count: random ones of each update, besides the largest and the smallest; None: the largest learns alone.
        seed: of the draw.
    """
    training = run.training
    dtype, how = jnp.dtype(training.dtype), optimizer(training)
    goal = sandwich(arch, lesson.loss(arch), dtype=dtype, stack=training.stack)
    step = compile_step(goal, how.build(), shardings=shardings(state, run.mesh), spikes=policy(training))
    check = make_evaluation(arch, pretraining_loss(arch, run.data), view=student(as_seen), dtype=dtype)
    give = drawing(lesson.give(arch, run.data), arch, space, count=count, seed=seed)
    return Programs(arch, student(as_seen), step, check, lesson, give)


def subnet_evaluation(arch: Arch, loss: Loss, *, dtype: Any = jnp.float32) -> Callable[[Any, Sizes, Arrays], Sums]:
    """Build `evaluate(params, subnet, batch) -> sums`, one program for all subnets; `loss` as of `make_evaluation`."""

    @jax.jit
    def evaluate(params: Any, subnet: Sizes, batch: Arrays) -> Sums:
        output = masked(arch, params, subnet, batch["inputs"], batch["lengths"], mask=batch["mask"], dtype=dtype)
        return loss(output, batch["labels"], batch["mask"])[1]

    return evaluate
