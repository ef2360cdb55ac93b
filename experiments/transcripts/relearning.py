"""Recovery without a decoder and without texts: the compressed encoder learns the dense one's output on any speech.

The dense encoder hears every window whole, silence behind the speech, as it was trained; a student that hears a shorter
one learns the frames that both have, and so also what the cut window changed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxssl.models.arch import Arch
from jaxssl.models.model import Output, Params
from jaxssl.runtime.cli import updates
from jaxssl.training.distillation import LAST, TAUGHT, Said, Taught, Wanted, check_frames, distilling, once, teach
from jaxssl.training.loop import train
from jaxssl.training.losses import Sums, means, ratio
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.sharding import fetch
from jaxssl.training.step import Arrays, State, compile_step, start


@dataclass(frozen=True)
class Outputs:
    """The squared error of the encoder's output over the power of the dense one's; a `Distillation` without heads."""

    masked: bool = False

    @property
    def wanted(self) -> Wanted:
        """The encoder's output."""
        return Wanted(plain=True, masked=False, last=True)

    def heads(self, student: Arch, teacher: Arch, key: Array) -> Params:
        """Return nothing: both outputs are what the decoder takes."""
        check_frames(student, teacher, 1)
        return {}

    def __call__(self, heads: Params, output: Output, taught: Taught, labels: Array, mask: Array) -> tuple[Array, Sums]:
        """Return ‖s − t‖² / ‖t‖², all frames together: silence behind the speech reaches the decoder too."""
        assert taught.plain is not None
        target = taught.plain.hidden[LAST].astype(jnp.float32)
        lost = jnp.square(output.last.astype(jnp.float32) - target).sum()
        value = ratio(lost, jnp.square(target).sum())
        return value, once({"loss": value})


@dataclass(frozen=True)
class Recovery:
    """How a compressed model learns.

    Attributes:
        arch: of the dense model, which teaches.
        params: its parameters.
        windows: (windows, samples) float32 of speech, as long as the student hears it.
        batch: windows of an update.
        learning_rate: of Adam after a tenth of the updates; it rises to that and falls to 0 along a half cosine.
        seed: of the order.
        whole: samples that the dense model hears at once, silence behind the speech.
        said: the dense model's output of each window that was heard, (frames, width), which all students learn.
    """

    arch: Arch
    params: Params
    windows: np.ndarray
    batch: int
    learning_rate: float
    seed: int
    whole: int
    said: dict[int, np.ndarray] = field(default_factory=dict)

    def learned(self, arch: Arch, params: Params, steps: int) -> tuple[Params, float]:
        """Train a compressed model for some updates; return it, and the loss of the last ones, a tenth of all."""
        loss = Outputs()
        warmup = -(-steps // 10)  # without it the first steps took away more than sixty gave back
        rate = Optimizer(learning_rate=self.learning_rate, warmup=warmup, decay="cosine", steps=steps, clip=1.0)
        step = compile_step(distilling(arch, loss, stack="unroll"), optimizer := rate.build())
        state, heard = start(params, optimizer, seed=self.seed), list[float]()
        with updates("recovering", steps) as tell:

            def note(number: int, state: State, sums: Sums) -> None:
                heard.append(float(means(sums)["loss"]))
                if number % max(steps // 5, 1) == 0:
                    tell(number, f"error of the output {np.sqrt(np.mean(heard[-max(steps // 5, 1) :])):.4f}")

            state = train(step, state, self._batches(loss, steps), steps=steps, hooks=(note,))
        return fetch(state.params), float(np.mean(heard[-max(steps // 10, 1) :]))

    def _batches(self, loss: Outputs, steps: int) -> Iterator[list[Arrays]]:
        ask = teach(self.arch, loss.wanted)
        teacher = jax.tree.map(jnp.asarray, self.params)
        for rows in order(len(self.windows), self.batch, steps, seed=self.seed):
            inputs = jnp.asarray(self.windows[rows])
            empty = jnp.zeros((len(rows), 0), jnp.int32)  # no labels, and nothing is masked
            batch: Any = {
                "inputs": inputs,
                "lengths": jnp.full(len(rows), inputs.shape[1], jnp.int32),
                "labels": empty,
                "mask": empty.astype(bool),
            }
            if any(row not in self.said for row in rows.tolist()):
                more = self.whole - inputs.shape[1]
                longer = {"inputs": jnp.pad(inputs, ((0, 0), (0, more))), "lengths": batch["lengths"] + more}
                plain = ask(teacher, batch | longer, None).plain
                assert plain is not None
                heard = np.asarray(plain.hidden[LAST])[:, : self.arch.front.frames(inputs.shape[1])]
                self.said.update(zip(rows.tolist(), heard, strict=True))
            last = jnp.asarray(np.stack([self.said[row] for row in rows.tolist()]))
            batch[TAUGHT] = Taught(Said(None, {LAST: last}), None)
            yield [batch]


def order(count: int, batch: int, steps: int, *, seed: int) -> Iterator[np.ndarray]:
    """Yield the rows of each update's batch, (batch,): all once in an epoch, in another order each time."""
    epochs = -(-steps * batch // count)
    rows = np.concatenate([np.random.default_rng((seed, epoch)).permutation(count) for epoch in range(epochs)])
    yield from rows[: steps * batch].reshape(steps, batch)
