"""Distillation follows the study's own runs, and every loss is least where the student is the teacher."""

import json
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.depth import keep_layers
from compress.errors import InputError
from jaxssl.convert.conversion import read
from jaxssl.convert.naming import build
from jaxssl.models.arch import Dropout
from jaxssl.models.describe import describe
from jaxssl.training.distillation import TAUGHT, SoftLabels, distilling, joined, split, teach
from jaxssl.training.hidden_states import (
    HiddenStates,
    Pair,
    TemporalGram,
    armhubert,
    distilhubert,
    dphubert,
    fithubert,
    l1_cosine,
    l1_log_sigmoid,
    lighthubert,
    mean_square,
    same_layers,
    spread,
    starhubert,
)
from jaxssl.training.losses import means
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.step import compile_step, start
from tests import golden
from tests.archs import MEL, forward, noise, weights

STILL = replace(MEL, dropout=Dropout(0.0, 0.0))
RECIPES = {
    "distilhubert": distilhubert,
    "fithubert": fithubert,
    "armhubert": armhubert,
    "starhubert": starhubert,
    "same_layers": same_layers,
}
RECIPES |= {"dphubert": dphubert, "lighthubert": lighthubert}
FRAMES = 151  # of the longest batch
FIXED = [(kind, t, a) for kind in ("nomasked", "masked") for t, a in ((1, "1"), (2, "1"), (2, "0.5"))]


@pytest.fixture(scope="module")
def teacher(shared):
    found = read(shared / "melhubert/ckpt/tiny20.ckpt")
    return replace(found.arch, dropout=Dropout(0.0, 0.0)), found.params


@pytest.fixture(scope="module")
def stored(shared):
    return np.load(shared / "melhubert/mini/batches-20ms-bs2.npz")


def student_arch(arch):
    return replace(arch, layers=arch.layers[:2])


def stored_students(shared, arch, teacher, kind):
    """Their student, and the same one started from the teacher as their code does: layers and positions alone."""
    student = golden.tree(arch, np.load(shared / f"melhubert/distill/fixed_{kind}_T1_a1.npz"), "student/")
    first = {"layers": keep_layers(teacher, (0, 1))["layers"], "position": teacher["position"]}
    return {"": student, "_init": {**student, **first}}


@pytest.mark.parametrize(("kind", "temperature", "alpha"), FIXED)
def test_the_studys_losses_and_gradients(shared, stored, teacher, kind, temperature, alpha):
    """Loss, its terms and the norm of the gradient at every setting; where they stored it, the gradient itself."""
    told = json.loads((shared / "melhubert/distill/fixed_losses.json").read_text())
    arrays = np.load(shared / f"melhubert/distill/fixed_{kind}_T{temperature}_a1.npz")
    inputs, lengths, labels = golden.batch(stored, 0)
    mask = jnp.asarray(arrays["mask"] if kind == "masked" else np.zeros(labels.shape, bool), bool)
    batch = {"inputs": inputs, "lengths": lengths, "labels": labels, "mask": mask}
    arch, masked = student_arch(teacher[0]), kind == "masked"
    batch |= {TAUGHT: asked(teacher[0], SoftLabels((32,), masked=masked).wanted)(teacher[1], batch, None)}
    settings = np.float32(temperature), np.float32(alpha)
    for suffix, student in stored_students(shared, arch, teacher[1], kind).items():
        (_, sums), gradient = learn(arch, masked, *settings, student, batch)
        found = means(sums) | {"grad_norm": float(norm(gradient))}
        theirs = told[f"{kind}_T{temperature}_a{alpha}{suffix}"]
        for key in ("loss", "hard", "soft", "teacher", "grad_norm"):
            np.testing.assert_allclose(found[key], theirs[key], rtol=1e-4, err_msg=f"{key}{suffix}")
        if alpha == "1" and not suffix:
            assert_alike(gradient, golden.tree(arch, arrays, "grad/"))


@cache
def asked(arch, wanted):
    return teach(arch, wanted, stack="scan")


@partial(jax.jit, static_argnums=(0, 1))
def learn(arch, masked, temperature, alpha, student, batch):
    """Loss and gradient, by one program for all temperatures and shares."""
    loss = SoftLabels((32,), temperature, alpha, masked=masked)
    return jax.value_and_grad(distilling(arch, loss, stack="scan"), has_aux=True)(student, (), batch, None)


def assert_alike(gradient, theirs):
    """To 1e-4 of each array's largest entry; the keys' bias has no gradient but rounding."""
    for path, mine in flatten(gradient).items():
        want = np.asarray(flatten(theirs)[path])
        np.testing.assert_allclose(mine, want, rtol=1e-4, atol=1e-4 * np.abs(want).max() + 2e-8, err_msg=path)


def norm(tree):
    return jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree)))


