"""Gates are what they say, gradient scores are finite differences of the loss, and the study's scores come out."""

import json
from collections import defaultdict
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.address import flatten
from compress.edit import cut, mask
from compress.errors import InputError
from compress.select import highest_overall
from jaxssl.analysis.saliency import context_gradient
from jaxssl.convert.conversion import read
from jaxssl.models.arch import Dropout, Rank
from jaxssl.models.describe import describe
from jaxssl.models.inner_maps import apply_gated
from jaxssl.models.model import apply, shapes
from jaxssl.models.sites import axes
from jaxssl.training.losses import MaskedPrediction
from tests import golden
from tests.archs import ARCHS, MEL, transformer_layer

SHORT = replace(MEL, layers=MEL.layers[:1])
STILL = replace(SHORT, dropout=Dropout(0.0, 0.0))
LOSS = MaskedPrediction((11,))


def lively(arch, seed=0):
    """Parameters of a size that trained ones have, drawn without a program to compile."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * draw.standard_normal(x.shape)).astype(np.float32), shapes(arch))


def drawn(arch, seed, *, rows=2, frames=12, lengths=(12, 9)):
    """A training batch of log-Mel frames, labels and masks."""
    draw = np.random.default_rng(seed)
    return {
        "inputs": jnp.asarray(draw.standard_normal((rows, frames, arch.front.size)), jnp.float32),
        "lengths": jnp.asarray(np.array(lengths, np.int32)),
        "labels": jnp.asarray(draw.integers(0, 11, (rows, frames))),
        "mask": jnp.asarray(draw.random((rows, frames)) < 0.5),
    }


@pytest.mark.parametrize("arch", list(ARCHS.values()), ids=list(ARCHS))
def test_a_gate_of_zeros_and_ones_is_a_mask(arch):
    """f(p, gates that keep k) == f(mask(p, axis, k), gates of ones), for every axis at once."""
    params, draw = lively(arch), np.random.default_rng(1)
    front = arch.front
    shape = (1, 10, front.size) if front.features else (1, front.hop * 10 + 20)
    inputs = jnp.asarray(draw.standard_normal(shape), jnp.float32)
    gates, ones, masked = {}, {}, params
    for axis in (axis for axis in axes(arch) if axis.size):
        keep = np.flatnonzero(draw.random(axis.size) < 0.5)
        ones |= dict.fromkeys(axis.feeds, np.ones((1, 1, axis.size), np.float32))
        gates |= dict.fromkeys(axis.feeds, np.isin(np.arange(axis.size), keep)[None, None].astype(np.float32))
        masked = mask(masked, axis, keep)
    run = jax.jit(lambda params, gates: apply_gated(arch, params, gates, inputs).hidden)
    for one, two in zip(run(params, gates), run(masked, ones), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5, rtol=1e-4)
    assert not np.allclose(run(params, gates)[-1], run(params, ones)[-1], atol=1e-2)


def test_gates_of_ones_are_the_model_itself():
    params, batch = lively(SHORT), drawn(SHORT, 0)
    ones = {axis.into: jnp.ones((2, 12, axis.size)) for axis in axes(SHORT)}
    given = (batch["inputs"], batch["lengths"])
    key = jax.random.key(0, impl="rbg")
    one = jax.jit(lambda params: apply_gated(SHORT, params, ones, *given, mask=batch["mask"], key=key).logits)
    two = jax.jit(lambda params: apply(SHORT, params, *given, mask=batch["mask"], key=key).logits)
    np.testing.assert_allclose(one(params), two(params), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["heads", "hidden"])
def test_scores_are_finite_differences_of_the_loss(kind):
    """Σ over frames of |loss(gate + ε) − loss(gate − ε)| / 2ε, each gate of each frame moved alone."""
    params, batch, step = lively(STILL), drawn(STILL, 0), 0.02
    chosen = [axis for axis in axes(STILL) if axis.name.endswith(kind)]
    ones = {axis.into: np.ones((2, 12, axis.size), np.float32) for axis in chosen}

    @jax.jit
    def differences(gates, moves):
        def loss(gates):
            output = apply_gated(STILL, params, gates, batch["inputs"], batch["lengths"], mask=batch["mask"])
            return LOSS(output, batch["labels"], batch["mask"])[0]

        def one(move):
            up, down = ({p: g + sign * step * move[p] for p, g in gates.items()} for sign in (1, -1))
            return jnp.abs(loss(up) - loss(down)) / (2 * step)

        return jax.lax.map(one, moves, batch_size=48)

    found = context_gradient(STILL, params, [batch], LOSS, kind=kind, normalise=False)
    for axis in chosen:
        count = 2 * 12 * axis.size
        moves = {path: np.zeros((count, *gate.shape), np.float32) for path, gate in ones.items()}
        moves[axis.into] = np.eye(count, dtype=np.float32).reshape(count, 2, 12, axis.size)
        expected = np.asarray(differences(ones, moves)).reshape(2, 12, axis.size).sum((0, 1))
        np.testing.assert_allclose(found[axis.name], expected, rtol=2e-2, atol=1e-4)
        assert np.median(found[axis.name]) > 1e-3  # what was compared is not rounding


def test_batches_are_averaged_and_compiled_once():
    params, batches = lively(STILL), [drawn(STILL, seed) for seed in range(3)]
    traced, ticked = [], []

    def loss(*given):
        traced.append(1)
        return LOSS(*given)

    together = context_gradient(STILL, params, batches, loss, normalise=False, tick=lambda: ticked.append(1))
    assert (len(traced), len(ticked)) == (1, 3)
    parts = [context_gradient(STILL, params, some, LOSS, normalise=False) for some in (batches[:1], batches[1:])]
    for name, values in together.items():
        np.testing.assert_allclose(values, (parts[0][name] + 2 * parts[1][name]) / 3, rtol=1e-5)
        assert not np.allclose(*(part[name] for part in parts), rtol=1e-2)


def test_padding_and_dropout_do_not_matter_unless_asked_for():
    params, batch = lively(SHORT), drawn(SHORT, 0)
    wide = {name: np.concatenate([x, x[:, :5]], 1) if x.ndim > 1 else x for name, x in batch.items()}
    plain = context_gradient(SHORT, params, [batch], LOSS, kind="hidden")
    padded = context_gradient(STILL, params, [wide], LOSS, kind="hidden")
    dropped = context_gradient(SHORT, params, [batch], LOSS, kind="hidden", key=jax.random.key(0, impl="rbg"))
    for name, values in plain.items():
        np.testing.assert_allclose(padded[name], values, rtol=1e-4)
        assert not np.allclose(dropped[name], values, rtol=1e-2)


@pytest.mark.parametrize(("kind", "sizes"), [("heads", [0, 3]), ("hidden", [7, 0])])
def test_layers_without_units_have_no_scores(kind, sizes):
    arch = replace(MEL, layers=(transformer_layer(0, 7, fc2=Rank(2)), transformer_layer(3, 0, out=Rank(2))))
    found = context_gradient(arch, lively(arch), [drawn(arch, 0)], LOSS, kind=kind)
    assert list(found) == [axis.name for axis in axes(arch) if axis.name.endswith(kind)]
    assert [len(values) for values in found.values()] == sizes
    assert {values.dtype for values in found.values()} == {np.dtype(np.float64)}
    assert [np.linalg.norm(values) for values in found.values()] == pytest.approx([min(size, 1) for size in sizes])
    assert sum(map(len, highest_overall(found, 2).values())) == sum(sizes) - 2


def test_scores_need_data():
    with pytest.raises(InputError, match="at least one batch"):
        context_gradient(STILL, lively(STILL), [], LOSS)


def test_the_studys_data_driven_heads(shared):
    """Two events over the whole model: its scores, its heads, its checkpoints, its features.

    What the golden run did, found out by agreement to 1e-7: dropout 0; the loss of a training step, as a mean over
    masked frames; Σ over four batches and their frames of |c · g|; divided by the L2 norm of a layer's scores.
    """
    folder, run = shared / "melhubert", shared / "melhubert/head/data-driven-by_whole/pure"
    trace, masks = json.loads((run / "events.json").read_text()), np.load(run / "input_masks.npz")
    stored, converted = np.load(folder / "mini/batches-20ms-bs2.npz"), read(folder / "ckpt/tiny20.ckpt")
    arch, params = replace(converted.arch, dropout=Dropout(0.0, 0.0)), converted.params

    def batch(number):
        """One of the run's, padded to the longest, so that one program does them all."""
        inputs, lengths, labels = golden.batch(stored, trace["batch_index"][number])
        arrays = {"inputs": inputs, "labels": labels, "mask": masks[f"mask_{number:03d}"]}
        wide = {n: np.pad(x, [(0, 0), (0, 151 - x.shape[1])] + [(0, 0)] * (x.ndim - 2)) for n, x in arrays.items()}
        return {**wide, "lengths": lengths}

    for event, left in zip(trace["events"], (9, 6), strict=True):
        expected = defaultdict(list)
        for layer, _, score in event["scores"]:
            expected[f"layers/{layer}/attention/heads"].append(score)
        batches = [batch(number) for number in range(*event["score_batches"])]
        scores = context_gradient(arch, params, batches, MaskedPrediction((32,)))
        assert list(scores) == list(expected)
        for name, values in scores.items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4)
        keeps = highest_overall(scores, 3, protect=1)
        for axis in (axis for axis in axes(arch) if axis.name in keeps):
            gone = set(range(axis.size)) - set(keeps[axis.name])
            assert gone == set(event["pruned"].get(axis.name.split("/")[1], []))
            params = cut(params, axis, keeps[axis.name])
        arch = describe(arch, params)
        assert [layer.mixer.heads for layer in arch.layers] == event["remaining_per_layer"]
        checkpoint = flatten(read(run / f"states_prune_{left}.ckpt").params)
        for path, leaf in flatten(params).items():
            np.testing.assert_array_equal(leaf, checkpoint[path], err_msg=path)
    _assert_features(arch, params, folder, run)


def _assert_features(arch, params, folder, run):
    inputs, features = np.load(folder / "forward/tiny20_libri960.npz"), np.load(run / "features.npz")
    lengths = inputs["mel_len"].astype(np.int32)
    output = jax.jit(lambda *given: apply(arch, *given))(params, inputs["mel_input"], lengths)
    golden.meets({"last": output.last}, features, atol=1e-4, lengths=lengths)
