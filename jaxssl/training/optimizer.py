"""The optimiser as the papers set it: Adam or AdamW, warm-up and decay, clipping; non-finite gradients skipped."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optax

from compress.errors import InputError

ENDLESS = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Optimizer:
    """How parameters follow their gradients. The defaults are MelHuBERT's (METHODS: Adam 1e-4, constant, clip 10).

    Attributes:
        kind: adam, or adamw with decoupled weight decay.
        learning_rate: the highest one.
        warmup: updates over which the rate rises linearly from 0.
        decay: after the warm-up: stay, fall linearly to 0 (HuBERT), or along a half cosine, at update `steps`.
        steps: updates in all; needed by decays only.
        weight_decay: of adamw.
        clip: largest global norm of a gradient; None does not clip.
        betas: decay rates of the two moments.
        epsilon: added to the root of the second moment.
        rates: top-level names of parameters that learn at a rate of their own, constant, and these rates.
    """

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 1e-4
    warmup: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"
    steps: int | None = None
    weight_decay: float = 0.01
    clip: float | None = 10.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    rates: tuple[tuple[str, float], ...] = ()

    def schedule(self) -> optax.Schedule:
        """Return the learning rate as a function of the update, counted from 0.

        Raises:
            InputError: a decay without `steps`, or with no update left after the warm-up.
        """
        peak = self.learning_rate
        up = optax.linear_schedule(0.0, peak, self.warmup) if self.warmup else None
        if self.decay == "constant":
            after = optax.constant_schedule(peak)
        else:
            left = (self.steps or 0) - self.warmup
            if left < 1:
                raise InputError(f"a {self.decay} decay ends at update {self.steps}, the warm-up at {self.warmup}")
            after = optax.linear_schedule(peak, 0.0, left)
            if self.decay == "cosine":
                after = optax.cosine_decay_schedule(peak, left)
        return after if up is None else optax.join_schedules([up, after], [self.warmup])

    def build(self) -> optax.GradientTransformation:
        """Return the optax transformation; an update whose gradient is not finite changes nothing and is counted."""
        first, second = self.betas
        scale = optax.scale_by_adam(first, second, self.epsilon)
        decay = [optax.add_decayed_weights(self.weight_decay)] if self.kind == "adamw" else []
        clip = [] if self.clip is None else [optax.clip_by_global_norm(self.clip)]
        rate = optax.scale_by_learning_rate(self.schedule())
        if self.rates:
            own = {name: optax.scale_by_learning_rate(value) for name, value in self.rates}
            rate = optax.partition({"": rate, **own}, lambda tree: {k: k if k in own else "" for k in tree})
        chain = optax.chain(*clip, scale, *decay, rate)
        return optax.apply_if_finite(chain, ENDLESS)


def skipped(optimizer_state: Any) -> tuple[Any, Any]:
    """Return how many updates were skipped for a gradient that was not finite: in all, and in a row until now."""
    return optax.tree.get(optimizer_state, "total_notfinite"), optax.tree.get(optimizer_state, "notfinite_count")