def padded(inputs, lengths, labels):
    """Pad a batch to the longest one's frames, so that one program serves a run; nothing is masked."""
    more = ((0, 0), (0, FRAMES - labels.shape[1]))
    inputs, labels = jnp.pad(inputs, (*more, (0, 0))), jnp.pad(labels, more, constant_values=-1)
    return {"inputs": inputs, "lengths": lengths, "labels": labels, "mask": jnp.zeros(labels.shape, bool)}


@pytest.mark.slow
def test_the_studys_run_is_followed(shared, stored, teacher):
    """Ten updates of a student of two layers: losses and the last checkpoint."""
    folder, arch = shared / "melhubert/distill/run_nomasked_T1_a1", student_arch(teacher[0])
    trace, init_ = json.loads((folder / "trace.json").read_text()), np.load(folder / "student_init.npz")
    params = build(arch, {name: golden.Array(init_[name]) for name in init_.files}, "fairseq")[0]
    loss, optimizer = SoftLabels((32,)), Optimizer(learning_rate=5e-4, clip=10.0).build()
    step, state = compile_step(distilling(arch, loss, stack="scan"), optimizer), start(params, optimizer, seed=0)
    ask = teach(teacher[0], loss.wanted, stack="scan")
    for number, theirs in enumerate(trace["kd_total_hard_soft_teacher"]):
        batch = padded(*golden.batch(stored, trace["batch_index"][number]))
        state, sums = step(state, [batch | {TAUGHT: ask(teacher[1], batch, None)}])
        found = means(sums)
        mine = [found[key] for key in ("loss", "hard", "soft", "teacher")]
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, err_msg=f"update {number}")
        np.testing.assert_allclose(found["gradient_norm"], trace["grad_norm"][number], rtol=1e-3)
    last = flatten(read(folder / "last-step.ckpt").params)
    for path, leaf in flatten(state.params).items():
        if not path.endswith("/k/bias"):
            np.testing.assert_allclose(leaf, last[path], atol=5e-5, err_msg=path)


