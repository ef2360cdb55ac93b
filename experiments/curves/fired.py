"""Points of models that fire by what is said: an amount for each rate, room for what fires, and what is told of both.

Training has room for every frame, so no batch is lost whatever the weights learn. What is timed is the same model with
room for a little more than what fired: programs have fixed shapes, and only a shorter room saves time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp

from compress.errors import InputError
from experiments.curves.job import Job
from experiments.curves.on_speech import on_speech
from experiments.curves.points import Fast, Subject
from jaxssl.data.feeds import MelCorpus, WaveCorpus
from jaxssl.data.segmented import Segmented
from jaxssl.models import cost
from jaxssl.models.arch import Arch, IntegrateAndFire
from jaxssl.models.rates.firing import amount_for
from jaxssl.models.shorten import shortened
from jaxssl.runtime.cli import console
from jaxssl.training.weight_net import Fired, fitted, heard_fire

Guide = Literal["labels", "phones", "smoothed"]
ROOM = 1.15  # in units of the most that fired of an utterance of training speech


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
        return self._with(amount=amount, drawn="fixed")

    def drawing(self, ratios: Sequence[float]) -> Subject:
        """Return the model with amounts drawn in training: from 0 to 1, or to 2 where a ratio lies beyond 1."""
        beyond = any(amount_of(ratio, self.fired.weight) > 1 for ratio in ratios)
        return self._with(drawn="both" if beyond else "uniform")

    def _with(self, **words: Any) -> Subject:
        return replace(self.subject, arch=refired(self.subject.arch, **words))


def refired(arch: Arch, **words: Any) -> Arch:
    """Return the arch of a model that fires with other words of what does."""
    assert arch.firing is not None
    return arch.refired(replace(arch.firing, **words))


def check_guided(arch: Arch) -> None:
    """Refuse what labels could not guide: frames that fire of a sequence that is shorter than theirs.

    Raises:
        InputError: something makes it shorter before frames fire.
    """
    before = replace(arch, layers=() if arch.fires_at is None else arch.layers[: arch.fires_at])
    before = before if arch.fires_at is not None else replace(before, shortening=None)
    if arch.firing is not None and before.shortens:
        raise InputError(
            "frames fire where labels change, and there are fewer frames than labels by then; let them fire first"
        )


def guided(job: Job, by: Guide) -> Job:
    """Return the job with training speech whose segments are guidance; errors as `Segmented`."""
    if by == "labels":
        return job
    corpus, among = job.data.train
    assert isinstance(corpus, MelCorpus | WaveCorpus)  # as it was loaded
    segmented = Segmented(corpus, by, tuple(among.tolist()))
    return replace(job, data=replace(job.data, train=(segmented, among)))


def amount_of(ratio: float, weight: float) -> float:
    """Return the amount of mixing at which weights of that mean fire a frame of `ratio`; below 2."""
    return float(amount_for(jnp.float32(ratio), rate=weight, period=1.0))


def roomy(job: Job, subject: Subject) -> Roomy:
    """Look at what a model fires of its training speech."""
    return Roomy(subject, heard_fire(subject.arch, subject.seen, job.data, job.training, among="train"))


def begun(job: Job, subject: Subject, at: int | None) -> Roomy:
    """Return a model with a net of weights before layer `at`, None: behind its front end, fitted to label changes."""
    part = IntegrateAndFire()
    front, inner = (part, {}) if at is None else (None, {at: part})
    arch, params = shortened(subject.arch, subject.params, front, inner)
    params = fitted(arch, params, job.data, job.training)
    found = roomy(job, Subject(arch, params, subject.masks))
    rate, mean = arch.front.rate / arch.front.hop, found.fired.weight
    console.print(
        f"the weights of {rate:g} frames a second sum to {mean * rate:.1f}, where labels change", markup=False
    )
    return found


def narrowed(job: Job, found: Roomy, *, margin: float = ROOM, rounds: int) -> tuple[Fast, Mapping[str, Any]]:
    """Give a trained model the room that is timed; return it, and what is told of it.

    Programs of one room for all utterances are what is exported. In JAX utterances have the room that each needs
    (`jaxssl.inference.firing_room`), and what that takes over speech is told too.

    Args:
        job: whose held-out speech is counted.
        found: the model as it fires, with room for every frame.
        margin: room in units of the most that fired of an utterance of training speech.
        rounds: timed runs over speech.
    """
    subject = found.subject
    arch = refired(subject.arch, most=found.fired.room(margin))
    part = arch.firing
    assert part is not None
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
        **on_speech(job, subject, rounds=rounds),
    }
