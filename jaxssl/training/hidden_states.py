"""Distillation of hidden layers: the losses of the compared systems (METHODS 6) as choices of one interface."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from compress.errors import InputError
from jaxssl.models.arch import Arch
from jaxssl.models.layers import frame_mask, gelu, uniform_init
from jaxssl.models.model import Output, Params
from jaxssl.models.supernet import layers_kept
from jaxssl.training.distillation import Taught, Wanted, check_frames, mean, once, zero
from jaxssl.training.losses import Sums

Distance = Callable[[Array, Array, Array], Array]  # student and teacher (batch, time, width), frames (batch, time)


def l1_log_sigmoid(student: Array, teacher: Array, frames: Array) -> Array:
    """Mean absolute difference plus −log σ(cosine) of each frame (DistilHuBERT, Chang et al. 2022, eq. 1, λ = 1)."""
    return _l1(student, teacher, frames) + mean(-jax.nn.log_sigmoid(_cosine(student, teacher)), frames)


def l1_cosine(student: Array, teacher: Array, frames: Array) -> Array:
    """Mean absolute difference minus the cosine of each frame (DPHuBERT, Peng et al. 2023)."""
    return _l1(student, teacher, frames) - mean(_cosine(student, teacher), frames)


def mean_square(student: Array, teacher: Array, frames: Array) -> Array:
    """Mean squared difference (FitHuBERT, Lee et al. 2022; ARMHuBERT, Jang et al. 2023)."""
    return mean(jnp.square(student - teacher).mean(-1), frames)


@dataclass(frozen=True)
class Pair:
    """A layer of the student, one of the teacher (0: input of the first), and the weight of their distance."""

    student: int
    teacher: int
    weight: float = 1.0


@dataclass(frozen=True)
class HiddenStates:
    """Compare hidden layers through heads that are dropped afterwards.

    Attributes:
        pairs: the layers.
        distance: of a head's output and the teacher's layer.
        head: linear: a projection to the teacher's width; identity: one that begins as nothing but the student's
            channels; mlp: with a hidden layer and a GELU before (DistilHuBERT's prediction heads); none: the student's
            layer as it is, of the teacher's width and frames.
        target: plain: teacher and student hear the speech as it is; contextual: the student hears the masked speech,
            and all its frames are compared with what the teacher says of the plain speech (LightHuBERT); crossed:
            masked frames are, the others with what the teacher says of the masked speech (ARMHuBERT).
        frames: frames of the teacher to one of the student; the heads then upsample by a transposed convolution of so
            many taps (FitHuBERT).
    """

    pairs: tuple[Pair, ...]
    distance: Distance = mean_square
    head: Literal["linear", "identity", "mlp", "none"] = "linear"
    target: Literal["plain", "contextual", "crossed"] = "plain"
    frames: int = 1

    @property
    def masked(self) -> bool:
        """The student hears the masked speech but where it learns what is plain."""
        return self.target != "plain"

    @property
    def wanted(self) -> Wanted:
        """The pairs' layers, of plain speech and, to cross, of masked speech."""
        return Wanted(True, self.target == "crossed", tuple(sorted({pair.teacher for pair in self.pairs})))

    def heads(self, student: Arch, teacher: Arch, key: Array) -> Params:
        """Draw a head for each pair, PyTorch's defaults.

        Raises:
            InputError: there is no pair, or one of a layer that is not there; or widths differ and there are no heads.
        """
        _check_pairs(self.pairs, student, teacher)
        check_frames(student, teacher, self.frames)
        if self.head == "none":
            if student.width != teacher.width:
                what = f"layers are compared as they are, and are {student.width} and {teacher.width} wide"
                raise InputError(f"distillation: {what}; give a student of the teacher's width")
            return {}
        keys = jax.random.split(key, len(self.pairs))
        return {str(i): self._head(student.width, teacher.width, keys[i]) for i in range(len(self.pairs))}

    def _head(self, width: int, target: int, key: Array) -> Params:
        keys = jax.random.split(key, 3)
        head: Params = {}
        if self.frames > 1:
            head["up"] = _dense((width,), (self.frames, width), keys[0])
        if self.head == "mlp":
            head["inner"] = _dense((width,), (width,), keys[1])
        if self.head == "identity":
            return {**head, "outer": {"kernel": jnp.eye(width, target), "bias": jnp.zeros(target)}}
        return {**head, "outer": _dense((width,), (target,), keys[2])}

    def __call__(self, heads: Params, output: Output, taught: Taught, labels: Array, mask: Array) -> tuple[Array, Sums]:
        """Return the weighted sum of the distances; reported beside it: `layer_<i>`, each pair's."""
        assert taught.plain is not None
        told, value = dict[str, Array](), zero()
        for i, pair in enumerate(self.pairs):
            target = taught.plain.hidden[str(pair.teacher)].astype(jnp.float32)
            if taught.masked is not None:
                masked = taught.masked.hidden[str(pair.teacher)].astype(jnp.float32)
                target = jnp.where(mask[..., None], target, masked)
            seen = _through(heads.get(str(i), {}), output.aligned[pair.student].astype(jnp.float32), target.shape[1])
            frames = frame_mask(output.last_lengths * self.frames, target.shape[1])
            told[f"layer_{pair.student}_to_{pair.teacher}"] = apart = self.distance(seen, target, frames)
            value = value + pair.weight * apart
        return value, once({"loss": value, **told})


@dataclass(frozen=True)
class TemporalGram:
    """Compare how frames relate in time, without heads (STaRHuBERT, Jang et al. 2024).

    The Gram matrix of a layer is F Fᵀ, (time, time); that within a layer is of its input and its output. Frames are
    brought to unit length first and the difference is squared and averaged over pairs of frames: how the authors
    normalise is not known to us.

    Attributes:
        pairs: the layers.
        within: weight of the matrices of a layer's input and output.
    """

    pairs: tuple[Pair, ...]
    within: float = 1.0

    @property
    def masked(self) -> bool:
        """Nothing is hidden."""
        return False

    @property
    def wanted(self) -> Wanted:
        """The pairs' layers and their inputs."""
        layers = {layer for pair in self.pairs for layer in (pair.teacher, max(pair.teacher - 1, 0))}
        return Wanted(True, False, tuple(sorted(layers)))

    def heads(self, student: Arch, teacher: Arch, key: Array) -> Params:
        """Return nothing: the matrices have the size of the time alone.

        Raises:
            InputError: there is no pair, or one of a layer that is not there.
        """
        _check_pairs(self.pairs, student, teacher)
        check_frames(student, teacher, 1)
        return {}

    def __call__(self, heads: Params, output: Output, taught: Taught, labels: Array, mask: Array) -> tuple[Array, Sums]:
        """Return the weighted sum; reported beside it: `layers` and `within`."""
        assert taught.plain is not None
        mine, theirs = [_unit(h) for h in output.aligned], {k: _unit(h) for k, h in taught.plain.hidden.items()}
        valid = frame_mask(output.last_lengths, mine[0].shape[1])
        both = valid[:, :, None] & valid[:, None, :]
        layers, within = zero(), zero()
        for pair in self.pairs:
            one, two = mine[pair.student], theirs[str(pair.teacher)]
            layers = layers + pair.weight * _gram_distance((one, one), (two, two), both)
            if pair.student and pair.teacher:
                before = mine[pair.student - 1], theirs[str(pair.teacher - 1)]
                within = within + pair.weight * _gram_distance((before[0], one), (before[1], two), both)
        value = layers + self.within * within
        return value, once({"loss": value, "layers": layers, "within": within})


def spread(student: int, teacher: int, count: int) -> tuple[Pair, ...]:
    """Pair `count` layers of the student, evenly spread to its last, with the teacher's at the same relative depth."""
    places = [round(student * (i + 1) / count) for i in range(count)]
    return tuple(Pair(place, max(1, round(place * teacher / student))) for place in places)


def distilhubert(student: Arch, teacher: Arch) -> HiddenStates:
    """Predict the teacher's layers at a third, two thirds and the end from the student's last (4, 8, 12 of 12)."""
    depth = len(teacher.layers)
    targets = sorted({max(1, round(depth * part / 3)) for part in (1, 2, 3)})
    pairs = tuple(Pair(len(student.layers), target) for target in targets)
    return HiddenStates(pairs, l1_log_sigmoid, head="mlp")


def fithubert(student: Arch, teacher: Arch) -> HiddenStates:
    """Give a hint to every layer, weight 1 for the last and 0.1 for the others; a student that reduces time upsamples.

    The weights are those of FitHuBERT (Lee et al. 2022).
    """
    depth = len(student.layers)
    pairs = spread(depth, len(teacher.layers), depth)
    weighted = tuple(Pair(p.student, p.teacher, 1.0 if p.student == depth else 0.1) for p in pairs)
    return HiddenStates(weighted, mean_square, frames=max(student.joined // teacher.joined, 1))


def armhubert(student: Arch, teacher: Arch) -> HiddenStates:
    """Cross masked and unmasked speech at every layer; the layers' weights are not known to us and are equal."""
    depth = len(student.layers)
    return HiddenStates(spread(depth, len(teacher.layers), depth), mean_square, target="crossed")


def starhubert(student: Arch, teacher: Arch) -> TemporalGram:
    """Compare the Gram matrices of every layer."""
    depth = len(student.layers)
    return TemporalGram(spread(depth, len(teacher.layers), depth))


def dphubert(student: Arch, teacher: Arch) -> HiddenStates:
    """Compare the input and the layers at a third, two thirds and the end (0, 4, 8, 12 of 12) by L1 − cosine."""
    thirds = [part / 3 for part in range(4)]
    mine, theirs = len(student.layers), len(teacher.layers)
    pairs = tuple(dict.fromkeys(Pair(round(mine * part), round(theirs * part)) for part in thirds))
    return HiddenStates(pairs, l1_cosine)


def lighthubert(student: Arch, teacher: Arch, layers: tuple[int, ...] = ()) -> HiddenStates:
    """Predict the teacher's last layer, at masked and unmasked frames, from masked speech (Wang et al. 2022).

    The distance, and a head that begins as the identity, for subnets are made of their teacher, are ours: how the
    authors measure is not known to us.

    Args:
        student: the teacher's subnet of its size, or a supernet of the teacher's size.
        teacher: who teaches.
        layers: of the teacher, from 1, each predicted from the same layer, or the last before it that the student
            kept; none named: its last from the student's last.
    """
    if not layers:
        pairs: tuple[Pair, ...] = (Pair(len(student.layers), len(teacher.layers)),)
    else:
        kept = layers_kept(len(student.layers), len(teacher.layers))
        pairs = tuple(Pair(sum(each < layer for each in kept), layer) for layer in layers)
    return HiddenStates(pairs, l1_cosine, head="identity", target="contextual")


def same_layers(student: Arch, teacher: Arch) -> HiddenStates:
    """Compare every layer with the teacher's same layer as it is: for a student that differs in its mixers alone."""
    depth = len(student.layers)
    return HiddenStates(spread(depth, len(teacher.layers), depth), mean_square, head="none")


def _check_pairs(pairs: tuple[Pair, ...], student: Arch, teacher: Arch) -> None:
    if not pairs:
        raise InputError("distillation: no pair of layers is named; name one or more")
    for pair in pairs:
        for who, layer, arch in (("student", pair.student, student), ("teacher", pair.teacher, teacher)):
            if not 0 <= layer <= len(arch.layers):
                raise InputError(f"distillation: layer {layer} of the {who}, which has 0 to {len(arch.layers)}")


def _through(head: Params, x: Array, frames: int) -> Array:
    """Map `x: (batch, time, width)` to (batch, frames, target width)."""
    if "up" in head:
        x = _map(head["up"], x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])[:, :frames]
        x = jnp.pad(x, ((0, 0), (0, frames - x.shape[1]), (0, 0)))  # an odd frame that the student dropped
    if "inner" in head:
        x = gelu(_map(head["inner"], x))
    return _map(head["outer"], x) if "outer" in head else x


def _dense(inputs: tuple[int], outputs: tuple[int, ...], key: Array) -> Params:
    one, two = jax.random.split(key)
    draw = uniform_init(math.prod(inputs))
    return {"kernel": draw(one, (*inputs, *outputs)), "bias": draw(two, outputs[-1:])}


def _map(dense: Params, x: Array) -> Array:
    bias = dense["bias"]
    y = jnp.tensordot(x, dense["kernel"], 1)
    return y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)


def _gram_distance(student: tuple[Array, Array], teacher: tuple[Array, Array], both: Array) -> Array:
    gram = partial(jnp.einsum, "btw,bsw->bts")
    return mean(jnp.square(gram(*student) - gram(*teacher)), both)


def _l1(student: Array, teacher: Array, frames: Array) -> Array:
    return mean(jnp.abs(student - teacher).mean(-1), frames)


def _cosine(one: Array, two: Array) -> Array:
    return (_unit(one) * _unit(two)).sum(-1)


def _unit(x: Array) -> Array:
    """Bring each frame to length 1; a frame of zeros stays, and has a gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)