@pytest.fixture(scope="module")
def speech():
    """Two rows, one padded; and a teacher."""
    key = jax.random.key(1)
    mask = jax.random.bernoulli(key, 0.5, (2, 30))
    lengths = jnp.array([30, 21])
    batch = {"inputs": noise(MEL, key, batch=2, frames=30), "lengths": lengths, "mask": mask}
    return batch | {"labels": jnp.zeros((2, 30), int)}, weights(STILL, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_the_student_and_its_heads(speech, name):
    """A student of one layer, new weights: the loss falls, all that is trained gets a gradient, padding none."""
    batch, params = speech
    arch = replace(STILL, layers=STILL.layers[:1])
    student = weights(arch, 9)
    loss = RECIPES[name](arch, STILL)
    ask = teach(STILL, loss.wanted)
    heads = loss.heads(arch, STILL, jax.random.key(3))
    optimizer = Optimizer(learning_rate=1e-3).build()
    step, state = compile_step(distilling(arch, loss), optimizer), start(joined(student, heads), optimizer, seed=0)
    given, values = batch | {TAUGHT: ask(params, batch, None)}, []
    for _ in range(4):
        state, sums = step(state, [given])
        values.append(means(sums)["loss"])
    assert values[-1] < values[0]
    trained, _ = split(state.params)
    assert describe(arch, trained) == arch
    before = flatten(joined(student, heads))
    assert [path for path, leaf in flatten(state.params).items() if np.array_equal(leaf, before[path])] == []

    dirty = batch["inputs"].at[1, 21:].set(7.0)
    noisy = batch | {"inputs": dirty}
    again = noisy | {TAUGHT: ask(params, noisy, None)}
    value = jax.jit(distilling(arch, loss))
    tree = joined(student, heads)
    np.testing.assert_allclose(value(tree, (), again, None)[0], value(tree, (), given, None)[0], rtol=1e-5)


def test_a_student_that_is_the_teacher_has_nothing_to_learn(speech):
    batch, params = speech
    taught = teach(STILL, HiddenStates(spread(3, 3, 3)).wanted)(params, batch, None)
    output = forward(STILL, params, batch["inputs"], batch["lengths"])
    pairs = spread(len(STILL.layers), len(STILL.layers), len(STILL.layers))
    least = {mean_square: 0.0, l1_cosine: -1.0, l1_log_sigmoid: float(-jax.nn.log_sigmoid(1.0))}
    for distance, value in least.items():
        loss = HiddenStates(pairs, distance, head="identity")
        heads = loss.heads(STILL, STILL, jax.random.key(0))
        found, _ = loss(heads, output, taught, batch["labels"], batch["mask"])
        np.testing.assert_allclose(found, value * len(pairs), atol=1e-5)
    plain, _ = same_layers(STILL, STILL)({}, output, taught, batch["labels"], batch["mask"])
    np.testing.assert_allclose(plain, 0, atol=1e-5)
    gram = TemporalGram(pairs)
    said = teach(STILL, gram.wanted)(params, batch, None)
    assert float(gram({}, output, said, batch["labels"], batch["mask"])[0]) < 1e-10


def test_a_subnet_predicts_a_layer_from_the_last_that_it_kept_before_it():
    six = replace(STILL, layers=STILL.layers[:1] * 6)
    four = replace(six, layers=six.layers[:4])  # 0, 1, 2 and 4
    assert lighthubert(four, six).pairs == (Pair(4, 6),)
    assert lighthubert(four, six, (3, 4, 5)).pairs == (Pair(3, 3), Pair(3, 4), Pair(4, 5))
    assert lighthubert(six, six, (3, 4)).pairs == (Pair(3, 3), Pair(4, 4))


def test_crossing_swaps_what_is_masked(speech):
    """On masked frames the target is what the teacher says of plain speech, elsewhere what it says of masked speech."""
    batch, params = speech
    loss = HiddenStates((Pair(1, 1),), target="crossed")
    taught = teach(STILL, loss.wanted)(params, batch, None)
    plain, masked = taught.plain.hidden["1"], taught.masked.hidden["1"]
    crossed = jnp.where(batch["mask"][..., None], plain, masked)
    assert not np.allclose(plain, masked)
    output = replace(forward(STILL, params, batch["inputs"], batch["lengths"]), aligned=(crossed, crossed))
    eye = {"0": {"outer": {"kernel": jnp.eye(STILL.width), "bias": jnp.zeros(STILL.width)}}}
    assert float(loss(eye, output, taught, batch["labels"], batch["mask"])[0]) < 1e-10


def test_a_student_of_half_the_frames_is_upsampled(speech):
    """The head's taps give frames 2t and 2t + 1; a lone last frame of the teacher is not compared."""
    batch, params = speech
    student = replace(STILL, time_reduction=2)
    assert fithubert(student, STILL).frames == 2
    loss = HiddenStates((Pair(1, 1),), frames=2)
    heads = loss.heads(student, STILL, jax.random.key(0))
    taught = teach(STILL, loss.wanted)(params, batch, None)
    x = jax.random.normal(jax.random.key(5), (2, 15, STILL.width))
    output = replace(forward(STILL, params, batch["inputs"]), aligned=(x, x), last_lengths=jnp.array([15, 10]))
    found, _ = loss(heads, output, taught, batch["labels"], batch["mask"])
    up, outer = heads["0"]["up"], heads["0"]["outer"]
    spread_ = np.einsum("btw,wkv->btkv", x, up["kernel"]).reshape(2, 30, -1) + np.asarray(up["bias"])
    apart = (
        spread_ @ np.asarray(outer["kernel"]) + np.asarray(outer["bias"]) - np.asarray(taught.plain.hidden["1"])
    ) ** 2
    np.testing.assert_allclose(found, np.concatenate([apart[0], apart[1, :20]]).mean(), rtol=1e-5)


def test_layers_are_paired_at_equal_depth():
    assert spread(12, 12, 12)[4] == Pair(5, 5)
    assert spread(2, 12, 2) == (Pair(1, 6), Pair(2, 12))
    assert [pair.teacher for pair in distilhubert(deep(2), deep(12)).pairs] == [4, 8, 12]
    assert [(pair.student, pair.teacher) for pair in dphubert(deep(12), deep(12)).pairs] == [
        (0, 0),
        (4, 4),
        (8, 8),
        (12, 12),
    ]
    assert [pair.weight for pair in fithubert(deep(3), deep(12)).pairs] == [0.1, 0.1, 1.0]


def deep(layers):
    return replace(MEL, layers=MEL.layers[:1] * layers)


@pytest.mark.parametrize(
    ("loss", "arch", "words"),
    [
        (SoftLabels((11,), temperature=0.0), MEL, "temperature 0"),
        (SoftLabels((11,), alpha=1.5), MEL, "alpha 1.5"),
        (SoftLabels((11,)), replace(MEL, head=None), "student has no output layer"),
        (HiddenStates((Pair(1, 9),)), MEL, "layer 9 of the teacher"),
        (HiddenStates(()), MEL, "no pair"),
        (TemporalGram((Pair(7, 1),)), MEL, "layer 7 of the student"),
        (SoftLabels((11,)), replace(MEL, time_reduction=2), "reduces time by 2, the teacher by 1"),
        (dphubert(MEL, MEL), replace(MEL, time_reduction=2), "reduces time by 2, the teacher by 1"),
        (same_layers(MEL, MEL), replace(MEL, width=20), "are 20 and 16 wide; give a student of the teacher's width"),
    ],
)
def test_what_cannot_be_learned_is_refused(loss, arch, words):
    with pytest.raises(InputError, match=words):
        loss.heads(arch, MEL, jax.random.key(0))
