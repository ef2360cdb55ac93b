"""Points of models that fire by what is said: an amount for each rate, room for what fires, and what is told of both.

Training has room for every frame, so no batch is lost whatever the weights learn. What is timed is the same model with
room for a little more than what fired: programs have fixed shapes, and only a shorter room saves time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

from experiments.curves.job import Job
from experiments.curves.points import Fast, Subject
from jaxssl.models import cost
from jaxssl.models.arch import Arch, IntegrateAndFire
from jaxssl.models.rates.firing import amount_for
from jaxssl.models.shorten import shortened
from jaxssl.runtime.cli import console
from jaxssl.training.weight_net import Fired, fitted, heard_fire


@dataclass(frozen=True)
class Roomy:
    """A model that fires, with room for every frame, and what it fires of training speech.

    Attributes:
        subject: the model.
        fired: of some batches that it was trained on.
    """

    subject: Subject
    fired: Fired

    def at(self, ratio: float) -> Subject:
        """Return the model at the amount of mixing by which a frame fires of `ratio` frames, on the mean."""
        amount = amount_of(ratio, self.fired.weight)
        return self._with(replace(firing_part(self.subject.arch), amount=amount, drawn="fixed"))

    def drawing(self, ratios: Sequence[float]) -> Subject:
        """Return the model with amounts drawn in training: from 0 to 1, or to 2 where a ratio lies beyond 1."""
        beyond = any(amount_of(ratio, self.fired.weight) > 1 for ratio in ratios)
        return self._with(replace(firing_part(self.subject.arch), drawn="both" if beyond else "uniform"))

    def _with(self, part: IntegrateAndFire) -> Subject:
        return replace(self.subject, arch=replace(self.subject.arch, shortening=part))


def firing_part(arch: Arch) -> IntegrateAndFire:
    """Return what fires in a model that does."""
    assert isinstance(arch.shortening, IntegrateAndFire)
    return arch.shortening


def amount_of(ratio: float, weight: float) -> float:
    """Return the amount of mixing at which weights of that mean fire a frame of `ratio`; below 2."""
    return float(amount_for(jnp.float32(ratio), rate=weight, period=1.0))


def roomy(job: Job, subject: Subject) -> Roomy:
    """Look at what a model fires of its training speech."""
    return Roomy(subject, heard_fire(subject.arch, subject.seen, job.data, job.training, among="train"))


def begun(job: Job) -> Roomy:
    """Return the model with a net of weights behind its front end, fitted to where labels change."""
    subject = job.subject
    arch, params = shortened(subject.arch, subject.params, IntegrateAndFire(), {})
    params = fitted(arch, params, job.data, job.training)
    found = roomy(job, Subject(arch, params, subject.masks))
    rate, mean = arch.front.rate / arch.front.hop, found.fired.weight
    console.print(
        f"the weights of {rate:g} frames a second sum to {mean * rate:.1f}, where labels change", markup=False
    )
    return found


def narrowed(job: Job, found: Roomy, *, margin: float) -> tuple[Fast, Mapping[str, Any]]:
    """Give a trained model the room that is timed; return it, and what is told of it.

    Args:
        job: whose held-out speech is counted.
        found: the model as it fires, with room for every frame.
        margin: room in units of the most that fired of an utterance of training speech.
    """
    subject = found.subject
    part = replace(firing_part(subject.arch), most=found.fired.room(margin))
    arch = replace(subject.arch, shortening=part)
    heard = heard_fire(subject.arch, subject.seen, job.data, job.training)
    rate, lost = arch.front.rate / arch.front.hop, heard.lost(part)
    mean = rate * heard.counts.sum() / heard.frames.sum()
    low, high, room = rate * heard.shares.min(), rate * heard.shares.max(), rate * part.most / 100
    line = f"frames a second: {mean:.1f}, of an utterance {low:.1f} to {high:.1f}; room for {room:.1f}"
    if lost:
        line += f": {lost} of {len(heard.counts)} held-out utterances fire more and would be lost; give a larger --room"
    console.print(line, markup=False)
    macs = cost.macs_per_second(arch).total / 1e9
    nominal = cost.nominal_macs_per_second(arch, subject.seen) / 1e9
    return Fast(arch, subject.seen), {
        "frames_per_s": mean,
        "fewest_frames_per_s": low,
        "most_frames_per_s": high,
        "room_frames_per_s": room,
        "amount": part.amount,
        "lost_utterances": lost,
        "macs_g_per_s": macs,  # of the model that is timed
        "nominal_macs_g_per_s": nominal,
    }
